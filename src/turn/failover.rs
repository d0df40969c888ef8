//! Decides what becomes of an attempt that has told the client nothing yet. Pure.

use std::time::Duration;

use crate::error::{Error, Kind};
use crate::key::health::{Ailment, diagnose};
use crate::outcome::{Answer, Outcome};

/// What is done about an attempt's outcome.
pub enum Verdict {
    /// The answer goes to the client as it is.
    Deliver(Answer),
    /// The key is out of use; the turn goes to another one. Where there is none, `Answer` is all there is to tell.
    Move(Ailment, Answer),
    /// The key's organization cannot open the session's history. Where nobody is to be asked instead, `Answer` is the last word.
    Foreign(Answer),
    GiveUp(Error),
}

pub fn decide(outcome: Outcome) -> Verdict {
    match outcome {
        Outcome::Answered(answer) => Verdict::Deliver(answer),
        Outcome::Refused(refusal) => match diagnose(refusal.answer.status, &refusal.error) {
            Some(ailment) => Verdict::Move(ailment, refusal.answer),
            None if refusal.error.code.as_deref() == Some("invalid_encrypted_content") => Verdict::Foreign(refusal.answer),
            None => Verdict::Deliver(refusal.answer),
        },
        // The host's fault, never the key's.
        Outcome::Unreachable(cause) => {
            Verdict::GiveUp(Error::new(Kind::UpstreamUnreachable, "The upstream could not be reached.").because(cause))
        }
        // It may have been served, and billed: sending it again is for the client to decide.
        Outcome::Interrupted(cause) => Verdict::GiveUp(
            Error::new(Kind::UpstreamInterrupted, "The connection to the upstream was lost before it answered.")
                .retry_after(Duration::from_secs(1))
                .because(cause),
        ),
        // Codex goes on over HTTP at once and for good, with the same key.
        Outcome::NotSpoken => {
            Verdict::GiveUp(Error::new(Kind::UpgradeRequired, "The upstream of this session does not speak WebSocket: use HTTP."))
        }
        Outcome::Silent => Verdict::GiveUp(Error::new(Kind::UpstreamTimeout, "The upstream did not answer in time.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::health::Scope;
    use crate::outcome::{ErrorBody, Refusal};
    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};

    fn answer(status: u16) -> Answer {
        let status = StatusCode::from_u16(status).unwrap();
        Answer { status, headers: HeaderMap::new(), head: Bytes::new(), rest: None, upgrade: None }
    }

    fn refused(status: u16, code: &str) -> Verdict {
        let error = ErrorBody { code: Some(code.into()), class: None };
        decide(Outcome::Refused(Refusal { answer: answer(status), error }))
    }

    #[test]
    fn only_a_dead_or_exhausted_key_is_left() {
        assert!(matches!(refused(401, "invalid_api_key"), Verdict::Move(Ailment::Rejected(Scope::Key), _)));
        assert!(matches!(refused(429, "credit_balance_exhausted"), Verdict::Move(Ailment::Exhausted(Scope::Organization), _)));
        assert!(matches!(refused(429, "rate_limit_exceeded"), Verdict::Deliver(_)));
        assert!(matches!(refused(400, "invalid_encrypted_content"), Verdict::Foreign(_)));
        assert!(matches!(refused(400, "invalid_value"), Verdict::Deliver(_)));
        for status in [200, 400, 403, 404, 500, 503] {
            assert!(matches!(decide(Outcome::Answered(answer(status))), Verdict::Deliver(_)), "{status}");
        }
    }

    #[test]
    fn what_may_have_been_served_is_not_sent_again() {
        for (outcome, code) in [
            (Outcome::Unreachable("refused".into()), "upstream_unreachable"),
            (Outcome::Interrupted("reset".into()), "upstream_interrupted"),
            (Outcome::Silent, "upstream_timeout"),
            (Outcome::NotSpoken, "websocket_not_supported"),
        ] {
            assert!(matches!(decide(outcome), Verdict::GiveUp(error) if error.code() == code), "{code}");
        }
    }
}
