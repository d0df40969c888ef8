//! Codex over WebSocket: it prewarms, then sends only new items, on one connection for as long as
//! that lives.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Codex, items_of, uuid};
use crate::world::socket::{EVENTS, Refused, Socket, open};
use crate::world::waiting::ms;

/// Attempts of Codex before it continues over HTTP.
const ATTEMPTS: u32 = 7;

pub struct Talk {
    pub codex: Codex,
    connection: Option<Connection>,
    /// How often the client has connected.
    pub connections: usize,
}

struct Connection {
    socket: Socket,
    /// The response to continue from, and how many input items it includes.
    previous: Option<(String, usize)>,
}

impl Codex {
    pub fn by_websocket(self) -> Talk {
        Talk { codex: self, connection: None, connections: 0 }
    }
}

impl Talk {
    /// Drops the connection, as after an interrupted turn: the next turn connects again.
    pub fn hang_up(&mut self) {
        self.connection = None;
    }

    /// Plays one turn to its end, with as many connections as it needs. Returns the last frame
    /// sent, and its terminal event.
    pub async fn turn(&mut self, text: &str) -> (String, Value) {
        self.codex.begin(text);
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(ms(100 << attempt)).await;
            }
            if self.connection.is_none()
                && let Err(refused) = self.connect().await
            {
                tokio::time::sleep(refused.wait()).await;
                continue;
            }
            let Some(connection) = &mut self.connection else { continue };
            let count = self.codex.input.len();
            let frame = self.codex.frame(connection.previous.take(), count, true);
            if let Some((terminal, items)) = answer(&mut connection.socket, &frame).await {
                self.codex.input.extend(items);
                connection.previous = Some((id_of(&terminal), self.codex.input.len()));
                return (frame, terminal);
            }
            self.connection = None;
        }
        panic!("the turn is served within {ATTEMPTS} attempts");
    }

    async fn connect(&mut self) -> Result<(), Refused> {
        let codex = &self.codex;
        let metadata = codex.metadata("");
        let window = format!("{}:0", codex.thread);
        let headers = [
            ("x-codex-turn-metadata", metadata.as_str()),
            ("x-client-request-id", &codex.thread),
            ("session-id", &codex.session),
            ("thread-id", &codex.thread),
            ("x-codex-window-id", &window),
        ];
        let (mut socket, _) = open(codex.address, &codex.token, &headers).await?;
        self.connections += 1;
        let mut previous = None;
        if self.connections == 1 {
            let terminal = answer(&mut socket, &codex.frame(None, 1, false)).await;
            previous = terminal.map(|(terminal, _)| (id_of(&terminal), 1));
        }
        self.connection = Some(Connection { socket, previous });
        Ok(())
    }
}

impl Codex {
    /// A request for the first `count` items of the input. With `previous`, the upstream already
    /// has some of them.
    fn frame(&self, previous: Option<(String, usize)>, count: usize, generate: bool) -> String {
        let known = previous.as_ref().map_or(0, |(_, known)| *known);
        let turn = uuid();
        let new = Self { input: self.input[known..count].to_vec(), ..self.clone() };
        let body =
            String::from_utf8(new.body(&self.metadata(&turn), &turn)).expect("a body is text");
        let mut head = r#"{"type":"response.create","#.to_owned();
        if let Some((id, _)) = previous {
            head.push_str(&format!(r#""previous_response_id":{id:?},"#));
        }
        if !generate {
            head.push_str(r#""generate":false,"#);
        }
        body.replacen('{', &head, 1)
    }
}

/// The terminal event that answers `frame`, and the items that came before it. `None`: the client
/// has to reconnect.
async fn answer(socket: &mut Socket, frame: &str) -> Option<(Value, Vec<String>)> {
    socket.send(frame).await;
    let mut items = Vec::new();
    for _ in 0..EVENTS {
        let Some(Ok(message)) = socket.next().await else { return None };
        let Ok(text) = message.into_text() else { return None };
        let event: Value = serde_json::from_str(&text).ok()?;
        match event["type"].as_str()? {
            "response.output_item.done" => items.extend(items_of(&text)),
            "response.completed" => return Some((event, items)),
            "response.failed" | "response.incomplete" => panic!("the turn is completed: {text}"),
            "error" => {
                assert_ne!(
                    event["error"]["code"], "insufficient_quota",
                    "the turn goes on: {text}"
                );
                if let Some(wait) =
                    event["headers"]["retry-after"].as_str().and_then(|wait| wait.parse().ok())
                {
                    tokio::time::sleep(Duration::from_secs(wait)).await;
                    return None;
                }
                let is_anew = ["previous_response_not_found", "websocket_connection_limit_reached"]
                    .iter()
                    .any(|code| event["error"]["code"] == json!(code));
                assert!(
                    is_anew || event["status"].as_u64().is_some_and(|status| status >= 500),
                    "the turn goes on: {text}"
                );
                return None;
            }
            _ => {}
        }
    }
    panic!("a terminal event within {EVENTS} messages")
}

fn id_of(terminal: &Value) -> String {
    terminal["response"]["id"].as_str().expect("a response has an id").to_owned()
}
