//! Handles a client's messages on a WebSocket: checks each request, and notes it as a turn, before
//! the message passes.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::binding::demand::Sealed;
use crate::error::{Error, ErrorKind};
use crate::key::host::UpstreamHost;
use crate::telemetry::TurnId;
use crate::turn::account::{Account, Arrival};
use crate::turn::entry::may_ask_for;
use crate::turn::memory::{LIGHT, MemoryPlace};
use crate::turn::websocket::frame::{ClientMessage, early_lane};
use crate::turn::websocket::lanes::Turn;
use crate::turn::websocket::reach::{Served, may_reach};
use crate::turn::websocket::state::SocketState;
use crate::wire::rename::with_model;
use crate::wire::scan::NotJson;

use super::{SOON, Socket};

/// Longest `stream_id` that is accepted.
const LONGEST_NAME: usize = 512;

/// A message as the gateway has read it.
#[derive(Debug)]
struct Seen {
    message: ClientMessage,
    /// Whether it holds sealed content.
    is_sealed: bool,
    /// The message with the upstream's own name of its model, where an operator has mapped it.
    renamed: Option<Utf8Bytes>,
}

impl Seen {
    /// Reads a message for an upstream with this `host`. `seeks_sealed`: whether to look for sealed
    /// content.
    fn read(text: &str, host: &UpstreamHost, seeks_sealed: bool) -> Result<Self, NotJson> {
        let message = ClientMessage::read(text.as_bytes())?;
        let is_sealed = seeks_sealed && Sealed::In(text.as_bytes()).is_sealed();
        let asked = message.model.as_deref().filter(|_| message.is_create);
        let name = asked.and_then(|model| host.name_of(model));
        let renamed = name.and_then(|name| with_model(text.as_bytes(), name));
        let renamed = renamed.and_then(|text| String::from_utf8(text).ok()).map(Utf8Bytes::from);
        Ok(Self { message, is_sealed, renamed })
    }
}

impl Socket {
    /// Checks a client's message. Returns the message for the upstream, with a permit for the
    /// memory of its copies. The error is the frame that the client receives instead of an answer.
    pub(super) async fn ask(&self, text: Utf8Bytes) -> Result<(Message, MemoryPlace), String> {
        let began = Instant::now();
        let seen = match self.read(&text).await {
            Ok(seen) => seen,
            Err(error) => {
                let lane = early_lane(text.as_bytes()).filter(|lane| lane.len() <= LONGEST_NAME);
                let arrival = Arrival { began, id: TurnId::random() };
                return Err(self.refuse(&error, lane.as_deref(), arrival));
            }
        };
        let Seen { mut message, is_sealed, renamed } = seen;
        let (read, parent) = (Instant::now(), message.traceparent.as_deref());
        let arrival = Arrival { began, id: TurnId::within(parent.map(str::as_bytes)) };
        if message.lane.as_ref().is_some_and(|lane| lane.len() > LONGEST_NAME) {
            // The gateway keeps the lane's name for as long as the lane has turns.
            let error = Error::new(ErrorKind::InvalidRequest, "The stream_id is too long.");
            return Err(self.refuse(&error, None, arrival));
        }
        let accepted = async {
            let mut place = MemoryPlace::default();
            // A long message is copied once more on its way out.
            let made = renamed.as_ref().map_or(0, |text| text.len());
            let copied = if text.len() > LIGHT { made.max(text.len()) } else { 0 };
            let memory = self.turns.memory.of(&self.client.id);
            memory.extend(&mut place, made + copied)?;
            let needs_project = self.permit(&message).await?;
            if message.is_create {
                let open = |state: &mut SocketState| {
                    let permitted = Instant::now();
                    let mut account = self.open(state, arrival);
                    account.note_permitted(read, permitted);
                    account
                };
                self.begin(&mut message, needs_project, is_sealed, open)?;
            }
            Ok(place)
        };
        match accepted.await {
            Ok(place) => Ok((Message::Text(renamed.unwrap_or(text)), place)),
            Err(error) => {
                let error: Error = error;
                if error.kind == ErrorKind::ConnectionLimit {
                    self.leaving.notify_one();
                }
                Err(self.refuse(&error, message.lane.as_deref(), arrival))
            }
        }
    }

    /// Reads a message: a short one here, a long one on another thread, so that no other turn
    /// waits.
    async fn read(&self, text: &Utf8Bytes) -> Result<Seen, Error> {
        // After the first answer, the session counts as sealed in any case.
        let seeks_sealed = !self.state().is_confirmed;
        let seen = if text.len() > LIGHT {
            let (own, key) = (text.clone(), Arc::clone(&self.binding.key));
            let read = move || Seen::read(&own, &key.upstream.host, seeks_sealed);
            self.turns.heavy.run(&self.client.id, read).await?
        } else {
            Seen::read(text, &self.binding.key.upstream.host, seeks_sealed)
        };
        seen.map_err(|place| {
            Error::new(ErrorKind::InvalidJson, format!("The message stops being JSON at {place}."))
        })
    }

    /// Checks that the client may ask for the message's model now, and then checks the content that
    /// the message refers to. Returns whether only the session's project can find that content.
    async fn permit(&self, message: &ClientMessage) -> Result<bool, Error> {
        // A response that was issued on this connection belongs to the client.
        let (is_own, has_served) = {
            let state = self.state();
            let previous = message.previous_response_id.as_deref();
            (previous.is_some_and(|id| state.lanes.has_issued(id)), state.is_confirmed)
        };
        let on = Served { binding: &self.binding, has_served };
        if message.is_create {
            let client = self.gateway().entry.enter_again(self.proof)?;
            may_ask_for(&client, message.model.as_deref(), message.references)?;
        }
        may_reach(self.gateway(), &self.client.id, message, is_own, &on).await
    }

    /// Begins a turn.
    fn begin(
        &self,
        message: &mut ClientMessage,
        needs_project: bool,
        is_sealed: bool,
        open: impl FnOnce(&mut SocketState) -> Account,
    ) -> Result<(), Error> {
        let mut state = self.state();
        if state.lanes.is_full() {
            let error = Error::new(
                ErrorKind::NoKeyAvailable,
                "Too many responses are in flight on this connection.",
            );
            return Err(error.retry_after(SOON));
        }
        let mut account = open(&mut state);
        account.note_model(&message.model.take().unwrap_or_default());
        account.note_tier(message.tier.take());
        account.note_purpose(message.kind, std::mem::take(&mut message.imprint));
        let (is_warm_up, is_unstored) = (message.is_warm_up, message.is_unstored);
        let shows_sealed = !state.is_confirmed && is_sealed;
        let turn =
            Turn { is_warm_up, is_unstored, shows_sealed, needs_project, ..Turn::new(account) };
        state.lanes.ask(message.lane.as_deref(), turn);
        Ok(())
    }

    fn refuse(&self, error: &Error, lane: Option<&str>, arrival: Arrival) -> String {
        Account::of(&self.caller, Arc::clone(&self.gateway().books), arrival).note_error(error);
        error.to_frame(lane)
    }
}
