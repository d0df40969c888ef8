//! Both ends of WebSockets through the gateway. A test writes every message by hand, and reads
//! every message that comes.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::world::waiting::{ANSWER, SOON, within};
use crate::world::wire::{Headers, value};

/// Codex 0.169's headers of a WebSocket handshake, without token and session.
const CODEX: &str = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
    sec-websocket-key: aMgmqkQqgExh1/SCvQpsDA==\r\n\
    user-agent: codex_exec/0.169.0 (Debian 12.0.0; x86_64) unknown (codex_exec; 0.169.0)\r\noriginator: codex_exec\r\n\
    openai-beta: responses_websockets=2026-02-06\r\nx-codex-beta-features: remote_compaction_v2\r\n\
    sec-websocket-extensions: permessage-deflate; client_max_window_bits\r\n";
/// The header that answers the handshake's key.
const ACCEPTED: &str = "sec-websocket-accept";

/// Most events that a test reads: more than any answer has.
pub const EVENTS: usize = 10_000;

/// One end of a WebSocket. Dropping it drops the connection without a close.
pub struct Socket(pub WebSocketStream<TcpStream>);

impl Socket {
    pub async fn send(&mut self, text: &str) {
        within(ANSWER, "a message is taken", self.0.send(Message::text(text)))
            .await
            .expect("the connection is open");
    }

    /// The next message that is neither ping nor pong.
    pub async fn next(&mut self) -> Option<Result<Message, Error>> {
        within(ANSWER, "a message", async {
            loop {
                match self.0.next().await {
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    other => return other,
                }
            }
        })
        .await
    }

    pub async fn text(&mut self) -> String {
        match self.next().await {
            Some(Ok(Message::Text(text))) => text.to_string(),
            other => panic!("a text message and not {other:?}"),
        }
    }

    pub async fn json(&mut self) -> serde_json::Value {
        let text = self.text().await;
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("JSON expected ({error}): {text}"))
    }

    /// The next event of one of these types. Fails the test if too many other events come first.
    pub async fn event(&mut self, types: &[&str]) -> serde_json::Value {
        for _ in 0..EVENTS {
            let event = self.json().await;
            if event["type"].as_str().is_some_and(|found| types.contains(&found)) {
                return event;
            }
        }
        panic!("one of {types:?} within {EVENTS} messages")
    }

    /// Returns the other side's close code; 1005 for a close without a code, 1006 if the connection
    /// just ended. A missed ping would also end the connection, but only after a minute, which is
    /// too late here.
    pub async fn closed(&mut self) -> u16 {
        match within(SOON, "a close", self.next()).await {
            Some(Ok(Message::Close(Some(word)))) => word.code.into(),
            Some(Ok(Message::Close(None))) => 1005,
            Some(Ok(other)) => panic!("a close and not {other:?}"),
            Some(Err(_)) | None => 1006,
        }
    }

    pub async fn close(&mut self, code: u16, reason: &'static str) {
        let word = CloseFrame { code: code.into(), reason: reason.into() };
        self.0.send(Message::Close(Some(word))).await.expect("the connection is open");
    }
}

/// The answer to a handshake that was refused.
#[derive(Debug)]
pub struct Refused {
    pub status: u16,
    pub headers: Headers,
    pub body: String,
}

impl Refused {
    pub fn code(&self) -> String {
        let json: serde_json::Value = serde_json::from_str(&self.body).expect("an error is JSON");
        json["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Returns how long the client has to wait by `retry-after`. Without that header, the time is
    /// zero.
    pub fn wait(&self) -> std::time::Duration {
        let stated = value(&self.headers, "retry-after").and_then(|wait| wait.parse().ok());
        stated.map_or_else(Default::default, std::time::Duration::from_secs)
    }

    /// The seconds of `retry-after`.
    pub fn retry_after(&self) -> u64 {
        value(&self.headers, "retry-after")
            .and_then(|wait| wait.parse().ok())
            .expect("an integer retry-after")
    }
}

/// Opens a WebSocket as Codex does, with these additional headers.
pub async fn open(
    address: SocketAddr,
    token: &str,
    headers: &[(&str, &str)],
) -> Result<(Socket, Headers), Refused> {
    open_with(address, &head("/responses", token, headers), b"").await
}

/// As [`open`], for this session. The handshake must succeed.
pub async fn session(address: SocketAddr, token: &str, session: &str) -> Socket {
    let opened = open(address, token, &[("session-id", session), ("thread-id", session)]).await;
    opened.unwrap_or_else(|refused| panic!("a WebSocket and not {refused:?}")).0
}

/// The request with which Codex opens a WebSocket.
pub fn head(target: &str, token: &str, headers: &[(&str, &str)]) -> String {
    let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!(
        "GET {target} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {token}\r\n{CODEX}{more}\r\n"
    )
}

/// Sends `head` and, without waiting for an answer, `early`.
pub async fn open_with(
    address: SocketAddr,
    head: &str,
    early: &[u8],
) -> Result<(Socket, Headers), Refused> {
    let mut stream = TcpStream::connect(address).await.expect("the listener accepts");
    stream.set_nodelay(true).expect("a socket has options");
    stream.write_all(head.as_bytes()).await.expect("the head is taken");
    stream.write_all(early).await.expect("more is taken");
    let (line, headers, rest) =
        within(ANSWER, "an answer", read_head(&mut stream)).await.expect("an answer has a head");
    let status: u16 =
        line.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("an answer has a status");
    if status == 101 {
        assert_eq!(
            value(&headers, ACCEPTED),
            Some(derive_accept_key(b"aMgmqkQqgExh1/SCvQpsDA==").as_str())
        );
        return Ok((
            Socket(WebSocketStream::from_partially_read(stream, rest, Role::Client, None).await),
            headers,
        ));
    }
    let length: usize = value(&headers, "content-length")
        .map_or(0, |length| length.parse().expect("a length is a number"));
    let mut body = rest;
    while body.len() < length {
        assert!(
            within(ANSWER, "a body", stream.read_buf(&mut body)).await.is_ok_and(|count| count > 0),
            "the body is whole"
        );
    }
    Err(Refused { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
}

/// A listening upstream whose answers a test writes by hand.
pub struct Upstream(TcpListener);

impl Upstream {
    pub async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.expect("a port is free"))
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.0.local_addr().expect("a bound listener has an address"))
    }

    /// The next request, still unanswered. A probe of a key is answered 401 on the way.
    pub async fn asked(&self) -> Asked {
        within(SOON, "a request upstream", async {
            loop {
                let (mut stream, _) = self.0.accept().await.expect("the listener accepts");
                stream.set_nodelay(true).expect("a socket has options");
                let Some((line, headers, rest)) = read_head(&mut stream).await else { continue };
                let asked = Asked { line, headers, rest, stream };
                if !asked.line.contains("/models") {
                    return asked;
                }
                // This answer confirms that the refused key is dead.
                asked.refuse("401 Unauthorized", "invalid_api_key").await;
            }
        })
        .await
    }

    /// Answers the next request, which must be a probe of a key, with 401.
    pub async fn is_probed(&self) {
        let (mut stream, _) =
            within(SOON, "a probe", self.0.accept()).await.expect("the listener accepts");
        let (line, headers, rest) = read_head(&mut stream).await.expect("a request has a head");
        assert!(line.contains("/models"), "{line}");
        Asked { line, headers, rest, stream }.refuse("401 Unauthorized", "invalid_api_key").await;
    }

    /// Accepts the next WebSocket.
    pub async fn accept(&self) -> Socket {
        self.asked().await.accept("").await
    }

    /// Whether an unanswered connection waits.
    pub async fn is_asked(&self) -> bool {
        tokio::time::timeout(std::time::Duration::ZERO, self.0.accept()).await.is_ok()
    }
}

/// A request that waits for its answer.
pub struct Asked {
    pub line: String,
    pub headers: Headers,
    /// The bytes behind the head.
    pub rest: Vec<u8>,
    pub stream: TcpStream,
}

impl Asked {
    pub fn key(&self) -> String {
        let shown =
            value(&self.headers, "authorization").and_then(|value| value.strip_prefix("Bearer "));
        shown.expect("a key is shown").to_owned()
    }

    /// Answers 101, with these header lines besides.
    pub async fn accept(mut self, headers: &str) -> Socket {
        let nonce = value(&self.headers, "sec-websocket-key").expect("a handshake has a key");
        let accepted = derive_accept_key(nonce.as_bytes());
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n{ACCEPTED}: {accepted}\r\n{headers}\r\n"
        );
        self.stream.write_all(head.as_bytes()).await.expect("the answer is taken");
        Socket(
            WebSocketStream::from_partially_read(self.stream, self.rest, Role::Server, None).await,
        )
    }

    /// Answers with this status and OpenAI error code.
    pub async fn refuse(mut self, status: &str, code: &str) {
        let body =
            format!(r#"{{"error":{{"message":"m","type":"t","param":null,"code":"{code}"}}}}"#);
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
            body.len()
        );
        self.stream
            .write_all(format!("{head}connection: close\r\n\r\n{body}").as_bytes())
            .await
            .expect("the answer is taken");
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<(String, Headers, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let rest = bytes.split_off(end + 4);
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let line = lines.next()?.to_owned();
    let headers = lines.filter_map(|line| line.split_once(':'));
    Some((
        line,
        headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect(),
        rest,
    ))
}

/// A short `response.create` of Codex.
pub fn create(previous: Option<&str>) -> String {
    let previous = previous.map_or_else(|| "null".to_owned(), |id| format!("{id:?}"));
    format!(
        r#"{{"type":"response.create","model":"gpt-5.4","instructions":"x","previous_response_id":{previous},"input":[{{"type":"message","role":"user","content":[{{"type":"input_text","text":"h\u00e9\n"}}]}}],"tools":[],"store":false,"stream":true, "odd" : 1.0e2}}"#
    )
}

/// A `response.create` with this text, without the fields that the simulator does not know.
pub fn plain(text: &str) -> String {
    create(None).replace(r"h\u00e9\n", text).replace(r#", "odd" : 1.0e2"#, "")
}

pub fn created(id: &str) -> String {
    format!(
        r#"{{"type":"response.created","sequence_number":0,"response":{{"id":{id:?},"status":"in_progress","usage":null}}}}"#
    )
}

pub fn completed(id: &str) -> String {
    format!(
        r#"{{"type":"response.completed","sequence_number":9,"response":{{"id":{id:?},"status":"completed","output":[],"usage":{{"input_tokens":9000,"input_tokens_details":{{"cached_tokens":8832}},"output_tokens":7}}}}}}"#
    )
}

/// Plays a whole turn: the request arrives upstream, and its answer at the client.
pub async fn turn(client: &mut Socket, upstream: &mut Socket, id: &str) {
    let ask = create(None);
    client.send(&ask).await;
    assert_eq!(upstream.text().await, ask);
    for event in [created(id), completed(id)] {
        upstream.send(&event).await;
        assert_eq!(client.text().await, event);
    }
}
