//! One peer of a WebSocket: limits for its message size and its silence, and how to close its
//! connection.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt, SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::turn::idle::Idle;
use crate::turn::websocket::frames::Frames;
use crate::turn::websocket::meter::Meter;

/// Largest message that is accepted from a client. OpenAI's own limit is not known; a Codex turn
/// has a few megabytes at most.
const LARGEST: usize = 16 * 1024 * 1024;
/// Largest message that is accepted from an upstream: an event may hold a picture, or several.
const LARGEST_EVENT: usize = 256 * 1024 * 1024;
/// Size of the read buffer. The default would cost a quarter of a megabyte per connection.
const READ: usize = 4 * 1024;
/// Bytes that are joined into one write.
const WRITE: usize = 4 * 1024;
/// Most pongs that may wait for a peer that does not read. Beyond that, the gateway stops reading
/// from the peer, because each further ping would add a pong.
const UNSENT_PONGS: usize = 256;

/// Longest time for which the rest of a refused message is read and discarded, and most bytes of
/// it. Without this, the connection would be reset before its sender reads the reason.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_BYTES: usize = 64 * 1024 * 1024;

pub type PeerFrames = Frames<TokioIo<Upgraded>>;
pub type Sink = SplitSink<PeerFrames, Message>;

/// Returns the frames of a connection, which `meter` measures.
pub fn frames(connection: Upgraded, role: Role, meter: Meter) -> PeerFrames {
    let largest = if role == Role::Server { LARGEST } else { LARGEST_EVENT };
    let config = WebSocketConfig::default()
        .read_buffer_size(READ)
        .write_buffer_size(WRITE)
        .max_message_size(Some(largest))
        .max_frame_size(Some(largest));
    Frames::new(TokioIo::new(connection), role, config, meter)
}

/// How a peer was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The peer closed the connection.
    Closed(Option<CloseFrame>),
    /// The connection ended without a close frame, or the peer was silent for too long.
    Gone,
    /// The peer broke the protocol. The gateway closes with this code.
    Broke(CloseCode),
    /// The replica has no memory for the peer's message.
    Full,
    /// The peer's message came too slowly.
    Slow,
}

impl Lost {
    fn of(error: &Error) -> Self {
        match error {
            Error::Io(error) if error.kind() == ErrorKind::OutOfMemory => Self::Full,
            Error::Capacity(_) => Self::Broke(CloseCode::Size),
            Error::Utf8(_) => Self::Broke(CloseCode::Invalid),
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Self::Gone,
            Error::Protocol(_) => Self::Broke(CloseCode::Protocol),
            _ => Self::Gone,
        }
    }
}

/// The messages from a peer.
pub struct Incoming {
    frames: SplitStream<PeerFrames>,
    meter: Meter,
    /// Length of the message that was returned last.
    last: usize,
    /// Fires when the unfinished message may be overdue.
    overdue: Option<Pin<Box<Sleep>>>,
    silence: Idle,
    /// When the answer to the last ping must have come. `Some`: nothing has arrived since that
    /// ping.
    pinged: Option<Instant>,
    /// Pongs that could not be sent at once.
    unsent_pongs: usize,
}

impl Incoming {
    pub fn new(frames: SplitStream<PeerFrames>, ping: Duration, meter: Meter) -> Self {
        let (silence, pinged) = (Idle::new(ping), None);
        Self { frames, meter, last: 0, overdue: None, silence, pinged, unsent_pongs: 0 }
    }

    /// Returns the next message to forward. The call means that the message before has been
    /// forwarded. Pings a silent peer through `sink`.
    pub async fn next(&mut self, sink: &Mutex<Sink>) -> Result<Message, Lost> {
        if self.last > 0 {
            self.meter.note_forwarded(std::mem::take(&mut self.last));
        }
        loop {
            let message = match poll_fn(|context| self.poll_next(context)).await {
                Received::Item(Some(Ok(message))) => message,
                Received::Item(Some(Err(error))) => return Err(Lost::of(&error)),
                Received::Item(None) => return Err(Lost::Gone),
                Received::Overdue => return Err(Lost::Slow),
                Received::Silence => {
                    // The time before `note_arrival`: the next silence must not end before the
                    // ping's answer is due.
                    let now = Instant::now();
                    self.silence.note_arrival();
                    if self.meter.has_arrived() {
                        self.pinged = None;
                    } else if self.pinged.is_some_and(|until| now >= until) {
                        return Err(Lost::Gone);
                    }
                    if self.pinged.is_none() && ping(sink) {
                        // A slow peer reads the ping only after everything that was sent before it.
                        let sent = self.meter.received();
                        self.pinged = Some(sent.max(now) + self.silence.timeout());
                    }
                    continue;
                }
            };
            self.silence.note_arrival();
            self.pinged = None;
            self.last = if message.is_text() || message.is_binary() { message.len() } else { 0 };
            match message {
                Message::Close(frame) => return Err(Lost::Closed(frame)),
                Message::Ping(_) => self.answer(sink).await,
                Message::Pong(_) => {}
                // OpenAI's messages are text. A binary message, which no rule can read, does not
                // pass (RFC 6455, section 7.4.1).
                Message::Binary(_) => return Err(Lost::Broke(CloseCode::Unsupported)),
                message => return Ok(message),
            }
        }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Received> {
        if let Poll::Ready(item) = self.frames.poll_next_unpin(context) {
            return Poll::Ready(Received::Item(item));
        }
        if self.poll_overdue(context).is_ready() {
            return Poll::Ready(Received::Overdue);
        }
        self.silence.poll_over(context).map(|()| Received::Silence)
    }

    /// Ready when an unfinished message is overdue.
    fn poll_overdue(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.meter.deadline() else {
            self.overdue = None;
            return Poll::Pending;
        };
        let timer = self.overdue.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        while timer.as_mut().poll(context).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// Flushes the pong that the frames have prepared. The gateway waits for a peer only if many
    /// pongs are unsent: a peer that is sending may briefly not read.
    async fn answer(&mut self, sink: &Mutex<Sink>) {
        let is_out = sink
            .try_lock()
            .is_ok_and(|mut sink| matches!(sink.flush().now_or_never(), Some(Ok(()))));
        self.unsent_pongs = if is_out { 0 } else { self.unsent_pongs + 1 };
        if self.unsent_pongs > UNSENT_PONGS {
            // If the peer is gone, reading from it will fail.
            let _ = sink.lock().await.flush().await;
            self.unsent_pongs = 0;
        }
    }
}

/// The result of a wait for a message.
enum Received {
    Item(Option<Result<Message, Error>>),
    /// An unfinished message is overdue.
    Overdue,
    /// No message came for a while.
    Silence,
}

/// Sends a ping. Returns whether it went out. If other data blocks the sink, the peer reads slowly
/// and cannot be expected to answer.
fn ping(sink: &Mutex<Sink>) -> bool {
    let Ok(mut sink) = sink.try_lock() else { return false };
    matches!(sink.send(Message::Ping(Bytes::new())).now_or_never(), Some(Ok(())))
}

/// The last message to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// None, because the peer is gone.
    None,
    /// The peer closed the connection itself; the library answers its close frame.
    Echo,
    Say(Option<CloseFrame>),
}

/// Closes a peer's connection within `timeout`, after the messages `last`. A peer that is still
/// sending a refused message has longer.
pub async fn leave(
    sink: Mutex<Sink>,
    from: Incoming,
    last: Vec<Message>,
    farewell: Farewell,
    timeout: Duration,
) {
    let Ok(mut frames) = sink.into_inner().reunite(from.frames) else { return };
    let close = match farewell {
        Farewell::None => return,
        Farewell::Echo => None,
        Farewell::Say(frame) => Some(Message::Close(frame)),
    };
    let is_broken = close.as_ref().is_some_and(is_protocol_error);
    let longest = if is_broken { LINGER } else { timeout };
    let leaving = async {
        for message in last.into_iter().chain(close) {
            frames.send(message).await?;
        }
        frames.flush().await?;
        if is_broken {
            // The gateway cannot read the peer's bytes any more. If they stayed unread, the
            // connection would be reset and the close frame lost. `discard` frees the memory of the
            // part that has come.
            let (mut stream, mut unread, mut all) = (frames.into_inner(), vec![0; READ], 0);
            stream.discard();
            stream.shutdown().await?;
            while all < LINGER_BYTES {
                match tokio::time::timeout(timeout, stream.read(&mut unread)).await {
                    Ok(Ok(count)) if count > 0 => all += count,
                    _ => break,
                }
            }
            return Ok(());
        }
        while let Some(Ok(_)) = frames.next().await {}
        Ok::<(), Error>(())
    };
    // A peer that does not read in time misses the close frame.
    let _ = tokio::time::timeout(longest, leaving).await;
}

/// Whether the message is a close frame after which the peer's bytes are no longer read as frames.
fn is_protocol_error(message: &Message) -> bool {
    let Message::Close(Some(frame)) = message else { return false };
    matches!(
        frame.code,
        CloseCode::Size | CloseCode::Invalid | CloseCode::Protocol | CloseCode::Again
    )
}
