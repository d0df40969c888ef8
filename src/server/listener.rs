//! One listening socket: accepts connections, bounds how slowly headers may come, and ends
//! connections gently.
//!
//! Speaks HTTP/1.1, and cleartext HTTP/2 with prior knowledge. Does not depend on routes.

use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use crate::task::Tasks;

/// Maximum connections that wait to be accepted: the system's default of 128 drops bursts.
const BACKLOG: u32 = 4096;
/// Maximum idle time between requests. Balancers keep connections for less (nginx: 60 s): a request
/// that meets a closing connection would be lost.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Size of a connection's read and write buffer, which also limits a request's head.
const BUFFER: usize = 64 * 1024;

/// A bound socket that serves nothing yet, so that its real port can be shown first.
pub struct Listener {
    socket: TcpListener,
    header_timeout: Duration,
}

impl Listener {
    pub fn bind(address: SocketAddr, header_timeout: Duration) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restarted replica can bind its port at once.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { socket: socket.listen(BACKLOG)?, header_timeout })
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts connections until `closing`. Then each connection ends after its request in flight.
    pub async fn serve<S, B>(self, service: S, tasks: Tasks, closing: CancellationToken)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send,
        B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        loop {
            let accepted = tokio::select! {
                () = closing.cancelled() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => tasks.spawn(connection(
                    stream,
                    service.clone(),
                    self.header_timeout,
                    closing.clone(),
                )),
                // No file descriptor is left. Other connections will close; spinning would only
                // burn the core that they need.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

async fn connection<S, B>(
    stream: TcpStream,
    service: S,
    header_timeout: Duration,
    closing: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    // Events are small, and a person waits for each.
    let _ = stream.set_nodelay(true);
    let has_asked = &AtomicBool::new(false);
    let service = service_fn(move |request| {
        has_asked.store(true, Ordering::Relaxed);
        service.clone().call(request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
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
        .max_concurrent_streams(256)
        // Finds out peers that have gone without closing.
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(header_timeout);
    let mut connection =
        pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));

    // hyper has a single timeout for idle connections and for heads that trickle in, which is set
    // to the longer one. The shorter one for new connections, whose peers are not trusted yet, is
    // kept here.
    let mut first_request_timeout = pin!(tokio::time::sleep(header_timeout));
    let mut ending = pin!(closing.cancelled());
    let closing = closing.clone();
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
        // After the first poll, `ending` wakes this task by itself.
        if is_open && (!is_listening || closing.is_cancelled()) {
            is_listening = true;
            if ending.as_mut().poll(context).is_ready() {
                is_open = false;
                connection.as_mut().graceful_shutdown();
                return connection.as_mut().poll(context).map(|_| ());
            }
        }
        Poll::Pending
    })
    .await;
}
