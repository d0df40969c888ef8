//! One listening socket: accepts connections up to a limit, and hands each to `connection`.
//!
//! Speaks HTTP/1.1 and HTTP/2: without TLS by prior knowledge, with TLS by ALPN. Does not depend on
//! routes.

use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tower_service::Service;

use crate::server::answering::Origin;
use crate::server::connection::{Ending, connection};
use crate::server::connections::{Connections, Seat};
use crate::server::overflow::{NextClient, Overflow, PAUSE, lacks_resources};
use crate::server::tls::Tls;
use crate::server::watched::Watched;
use crate::task::Tasks;

/// Most connections that wait to be accepted. The system's default of 128 drops bursts.
const BACKLOG: u32 = 4096;

/// A bound socket that serves nothing yet, so that its real port can be shown first.
pub struct Listener {
    socket: TcpListener,
    header_timeout: Duration,
    tls: Option<Tls>,
    connections: Arc<Connections>,
}

impl Listener {
    pub fn bind(address: SocketAddr, header_timeout: Duration) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // This lets a restarted replica bind its port at once.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let (socket, connections) = (socket.listen(BACKLOG)?, Connections::unlimited());
        Ok(Self { socket, header_timeout, tls: None, connections })
    }

    /// Makes the listener speak TLS to clients, if `tls` is given.
    pub fn with_tls(self, tls: Option<Tls>) -> Self {
        Self { tls, ..self }
    }

    /// Limits the listener's connections to those that `connections` admits.
    pub fn within(self, connections: Arc<Connections>) -> Self {
        Self { connections, ..self }
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts connections until `ending` is over. Each open connection ends as `ending` says.
    pub async fn serve<S, B>(&self, service: S, tasks: Tasks, ending: impl Into<Ending>)
    where
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
        let ending = ending.into();
        let mut overflow = Overflow::new(self.connections.most());
        let over = ending.over();
        tokio::pin!(over);
        loop {
            let (stream, peer) = tokio::select! {
                () = &mut over => return,
                accepted = self.next(&mut overflow, &tasks) => accepted,
            };
            // Events are small, and a person waits for each, so none may wait for the next one.
            let _ = stream.set_nodelay(true);
            let Some(seat) = self.connections.enter() else {
                overflow.refuse(stream, Overflow::TOO_MANY, self.tls.is_some(), &tasks);
                continue;
            };
            let (service, ending) = (service.clone(), ending.clone());
            let (timeout, peer) = (self.header_timeout, peer.ip());
            match self.tls.clone() {
                None => tasks.spawn(connection(stream, peer, service, timeout, ending, seat)),
                Some(tls) => tasks.spawn(async move {
                    if let Some(stream) =
                        begin_connection(&tls, stream, timeout, &ending, &seat).await
                    {
                        connection(stream, peer, service, timeout, ending, seat).await;
                    }
                }),
            }
        }
    }

    /// Accepts the next connection. If there is no descriptor for it, a silent connection is ended.
    /// If all connections are busy, the client is refused, and the loop waits for the next one.
    async fn next(&self, overflow: &mut Overflow, tasks: &Tasks) -> (TcpStream, SocketAddr) {
        loop {
            overflow.refill().await;
            let error = match self.socket.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => error,
            };
            if lacks_resources(&error) {
                match overflow.accept(&self.socket) {
                    // The error came before the system looked for a waiting client.
                    NextClient::None => continue,
                    NextClient::Client(stream, peer) if self.connections.end_silent(&error) => {
                        return (stream, peer);
                    }
                    NextClient::Client(stream, _) => {
                        overflow.refuse(stream, Overflow::DESCRIPTORS, self.tls.is_some(), tasks);
                    }
                    NextClient::Unknown => {
                        self.connections.end_silent(&error);
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Begins a connection with its TLS handshake. A peer that fails the handshake, or takes too long,
/// has sent no request.
async fn begin_connection(
    tls: &Tls,
    stream: TcpStream,
    timeout: Duration,
    ending: &Ending,
    seat: &Seat,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    tokio::select! {
        () = ending.over() => None,
        () = poll_fn(|context| seat.poll_end(context)) => None,
        accepted = tokio::time::timeout(timeout, tls.accept(stream)) => accepted.ok()?.ok(),
    }
}
