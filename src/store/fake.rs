//! A fake Redis with the answers, or the silence, that a test chooses.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

trait Answer: Fn(usize, &str) -> Option<&'static str> + Send + Sync {}
impl<F: Fn(usize, &str) -> Option<&'static str> + Send + Sync> Answer for F {}

pub struct Fake {
    address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    connections: Mutex<usize>,
    asked: Mutex<Vec<String>>,
    /// Connections up to this number end.
    cut: watch::Sender<usize>,
    /// Connections up to this number get no answers.
    hushed: Mutex<usize>,
}

impl Fake {
    /// Answers each command of connection 1, 2, and so on with the line that `answer` returns, and
    /// accepts test writes.
    pub async fn answering(
        answer: impl Fn(usize, &str) -> Option<&'static str> + Send + Sync + 'static,
    ) -> Self {
        Self::proven_by(
            move |number, name| if name == "PROBE" { Some("+OK") } else { answer(number, name) },
        )
        .await
    }

    /// Answers every command with the line that `answer` returns.
    pub async fn proven_by(
        answer: impl Fn(usize, &str) -> Option<&'static str> + Send + Sync + 'static,
    ) -> Self {
        let answer = Arc::new(answer);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::<Seen>::default());
        let kept = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, answer) = (Arc::clone(&kept), Arc::clone(&answer));
                tokio::spawn(async move { serve(stream, &seen, &*answer).await });
            }
        });
        Self { address, seen }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub fn connections(&self) -> usize {
        *self.seen.connections.lock().unwrap()
    }

    /// Returns the names of all commands received, in order.
    pub fn commands(&self) -> Vec<String> {
        self.seen.asked.lock().unwrap().clone()
    }

    /// Stops answering on the connections up to `number`.
    pub fn hush(&self, number: usize) {
        *self.seen.hushed.lock().unwrap() = number;
    }

    /// Ends the connections up to `number`.
    pub fn cut(&self, number: usize) {
        self.seen.cut.send_replace(number);
    }
}

async fn serve(mut stream: TcpStream, seen: &Seen, answer: &dyn Answer) {
    let mut buffer = vec![0; 4096];
    let mut cut = seen.cut.subscribe();
    let mut number = None;
    loop {
        let read = tokio::select! {
            read = stream.read(&mut buffer) => read,
            _ = cut.wait_for(|cut| number.is_some_and(|number| *cut >= number)) => return,
        };
        // A small write arrives in one piece.
        let Ok(read @ 1..) = read else { return };
        let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
        let lines: Vec<&str> = text.split("\r\n").collect();
        // `*2`, `$3`, `GET`, ...
        for command in lines.windows(5).filter(|lines| lines[0].starts_with('*')) {
            let name = if command[4].ends_with(":probe") { "PROBE" } else { command[2] };
            if name == "SUBSCRIBE" {
                // A subscriber does not count as a connection and receives nothing.
                return std::future::pending().await;
            }
            let number = *number.get_or_insert_with(|| {
                let mut connections = seen.connections.lock().unwrap();
                *connections += 1;
                *connections
            });
            seen.asked.lock().unwrap().push(name.to_owned());
            let is_hushed = number <= *seen.hushed.lock().unwrap();
            let said = if is_hushed { None } else { answer(number, name) };
            if let Some(said) = said {
                let _ = stream.write_all(format!("{said}\r\n").as_bytes()).await;
            }
        }
    }
}
