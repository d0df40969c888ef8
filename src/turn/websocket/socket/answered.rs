//! Handles an upstream's events on a WebSocket: notes each event before the client receives it, and
//! replaces errors that the client must not act on.

use std::sync::MutexGuard;

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::binding::demand::{Demand, Sealed, Tried};
use crate::binding::ownership::Owner;
use crate::binding::select::Reach;
use crate::error::Error;
use crate::health::diagnose::{Concern, Judgement, Met, ModelUse, judge};
use crate::telemetry::TurnId;
use crate::turn::account::{Account, Arrival};
use crate::turn::memory::LIGHT;
use crate::turn::websocket::frame::{Event, Stage};
use crate::turn::websocket::lanes::Turn;
use crate::turn::websocket::replace_error::{Refused, Replacement};
use crate::turn::websocket::state::{DueWrites, Failed, SocketState};
use crate::usage::tap::Reading;
use crate::wire::terminal::Terminal;

use super::Socket;

impl Socket {
    /// Reads an event: a short one here, a long one on another thread, so that no other turn waits.
    pub(super) async fn read_event(&self, text: &Utf8Bytes) -> Result<Option<Event>, Error> {
        if text.len() <= LIGHT {
            return Ok(Event::read(text.as_bytes()));
        }
        let own = text.clone();
        self.turns.heavy.finish(&self.client.id, move || Event::read(own.as_bytes())).await
    }

    /// Notes an event before the client receives it. Returns the message for the client.
    pub(super) async fn note(&self, event: Event, text: Utf8Bytes) -> Utf8Bytes {
        let Event { lane, response_id, is_unstored, stage } = event;
        let (lane, id) = (lane.as_deref(), response_id.as_deref());
        let due = match stage {
            Stage::Created => self.created(&mut self.state_of(id), lane),
            Stage::Added(item) => {
                self.added(lane, item).await;
                return text;
            }
            Stage::Ended(reading) => self.handle_end(&mut self.state_of(id), lane, *reading),
            Stage::Refused(status, mut error, headers) => {
                let failed = self.state_of(id).end_refused_turn(lane, status);
                let is_gateway = self.binding.key.upstream.host.is_gateway();
                if is_gateway && status != StatusCode::UNAUTHORIZED {
                    // The upstream is another Warmkey, which has already replaced the errors that
                    // clients must not act on. A refused token is this gateway's own.
                    return text;
                }
                let asked = ModelUse::new(&failed.model, failed.tier.as_deref());
                let case = (Met::Turn, asked);
                error
                    .rename_model(asked.model, self.binding.key.upstream.host.name_of(asked.model));
                let judgement = judge(case, status, &error, &headers, self.clock.time());
                return self
                    .replace_error(lane, &failed, judgement, (&text, &headers))
                    .await
                    .map_or(text, Utf8Bytes::from);
            }
        };
        let mut budget = self.gateway().bindings.budget();
        if due.must_confirm {
            self.gateway().bindings.confirm(&self.binding, true, &mut budget).await;
        }
        if let Some(id) = id.filter(|_| due.is_stored && !is_unstored) {
            self.gateway()
                .entry
                .record_owner(&self.client.id, id, Owner::of(&self.binding), &mut budget)
                .await;
        }
        text
    }

    /// Records the owner of an item before the client can refer to it.
    async fn added(&self, lane: Option<&str>, item: String) {
        if self.state().lanes.current(lane).is_some_and(|turn| turn.is_unstored) {
            return;
        }
        let (gateway, owner) = (self.gateway(), Owner::of(&self.binding));
        let mut budget = gateway.bindings.budget();
        gateway.entry.own_items(&self.client.id, &[item], &owner, &mut budget).await;
    }

    /// Locks the state for an event that is on its way to the client. `id` is the id of the event's
    /// response, if it has one.
    fn state_of(&self, id: Option<&str>) -> MutexGuard<'_, SocketState> {
        let mut state = self.state();
        state.is_passing = true;
        if let Some(id) = id {
            state.lanes.issue(id.to_owned());
        }
        state
    }

    /// Begins a response: the next one of its lane, or one that the upstream starts by itself.
    fn created(&self, state: &mut SocketState, lane: Option<&str>) -> DueWrites {
        self.gateway().registry.has_answered(&self.binding.key);
        if state.lanes.current(lane).is_some_and(|turn| turn.has_begun) {
            // A lane has one response at a time. The response before has ended, and the upstream
            // did not say how.
            if let Some(turn) = state.lanes.end_turn(lane) {
                turn.account.cut();
            }
        }
        if state.lanes.current(lane).is_none() {
            if state.lanes.is_full() {
                // No upstream begins so many responses by itself: further ones are not followed.
                return DueWrites::default();
            }
            let (now, id) = (Instant::now(), TurnId::random());
            let mut account = self.open(state, Arrival { began: now, id });
            account.note_permitted(now, now);
            let turn = Turn::new(account);
            state.lanes.ask(lane, turn);
        }
        let Some(turn) = state.lanes.current(lane) else { return DueWrites::default() };
        turn.has_begun = true;
        turn.account.note_status(StatusCode::OK);
        turn.account.note_first_byte();
        // Every organization accepts a warm-up, because it carries no sealed content and has no
        // output. It therefore confirms no binding.
        let due = DueWrites {
            must_confirm: !turn.is_warm_up && !state.is_confirmed,
            is_stored: !turn.is_unstored,
        };
        state.is_confirmed |= due.must_confirm;
        due
    }

    fn handle_end(
        &self,
        state: &mut SocketState,
        lane: Option<&str>,
        reading: Reading,
    ) -> DueWrites {
        let is_new = state.lanes.current(lane).is_none_or(|turn| !turn.has_begun);
        let is_begin = is_new && reading.terminal != Some(Terminal::Failed);
        let due = if is_begin { self.created(state, lane) } else { DueWrites::default() };
        if let Some(mut turn) = state.lanes.end_turn(lane) {
            turn.account.note_status(StatusCode::OK);
            if self.gateway().observe_end(&turn.account, &self.binding.key, &reading) {
                self.leave_limited(&turn);
            }
            turn.account.note_end(reading, None);
        }
        due
    }

    /// Makes the client reconnect if another key would serve it in place of this limited one. The
    /// client has received part of the answer, so the answer's end passes first.
    fn leave_limited(&self, turn: &Turn<Account>) {
        let (gateway, asked) = (self.gateway(), turn.account.asked_model());
        // After a handshake that names another model or none, or for a special tier, the gateway
        // would choose the same key again.
        if self.announced != asked.model || asked.tier.is_some() {
            return;
        }
        let demand = Demand {
            session: self.binding.session.clone(),
            lineage: self.lineage.clone(),
            carries_sealed: Sealed::Known(true),
            by_websocket: true,
            model: asked.model,
            ..Demand::of(&self.client)
        };
        let tried = Tried::nothing(gateway.failover.options.wait);
        let within = match turn.needs_project {
            true => Reach::project_of(&self.binding.key),
            false => Reach::Anywhere,
        };
        if gateway.bindings.would_leave(demand.with_tried(&tried, within), &self.binding) {
            self.leaving.notify_one();
        }
    }

    /// Returns the replacement of an error frame.
    async fn replace_error(
        &self,
        lane: Option<&str>,
        failed: &Failed,
        judgement: Judgement,
        (frame, headers): (&str, &HeaderMap),
    ) -> Option<String> {
        let Failed { sent, has_begun, model, tier, is_sealed, needs_project } = failed;
        let is_provisional = self.binding.is_provisional && !self.state().is_confirmed;
        let is_announced = self.announced == *model;
        let (sent, has_begun) = (*sent, *has_begun);
        let refused =
            Refused { judgement, frame, headers, sent, has_begun, is_provisional, is_announced };
        let is_foreign = judgement == Judgement::Request(Concern::Foreign);
        let demand = Demand {
            session: self.binding.session.clone(),
            lineage: self.lineage.clone(),
            carries_sealed: Sealed::Known(*is_sealed || is_foreign),
            by_websocket: true,
            model,
            tier: tier.as_deref(),
            ..Demand::of(&self.client)
        };
        let within = match *needs_project && !is_provisional {
            true => Reach::project_of(&self.binding.key),
            false => Reach::Anywhere,
        };
        let tried = Tried::nothing(self.gateway().failover.options.wait);
        let instead =
            Replacement::of(self.gateway(), &self.binding, (&demand, tried, within), refused).await;
        if matches!(instead, Replacement::Reconnect) {
            self.leaving.notify_one();
        }
        instead.to_frame(lane)
    }
}
