//! An upstream that speaks HTTP/2 by hand: a test chooses every frame of an answer, and sees which
//! streams the gateway has reset.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex as Exclusive, Semaphore};
use tokio::time::Instant;

use crate::world::waiting::{SOON, eventually};

pub mod refuser;

const PREFACE: usize = 24;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
/// Largest payload of a frame while no setting has raised it.
const MAX_FRAME: usize = 16_384;

pub const NO_ERROR: u32 = 0;
pub const INTERNAL_ERROR: u32 = 2;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// What the upstream does, step by step, once it has read a request.
#[derive(Clone, Debug)]
pub enum Part {
    /// A head with this status, content type and length.
    Head(u16, &'static str, Option<usize>),
    /// A head of success with this content type, coding and length.
    Coded(&'static str, &'static str, usize),
    /// A malformed head: without a status, or with this spelling of its length.
    Malformed(Option<&'static str>, &'static str),
    Data(Vec<u8>),
    /// The last bytes, with the end of the stream.
    Last(Vec<u8>),
    /// The end of the stream in a block of trailers.
    Trailers,
    /// Resets the stream with this code.
    Reset(u32),
    /// Sends GOAWAY with this code, by which the upstream has processed no request from this one
    /// on.
    Leave(u32),
    /// Sends GOAWAY with this code, by which the upstream has processed this request.
    LeaveAfter(u32),
    /// Waits for [`Upstream::release`].
    Hold,
    /// Ends the connection.
    Close,
}

/// What the upstream has seen.
#[derive(Default)]
struct Book {
    connections: usize,
    /// The bodies of all requests, in their order.
    bodies: Vec<Vec<u8>>,
    /// The streams that the gateway has reset: when, and with which code.
    resets: Vec<(Instant, u32)>,
}

struct Shared {
    answers: Vec<Vec<Part>>,
    /// Most bytes of a body that may be under way.
    window: u32,
    book: Mutex<Book>,
    gate: Semaphore,
}

pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// A document that serves a turn.
pub const DOCUMENT: &[u8] = br#"{"id":"resp_1","status":"completed","output":[]}"#;

/// Serves a turn.
pub fn served() -> Vec<Part> {
    vec![Part::Head(200, "application/json", None), Part::Last(DOCUMENT.to_vec())]
}

impl Upstream {
    /// Plays one answer for each request. The last answer serves all further requests.
    pub async fn start(answers: Vec<Vec<Part>>) -> Self {
        Self::narrow(answers, 65_535).await
    }

    /// As [`Self::start`], with this many bytes of a request under way at the most.
    pub async fn narrow(answers: Vec<Vec<Part>>, window: u32) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (book, gate) = (Mutex::default(), Semaphore::new(0));
        let shared = Arc::new(Shared { answers, window, book, gate });
        let kept = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                kept.book.lock().expect("no holder panics").connections += 1;
                tokio::spawn(serve(stream, Arc::clone(&kept)));
            }
        });
        Self { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub fn bodies(&self) -> Vec<Vec<u8>> {
        self.shared.book.lock().expect("no holder panics").bodies.clone()
    }

    pub fn connections(&self) -> usize {
        self.shared.book.lock().expect("no holder panics").connections
    }

    /// Waits until the gateway has reset `count` streams. Returns when, and with which codes.
    pub async fn resets(&self, count: usize) -> Vec<(Instant, u32)> {
        eventually(SOON, "the reset of a stream", async || {
            let resets = self.shared.book.lock().expect("no holder panics").resets.clone();
            (resets.len() >= count).then_some(resets)
        })
        .await
    }

    /// Lets one held answer go on.
    pub fn release(&self) {
        self.shared.gate.add_permits(1);
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) -> std::io::Result<()> {
    let (mut read, write) = stream.into_split();
    let mut preface = [0; PREFACE];
    read.read_exact(&mut preface).await?;
    let write = Arc::new(Exclusive::new(write));
    let settings = [&INITIAL_WINDOW_SIZE[..], &shared.window.to_be_bytes()].concat();
    write.lock().await.write_all(&frame(SETTINGS, 0, 0, &settings)).await?;
    let mut open = BTreeMap::<u32, Vec<u8>>::new();
    loop {
        let (kind, flags, id, payload) = next(&mut read).await?;
        match kind {
            SETTINGS | PING if flags & ACK == 0 => {
                let payload = if kind == PING { &payload[..] } else { &[] };
                write.lock().await.write_all(&frame(kind, ACK, 0, payload)).await?;
            }
            HEADERS => drop(open.insert(id, Vec::new())),
            RST_STREAM => {
                let code = u32::from_be_bytes(payload[..4].try_into().expect("a code"));
                let mut book = shared.book.lock().expect("no holder panics");
                book.resets.push((Instant::now(), code));
            }
            DATA if !payload.is_empty() => {
                open.entry(id).or_default().extend_from_slice(&payload);
                let more = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
                let on = [0, id].map(|stream| frame(WINDOW_UPDATE, 0, stream, &more)).concat();
                write.lock().await.write_all(&on).await?;
            }
            _ => {}
        }
        if !matches!(kind, HEADERS | DATA) || flags & END_STREAM == 0 {
            continue;
        }
        let body = open.remove(&id).unwrap_or_default();
        // A probe has no body.
        let parts = if body.is_empty() { served() } else { shared.note(body) };
        tokio::spawn(play(parts, id, Arc::clone(&write), Arc::clone(&shared)));
    }
}

impl Shared {
    /// Notes a request, and returns its answer.
    fn note(&self, body: Vec<u8>) -> Vec<Part> {
        let mut book = self.book.lock().expect("no holder panics");
        book.bodies.push(body);
        self.answers[(book.bodies.len() - 1).min(self.answers.len() - 1)].clone()
    }
}

async fn next(read: &mut OwnedReadHalf) -> std::io::Result<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    read.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    read.read_exact(&mut payload).await?;
    let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    Ok((head[3], head[4], id, payload))
}

async fn play(
    parts: Vec<Part>,
    id: u32,
    write: Arc<Exclusive<OwnedWriteHalf>>,
    shared: Arc<Shared>,
) -> std::io::Result<()> {
    let leave = |last: u32, code: u32| {
        frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
    };
    for part in parts {
        let bytes = match part {
            Part::Head(status, kind, length) => {
                frame(HEADERS, END_HEADERS, id, &head(status, kind, length))
            }
            Part::Malformed(status, length) => {
                let status = status.map(|status| [&[0x08, 3], status.as_bytes()].concat());
                let fields = [status.unwrap_or_default(), literal(28, length)].concat();
                frame(HEADERS, END_HEADERS, id, &fields)
            }
            Part::Coded(kind, coding, length) => {
                let fields = [head(200, kind, Some(length)), literal(26, coding)].concat();
                frame(HEADERS, END_HEADERS, id, &fields)
            }
            Part::Data(data) => frames_of(&data, id, 0),
            Part::Last(data) => frames_of(&data, id, END_STREAM),
            // A field that is not in the static table: no index, its name, its value.
            Part::Trailers => frame(HEADERS, END_HEADERS | END_STREAM, id, b"\x00\x07x-trail\x01x"),
            Part::Reset(code) => frame(RST_STREAM, 0, id, &code.to_be_bytes()),
            Part::Leave(code) => leave(id.saturating_sub(2), code),
            Part::LeaveAfter(code) => leave(id, code),
            Part::Hold => {
                shared.gate.acquire().await.expect("it is never closed").forget();
                continue;
            }
            Part::Close => return write.lock().await.shutdown().await,
        };
        write.lock().await.write_all(&bytes).await?;
    }
    Ok(())
}

/// Data in as many frames as it needs. The last one has these flags.
fn frames_of(data: &[u8], id: u32, flags: u8) -> Vec<u8> {
    let (last, before) = match data.len() {
        0 => (data, &data[..0]),
        length => {
            let (before, last) = data.split_at((length - 1) / MAX_FRAME * MAX_FRAME);
            (last, before)
        }
    };
    let mut frames: Vec<u8> =
        before.chunks(MAX_FRAME).flat_map(|part| frame(DATA, 0, id, part)).collect();
    frames.extend(frame(DATA, flags, id, last));
    frames
}

/// A head in HPACK (RFC 7541): literals whose names are in the static table.
fn head(status: u16, kind: &str, length: Option<usize>) -> Vec<u8> {
    let status = status.to_string();
    let mut head = [&[0x08, 3], status.as_bytes(), &literal(31, kind)].concat();
    if let Some(length) = length {
        head.extend(literal(28, &length.to_string()));
    }
    head
}

/// A field whose name has this index in the static table.
fn literal(index: u8, value: &str) -> Vec<u8> {
    let short = u8::try_from(value.len()).expect("a short value");
    [&[0x0f, index - 15, short], value.as_bytes()].concat()
}

/// The time within which a client's leaving reaches an upstream.
pub const AT_ONCE: Duration = Duration::from_secs(1);
