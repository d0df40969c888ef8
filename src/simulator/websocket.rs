//! WebSocket mode on the wire: the handshake, the frames both ways, and the end of a socket.
//!
//! This file decides which handshake is accepted (with the checks of HTTP), how long a socket lives
//! and which close code it gets. `connection` decides what a frame means. permessage-deflate is
//! declined.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures_util::stream::{FuturesUnordered, SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc::{self, Receiver, UnboundedReceiver};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

use super::caller::{TURN_STATE, describe, name, recognize};
use super::connection::{Connection, Out};
use super::fault::{At, Target};
use super::http::refuse;
use super::judge::{Outcome, Turn};
use super::key::Key;
use super::lanes::Lanes;
use super::leak;
use super::refusal::Refusal;
use super::request::Transport;
use super::sockets::{Line, Socket};
use super::stream::broken;
use super::world::World;
use crate::task::Tasks;

/// Life of a socket, in simulated time.
const LIFE: Duration = Duration::from_secs(60 * 60);
/// Most bytes of one message.
const MOST_BYTES: usize = 16 << 20;
/// Requests that wait on one socket before the simulator stops reading from it.
const MOST_WAITING: usize = 256;
/// Most frames that wait to be written.
const QUEUE: usize = 8;
/// Time for the other side to read what is left, and then to close.
const FAREWELL: Duration = Duration::from_secs(2);

const GOING_AWAY: u16 = 1001;
const UNSUPPORTED: u16 = 1003;

type Wire = WebSocketStream<TokioIo<Upgraded>>;

/// The owner of sockets, once they are no longer requests.
#[derive(Clone)]
pub struct Lifecycle {
    pub tasks: Tasks,
    pub closing: CancellationToken,
}

/// Whether a request wants to become a WebSocket.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    has(headers, &header::CONNECTION, "upgrade") && has(headers, &header::UPGRADE, "websocket")
}

fn has(headers: &HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|own| own.trim().eq_ignore_ascii_case(token))
}

pub async fn serve(
    world: &Arc<World>,
    lifecycle: Lifecycle,
    mut request: Request<Body>,
) -> Response<Body> {
    let began = Instant::now();
    let headers = request.headers().clone();
    let text = |name: &str| {
        headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let session = text("session-id");
    let path = request.uri().path().to_owned();
    let line = world.sockets.open(Socket {
        path: path.clone(),
        session: session.clone(),
        ..Socket::default()
    });
    let mut opening = Turn {
        transport: Transport::WebSocket.name().into(),
        method_path: format!("GET {path}"),
        session,
        headers: leak::names(&headers).into(),
        connection: Some(line.number()),
        ..Turn::default()
    };
    let (key, entered) = match recognize(world, &headers, request.uri().query(), true) {
        Ok(key) => {
            (Some(Arc::clone(&key)), enter(world, &headers, &key, opening.session.as_deref()).await)
        }
        Err((key, refusal)) => (key, Err(Entrance::Refused(refusal))),
    };
    if let Some(key) = &key {
        name(&mut opening, key);
        line.of(key);
    }
    let (key, accepted) = match (key, entered) {
        (Some(key), Ok(accepted)) => (key, accepted),
        (key, entered) => {
            // Like any refused request, the handshake is a turn on record.
            let mut entry = world.judge.open(Turn { turn_state: text(TURN_STATE), ..opening });
            let mut response = match entered {
                Err(Entrance::Refused(refusal)) => {
                    line.refused(refusal.status.as_u16());
                    refuse(&refusal, entry)
                }
                _ => {
                    entry.became(Outcome::Cut);
                    Response::new(broken())
                }
            };
            describe(world, began, key.as_deref(), &headers, response.headers_mut());
            return response;
        }
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    describe(world, began, Some(&key), &headers, response.headers_mut());
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accepted.proof);
    response.headers_mut().extend(accepted.headers);

    let order = line.accepted();
    let (out, said) = mpsc::channel(QUEUE);
    let connection = Connection {
        world: Arc::clone(world),
        key,
        line: Arc::new(line),
        opening,
        reads_metadata: headers.contains_key("openai-beta"),
        out,
        hung_up: Arc::default(),
        local: Default::default(),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let closing = lifecycle.closing;
    lifecycle.tasks.spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let config = WebSocketConfig::default()
                .read_buffer_size(8192)
                .write_buffer_size(0)
                .max_message_size(Some(MOST_BYTES))
                .max_frame_size(Some(MOST_BYTES));
            let wire = WebSocketStream::from_raw_socket(
                TokioIo::new(upgraded),
                Role::Server,
                Some(config),
            )
            .await;
            hold(wire, connection, order, said, accepted.farewell, closing).await;
        }
    });
    response
}

/// Why a handshake is refused.
enum Entrance {
    Refused(Refusal),
    Broken,
}

/// How a handshake is accepted.
struct Accepted {
    proof: HeaderValue,
    headers: HeaderMap,
    /// The close code that the socket gets at once.
    farewell: Option<u16>,
}

async fn enter(
    world: &World,
    headers: &HeaderMap,
    key: &Key,
    session: Option<&str>,
) -> Result<Accepted, Entrance> {
    let invalid = |message: &str| Entrance::Refused(Refusal::invalid(None, None, message));
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(invalid("The WebSocket version must be 13."));
    }
    let asked = headers.get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let proof = asked
        .and_then(|proof| HeaderValue::from_str(&proof).ok())
        .ok_or_else(|| invalid("There is no Sec-WebSocket-Key."))?;
    let fault = world.memory().faults.strike(Target {
        at: At::Handshake,
        key,
        model: None,
        session,
        tier: None,
        prewarm: false,
    });
    let Some(fault) = fault else {
        return Ok(Accepted { proof, headers: HeaderMap::new(), farewell: None });
    };
    if let Some(stall) = fault.stall {
        tokio::time::sleep(stall.0).await;
    }
    match fault.status.and_then(|status| StatusCode::from_u16(status).ok()) {
        Some(status) if status != StatusCode::OK => {
            Err(Entrance::Refused(fault.refusal(status, key, "this model")))
        }
        _ if fault.reset => Err(Entrance::Broken),
        _ => Ok(Accepted { proof, headers: fault.answer_headers(None), farewell: fault.close }),
    }
}

/// Which side ended a socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    ByClient,
    ByUs,
}

/// Runs a socket until its end.
async fn hold(
    wire: Wire,
    connection: Connection,
    order: UnboundedReceiver<Option<u16>>,
    said: Receiver<Out>,
    farewell: Option<u16>,
    closing: CancellationToken,
) {
    let (sink, mut stream) = wire.split();
    let line = Arc::clone(&connection.line);
    let (gone, written) = (CancellationToken::new(), CancellationToken::new());
    let talking = async {
        let ended = match farewell {
            Some(code) => {
                connection.say(Out::Close(code)).await;
                Ended::ByUs
            }
            None => talk(&mut stream, &connection, order, &written, closing).await,
        };
        // The connection owns the sender of frames. Once it is dropped, the writer ends after the
        // last frame.
        drop(connection);
        if ended == Ended::ByUs {
            let _ = tokio::time::timeout(FAREWELL, written.cancelled()).await;
        }
        gone.cancel();
    };
    let ((), is_broken) = tokio::join!(talking, write(sink, said, &line, &gone, &written));
    if !is_broken {
        let closed = async { while matches!(stream.next().await, Some(Ok(_))) {} };
        let _ = tokio::time::timeout(FAREWELL, closed).await;
    }
}

/// Reads and serves until one side ends the socket.
async fn talk(
    stream: &mut SplitStream<Wire>,
    connection: &Connection,
    mut order: UnboundedReceiver<Option<u16>>,
    written: &CancellationToken,
    closing: CancellationToken,
) -> Ended {
    let mut lanes = Lanes::default();
    let mut running = FuturesUnordered::new();
    let life = tokio::time::sleep(connection.world.clock.real(LIFE));
    tokio::pin!(life);
    let mut is_closing = false;
    loop {
        while let Some((lane, arrived)) = lanes.next() {
            running.push(connection.serve(lane, arrived));
        }
        if is_closing && lanes.is_idle() {
            connection.say(Out::Close(GOING_AWAY)).await;
            return Ended::ByUs;
        }
        tokio::select! {
            message = stream.next(), if lanes.waiting() < MOST_WAITING => match message {
                Some(Ok(Message::Text(text))) => {
                    connection.receive(&mut lanes, text.as_str().to_owned()).await
                }
                Some(Ok(Message::Ping(_))) => connection.line.note(|socket| socket.pings += 1),
                Some(Ok(Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Binary(_))) => {
                    connection.say(Out::Close(UNSUPPORTED)).await;
                    return Ended::ByUs;
                }
                Some(Ok(Message::Close(frame))) => {
                    let code = frame.map_or(1005, |frame| frame.code.into());
                    connection.line.note(|socket| socket.client_close = Some(code));
                    return Ended::ByClient;
                }
                Some(Err(error)) => match complaint(&error) {
                    Some(code) => {
                        connection.say(Out::Close(code)).await;
                        return Ended::ByUs;
                    }
                    None => return Ended::ByClient,
                },
                None => return Ended::ByClient,
            },
            Some(lane) = running.next(), if !running.is_empty() => lanes.done(&lane),
            () = &mut life => {
                connection.expire().await;
                return Ended::ByUs;
            }
            Some(ordered) = order.recv() => {
                connection.say(ordered.map_or(Out::Break, Out::Close)).await;
                return Ended::ByUs;
            }
            () = closing.cancelled(), if !is_closing => is_closing = true,
            // A turn has closed the socket, or the writer is gone.
            () = written.cancelled() => return Ended::ByUs,
        }
    }
}

/// Returns the close code for a peer's fault. `None`: the peer has only gone.
fn complaint(error: &Error) -> Option<u16> {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. } | CapacityError::TooManyHeaders) => {
            Some(1009)
        }
        Error::Utf8(_) => Some(1007),
        // The peer left without a close.
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        Error::Protocol(_) => Some(1002),
        _ => None,
    }
}

/// Writes frames until the last one, or until the client stops reading. Returns whether the last
/// frame was an order to break the connection.
async fn write(
    mut sink: SplitSink<Wire, Message>,
    mut said: Receiver<Out>,
    line: &Line,
    gone: &CancellationToken,
    written: &CancellationToken,
) -> bool {
    let writing = async {
        while let Some(out) = said.recv().await {
            let message = match out {
                Out::Text(text) => Message::text(text),
                Out::Close(code) => {
                    line.note(|socket| socket.server_close = Some(code));
                    let frame = CloseFrame { code: code.into(), reason: "".into() };
                    let _ = sink.send(Message::Close(Some(frame))).await;
                    return false;
                }
                Out::Break => return true,
            };
            if sink.send(message).await.is_err() {
                return false;
            }
        }
        false
    };
    let is_broken = tokio::select! {
        () = gone.cancelled() => false,
        is_broken = writing => is_broken,
    };
    written.cancel();
    is_broken
}
