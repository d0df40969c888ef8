//! Plays sessions as Codex does. Each HTTP request carries the whole history; each WebSocket frame
//! carries only new items. The client leaves once it has the answer's terminal event.

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

/// The sessions of a row, and what is played of them so far.
pub struct Playing<'a> {
    sessions: &'a [Session],
    transport: Transport,
    client: reqwest::Client,
    waits: Vec<Duration>,
    /// The history at the end of each session's root.
    histories: Vec<Vec<String>>,
}

impl<'a> Playing<'a> {
    pub fn new(sessions: &'a [Session], transport: Transport) -> Result<Self, String> {
        let (client, waits, histories) = (http::client()?, Vec::new(), Vec::new());
        Ok(Self { sessions, transport, client, waits, histories })
    }

    /// Plays all sessions at once.
    pub async fn begin(&mut self, proxy: SocketAddr) -> Result<(), String> {
        let all = self.sessions.iter();
        let played = all.map(|session| one(session, self.transport, &self.client, proxy));
        for (waits, history) in futures_util::future::try_join_all(played).await? {
            self.waits.extend(waits);
            self.histories.push(history);
        }
        Ok(())
    }

    /// Resumes those sessions that go on after the restart.
    pub async fn resume(&mut self, proxy: SocketAddr) -> Result<(), String> {
        let (transport, client) = (self.transport, &self.client);
        let all = self.sessions.iter().zip(std::mem::take(&mut self.histories));
        let resumed = all.filter_map(|(session, history)| Some((session.resumed()?, history)));
        let played = resumed.map(|(session, history)| async move {
            let player = Player { session: &session, thread: &session.root, proxy };
            player.play(transport, client, history).await
        });
        for (waits, _) in futures_util::future::try_join_all(played).await? {
            self.waits.extend(waits);
        }
        Ok(())
    }

    /// The mean time to the first token.
    pub fn first_token(&self) -> Duration {
        let count = u32::try_from(self.waits.len().max(1)).unwrap_or(u32::MAX);
        self.waits.iter().sum::<Duration>() / count
    }
}

/// Plays a session, its sub-agent and its fork. Returns the waits for first tokens, and the history
/// at the end of the root.
async fn one(
    session: &Session,
    transport: Transport,
    client: &reqwest::Client,
    proxy: SocketAddr,
) -> Result<(Vec<Duration>, Vec<String>), String> {
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
        waits.extend(play(&fork, &fork.root, history.clone()).await?.0);
    }
    Ok((waits, history))
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
