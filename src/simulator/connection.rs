//! Serves one WebSocket: reads what its frames ask for, and serves each request in its lane's
//! order.
//!
//! This file decides what is sent and what is remembered. The turn itself is the same as over HTTP.
//! Frames come in as text and go out through a channel, so this file touches no socket.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::answer::Answer;
use super::archive::Archived;
use super::body::hex;
use super::caller::turn_state;
use super::control::{Control, Steer};
use super::form::Form;
use super::frame::{self, Frame};
use super::judge::{Entry, Outcome, Turn};
use super::key::Key;
use super::lanes::{Lane, Lanes};
use super::local::{Active, Local};
use super::model;
use super::refusal::{Caller, Refusal};
use super::request::Transport;
use super::sockets::Line;
use super::stream::{Play, Said};
use super::turn::{self, Reply};
use super::world::World;

const CREATE: &str = "response.create";
const STEER: &str = "response.steer";
/// Closes a socket whose time has ended regularly.
pub const NORMAL: u16 = 1000;

/// Outgoing messages.
#[derive(Debug, PartialEq, Eq)]
pub enum Out {
    Text(String),
    Close(u16),
    /// The connection breaks.
    Break,
}

/// A request that waits for its lane.
#[derive(Debug)]
pub struct Arrived {
    text: String,
    previous: Option<String>,
    entry: Entry,
}

/// State that all turns of one socket share.
pub struct Connection {
    pub world: Arc<World>,
    pub key: Arc<Key>,
    pub line: Arc<Line>,
    /// The record of each turn begins as a copy of this one.
    pub opening: Turn,
    /// Whether the client reads `response.metadata`, as Codex does.
    pub reads_metadata: bool,
    pub out: mpsc::Sender<Out>,
    /// Set once the simulator itself ends the socket.
    pub hung_up: Arc<AtomicBool>,
    pub local: Mutex<Local>,
}

impl Connection {
    fn local(&self) -> MutexGuard<'_, Local> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn say(&self, out: Out) {
        if !matches!(out, Out::Text(_)) {
            self.hung_up.store(true, Ordering::Relaxed);
        }
        // The task that reads frames notices a lost writer, so this failure needs no report.
        let _ = self.out.send(out).await;
    }

    /// Takes in one frame. A request goes to its lane.
    pub async fn receive(&self, lanes: &mut Lanes<Arrived>, text: String) {
        let (kind, frame) = frame::read(&text);
        self.line.frame(kind.as_deref());
        let sha256 = hex(&Sha256::digest(&text));
        match frame {
            Ok(Frame::Create { lane, previous }) => {
                let entry = self.record(CREATE, &lane, sha256);
                match lanes.admit(lane.as_deref()) {
                    Ok(()) => lanes.push(lane, Arrived { text, previous, entry }),
                    Err(refusal) => self.refuse(refusal, &lane, entry).await,
                }
            }
            Ok(Frame::Cancel { response, lane }) => self.cancel(response.as_deref(), lane).await,
            Ok(Frame::Steer { previous, input, fault }) => {
                self.steer(&previous, input, sha256, fault).await
            }
            Ok(Frame::Ignored) => {}
            Err(refusal) => {
                let entry = self.record(kind.as_deref().unwrap_or("?"), &None, sha256);
                self.refuse(refusal, &None, entry).await;
            }
        }
    }

    fn record(&self, frame: &str, lane: &Lane, sha256: String) -> Entry {
        let (frame, lane) = (Some(frame.to_owned()), lane.clone());
        let mut entry = self.world.judge.open(Turn {
            frame,
            lane,
            body_sha256: sha256,
            ..self.opening.clone()
        });
        entry.unless(&self.hung_up);
        entry
    }

    async fn refuse(&self, refusal: Refusal, lane: &Lane, mut entry: Entry) {
        entry.note(|turn| {
            (turn.status, turn.code) = (refusal.status.as_u16(), refusal.code.clone())
        });
        entry.became(Outcome::Refused);
        drop(entry);
        self.send_refusal(&refusal, lane).await;
    }

    async fn send_refusal(&self, refusal: &Refusal, lane: &Lane) {
        self.say(Out::Text(refusal.frame(lane.as_deref()))).await;
        if let Some(code) = refusal.close {
            self.say(Out::Close(code)).await;
        }
    }

    /// Ends the socket because its time is up.
    pub async fn expire(&self) {
        self.line.note(|socket| socket.expired = true);
        let caller = Caller {
            organization: &self.key.organization,
            project: &self.key.project,
            model: "",
            masked: "",
        };
        let code = Some("websocket_connection_limit_reached");
        let refusal = Refusal::scripted(StatusCode::BAD_REQUEST, code, caller, None);
        self.send_refusal(&Refusal { close: Some(NORMAL), ..refusal }, &None).await;
    }

    async fn cancel(&self, response: Option<&str>, lane: Lane) {
        let active = match response {
            Some(id) => self.local().active(id),
            None => self.local().active_on(&lane),
        };
        match active {
            Some(active) => active.control.cancel(),
            None => {
                let message = "Cancellation failed: no active response found.";
                self.send_refusal(
                    &Refusal::invalid(Some("response_cancel_not_active"), None, message),
                    &lane,
                )
                .await;
            }
        }
    }

    async fn steer(
        &self,
        previous: &str,
        input: String,
        sha256: String,
        fault: Option<&'static str>,
    ) {
        let (active, is_known) = {
            let local = self.local();
            (local.active(previous), local.find(previous).is_some())
        };
        let lane = active.as_ref().and_then(|active| active.lane.clone());
        let number = active.as_ref().map_or(0, |active| active.control.number());
        let steer = Steer { id: self.world.id("steer"), input: input.clone(), sha256 };
        let steered = match (fault, active) {
            (Some(message), _) => Err(("invalid_input", message)),
            (None, None) if is_known => Err((
                "response_already_completed",
                "The response is no longer accepting steering input.",
            )),
            (None, None) => {
                Err(("response_not_found", "The response is not available on this connection."))
            }
            (None, Some(active)) if !active.steerable => {
                Err(("steering_not_supported", "This model does not support steering."))
            }
            (None, Some(active)) => active.control.steer(steer.clone()).map_err(frame::too_late),
        };
        let event = match steered {
            Ok(()) => frame::accepted(&steer, previous, number, lane.as_deref()),
            Err(why) => frame::failed(None, &input, previous, number, lane.as_deref(), why),
        };
        self.say(Out::Text(event)).await;
    }

    /// Serves a request, and then its steered successors.
    pub async fn serve(&self, lane: Lane, arrived: Arrived) -> Lane {
        let mut next = Some(arrived);
        while let Some(arrived) = next {
            next = self.turn(&lane, arrived).await;
        }
        lane
    }

    async fn turn(&self, lane: &Lane, arrived: Arrived) -> Option<Arrived> {
        let Arrived { mut text, previous, entry } = arrived;
        let steers = previous.as_deref().and_then(|parent| self.local().waiting(parent));
        if let Some(steers) = steers {
            text = frame::continued(&text, None, &steers, frame::input(&text).as_deref());
        }
        let request = turn::Request {
            world: &self.world,
            key: &self.key,
            bytes: text.as_bytes(),
            transport: Transport::WebSocket,
            form: Form::Response,
            recall: &|id| self.local().find(id),
        };
        match turn::answer(&request, &entry).await {
            Ok(reply) => self.play(lane, &text, previous.as_deref(), reply, entry).await,
            Err(refusal) => {
                self.forget(lane, previous.as_deref());
                self.refuse(refusal, lane, entry).await;
                None
            }
        }
    }

    fn forget(&self, lane: &Lane, previous: Option<&str>) {
        if let Some(id) = previous {
            self.local().evict(lane, id);
        }
    }

    async fn play(
        &self,
        lane: &Lane,
        text: &str,
        previous: Option<&str>,
        reply: Reply,
        entry: Entry,
    ) -> Option<Arrived> {
        let Reply { answer, pause, store, past, input, cut, model, .. } = reply;
        let control = Arc::new(Control::default());
        let (id, items) = (answer.id.clone(), answer.items.clone());
        let archived = store.then(|| {
            Archived::new(Answer { lane: None, ..answer.clone() }, input, true, Duration::ZERO)
        });
        let active = Active {
            lane: lane.clone(),
            control: Arc::clone(&control),
            steerable: model::is_steerable(&model),
        };
        self.local().begin(&id, active);
        let mut is_told = !self.reads_metadata || items.is_empty();
        entry.note(|turn| is_told |= turn.turn_state.is_some());
        if !is_told {
            self.say(Out::Text(self.metadata(lane))).await;
        }
        let mut play = Play::new(answer, pause, cut, Arc::clone(&control), entry);
        let mut past = Some(past);
        let mut end = "";
        while let Some(said) = play.next().await {
            let out = match said {
                Said::Event(event) => {
                    match event.kind {
                        // The response is remembered before this event is sent, because a client
                        // that has read the event may continue from it at once.
                        "response.completed" | "response.incomplete" => {
                            let past =
                                past.take().unwrap_or_default().followed_by(&items[..play.done()]);
                            if let Some(archived) = &archived {
                                let mut memory = self.world.memory();
                                let place = self.key.place();
                                memory.stored.keep(&id, &place, past.clone());
                                memory.items.keep(&place, &id, &items[..play.done()]);
                                memory.archive.keep(&place, archived.clone());
                            }
                            self.local().keep(lane, &id, past);
                        }
                        "response.failed" | "error" => self.forget(lane, previous),
                        _ => {}
                    }
                    end = event.kind;
                    Out::Text(event.json)
                }
                Said::Refused(refusal) => {
                    self.forget(lane, previous);
                    Out::Text(refusal.frame(lane.as_deref()))
                }
                Said::Close(code) => Out::Close(code.unwrap_or(NORMAL)),
                Said::Broken => Out::Break,
            };
            self.say(out).await;
        }
        drop(play);
        self.local().end(&id);
        self.succeed(lane, text, &id, end, control).await
    }

    fn metadata(&self, lane: &Lane) -> String {
        let mut event = json!({"type": "response.metadata", "headers": {"x-codex-turn-state": turn_state(&self.world, &self.key)}});
        if let Some(lane) = lane {
            event["stream_id"] = lane.as_str().into();
        }
        event.to_string()
    }

    /// Decides what happens to steers that a response has not taken up itself.
    async fn succeed(
        &self,
        lane: &Lane,
        text: &str,
        id: &str,
        end: &str,
        control: Arc<Control>,
    ) -> Option<Arrived> {
        let steers = control.finish();
        let sha256 = steers.last()?.sha256.clone();
        let name = lane.as_deref();
        let history = self
            .local()
            .find(id)
            .filter(|_| matches!(end, "response.completed" | "response.incomplete"));
        let Some(history) = history else {
            for steer in &steers {
                let why =
                    ("successor_creation_failed", "The successor response could not be created.");
                let event =
                    frame::failed(Some(&steer.id), &steer.input, id, control.number(), name, why);
                self.say(Out::Text(event)).await;
            }
            return None;
        };
        let calls: Vec<String> = history.calls.open().cloned().collect();
        if calls.is_empty() {
            let entry = self.record(STEER, lane, sha256);
            let text = frame::continued(text, Some(id), &steers, None);
            return Some(Arrived { text, previous: Some(id.to_owned()), entry });
        }
        for steer in &steers {
            self.say(Out::Text(frame::pending(steer, id, control.number(), name, &calls))).await;
        }
        self.local().wait(id, steers);
        None
    }
}
