//! Handles a client's messages on a WebSocket: checks each request, and notes it as a turn, before
//! the message passes.

use std::sync::Arc;

use tokio::time::Instant;

use crate::binding::demand::Sealed;
use crate::error::{Error, ErrorKind};
use crate::telemetry::TurnId;
use crate::turn::account::{Account, Arrival};
use crate::turn::entry::may_ask_for;
use crate::turn::websocket::frame::ClientMessage;
use crate::turn::websocket::lanes::Turn;
use crate::turn::websocket::reach::{Served, may_reach};
use crate::turn::websocket::state::SocketState;

use super::{SOON, Socket};

impl Socket {
    /// Checks a client's message. The error is the frame that the client receives instead of an
    /// answer.
    pub(super) async fn ask(&self, text: &str) -> Result<(), String> {
        let invalid = |place| {
            Error::new(ErrorKind::InvalidJson, format!("The message stops being JSON at {place}."))
        };
        let began = Instant::now();
        let mut message = match ClientMessage::read(text.as_bytes()).map_err(invalid) {
            Ok(message) => message,
            Err(error) => {
                return Err(self.refuse(&error, None, Arrival { began, id: TurnId::random() }));
            }
        };
        let (read, parent) = (Instant::now(), message.traceparent.as_deref());
        let arrival = Arrival { began, id: TurnId::within(parent.map(str::as_bytes)) };
        let accepted = match self.permit(&message).await {
            Ok(needs_project) if message.is_create => {
                let open = |state: &mut SocketState| {
                    let mut account = self.open(state, arrival);
                    account.admitted(read, Instant::now());
                    account
                };
                self.begin(&mut message, needs_project, text, open)
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        accepted.map_err(|error| {
            if error.kind == ErrorKind::ConnectionLimit {
                self.leaving.notify_one();
            }
            self.refuse(&error, message.lane.as_deref(), arrival)
        })
    }

    /// Checks the content that the message refers to, and that its client may ask for its model
    /// now. Returns whether the message refers to content that only the session's project can find.
    async fn permit(&self, message: &ClientMessage) -> Result<bool, Error> {
        // A response that was issued on this connection belongs to the client.
        let (is_own, has_served) = {
            let state = self.state();
            let previous = message.previous_response_id.as_deref();
            (previous.is_some_and(|id| state.lanes.has_issued(id)), state.is_confirmed)
        };
        let on = Served { binding: &self.binding, has_served };
        let needs_project =
            may_reach(self.gateway(), &self.client.id, message, is_own, &on).await?;
        if message.is_create {
            let client = self.gateway().entry.enter_again(self.proof)?;
            may_ask_for(&client, message.model.as_deref())?;
        }
        Ok(needs_project)
    }

    /// Begins a turn.
    fn begin(
        &self,
        message: &mut ClientMessage,
        needs_project: bool,
        text: &str,
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
        state.model = message.model.take().unwrap_or_default();
        account.model(&state.model);
        let (is_warm_up, is_unstored) = (message.is_warm_up, message.is_unstored);
        // After the first answer, the session is sealed anyway.
        let shows_sealed = !state.is_confirmed && Sealed::In(text.as_bytes()).is_sealed();
        let turn =
            Turn { is_warm_up, is_unstored, shows_sealed, needs_project, ..Turn::new(account) };
        state.lanes.ask(message.lane.as_deref(), turn);
        Ok(())
    }

    fn refuse(&self, error: &Error, lane: Option<&str>, arrival: Arrival) -> String {
        Account::of(&self.caller, Arc::clone(&self.gateway().books), arrival).refused(error);
        error.to_frame(lane)
    }
}
