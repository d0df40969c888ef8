//! A client on a WebSocket: the frames that it sends, and the frames until the answer is over.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{Upstream, ask};

/// How long a frame may take before a test fails.
const SOON: std::time::Duration = std::time::Duration::from_secs(10);

/// More frames than any test reads from one socket, so that waiting for a certain frame ends.
const MOST_FRAMES: usize = 10_000;

pub struct Socket {
    pub wire: WebSocketStream<TcpStream>,
    pub headers: http::HeaderMap,
    frames: usize,
}

impl Socket {
    /// Opens a WebSocket. A refused handshake returns its status and error.
    pub async fn open_with(
        upstream: &Upstream,
        key: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Error> {
        let mut request = format!("ws://{}/v1/responses", upstream.address)
            .into_client_request()
            .expect("a request");
        request
            .headers_mut()
            .insert("authorization", format!("Bearer sk-{key}").parse().expect("a value"));
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().expect("a value"));
        }
        let stream = TcpStream::connect(upstream.address).await.expect("connected");
        let (wire, response) = tokio_tungstenite::client_async(request, stream).await?;
        Ok(Self { wire, headers: response.headers().clone(), frames: 0 })
    }

    pub async fn open(upstream: &Upstream, key: &str) -> Self {
        Self::open_with(upstream, key, &[("session-id", "session-1")]).await.expect("accepted")
    }

    pub async fn refused(
        upstream: &Upstream,
        key: &str,
        headers: &[(&'static str, &str)],
    ) -> (u16, Value) {
        match Self::open_with(upstream, key, headers).await.map(|_| ()) {
            Err(Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                (response.status().as_u16(), serde_json::from_slice(body).unwrap_or_default())
            }
            other => panic!("refused was expected, not {other:?}"),
        }
    }

    pub async fn say(&mut self, frame: &Value) {
        self.wire.send(Message::text(frame.to_string())).await.expect("sent");
    }

    /// The next frame, or the close code: 1006 if the connection just broke.
    pub async fn receive(&mut self) -> Result<Value, u16> {
        loop {
            self.frames += 1;
            assert!(self.frames < MOST_FRAMES, "a certain frame within {MOST_FRAMES}");
            let message =
                tokio::time::timeout(SOON, self.wire.next()).await.expect("a frame in time");
            match message {
                Some(Ok(Message::Text(text))) => {
                    return Ok(serde_json::from_str(&text).expect("JSON"));
                }
                Some(Ok(Message::Close(frame))) => {
                    return Err(frame.map_or(1005, |frame| frame.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(1006),
            }
        }
    }

    /// The events up to the end of one response, or up to an error frame.
    pub async fn answer(&mut self) -> Value {
        loop {
            let frame = self.receive().await.expect("a frame");
            let kind = frame["type"].as_str().expect("a type");
            if matches!(
                kind,
                "response.completed" | "response.incomplete" | "response.failed" | "error"
            ) {
                return frame;
            }
        }
    }

    pub async fn turn(&mut self, frame: &Value) -> Value {
        self.say(frame).await;
        self.answer().await
    }
}

/// A request as Codex sends it.
pub fn create(model: &str, previous: Option<&Value>, input: &[Value]) -> Value {
    let mut frame = ask(model, input);
    frame["type"] = json!("response.create");
    if let Some(previous) = previous {
        frame["previous_response_id"] = previous["response"]["id"].clone();
    }
    frame
}

pub fn with(mut frame: Value, more: Value) -> Value {
    frame.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    frame
}

pub fn code(frame: &Value) -> (u64, &str) {
    (frame["status"].as_u64().unwrap_or(0), frame["error"]["code"].as_str().unwrap_or_default())
}
