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

/// Maximum idle time between requests. Load balancers close idle connections earlier (nginx: 60 s).
/// If the gateway closed first, a request on its way would be lost.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
// A Warmkey in front of this one closes its idle connections earlier, too.
const _: () = assert!(LONGEST_IDLE.as_secs() + 10 < KEEP_ALIVE.as_secs());
/// Size of a connection's read and write buffer, which also limits a request's head.
const BUFFER: usize = 64 * 1024;
/// Largest head of a request that is read over HTTP/2. The routes already refuse a smaller head,
/// with an error in the body.
const HEAD: u32 = 64 * 1024;
/// Most bytes of answers that wait for a client which does not read its HTTP/2 stream.
const STREAM_BUFFER: usize = 64 * 1024;
/// Most streams of one HTTP/2 connection, if the process may have that many requests.
const STREAMS: u32 = 256;
/// Time for which a leaving replica still serves requests on open connections. Such requests were
/// on their way when their client learned of the end.
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
    /// Time from `closing` to the end of a connection.
    pub moment: Duration,
}

impl Ending {
    /// Returns the end of a replica's connections, whose drain cancels the tokens one after the
    /// other.
    pub fn replica() -> Self {
        let [leaving, closing, cutting] = [(); 3].map(|()| CancellationToken::new());
        Self { leaving, closing, cutting, moment: MOMENT }
    }

    /// Waits until connections must end.
    pub async fn over(&self) {
        self.closing.cancelled().await;
        tokio::time::sleep(self.moment).await;
    }
}

impl From<CancellationToken> for Ending {
    /// Returns the end for a listener whose connections learn of their end only when it comes.
    fn from(end: CancellationToken) -> Self {
        let cutting = CancellationToken::new();
        Self { leaving: end.clone(), closing: end, cutting, moment: Duration::ZERO }
    }
}

/// The address of a request's client, or of the load balancer in front of the gateway.
#[derive(Clone, Copy)]
pub struct PeerAddress(pub IpAddr);

/// Marks a request beyond the limit of requests in flight, which must be refused.
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

    // hyper has a single timeout for idle connections and for heads that come slowly. It has the
    // longer time. A new connection, whose peer is not trusted yet, has the shorter time, which
    // runs here.
    let mut first_request_timeout = pin!(tokio::time::sleep(header_timeout));
    let told = async {
        leaving.cancelled().await;
        // Over HTTP/1.1 the answers tell the client, over HTTP/2 a frame does. The client's first
        // request shows which protocol it speaks.
        tokio::select! {
            () = speaks_http2.notified() => {}
            () = ending.over() => {}
        }
    };
    let (mut told, mut cut) = (pin!(told), pin!(ending.cutting.cancelled()));
    let (mut is_new, mut is_listening, mut is_open) = (true, false, true);
    // `move` places all values that each event touches next to each other.
    poll_fn(move |context| {
        // Nearly every wake-up is for the connection. Its error is ignored, because the turn on it
        // has been recorded.
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
        // A request that has begun in the meantime is served first.
        if must_end && seat.is_silent() {
            return Poll::Ready(());
        }
        // After the first poll, each of these futures wakes this task by itself. They are polled
        // late, because they matter only once `leaving` is cancelled.
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
    // Copying an event into the buffer costs less than a write of its three pieces.
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
        // This detects peers that have gone without closing.
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(header_timeout);
    builder
}
