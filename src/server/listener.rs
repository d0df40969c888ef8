//! One listening socket: accepts connections up to a limit, and hands each to `connection`.
//!
//! Speaks HTTP/1.1 and HTTP/2: in cleartext with prior knowledge, through TLS by ALPN. Does not
//! depend on routes.

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
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tower_service::Service;

use crate::server::connection::{Ending, connection};
use crate::server::connections::{Connections, Seat, Watched};
use crate::server::tls::Tls;
use crate::task::Tasks;

/// Maximum connections that wait to be accepted: the system's default of 128 drops bursts.
const BACKLOG: u32 = 4096;
/// Pause after a connection could not be accepted: spinning would only burn the core that the other
/// connections need.
const PAUSE: Duration = Duration::from_millis(50);
/// Time to take the refusal of a connection.
const REFUSAL: Duration = Duration::from_secs(1);
/// The answer to whoever finds no place.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n\
    content-type: application/json\r\ncontent-length: 151\r\n\r\n\
    {\"error\":{\"message\":\"This replica has no room for another connection. Please try again.\",\
    \"type\":\"server_error\",\"param\":null,\"code\":\"no_key_available\"}}";

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
        // A restarted replica can bind its port at once.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let (socket, connections) = (socket.listen(BACKLOG)?, Connections::unlimited());
        Ok(Self { socket, header_timeout, tls: None, connections })
    }

    /// Makes the socket speak TLS to clients, if `tls` is given.
    pub fn with_tls(self, tls: Option<Tls>) -> Self {
        Self { tls, ..self }
    }

    /// The same, with a limit of its connections.
    pub fn within(self, connections: Arc<Connections>) -> Self {
        Self { connections, ..self }
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts connections until `ending` is over. Each connection ends as `ending` says.
    pub async fn serve<S, B>(&self, service: S, tasks: Tasks, ending: impl Into<Ending>)
    where
        S: Service<Request<Watched>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send,
        B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin + Send + 'static,
    {
        let ending = ending.into();
        let over = ending.over();
        tokio::pin!(over);
        loop {
            let accepted = tokio::select! {
                () = &mut over => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    // Events are small, and a person waits for each.
                    let _ = stream.set_nodelay(true);
                    let Some(seat) = self.connections.enter() else {
                        if self.tls.is_none() {
                            tasks.spawn(refuse(stream));
                        }
                        continue;
                    };
                    let (service, ending) = (service.clone(), ending.clone());
                    let (timeout, peer) = (self.header_timeout, peer.ip());
                    match self.tls.clone() {
                        None => {
                            tasks.spawn(connection(stream, peer, service, timeout, ending, seat));
                        }
                        Some(tls) => tasks.spawn(async move {
                            if let Some(stream) =
                                through(&tls, stream, timeout, &ending, &seat).await
                            {
                                connection(stream, peer, service, timeout, ending, seat).await;
                            }
                        }),
                    }
                }
                Err(error) => {
                    // No file descriptor is left, or the peer has already gone.
                    self.connections.make_room(&error);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Tells a client that there is no room.
async fn refuse(mut stream: TcpStream) {
    let telling = async {
        stream.write_all(FULL).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(REFUSAL, telling).await;
}

/// Begins a connection with a handshake. A peer that fails the handshake, or takes too long, has
/// sent no request.
async fn through(
    tls: &Tls,
    stream: TcpStream,
    timeout: Duration,
    ending: &Ending,
    seat: &Seat,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    tokio::select! {
        () = ending.closing.cancelled() => None,
        () = poll_fn(|context| seat.poll_end(context)) => None,
        accepted = tokio::time::timeout(timeout, tls.accept(stream)) => accepted.ok()?.ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_is_an_answer_of_its_length() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("\r\ncontent-length: {}", body.len())), "{head}");
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(json["error"]["code"], "no_key_available");
    }
}
