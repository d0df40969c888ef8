//! HTTP/1.1 by hand. A test chooses every byte of a request, and sees exactly how an answer came,
//! even if it was cut.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};

use crate::world::waiting::{ANSWER, within};

pub type Headers = Vec<(String, String)>;

/// The first value of a header, by its lower-case name.
pub fn value<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

/// All values of a header, in order.
pub fn values<'a>(headers: &'a Headers, name: &str) -> Vec<&'a str> {
    headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect()
}

#[derive(Clone)]
pub enum Framing {
    None,
    Sized(Vec<u8>),
    Chunked(Vec<Vec<u8>>),
}

#[derive(Clone)]
pub struct Request {
    method: String,
    target: String,
    headers: Headers,
    framing: Framing,
}

impl Request {
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.into(),
            target: target.into(),
            headers: Headers::new(),
            framing: Framing::None,
        }
    }

    /// `POST /responses` with this token and JSON body.
    pub fn turn(token: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", "/responses")
            .bearer(token)
            .header("content-type", "application/json")
            .body(body)
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn target(mut self, target: &str) -> Self {
        self.target = target.into();
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.framing = Framing::Sized(body.into());
        self
    }

    pub fn chunks(mut self, chunks: Vec<Vec<u8>>) -> Self {
        self.framing = Framing::Chunked(chunks);
        self
    }

    fn head(&self, host: SocketAddr) -> String {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {host}\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match &self.framing {
            Framing::None => {}
            Framing::Sized(body) => head.push_str(&format!("content-length: {}\r\n", body.len())),
            Framing::Chunked(_) => head.push_str("transfer-encoding: chunked\r\n"),
        }
        head.push_str("\r\n");
        head
    }

    async fn write(&self, to: &mut OwnedWriteHalf, host: SocketAddr) -> std::io::Result<()> {
        to.write_all(self.head(host).as_bytes()).await?;
        match &self.framing {
            Framing::None => Ok(()),
            Framing::Sized(body) => to.write_all(body).await,
            Framing::Chunked(chunks) => {
                for chunk in chunks {
                    to.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
                    to.write_all(chunk).await?;
                    to.write_all(b"\r\n").await?;
                }
                to.write_all(b"0\r\n\r\n").await
            }
        }
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
    /// Whether the answer ended as its framing announced; false if the connection broke before.
    pub whole: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        value(&self.headers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("JSON expected ({error}): {}", self.text()))
    }

    /// The seconds of `retry-after`. Codex gives up on anything but an integer.
    pub fn retry_after(&self) -> u64 {
        let wait = self.header("retry-after").and_then(|wait| wait.parse().ok());
        wait.unwrap_or_else(|| panic!("an integer retry-after: {:?}", self.headers))
    }

    /// `error.code` of an error in the OpenAI shape.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

enum Left {
    Length(u64),
    Chunk(u64),
    UntilClose,
    Nothing,
}

pub enum Piece {
    Bytes(Vec<u8>),
    End,
    Cut,
}

/// One connection of a client. Dropping it closes it at once.
pub struct Connection {
    address: SocketAddr,
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
    buffer: Vec<u8>,
    left: Left,
}

impl Connection {
    pub async fn try_open(address: SocketAddr) -> std::io::Result<Self> {
        Self::of(TcpStream::connect(address).await?)
    }

    /// Opens a connection with a small receive buffer, so that a few unread bytes hold its peer
    /// back.
    pub async fn narrow(address: SocketAddr) -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4 * 1024)?;
        Self::of(socket.connect(address).await?)
    }

    fn of(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        let address = stream.peer_addr()?;
        let (read, write) = stream.into_split();
        Ok(Self { address, read, write, buffer: Vec::new(), left: Left::Nothing })
    }

    pub async fn open(address: SocketAddr) -> Self {
        within(ANSWER, "a connection", Self::try_open(address)).await.expect("the listener accepts")
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.write.write_all(bytes).await
    }

    /// Sends the request and reads the head of its answer; `None` if the connection ended first.
    /// Both happen at the same time, because an answer may come before the body has been read.
    pub async fn ask(&mut self, request: &Request) -> Option<Answer> {
        let host = self.address;
        let Self { read, write, buffer, left, .. } = self;
        let sending = request.write(write, host);
        let reading = within(ANSWER, "a head", head(read, buffer, left));
        tokio::pin!(sending, reading);
        tokio::select! {
            biased;
            _ = &mut sending => reading.await,
            answer = &mut reading => answer,
        }
    }

    /// The head of the next answer on this connection.
    pub async fn head(&mut self) -> Option<Answer> {
        let reading = head(&mut self.read, &mut self.buffer, &mut self.left);
        within(ANSWER, "a head", reading).await
    }

    /// The status of the next answer, even of an interim one.
    pub async fn interim(&mut self) -> Option<u16> {
        let (read, buffer) = (&mut self.read, &mut self.buffer);
        within(ANSWER, "a head", async {
            let status = line(read, buffer).await?;
            while !line(read, buffer).await?.is_empty() {}
            status.split(' ').nth(1).and_then(|code| code.parse().ok())
        })
        .await
    }

    /// The next piece of the body.
    pub async fn piece(&mut self) -> Piece {
        within(ANSWER, "a piece of a body", self.next_piece()).await
    }

    async fn next_piece(&mut self) -> Piece {
        loop {
            match self.left {
                Left::Nothing | Left::Length(0) => return Piece::End,
                Left::Length(count) | Left::Chunk(count)
                    if count > 0 && !self.buffer.is_empty() =>
                {
                    let taken = usize::try_from(count).unwrap_or(usize::MAX).min(self.buffer.len());
                    let bytes: Vec<u8> = self.buffer.drain(..taken).collect();
                    let rest = count - taken as u64;
                    if matches!(self.left, Left::Length(_)) {
                        self.left = Left::Length(rest);
                    } else if rest > 0 {
                        self.left = Left::Chunk(rest);
                    } else if !self.chunk_ends().await {
                        return Piece::Cut;
                    }
                    return Piece::Bytes(bytes);
                }
                Left::Chunk(0) => match self.chunk_begins().await {
                    Some(0) => {
                        self.left = Left::Nothing;
                        return if self.chunk_ends().await { Piece::End } else { Piece::Cut };
                    }
                    Some(count) => self.left = Left::Chunk(count),
                    None => return Piece::Cut,
                },
                Left::UntilClose if !self.buffer.is_empty() => {
                    return Piece::Bytes(std::mem::take(&mut self.buffer));
                }
                Left::UntilClose | Left::Length(_) | Left::Chunk(_) => {
                    if !more(&mut self.read, &mut self.buffer).await {
                        return if matches!(self.left, Left::UntilClose) {
                            Piece::End
                        } else {
                            Piece::Cut
                        };
                    }
                }
            }
        }
    }

    async fn chunk_begins(&mut self) -> Option<u64> {
        let line = line(&mut self.read, &mut self.buffer).await?;
        Some(u64::from_str_radix(line.trim(), 16).expect("a chunk begins with its size"))
    }

    async fn chunk_ends(&mut self) -> bool {
        if matches!(self.left, Left::Chunk(_)) {
            self.left = Left::Chunk(0);
        }
        line(&mut self.read, &mut self.buffer).await.is_some()
    }

    /// Reads the rest of the body into `answer`.
    pub async fn finish(&mut self, answer: &mut Answer) {
        loop {
            match self.piece().await {
                Piece::Bytes(bytes) => answer.body.extend_from_slice(&bytes),
                Piece::End => return answer.whole = true,
                Piece::Cut => return,
            }
        }
    }

    /// Waits until the other side has closed.
    pub async fn closed(&mut self) {
        let mut rest = [0; 4096];
        within(ANSWER, "the end of a connection", async {
            while matches!(self.read.read(&mut rest).await, Ok(count) if count > 0) {}
        })
        .await;
    }
}

async fn more(read: &mut OwnedReadHalf, buffer: &mut Vec<u8>) -> bool {
    matches!(read.read_buf(buffer).await, Ok(count) if count > 0)
}

async fn line(read: &mut OwnedReadHalf, buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = memchr::memmem::find(buffer, b"\r\n") {
            let line = String::from_utf8_lossy(&buffer[..end]).into_owned();
            buffer.drain(..end + 2);
            return Some(line);
        }
        if !more(read, buffer).await {
            return None;
        }
    }
}

async fn head(read: &mut OwnedReadHalf, buffer: &mut Vec<u8>, left: &mut Left) -> Option<Answer> {
    loop {
        let status = line(read, buffer).await?;
        let status: u16 = status
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .expect("an answer begins with a status");
        let mut headers = Headers::new();
        loop {
            let line = line(read, buffer).await?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        if (100..200).contains(&status) {
            continue;
        }
        *left = match (value(&headers, "content-length"), value(&headers, "transfer-encoding")) {
            _ if status == 204 || status == 304 => Left::Nothing,
            (_, Some("chunked")) => Left::Chunk(0),
            (Some(length), _) => {
                Left::Length(length.parse().expect("a content-length is a number"))
            }
            (None, _) => Left::UntilClose,
        };
        return Some(Answer { status, headers, body: Vec::new(), whole: false });
    }
}

/// Sends one request on a connection of its own and returns the whole answer; `None` if the
/// connection broke before a head came.
pub async fn try_ask(address: SocketAddr, request: &Request) -> Option<Answer> {
    within(ANSWER, "an answer", async {
        let mut connection = Connection::try_open(address).await.ok()?;
        let mut answer = connection.ask(request).await?;
        connection.finish(&mut answer).await;
        Some(answer)
    })
    .await
}

pub async fn ask(address: SocketAddr, request: &Request) -> Answer {
    try_ask(address, request).await.expect("the request has an answer")
}

pub async fn get(address: SocketAddr, target: &str) -> Answer {
    ask(address, &Request::new("GET", target)).await
}
