//! Replaces error frames. If the client's next connection will not meet the error, the client is
//! told to reconnect. Otherwise the client learns about keys only what concerns it.

use http::HeaderMap;
use http::header::RETRY_AFTER;

use crate::binding::Binding;
use crate::binding::demand::{Demand, Tried};
use crate::error::{Error, ErrorKind};
use crate::health::diagnose::{Ailment, Diagnosis};
use crate::limit::wait_or_usual;
use crate::metrics::{Decision, Reason};
use crate::turn::Gateway;
use crate::turn::verdict::{overloaded, too_steep};

/// The replacement of an error frame.
pub enum Replacement {
    /// None: the client receives the upstream's frame.
    Nothing,
    Error(Error),
    /// The error on which every client reconnects and sends its full input. By then, the key is out
    /// of use or the session is bound to another key.
    Reconnect,
}

/// A response that the upstream refused on a connection.
pub struct Refused<'r> {
    pub diagnosis: Diagnosis,
    pub headers: &'r HeaderMap,
    /// The client has received part of the response.
    pub has_begun: bool,
    /// The session's organization is provisional and has not answered yet.
    pub is_provisional: bool,
    /// The connection's handshake named the model, so the next handshake will name it, too.
    pub is_announced: bool,
}

impl Refused<'_> {
    /// Returns why the client receives no answer, unless its own request is the reason.
    fn reason(&self) -> Option<Reason> {
        match self.diagnosis {
            Diagnosis::Ailing(ailment) => Some(ailment.into()),
            Diagnosis::Limited(_) => Some(Reason::Limited),
            Diagnosis::TooSteep(_) => Some(Reason::TooSteep),
            Diagnosis::NoAccess => Some(Reason::NoAccess),
            Diagnosis::Overloaded(_) => Some(Reason::Overloaded),
            Diagnosis::Failed => Some(Reason::Failed),
            Diagnosis::Foreign => Some(Reason::Forgotten).filter(|_| self.is_provisional),
            Diagnosis::Sound => None,
        }
    }
}

impl Replacement {
    /// Returns the replacement of the error frame for the refused turn `demand`.
    pub async fn of(
        gateway: &Gateway,
        binding: &Binding,
        (demand, tried): (&Demand<'_>, Tried),
        refused: Refused<'_>,
    ) -> Self {
        let instead = Self::decide(gateway, binding, (demand, tried), &refused).await;
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
        (demand, mut tried): (&Demand<'_>, Tried),
        refused: &Refused<'_>,
    ) -> Self {
        let (bindings, key) = (&gateway.bindings, &binding.key);
        let is_rejected = matches!(refused.diagnosis, Diagnosis::Ailing(Ailment::Rejected(_)));
        let (is_cured, otherwise) = match refused.diagnosis {
            Diagnosis::Ailing(ailment) => {
                gateway.registry.observe(key, ailment);
                gateway.registry.settled(key).await;
                tried.refused.push(key.tag);
                // If a probe finds that the key is accepted, the same key serves the next
                // connection.
                let is_cured = gateway.registry.is_ready(key, demand.model)
                    || bindings.would_leave(demand.after(&tried), binding);
                (is_cured, Some(bindings.shortage(demand.after(&tried), binding)))
            }
            Diagnosis::Limited(wait) => {
                let wait = wait_or_usual(wait);
                gateway.registry.limit(key, demand.model, wait);
                let error = Error::limited(
                    "The upstream is limiting the rate of this model at the moment.",
                    wait,
                );
                // After a handshake without a model, the gateway would choose the same key again.
                let is_cured =
                    refused.is_announced && bindings.would_leave(demand.after(&tried), binding);
                (is_cured, Some(error).filter(|_| !says_when(refused.headers)))
            }
            Diagnosis::Foreign if refused.is_provisional && !refused.has_begun => {
                match bindings
                    .rebind_provisionally(demand.after(&tried), binding, &mut bindings.budget())
                    .await
                {
                    Ok(has_other) => (has_other, None),
                    Err(later) => (false, Some(later)),
                }
            }
            Diagnosis::NoAccess => {
                gateway.failover.corroboration.report(&gateway.registry, key, demand);
                (false, None)
            }
            Diagnosis::Overloaded(wait) => (false, Some(overloaded(wait))),
            Diagnosis::TooSteep(wait) => {
                (false, Some(too_steep(wait)).filter(|_| !says_when(refused.headers)))
            }
            Diagnosis::Foreign | Diagnosis::Failed | Diagnosis::Sound => (false, None),
        };
        match otherwise {
            // The client must not see what the upstream says about a key. It may see any other
            // error in the upstream's words.
            Some(error) if refused.has_begun && is_rejected => Self::Error(error),
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
