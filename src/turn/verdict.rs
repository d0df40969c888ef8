//! Decides what follows from an attempt, before the client has received any byte. Pure.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use http::header::RETRY_AFTER;

use crate::error::{Error, ErrorKind};
use crate::health::diagnose::{Ailment, Diagnosis, diagnose};
use crate::limit;
use crate::metrics::Reason;
use crate::outcome::{Answer, Outcome, Refusal};

/// A header of each answer of a Warmkey.
const INNER: &str = "x-warmkey-turn";
/// `Retry-After` for a turn that failed once.
const SOON: Duration = Duration::from_secs(1);
/// `Retry-After` for an overloaded model.
const RELIEF: Duration = Duration::from_secs(5);

/// The decision about an attempt's outcome.
pub enum Verdict {
    /// The client receives the answer as it is.
    Deliver(Answer),
    /// The key is out of use; the turn goes to another key.
    Ailing(Ailment),
    /// The key's project is rate-limited for this model, for this time.
    Limited(Duration),
    /// The upstream says that the key's project may not use this model. The client receives this
    /// answer.
    Denied(Answer),
    /// The upstream failed, or may have failed. The next attempt may succeed, with the same key or
    /// a sibling. If there is no next attempt, the client receives this result.
    Again(Result<Answer, Error>),
    /// The key's organization cannot open the session's history. If no other organization can be
    /// tried, the client receives this answer.
    Foreign(Answer),
    /// No other key would help.
    GiveUp(Error, Reason),
}

impl Verdict {
    /// Why the outcome of the attempt is not simply the turn's.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Deliver(_) => None,
            Self::Ailing(ailment) => Some((*ailment).into()),
            Self::Limited(_) => Some(Reason::Limited),
            Self::Denied(_) => Some(Reason::NoAccess),
            Self::Again(_) => Some(Reason::Failed),
            Self::Foreign(_) => Some(Reason::Forgotten),
            Self::GiveUp(_, reason) => Some(*reason),
        }
    }
}

/// Decides. `resends`: a turn that may already have been served is sent again.
pub fn decide(outcome: Outcome, resends: bool, now: SystemTime) -> Verdict {
    let uncertain = |error: Error| {
        if resends { Verdict::Again(Err(error)) } else { Verdict::GiveUp(error, Reason::Failed) }
    };
    match outcome {
        Outcome::Answered(answer) => Verdict::Deliver(answer),
        Outcome::Refused(Refusal { answer, error }) => {
            match diagnose(answer.status, &error, &answer.headers, now) {
                Diagnosis::Sound => Verdict::Deliver(answer),
                Diagnosis::Ailing(ailment) => Verdict::Ailing(ailment),
                Diagnosis::Limited(wait) => Verdict::Limited(limit::wait_or_usual(wait)),
                Diagnosis::NoAccess => Verdict::Denied(answer),
                Diagnosis::Failed => Verdict::Again(Ok(passing(answer))),
                Diagnosis::Foreign => Verdict::Foreign(answer),
                Diagnosis::TooSteep(wait) => Verdict::GiveUp(too_steep(wait), Reason::TooSteep),
                Diagnosis::Overloaded(wait) => {
                    Verdict::GiveUp(overloaded(wait), Reason::Overloaded)
                }
            }
        }
        // The host is at fault, never the key.
        Outcome::Unreachable(cause) => {
            let error =
                Error::new(ErrorKind::UpstreamUnreachable, "The upstream could not be reached.")
                    .because(cause);
            Verdict::GiveUp(error, Reason::Unreachable)
        }
        // The upstream may have served and billed the turn, so the client decides whether to send
        // it again.
        Outcome::Interrupted(cause) => uncertain(
            Error::new(
                ErrorKind::UpstreamInterrupted,
                "The connection to the upstream was lost before it answered.",
            )
            .retry_after(SOON)
            .because(cause),
        ),
        Outcome::Silent => uncertain(
            Error::new(ErrorKind::UpstreamTimeout, "The upstream did not answer in time.")
                .retry_after(SOON),
        ),
        // Codex then uses HTTP at once and for good, with the same key.
        Outcome::NotSpoken => {
            let error = Error::new(
                ErrorKind::UpgradeRequired,
                "The upstream of this session does not speak WebSocket: use HTTP.",
            );
            Verdict::GiveUp(error, Reason::Unreachable)
        }
    }
}

/// An outcome at another Warmkey. If that gateway itself has refused the turn, it has already
/// waited and tried its keys, so that its answer passes. Only a refused token is this gateway's own
/// affair.
pub fn last_word(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Refused(Refusal { answer, .. })
            if answer.headers.contains_key(INNER) && answer.status != StatusCode::UNAUTHORIZED =>
        {
            Outcome::Answered(answer)
        }
        outcome => outcome,
    }
}

/// Adds a `Retry-After` to a failure that the client may receive, so that not all clients retry at
/// once.
fn passing(mut answer: Answer) -> Answer {
    answer.headers.entry(RETRY_AFTER).or_insert_with(|| SOON.as_secs().into());
    answer
}

/// The organization's traffic grows too fast. Without a `Retry-After`, Codex would give up.
pub fn too_steep(wait: Option<Duration>) -> Error {
    Error::limited(
        "The traffic of the upstream's organization grows too fast.",
        limit::wait_or_usual(wait),
    )
}

/// The model is overloaded for all callers. Codex gives up if it receives the upstream's own error
/// code.
pub fn overloaded(wait: Option<Duration>) -> Error {
    Error::new(
        ErrorKind::NoKeyAvailable,
        "The model is overloaded, and no other key would help. Please try again in a moment.",
    )
    .retry_after(wait.unwrap_or(RELIEF))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::diagnose::Scope;
    use crate::wire::error_body::ErrorBody;
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, StatusCode};
    use proptest::prelude::*;

    fn answer(status: u16) -> Answer {
        let status = StatusCode::from_u16(status).unwrap();
        Answer { status, headers: HeaderMap::new(), head: Bytes::new(), rest: None, upgrade: None }
    }

    fn decided(outcome: Outcome) -> Verdict {
        decide(outcome, false, SystemTime::UNIX_EPOCH)
    }

    fn refused(status: u16, code: &str, wait: Option<&'static str>) -> Verdict {
        let mut answer = answer(status);
        if let Some(wait) = wait {
            answer.headers.insert("retry-after", HeaderValue::from_static(wait));
        }
        let error = ErrorBody { code: Some(code.into()), ..ErrorBody::default() };
        decided(Outcome::Refused(Refusal { answer, error }))
    }

    #[test]
    fn fault_of_a_key_moves_the_turn_and_a_clients_fault_is_delivered() {
        assert!(matches!(
            refused(401, "invalid_api_key", None),
            Verdict::Ailing(Ailment::Rejected(Scope::Key))
        ));
        let exhausted = Ailment::Exhausted(Scope::Organization);
        assert!(
            matches!(refused(429, "credit_balance_exhausted", None), Verdict::Ailing(found) if found == exhausted)
        );
        assert!(matches!(refused(404, "model_not_found", None), Verdict::Denied(_)));
        assert!(matches!(refused(400, "invalid_encrypted_content", None), Verdict::Foreign(_)));
        assert!(matches!(refused(400, "invalid_value", None), Verdict::Deliver(_)));
        for status in [200, 400, 404] {
            assert!(
                matches!(decided(Outcome::Answered(answer(status))), Verdict::Deliver(_)),
                "{status}"
            );
        }
    }

    #[test]
    fn rate_limit_is_a_wait() {
        let limited = |wait| match refused(429, "rate_limit_exceeded", wait) {
            Verdict::Limited(wait) => wait.as_secs(),
            _ => panic!("not limited"),
        };
        assert_eq!((limited(Some("3")), limited(Some("garbled"))), (3, 20));
        let told = |verdict| match verdict {
            Verdict::GiveUp(error, _) => {
                (error.code(), error.retry_after.map(|wait| wait.as_secs()))
            }
            _ => panic!("another key is tried"),
        };
        assert_eq!(told(refused(429, "slow_down", None)), ("rate_limit_exceeded", Some(20)));
        assert_eq!(told(refused(429, "slow_down", Some("7"))), ("rate_limit_exceeded", Some(7)));
        assert_eq!(told(refused(503, "server_is_overloaded", None)), ("no_key_available", Some(5)));
        assert_eq!(
            told(refused(503, "server_is_overloaded", Some("2"))),
            ("no_key_available", Some(2))
        );
    }

    #[test]
    fn turn_that_may_have_been_served_is_sent_again_only_if_allowed() {
        for (outcome, code) in [
            (Outcome::Unreachable("refused".into()), "upstream_unreachable"),
            (Outcome::Interrupted("reset".into()), "upstream_interrupted"),
            (Outcome::Silent, "upstream_timeout"),
            (Outcome::NotSpoken, "websocket_not_supported"),
        ] {
            assert!(
                matches!(decided(outcome), Verdict::GiveUp(error, _) if error.code() == code),
                "{code}"
            );
        }
        for outcome in [Outcome::Silent, Outcome::Interrupted("reset".into())] {
            assert!(matches!(
                decide(outcome, true, SystemTime::UNIX_EPOCH),
                Verdict::Again(Err(_))
            ));
        }
        for outcome in [Outcome::Unreachable("refused".into()), Outcome::NotSpoken] {
            assert!(matches!(
                decide(outcome, true, SystemTime::UNIX_EPOCH),
                Verdict::GiveUp(_, Reason::Unreachable)
            ));
        }
        assert!(matches!(refused(502, "", None), Verdict::Again(Ok(_))), "that is an answer");
    }

    #[test]
    fn failed_turn_says_when_to_retry() {
        for outcome in [Outcome::Silent, Outcome::Interrupted("reset".into())] {
            let Verdict::GiveUp(error, Reason::Failed) = decided(outcome) else {
                panic!("the turn is sent again")
            };
            assert_eq!(error.retry_after, Some(Duration::from_secs(1)));
        }
        for (said, told) in [(None, "1"), (Some("7"), "7")] {
            let Verdict::Again(Ok(answer)) = refused(503, "server_error", said) else {
                panic!("not a failure")
            };
            assert_eq!(
                answer.headers["retry-after"], told,
                "the upstream's own Retry-After counts"
            );
        }
    }

    proptest! {
        #[test]
        fn verdict_follows_the_rules_for_every_answer(
            status in 200..600_u16,
            code in prop::option::of(prop::sample::select(vec!["invalid_api_key", "rate_limit_exceeded", "slow_down", "insufficient_quota",
                "project_spend_limit_exceeded", "server_is_overloaded", "invalid_encrypted_content", "model_not_found", "x"])),
            wait in prop::option::of("[ -~]{0,12}"),
            is_beyond_limit: bool,
            resends: bool,
        ) {
            let mut answer = answer(status);
            if let Some(value) = wait.and_then(|wait| HeaderValue::try_from(wait).ok()) {
                answer.headers.insert("retry-after", value);
            }
            let own = code.map(str::to_owned);
            let error = ErrorBody { code: own, is_beyond_limit, ..ErrorBody::default() };
            let outcome = Outcome::Refused(Refusal { answer, error });
            let verdict = decide(outcome, resends, SystemTime::UNIX_EPOCH);
            let expected = match (status, &verdict) {
                (401, Verdict::Ailing(_))
                | (403 | 404, Verdict::Denied(_))
                | (400, Verdict::Foreign(_)) => true,
                // Codex gives up on a limit without a `Retry-After`.
                (429 | 503, Verdict::GiveUp(error, _)) => error.retry_after.is_some(),
                (429, Verdict::Limited(wait)) => *wait <= limit::LONGEST_WAIT,
                (429, Verdict::Ailing(Ailment::Exhausted(_))) => true,
                (500 | 502 | 503 | 504, Verdict::Again(Ok(_))) => true,
                (401 | 500 | 502..=504, _) => false,
                (429, Verdict::Deliver(_)) => is_beyond_limit,
                (_, Verdict::Deliver(answer)) => answer.status.as_u16() == status,
                _ => false,
            };
            prop_assert!(expected, "{status} {code:?}");
        }
    }
}
