//! One connection of a client: bounds how slowly its first request may come, and ends it gently.

use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use crate::key::table::LONGEST_IDLE;
use crate::server::answering::{Answering, Origin};
use crate::server::connections::Seat;
use crate::server::lingering::Lingering;
use crate::server::send_timeout::SendTimeout;
use crate::server::stream_timeout::Streams;
use crate::server::watched::Watched;
use crate::turn::websocket::yielding::ListenerPlace;

/// Maximum idle time between requests. Balancers keep connections for less (nginx: 60 s): a request
/// that meets a closing connection would be lost.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
// A Warmkey in front of this one keeps its connections for less.
const _: () = assert!(LONGEST_IDLE.as_secs() + 10 < KEEP_ALIVE.as_secs());
/// Size of a connection's read and write buffer, which also limits a request's head.
const BUFFER: usize = 64 * 1024;
/// Size of a request's head that is read over HTTP/2. The routes refuse smaller heads than this one
/// already, with a body.
const HEAD: u32 = 64 * 1024;
/// Bytes of answers that wait for a client which does not read a stream of HTTP/2.
const STREAM_BUFFER: usize = 64 * 1024;
/// Most streams of one connection over HTTP/2, where the process may have so many requests.
const STREAMS: u32 = 256;
/// Time for which a leaving replica still serves requests on open connections. They were on their
/// way when their client was told.
pub const MOMENT: Duration = Duration::from_secs(1);

/// How a replica's connections end.
#[derive(Clone)]
pub struct Ending {
    /// Once cancelled, each answer says that its connection ends with it.
    pub leaving: CancellationToken,
    /// Once cancelled, connections end after a moment.
    pub closing: CancellationToken,
    /// Once cancelled, connections end at once.
    pub cutting: CancellationToken,
    /// Time between `closing` and the end of a connection.
    pub moment: Duration,
}

impl Ending {
    /// For a replica, whose drain cancels one after the other.
    pub fn replica() -> Self {
        let [leaving, closing, cutting] = [(); 3].map(|()| CancellationToken::new());
        Self { leaving, closing, cutting, moment: MOMENT }
    }

    /// Waits until connections end.
    pub async fn over(&self) {
        self.closing.cancelled().await;
        tokio::time::sleep(self.moment).await;
    }
}

impl From<CancellationToken> for Ending {
    /// For a listener whose connections are told at the end only.
    fn from(end: CancellationToken) -> Self {
        let cutting = CancellationToken::new();
        Self { leaving: end.clone(), closing: end, cutting, moment: Duration::ZERO }
    }
}

/// The address of a request's client, or of the balancer before it.
#[derive(Clone, Copy)]
pub struct PeerAddress(pub IpAddr);

/// Marks a request that is one too many: it must be refused.
#[derive(Clone, Copy)]
pub struct OneTooMany;

/// Serves one connection to its end.
pub async fn connection<I, S, B>(
    stream: I,
    peer: IpAddr,
    service: S,
    header_timeout: Duration,
    ending: Ending,
    seat: Arc<Seat>,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Watched>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>
        + Origin
        + Unpin
        + Send
        + 'static,
{
    let (has_asked, is_http2) = (&AtomicBool::new(false), &AtomicBool::new(false));
    let speaks_http2 = &Notify::new();
    let (leaving, place, seat) = (&ending.leaving, &seat, Arc::clone(&seat));
    let service = service_fn(move |request: Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        let is_shared = request.version() == Version::HTTP_2;
        if is_shared && !is_http2.swap(true, Ordering::Relaxed) {
            speaks_http2.notify_one();
        }
        let in_flight = place.begin();
        let mut request =
            request.map(|body| Watched::new(body, (!is_shared).then(|| Arc::clone(place))));
        request.extensions_mut().insert(PeerAddress(peer));
        if request.headers().contains_key(UPGRADE) {
            request.extensions_mut().insert(ListenerPlace(Arc::<Seat>::clone(place)));
        }
        if in_flight.is_too_many() {
            request.extensions_mut().insert(OneTooMany);
        }
        let (answering, leaving) = (service.clone().call(request), leaving.clone());
        async move {
            let mut response = answering.await?;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                in_flight.for_life();
                return Ok::<_, Infallible>(response.map(|body| Answering::new(body, None)));
            }
            if !is_shared && leaving.is_cancelled() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response.map(|body| match is_shared {
                true => Answering::among_others(body, in_flight),
                false => Answering::new(body, Some(in_flight)),
            }))
        }
    });
    let builder = builder(header_timeout, seat.most_requests());
    let stream = TokioIo::new(Lingering::new(SendTimeout::new(stream), Arc::clone(&seat)));
    let mut connection = pin!(builder.serve_connection_with_upgrades(stream, service));

    // hyper has a single timeout for idle connections and for heads that trickle in, which is set
    // to the longer one. The shorter one for new connections, whose peers are not trusted yet, is
    // kept here.
    let mut first_request_timeout = pin!(tokio::time::sleep(header_timeout));
    let told = async {
        leaving.cancelled().await;
        // HTTP/1.1 says it with its answers, HTTP/2 with a frame. Which of both a client speaks is
        // known with its first request.
        tokio::select! {
            () = speaks_http2.notified() => {}
            () = ending.over() => {}
        }
    };
    let (mut told, mut cut) = (pin!(told), pin!(ending.cutting.cancelled()));
    let (mut is_new, mut is_listening, mut is_open) = (true, false, true);
    // `move` puts together all that is looked at for each event.
    poll_fn(move |context| {
        // Nearly every wake-up is the connection's. An error of the connection is ignored: the turn
        // that ran on it has been recorded.
        if connection.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        if is_new {
            is_new = !has_asked.load(Ordering::Relaxed);
            if is_new && first_request_timeout.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
        }
        let must_end = !is_listening && seat.poll_end(context).is_ready() || seat.must_end();
        // A request that has begun meanwhile is served first.
        if must_end && seat.is_silent() {
            return Poll::Ready(());
        }
        // After the first poll, each of these wakes this task by itself. `leaving` comes first.
        if !is_listening || leaving.is_cancelled() {
            is_listening = true;
            if cut.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            if is_open && told.as_mut().poll(context).is_ready() {
                is_open = false;
                connection.as_mut().graceful_shutdown();
                return connection.as_mut().poll(context).map(|_| ());
            }
        }
        Poll::Pending
    })
    .await;
}

/// Returns the settings of a connection on which `most` requests may be in flight.
fn builder(header_timeout: Duration, most: usize) -> auto::Builder<Streams> {
    let streams = u32::try_from(most).map_or(STREAMS, |most| most.min(STREAMS));
    let mut builder = auto::Builder::new(Streams);
    // To copy an event costs less than to hand it over in three pieces.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout.max(KEEP_ALIVE))
        .max_buf_size(BUFFER)
        .writev(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .max_header_list_size(HEAD)
        .max_send_buf_size(STREAM_BUFFER)
        // Finds out peers that have gone without closing.
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(header_timeout);
    builder
}
