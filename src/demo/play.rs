//! Plays sessions as Codex does. Each HTTP request carries the whole history; each WebSocket frame
//! carries only new items. The client leaves an answer behind its terminal event.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::script::{Session, Thread};

mod chat;
mod http;
mod websocket;

use websocket::Line;

/// Minimum time between two turns of a thread.
const PACE: Duration = Duration::from_millis(100);
/// Longer than any turn of the demo takes.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How turns travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Http,
    WebSocket,
    /// Over HTTP, in the older dialect.
    Chat,
}

/// One thread, and where it is played.
#[derive(Clone, Copy)]
struct Player<'a> {
    session: &'a Session,
    thread: &'a Thread,
    proxy: SocketAddr,
}

/// The answer to a turn.
struct Answer {
    /// When the first byte of the answer came.
    first_token: Instant,
    /// The completed response, or the status and the text of a refusal.
    completed: Result<Completed, (u16, String)>,
}

/// The object of a `response.completed`.
#[derive(Deserialize)]
struct Completed {
    response: Response,
}

#[derive(Deserialize)]
struct Response {
    id: String,
    /// Output items as the upstream spelled them: a history extends the cached prefix only if its
    /// bytes stay the same.
    output: Vec<Box<RawValue>>,
}

/// Plays all sessions at once. Returns the mean time to the first token.
pub async fn all(
    sessions: &[Session],
    transport: Transport,
    proxy: SocketAddr,
) -> Result<Duration, String> {
    let client = http::client()?;
    let played = sessions.iter().map(|session| one(session, transport, &client, proxy));
    let waits = futures_util::future::try_join_all(played).await?;
    let waits: Vec<Duration> = waits.into_iter().flatten().collect();
    Ok(waits.iter().sum::<Duration>() / u32::try_from(waits.len().max(1)).unwrap_or(u32::MAX))
}

async fn one(
    session: &Session,
    transport: Transport,
    client: &reqwest::Client,
    proxy: SocketAddr,
) -> Result<Vec<Duration>, String> {
    let play = async |session, thread: &Thread, history| {
        Player { session, thread, proxy }.play(transport, client, history).await
    };
    let subagent = async {
        match &session.subagent {
            Some(subagent) => {
                let turns = (0..session.root.turns).position(Session::spawns_at).unwrap_or(0);
                tokio::time::sleep(PACE * turns as u32).await;
                play(session, subagent, subagent.opening()).await.map(|(waits, _)| waits)
            }
            None => Ok(Vec::new()),
        }
    };
    let root = play(session, &session.root, session.root.opening());
    let ((mut waits, history), subagent) = tokio::try_join!(root, subagent)?;
    waits.extend(subagent);
    if let Some(fork) = session.fork() {
        waits.extend(play(&fork, &fork.root, history).await?.0);
    }
    Ok(waits)
}

impl Player<'_> {
    /// Plays all turns of the thread, which begins with `history`. Returns each turn's wait for its
    /// first token, and the history at the end. The wait includes connecting and preparing, since
    /// the user waits for both.
    async fn play(
        self,
        transport: Transport,
        client: &reqwest::Client,
        mut history: Vec<String>,
    ) -> Result<(Vec<Duration>, Vec<String>), String> {
        if transport == Transport::Chat {
            return chat::play(self, client, history).await;
        }
        let mut line = Line::default();
        let mut ask = async |turn: usize, history: &[String]| {
            let answer = async {
                match transport {
                    Transport::Http | Transport::Chat => {
                        http::ask(self, turn, history, client).await
                    }
                    Transport::WebSocket => {
                        if self.thread.drops_at == Some(turn) {
                            line.drop();
                        }
                        line.ask(self, turn, history).await
                    }
                }
            };
            tokio::time::timeout(TIMEOUT, answer)
                .await
                .map_err(|_| format!("a turn took more than {TIMEOUT:?}"))?
        };
        let mut waits = Vec::new();
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for turn in 0..self.thread.turns {
            pace.tick().await;
            let began = Instant::now();
            let mut answer = ask(turn, &history).await?;
            if matches!(answer.completed, Err((400, _))) {
                // The session is lost: its reasoning belongs to another organization. The client
                // drops that reasoning and goes on, as a user would have to.
                history.retain(|item| !item.contains("\"encrypted_content\""));
                answer = ask(turn, &history).await?;
            }
            let completed = answer.completed.map_err(|(status, text)| {
                format!(
                    "a turn was answered {status}: {}",
                    text.chars().take(300).collect::<String>()
                )
            })?;
            waits.push(answer.first_token - began);
            let output = completed.response.output;
            let call = output.iter().find_map(|item| {
                let item: Value = serde_json::from_str(item.get()).ok()?;
                item["call_id"].as_str().map(str::to_owned)
            });
            history.extend(output.iter().map(|item| item.get().to_owned()));
            history.push(self.thread.reply(turn, call.as_deref()));
        }
        Ok((waits, history))
    }

    /// The model of turn `turn`.
    fn model(&self, turn: usize) -> &'static str {
        self.session.model(self.thread, turn)
    }
}
