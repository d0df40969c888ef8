//! Refuses connections beyond the limit, or for which the process has no descriptor.
//!
//! The replica answers before it reads the request, and reads the request afterwards. If it closed
//! the connection with bytes unread, the connection would be reset, and its client would lose the
//! answer. For a limited number of clients, the replica reads until they have sent everything.
//! Further clients receive the answer as well, but the replica reads only what they have sent so
//! far. If such a client is still sending then, it may lose the answer.
//!
//! The system reports a lack of descriptors even if no client waits. The replica therefore tries to
//! accept with a spare descriptor: that shows whether a client waits. An open connection is ended
//! only for a client that waits.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rustix::io::Errno;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::process::lacks_descriptors;
use crate::server::lingering::discard;
use crate::task::Tasks;

/// Pause after a connection could not be accepted. Without it, the loop would occupy the core that
/// the other connections need.
pub const PAUSE: Duration = Duration::from_millis(50);
/// Attempts to open a spare file before another connection is ended.
const REFILLS: usize = 20;
/// Time for one client to take its answer, and the longest silence of a client that still sends.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Most refused clients for which the gateway waits at the same time. Each keeps a descriptor
/// meanwhile, so a small listener waits for fewer.
const AT_ONCE: usize = 64;
/// Most bytes that are read of a client for which the gateway does not wait.
const GLANCE: usize = 256 * 1024;

/// The parts that a listener needs to refuse connections.
pub struct Overflow {
    at_once: Arc<Semaphore>,
    /// An open file. When it is closed, its descriptor is free for one connection.
    spare: Option<File>,
}

/// The client that waits to be accepted.
pub enum NextClient {
    None,
    Client(TcpStream, SocketAddr),
    /// It is not known whether a client waits, because the spare descriptor is in use.
    Unknown,
}

impl Overflow {
    /// Returns the overflow of a listener with at most `most` connections.
    pub fn new(most: usize) -> Self {
        let at_once = AT_ONCE.min(most / 8).max(1);
        Self { at_once: Arc::new(Semaphore::new(at_once)), spare: spare() }
    }

    /// Message if there are too many connections.
    pub const TOO_MANY: &str = "This replica has no room for another connection. Please try again.";
    /// Message if the process has too many files open.
    pub const DESCRIPTORS: &str = "The gateway has too many open files. Please try again.";

    /// Refuses a connection. A client that speaks TLS could not read the answer, so it gets none.
    pub fn refuse(&self, stream: TcpStream, message: &'static str, is_tls: bool, tasks: &Tasks) {
        if is_tls {
            return;
        }
        let Ok(place) = Arc::clone(&self.at_once).try_acquire_owned() else {
            // A client that has already left needs no answer.
            let _ = tell_at_once(stream, message);
            return;
        };
        tasks.spawn(async move {
            tell(stream, message).await;
            drop(place);
        });
    }

    /// Opens a spare descriptor, if there is none. Tries for about a second, because a connection
    /// that is ended may take a moment to close.
    pub async fn refill(&mut self) {
        for _ in 0..REFILLS {
            if self.spare.is_some() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
            self.spare = spare();
        }
    }

    /// Accepts a connection with the spare descriptor.
    pub fn accept(&mut self, socket: &TcpListener) -> NextClient {
        if self.spare.take().is_none() {
            return NextClient::Unknown;
        }
        match socket.accept().now_or_never() {
            Some(Ok((stream, peer))) => NextClient::Client(stream, peer),
            None => {
                self.spare = spare();
                NextClient::None
            }
            // Another task has taken the descriptor in the meantime.
            Some(Err(_)) => NextClient::Unknown,
        }
    }
}

/// Whether a connection could not be accepted for lack of descriptors or memory. Any other fault
/// concerns that one connection.
pub fn lacks_resources(error: &io::Error) -> bool {
    let lacks_memory = matches!(Errno::from_io_error(error), Some(Errno::NOMEM | Errno::NOBUFS));
    lacks_memory || lacks_descriptors(error)
}

/// Opens the spare file. `None`: there is no descriptor left for it.
fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

async fn tell(mut stream: TcpStream, message: &str) {
    let telling = async {
        stream.write_all(answer(message).as_bytes()).await?;
        stream.shutdown().await
    };
    // A client that does not read in time misses the answer.
    if let Ok(Ok(())) = tokio::time::timeout(TIMEOUT, telling).await {
        discard(&mut stream, TIMEOUT).await;
    }
}

/// Answers without waiting. The answer fits into the buffer of a new connection.
fn tell_at_once(stream: TcpStream, message: &str) -> io::Result<()> {
    // The runtime does not know yet that the connection can be written, and would not try. The
    // system does.
    let mut stream = stream.into_std()?;
    stream.write_all(answer(message).as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let (mut unread, mut all) = ([0; 16 * 1024], 0);
    while all < GLANCE {
        match stream.read(&mut unread)? {
            0 => break,
            count => all += count,
        }
    }
    Ok(())
}

fn answer(message: &str) -> String {
    let error = serde_json::json!({"error": {
        "message": message, "type": "server_error", "param": null, "code": "no_key_available",
    }});
    let body = error.to_string();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// A client for which the gateway does not wait receives its answer, too, if it has sent its
    /// whole request.
    #[tokio::test]
    async fn client_beyond_those_that_are_waited_for_reads_the_answer() {
        let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (overflow, tasks) = (Overflow::new(1), Tasks::new());
        let mut clients = Vec::new();
        for _ in 0..20 {
            let mut client = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let (stream, _) = socket.accept().await.unwrap();
            overflow.refuse(stream, Overflow::TOO_MANY, false, &tasks);
            clients.push(client);
        }
        for mut client in clients {
            let mut text = String::new();
            client.read_to_string(&mut text).await.unwrap();
            assert!(text.starts_with("HTTP/1.1 503 ") && text.ends_with("}}"), "{text}");
        }
    }

    #[tokio::test]
    async fn client_that_has_sent_much_reads_the_answer() {
        let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let mut client = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
        let (stream, _) = socket.accept().await.unwrap();
        let sending = async {
            client.write_all(&vec![b'x'; 12 << 20]).await.unwrap();
            client.shutdown().await.unwrap();
            let mut text = String::new();
            client.read_to_string(&mut text).await.unwrap();
            text
        };
        let (text, ()) = tokio::join!(sending, tell(stream, Overflow::TOO_MANY));
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("\r\ncontent-length: {}", body.len())), "{head}");
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(json["error"]["code"], "no_key_available");
    }
}
