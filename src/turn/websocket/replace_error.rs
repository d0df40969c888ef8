//! Replaces error frames. If the client's next connection will not meet the error, the client is
//! told to reconnect. Otherwise the client learns about keys only what concerns it.

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use crate::binding::Binding;
use crate::binding::demand::{Demand, Tried};
use crate::binding::select::Reach;
use crate::error::{Error, ErrorKind};
use crate::health::diagnose::{Ailment, Concern, Judgement, Met, Scope, Shortage, Trouble};
use crate::limit::wait_or_usual;
use crate::metrics::{Decision, Reason};
use crate::turn::Gateway;
use crate::turn::doubt::Settled;
use crate::turn::verdict::{overloaded, undecided, whole_seconds};
use crate::wire::edit::{with_retry_after, with_status};

/// The replacement of an error frame.
pub enum Replacement {
    /// None: the client receives the upstream's frame.
    Nothing,
    /// The upstream's frame, with another status or with a `Retry-After`.
    Edited(String),
    Error(Error),
    /// The error on which every client reconnects and sends its full input. By then, the key is out
    /// of use, or the session is bound to another key.
    Reconnect,
}

/// A response that the upstream refused on a connection.
pub struct Refused<'r> {
    pub judgement: Judgement,
    /// The upstream's frame.
    pub frame: &'r str,
    pub headers: &'r HeaderMap,
    /// When the turn was sent. `None`: the error belongs to no turn.
    pub sent: Option<Instant>,
    /// Whether the client has received part of the response.
    pub has_begun: bool,
    /// Whether the session's organization is provisional and has not answered yet.
    pub is_provisional: bool,
    /// Whether the connection's handshake named the model, so that the next handshake will name it,
    /// too.
    pub is_announced: bool,
}

impl Refused<'_> {
    /// Returns why the client receives no answer. `None`: its own request is the reason.
    fn reason(&self) -> Option<Reason> {
        match self.judgement {
            Judgement::Key | Judgement::Organization(Trouble::Refused) => Some(Reason::Rejected),
            Judgement::Project | Judgement::Organization(Trouble::Spent) => Some(Reason::Exhausted),
            Judgement::Model(Shortage::Limited(_))
            | Judgement::Tier(_)
            | Judgement::Transport(_) => Some(Reason::Limited),
            Judgement::Model(Shortage::Denied) => Some(Reason::NoAccess),
            Judgement::Host => Some(Reason::Failed),
            Judgement::Request(concern) => match concern {
                Concern::TooSteep(_) => Some(Reason::TooSteep),
                Concern::Overloaded(_) => Some(Reason::Overloaded),
                Concern::Foreign => Some(Reason::Forgotten).filter(|_| self.is_provisional),
                Concern::Passed | Concern::Forbidden | Concern::Busy(_) => None,
            },
        }
    }

    /// Returns the replacement of an error that concerns its request alone.
    fn of_request(&self, concern: Concern) -> Replacement {
        match concern {
            Concern::Forbidden => self.replace_by_403(),
            Concern::Busy(wait) | Concern::TooSteep(wait) if !says_when(self.headers) => {
                let seconds = whole_seconds(wait_or_usual(wait));
                with_retry_after(self.frame, seconds)
                    .map_or(Replacement::Nothing, Replacement::Edited)
            }
            Concern::Overloaded(wait) if !self.has_begun => Replacement::Error(overloaded(wait)),
            _ => Replacement::Nothing,
        }
    }

    /// Returns the upstream's frame as a 403: the client would take a 401 for the refusal of its
    /// own token.
    fn replace_by_403(&self) -> Replacement {
        with_status(self.frame, StatusCode::FORBIDDEN.as_u16())
            .map_or(Replacement::Nothing, Replacement::Edited)
    }
}

impl Replacement {
    /// Returns the replacement of the error frame for the refused turn `demand`.
    pub async fn of(
        gateway: &Gateway,
        binding: &Binding,
        (demand, tried, within): (&Demand<'_>, Tried, Reach),
        refused: Refused<'_>,
    ) -> Self {
        let instead = Self::decide(gateway, binding, (demand, tried, within), &refused).await;
        if let Some(reason) = refused.reason() {
            let decision =
                if matches!(instead, Self::Reconnect) { Decision::Retry } else { Decision::Refuse };
            gateway.record_decision(demand.session.as_ref(), binding, decision, reason);
        }
        instead
    }

    async fn decide(
        gateway: &Gateway,
        binding: &Binding,
        (demand, mut tried, within): (&Demand<'_>, Tried, Reach),
        refused: &Refused<'_>,
    ) -> Self {
        let (bindings, key) = (&gateway.bindings, &binding.key);
        let is_refused =
            matches!(refused.judgement, Judgement::Key | Judgement::Organization(Trouble::Refused));
        let (is_cured, otherwise) = match refused.judgement {
            Judgement::Request(Concern::Foreign)
                if refused.is_provisional && !refused.has_begun =>
            {
                match bindings
                    .rebind_provisionally(
                        demand.with_tried(&tried, within),
                        binding,
                        &mut bindings.budget(),
                    )
                    .await
                {
                    Ok(has_other) => (has_other, None),
                    Err(later) => (false, Some(later)),
                }
            }
            Judgement::Request(concern) => return refused.of_request(concern),
            Judgement::Key | Judgement::Organization(Trouble::Refused) => {
                let doubted = refused.judgement.ailment().map_or(Scope::Key, Ailment::scope);
                match gateway.settle(key, doubted, (demand, Met::Turn, &mut tried)).await {
                    Some(Settled::Accepted) => return refused.replace_by_403(),
                    Some(Settled::Undecided) => return Self::Error(undecided()),
                    // A reload has replaced the secret that the upstream refused.
                    None => (true, None),
                    Some(Settled::Refused(_) | Settled::Suspected) => {
                        tried.refused.push(key.tag);
                        // If a probe has meanwhile found the key accepted, the same key serves the
                        // next connection.
                        let is_cured = gateway.registry.is_ready(key, demand.model_use())
                            || bindings.would_leave(demand.with_tried(&tried, within), binding);
                        (
                            is_cured,
                            Some(bindings.shortage(demand.with_tried(&tried, within), binding)),
                        )
                    }
                }
            }
            Judgement::Project | Judgement::Organization(Trouble::Spent) => {
                if let Some(ailment) = refused.judgement.ailment() {
                    gateway.registry.observe(key, ailment);
                }
                tried.refused.push(key.tag);
                let is_cured = bindings.would_leave(demand.with_tried(&tried, within), binding);
                (is_cured, Some(bindings.shortage(demand.with_tried(&tried, within), binding)))
            }
            // This says nothing about the key's use of a model. Nothing is remembered, so the next
            // connection would meet the same key.
            Judgement::Transport(wait) => {
                let error = Error::limited(
                    "The upstream is limiting its WebSockets at the moment.",
                    wait_or_usual(wait),
                );
                (false, Some(error).filter(|_| !says_when(refused.headers)))
            }
            Judgement::Model(Shortage::Limited(wait)) | Judgement::Tier(wait) => {
                let wait = wait_or_usual(wait);
                gateway.limit_for_client(
                    (demand.session.as_ref(), key),
                    demand.model_use(),
                    (refused.sent, wait),
                );
                let error = Error::limited(
                    "The upstream is limiting the rate of this model at the moment.",
                    wait,
                );
                // After a handshake without a model, the gateway would choose the same key again.
                // A handshake never names a tier.
                let is_cured = refused.is_announced
                    && demand.model_use().tier.is_none()
                    && bindings.would_leave(demand.with_tried(&tried, within), binding);
                (is_cured, Some(error).filter(|_| !says_when(refused.headers)))
            }
            Judgement::Model(Shortage::Denied) => {
                gateway.failover.corroboration.report(&gateway.registry, key, demand);
                (false, None)
            }
            Judgement::Host => (false, None),
        };
        match otherwise {
            // The client must not see what the upstream says about a key. It may see any other
            // error in the upstream's words.
            Some(error) if refused.has_begun && is_refused => Self::Error(error),
            _ if refused.has_begun => Self::Nothing,
            _ if is_cured => Self::Reconnect,
            Some(error) => Self::Error(error),
            None => Self::Nothing,
        }
    }

    /// Returns the frame that replaces the upstream's.
    pub fn to_frame(&self, lane: Option<&str>) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::Edited(frame) => Some(frame.clone()),
            Self::Error(error) => Some(error.to_frame(lane)),
            Self::Reconnect => Some(reconnect().to_frame(lane)),
        }
    }
}

/// The error that tells a client to reconnect, in OpenAI's own words.
pub fn reconnect() -> Error {
    const RECONNECT: &str = "Responses websocket connection limit reached (60 minutes). Create a new websocket connection to continue.";
    Error::new(ErrorKind::ConnectionLimit, RECONNECT)
}

/// Whether an error frame has a `Retry-After` that every client understands.
fn says_when(headers: &HeaderMap) -> bool {
    headers
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|text| text.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests;
