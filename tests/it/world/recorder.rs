//! An upstream that keeps every byte of its requests, and answers with exactly the bytes that a
//! test wrote.
//!
//! The simulator judges what a turn cost; the recorder judges its bytes.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::poll_immediate;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::world::process::{Process, connections_to};
use crate::world::waiting::{ANSWER, eventually};
use crate::world::wire::{Headers, value};

/// What the upstream does, step by step, once it has read a request.
#[derive(Clone)]
pub enum Step {
    Send(Vec<u8>),
    /// Sends these bytes again and again until the peer is gone.
    Flood(Vec<u8>),
    /// Sends these bytes again and again, each time after this pause, until [`Recorder::release`].
    Drip(Vec<u8>, Duration),
    /// Waits for [`Recorder::release`], or until the peer is gone.
    Hold,
    Pause(Duration),
    /// Ends the connection with RST.
    Reset,
    /// Ends the connection.
    Close,
}

/// One request as it came.
#[derive(Clone)]
pub struct Seen {
    pub line: String,
    pub headers: Headers,
    pub body: Vec<u8>,
    /// Whether the whole answer was written.
    pub answered: bool,
    /// When the peer left before the whole answer was written.
    pub left: Option<Instant>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        value(&self.headers, name)
    }

    pub fn key(&self) -> &str {
        self.header("authorization")
            .and_then(|value| value.strip_prefix("Bearer "))
            .unwrap_or_default()
    }
}

type Script = dyn Fn(&Seen) -> Vec<Step> + Send + Sync;

struct Book {
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    /// The number of writes that wait until the peer reads.
    waiting: AtomicUsize,
    repeats: AtomicU64,
    gate: Semaphore,
    script: Box<Script>,
}

pub struct Recorder {
    address: SocketAddr,
    book: Arc<Book>,
    listening: JoinHandle<()>,
}

impl Recorder {
    /// Answers each request by `script`.
    pub async fn start(script: impl Fn(&Seen) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let listener = listen().expect("a port is free");
        let address = listener.local_addr().expect("a bound listener has an address");
        let book = Arc::new(Book {
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            repeats: AtomicU64::new(0),
            gate: Semaphore::new(0),
            script: Box::new(script),
        });
        let kept = Arc::clone(&book);
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                kept.connections.fetch_add(1, Ordering::Relaxed);
                kept.open.fetch_add(1, Ordering::Relaxed);
                let book = Arc::clone(&kept);
                tokio::spawn(async move {
                    serve(stream, Arc::clone(&book)).await;
                    book.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { address, book, listening }
    }

    /// Gives every request the same answer.
    pub async fn answering(steps: Vec<Step>) -> Self {
        Self::start(move |_| steps.clone()).await
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.book.seen.lock().expect("no holder panics").clone()
    }

    /// The only request so far.
    pub fn only(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "one request upstream");
        seen.into_iter().next().expect("there is one")
    }

    pub fn connections(&self) -> usize {
        self.book.connections.load(Ordering::Relaxed)
    }

    /// Whether no connection is open.
    pub fn is_idle(&self) -> bool {
        self.book.open.load(Ordering::Relaxed) == 0
    }

    /// Connections to this upstream that their other ends have not closed.
    pub fn peers(&self) -> usize {
        connections_to(self.address)
    }

    /// Returns how often all floods and drips together have sent their bytes.
    pub fn repeats(&self) -> u64 {
        self.book.repeats.load(Ordering::Relaxed)
    }

    /// Waits until `streams` floods and drips are held back by clients that do not read. Each of
    /// them has a write that keeps waiting, and the gateway is idle although it could read from
    /// each.
    pub async fn rests(&self, streams: usize, gateway: &Process) {
        let mut before = None;
        eventually(ANSWER, "streams at rest", async || {
            assert!(
                self.seen().iter().all(|seen| seen.left.is_none()),
                "the gateway has left a stream"
            );
            let is_held_back =
                self.book.waiting.load(Ordering::Relaxed) == streams && gateway.sleeps();
            let now = is_held_back.then(|| self.repeats());
            (std::mem::replace(&mut before, now) == now && is_held_back).then_some(())
        })
        .await;
    }

    /// Waits until `count` whole requests have come.
    pub async fn reached(&self, count: usize) {
        eventually(ANSWER, "requests upstream", async || {
            (self.seen().len() >= count).then_some(())
        })
        .await;
    }

    /// Waits until the peer has left request `number`, and returns when.
    pub async fn left(&self, number: usize) -> Instant {
        eventually(ANSWER, "the gateway leaves upstream", async || {
            self.seen().get(number).and_then(|seen| seen.left)
        })
        .await
    }

    /// Lets `count` answers pass their hold.
    pub fn release(&self, count: usize) {
        self.book.gate.add_permits(count);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// A whole answer with an exact length.
pub fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len())
        .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// The head of a streamed answer.
pub fn stream_head(headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{headers}transfer-encoding: chunked\r\n\r\n").into_bytes()
}

pub fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// A whole streamed answer, each piece a chunk and a write of its own.
pub fn stream(pieces: &[&[u8]]) -> Vec<Step> {
    let mut steps = vec![Step::Send(stream_head(""))];
    steps.extend(
        pieces.iter().filter(|piece| !piece.is_empty()).map(|piece| Step::Send(chunk(piece))),
    );
    steps.push(Step::Send(b"0\r\n\r\n".to_vec()));
    steps
}

/// The terminal event of a turn.
pub const COMPLETED: &str = concat!(
    "event: response.completed\n",
    r#"data: {"type":"response.completed","sequence_number":3,"response":{"id":"resp_1","object":"response","status":"#,
    r#""completed","output":[],"usage":{"input_tokens":10,"input_tokens_details":{"cached_tokens":0},"output_tokens":1,"#,
    r#""output_tokens_details":{"reasoning_tokens":0},"total_tokens":11}}}"#,
    "\n\n"
);

/// A short streamed answer that succeeds.
pub fn completed() -> Vec<Step> {
    stream(&[
        b"event: response.created\ndata: {\"type\":\"response.created\"}\n\n",
        COMPLETED.as_bytes(),
    ])
}

async fn serve(mut stream: TcpStream, book: Arc<Book>) {
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::new();
    while let Some(seen) = request(&mut stream, &mut buffer).await {
        let steps = (book.script)(&seen);
        let number = {
            let mut all = book.seen.lock().expect("no holder panics");
            all.push(seen);
            all.len() - 1
        };
        let (mut read, mut write) = stream.split();
        let mut early = [0; 1024];
        let going = tokio::select! {
            going = play(&mut write, steps, &book) => going,
            count = read.read(&mut early) => {
                assert!(!matches!(count, Ok(count) if count > 0), "no request is sent before the last one is answered");
                book.seen.lock().expect("no holder panics")[number].left = Some(Instant::now());
                return;
            }
        };
        match going {
            Going::On => book.seen.lock().expect("no holder panics")[number].answered = true,
            Going::Close => return,
            Going::Reset => {
                let _ = stream.set_zero_linger();
                return;
            }
        }
    }
}

enum Going {
    On,
    Close,
    Reset,
}

async fn play(to: &mut (impl AsyncWriteExt + Unpin), steps: Vec<Step>, book: &Book) -> Going {
    for step in steps {
        match step {
            // A failed write needs no report, because the reading side notices that the peer has
            // gone.
            Step::Send(bytes) => drop(to.write_all(&bytes).await),
            Step::Flood(bytes) => while again(to, &bytes, book).await {},
            Step::Drip(bytes, pause) => {
                while book.gate.try_acquire().map(SemaphorePermit::forget).is_err()
                    && again(to, &bytes, book).await
                {
                    tokio::time::sleep(pause).await;
                }
            }
            Step::Hold => book.gate.acquire().await.expect("the gate stays").forget(),
            Step::Pause(span) => tokio::time::sleep(span).await,
            Step::Reset => return Going::Reset,
            Step::Close => return Going::Close,
        }
    }
    Going::On
}

/// A listener with small send buffers, so that a write soon waits for a peer that does not read.
fn listen() -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(64 * 1024)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    socket.listen(1024)
}

/// Sends these bytes once more, and returns whether that succeeded.
async fn again(to: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8], book: &Book) -> bool {
    let mut writing = pin!(to.write_all(bytes));
    let written = match poll_immediate(&mut writing).await {
        Some(written) => written,
        None => {
            let _waiting = Waiting::at(&book.waiting);
            writing.await
        }
    };
    book.repeats.fetch_add(u64::from(written.is_ok()), Ordering::Relaxed);
    written.is_ok()
}

/// Counts in the counter for as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn at(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Seen> {
    let end = loop {
        if let Some(end) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head: Vec<u8> = buffer.drain(..end + 4).collect();
    let head = String::from_utf8_lossy(&head[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default().to_owned();
    let headers: Headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()))
        .collect();
    let body = if value(&headers, "transfer-encoding") == Some("chunked") {
        chunked(stream, buffer).await?
    } else {
        let length =
            value(&headers, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        take(stream, buffer, length).await?
    };
    Some(Seen { line, headers, body, answered: false, left: None })
}

async fn take(stream: &mut TcpStream, buffer: &mut Vec<u8>, count: usize) -> Option<Vec<u8>> {
    while buffer.len() < count {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    Some(buffer.drain(..count).collect())
}

async fn chunked(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = memchr::memmem::find(buffer, b"\r\n") {
                break end;
            }
            if stream.read_buf(buffer).await.ok()? == 0 {
                return None;
            }
        };
        let size: Vec<u8> = buffer.drain(..end + 2).collect();
        let size = usize::from_str_radix(std::str::from_utf8(&size[..end]).ok()?, 16).ok()?;
        let piece = take(stream, buffer, size + 2).await?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(&piece[..size]);
    }
}
