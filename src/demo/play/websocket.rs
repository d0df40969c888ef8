//! Plays a thread on a WebSocket as Codex does. The handshake names the session, and the first
//! message prewarms. Each further message continues from the last response with only new items. On
//! a new socket in mid-session, the client sends the whole history and no response's id, since ids
//! end with their socket.

use tokio::time::Instant;

use futures_util::{SinkExt, StreamExt};
use http::HeaderValue;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::{Answer, Completed, Player};
use crate::demo::script::{Thread, token};

type Socket = WebSocketStream<TcpStream>;

/// The state that a thread keeps of its connection.
#[derive(Default)]
pub struct Line {
    socket: Option<Socket>,
    /// The response to continue from, and how many items of the history that response has seen.
    previous: Option<(String, usize)>,
    is_prewarmed: bool,
}

impl Line {
    /// The socket is dropped without a close, as Codex does.
    pub fn drop(&mut self) {
        (self.socket, self.previous) = (None, None);
    }

    pub async fn ask(
        &mut self,
        player: Player<'_>,
        number: usize,
        history: &[String],
    ) -> Result<Answer, String> {
        let model = player.model(number);
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => {
                self.previous = None;
                open(player).await?
            }
        };
        if !self.is_prewarmed {
            let prefix = &history[..Thread::PREFIX];
            let prewarm = turn(&mut socket, player.session.prewarm(model, prefix)).await?.completed;
            // A refused prewarm costs nothing: the turn is sent as a whole.
            self.previous = prewarm.ok().map(|completed| (completed.response.id, prefix.len()));
            self.is_prewarmed = true;
        }
        let (id, seen) =
            self.previous.as_ref().map_or((None, 0), |(id, seen)| (Some(id.as_str()), *seen));
        let answer = turn(&mut socket, player.session.frame(model, id, &history[seen..])).await?;
        match &answer.completed {
            Ok(Completed { response }) => {
                self.previous = Some((response.id.clone(), history.len() + response.output.len()));
                self.socket = Some(socket);
            }
            // Codex leaves a socket that has refused a frame.
            Err(_) => self.drop(),
        }
        Ok(answer)
    }
}

/// The handshake, which names the thread's session before anything is sent.
async fn open(player: Player<'_>) -> Result<Socket, String> {
    let Player { session, thread, proxy } = player;
    let is_subagent = thread.id != session.root.id;
    let mut metadata = json!({
        "session_id": session.id, "thread_id": thread.id, "turn_id": "", "window_number": 0, "request_kind": "prewarm",
        "history_initialization": "new", "thread_source": if is_subagent { "subagent" } else { "user" }, "model": session.model,
    });
    if let Some(parent) = &session.forked_from {
        metadata["forked_from_thread_id"] = parent.as_str().into();
    }
    let (window, metadata, bearer) = (
        format!("{}:0", thread.id),
        metadata.to_string(),
        format!("Bearer {}", token(session.user)),
    );
    let mut headers = vec![
        ("authorization", bearer.as_str()),
        ("user-agent", "codex_exec/0.169.0 (Debian 12.0.0; x86_64) unknown (codex_exec; 0.169.0)"),
        ("originator", "codex_exec"),
        ("openai-beta", "responses_websockets=2026-02-06"),
        ("x-codex-turn-metadata", &metadata),
        ("x-codex-beta-features", "remote_compaction_v2"),
        ("x-client-request-id", &thread.id),
        ("session-id", &session.id),
        ("thread-id", &thread.id),
        ("x-codex-window-id", &window),
        ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
    ];
    if is_subagent {
        headers.extend([
            ("x-codex-parent-thread-id", session.root.id.as_str()),
            ("x-openai-subagent", "collab_spawn"),
        ]);
    }
    let mut request = format!("ws://{proxy}/v1/responses")
        .into_client_request()
        .map_err(|error| error.to_string())?;
    for (name, value) in headers {
        request
            .headers_mut()
            .insert(name, HeaderValue::try_from(value).map_err(|error| error.to_string())?);
    }
    let stream = TcpStream::connect(proxy).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    match client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(response)) => {
            Err(format!("a WebSocket was refused: {}", response.status()))
        }
        Err(error) => Err(format!("no WebSocket: {error}")),
    }
}

/// Sends a request, and reads its answer to the end.
async fn turn(socket: &mut Socket, frame: String) -> Result<Answer, String> {
    socket.send(Message::text(frame)).await.map_err(|error| error.to_string())?;
    let mut first_token = None;
    loop {
        let text = match socket.next().await {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            other => return Err(format!("a WebSocket ended within a turn: {other:?}")),
        };
        let event: Event = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let completed = match event.kind {
            // An event of the connection, and not of the answer.
            "response.metadata" => continue,
            "response.completed" => {
                Ok(serde_json::from_str(&text).map_err(|error| error.to_string())?)
            }
            "error" => Err((event.status.unwrap_or_default(), text.to_string())),
            "response.failed" | "response.incomplete" => {
                return Err(format!("a turn ended in {text}"));
            }
            _ => {
                first_token.get_or_insert_with(Instant::now);
                continue;
            }
        };
        return Ok(Answer { first_token: first_token.unwrap_or_else(Instant::now), completed });
    }
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    status: Option<u16>,
}
