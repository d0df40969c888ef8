//! The state that a WebSocket keeps of its turns.

use http::StatusCode;
use tokio::time::Instant;

use crate::metrics::BindingResult;
use crate::turn::account::Account;
use crate::turn::websocket::lanes::Lanes;
use crate::usage::tap::Reading;
use crate::wire::terminal::Terminal;

pub struct SocketState {
    pub lanes: Lanes<Account>,
    /// The origin of the next turn's binding.
    pub result: BindingResult,
    /// Whether the first turn uses another cache than the session's earlier turns.
    pub domain_moved: bool,
    /// Whether a message is still on its way to the client although its turn has ended here.
    pub is_passing: bool,
    pub is_confirmed: bool,
}

/// The writes that must complete before the client may receive the first event of a response.
#[derive(Default)]
pub struct DueWrites {
    /// Whether the binding must be confirmed, because only this organization can open the answer.
    pub must_confirm: bool,
    /// Whether the response's owner must be recorded, because other connections may continue from
    /// the response. The event itself may say that the response is not stored.
    pub is_stored: bool,
}

/// A turn that the upstream answered with an error.
pub struct Failed {
    /// When the turn was sent. `None`: the error belongs to no turn.
    pub sent: Option<Instant>,
    /// Whether the client has received part of an answer.
    pub has_begun: bool,
    /// The model that the turn asked for.
    pub model: String,
    /// The service tier that the turn asked for.
    pub tier: Option<String>,
    /// Whether the turn or an earlier one carried content that only its organization can open.
    pub is_sealed: bool,
    /// Whether the turn refers to content that only this project can find.
    pub needs_project: bool,
}

impl SocketState {
    pub fn new(result: BindingResult, domain_moved: bool) -> Self {
        let (is_passing, is_confirmed) = (false, false);
        Self { lanes: Lanes::default(), result, domain_moved, is_passing, is_confirmed }
    }

    /// Returns the origin of the next turn's binding, and whether that turn uses another cache than
    /// the session's earlier turns. Only the first turn on a socket can have moved.
    pub fn begin(&mut self) -> (BindingResult, bool) {
        let (result, domain_moved) = (self.result, std::mem::take(&mut self.domain_moved));
        if matches!(
            result,
            BindingResult::Created | BindingResult::Inherited | BindingResult::Rebound
        ) {
            self.result = BindingResult::Existing;
        }
        (result, domain_moved)
    }

    /// Ends the current turn of a lane, which the upstream answered with an error.
    pub fn end_refused_turn(&mut self, lane: Option<&str>, status: StatusCode) -> Failed {
        let is_sealed = self.is_confirmed;
        let Some(mut turn) = self.lanes.end_turn(lane) else {
            return Failed {
                sent: None,
                has_begun: false,
                model: String::new(),
                tier: None,
                is_sealed,
                needs_project: false,
            };
        };
        turn.account.note_status(status);
        turn.account
            .note_end(Reading { terminal: Some(Terminal::Failed), ..Reading::default() }, None);
        let (has_begun, needs_project) = (turn.has_begun, turn.needs_project);
        let asked = turn.account.asked_model();
        let (model, tier) = (asked.model.to_owned(), asked.tier.map(str::to_owned));
        let (sent, is_sealed) = (Some(turn.account.sent()), is_sealed || turn.shows_sealed);
        Failed { sent, has_begun, model, tier, is_sealed, needs_project }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn move_is_recorded_for_the_first_turn_on_a_socket() {
        use BindingResult::{Created, Degraded, Existing, Inherited, Rebound, Spilled};
        for (result, later) in [
            (Created, Existing),
            (Inherited, Existing),
            (Rebound, Existing),
            (Existing, Existing),
            (Spilled, Spilled),
            (Degraded, Degraded),
            (BindingResult::None, BindingResult::None),
        ] {
            for domain_moved in [false, true] {
                let mut state = SocketState::new(result, domain_moved);
                let begun = [state.begin(), state.begin(), state.begin()];
                assert_eq!(begun, [(result, domain_moved), (later, false), (later, false)]);
            }
        }
    }
}
