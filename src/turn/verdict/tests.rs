//! Tests of the verdicts.

use super::*;
use crate::wire::error_body::ErrorBody;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

const CASE: Case<'static> = Case {
    met: Met::Turn,
    asked: ModelUse { model: "m", tier: None },
    sent: None,
    is_gateway: false,
};

fn answer(status: u16) -> Answer {
    let status = StatusCode::from_u16(status).unwrap();
    Answer { status, headers: HeaderMap::new(), head: Bytes::new(), rest: None, upgrade: None }
}

fn decided(outcome: Outcome) -> Verdict {
    decide(outcome, CASE, false, SystemTime::UNIX_EPOCH)
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
        Verdict::Doubted(answer, Scope::Key) if answer.status == 401
    ));
    let exhausted = refused(429, "credit_balance_exhausted", None);
    assert!(matches!(exhausted, Verdict::Exhausted(Scope::Organization)));
    let forbidden = refused(401, "missing_scope", None);
    assert!(matches!(forbidden, Verdict::Deliver(answer) if answer.status == 403));
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
        Verdict::GiveUp(error, _) => (error.code(), error.retry_after.map(|wait| wait.as_secs())),
        _ => panic!("another key is tried"),
    };
    for (code, wait, expected) in [
        ("slow_down", None, "20"),
        ("slow_down", Some("7"), "7"),
        ("resource_unavailable", None, "20"),
        ("resource_unavailable", Some("7"), "7"),
    ] {
        let (Verdict::Deliver(answer) | Verdict::TooSteep(answer)) = refused(429, code, wait)
        else {
            panic!("{code} is about its request")
        };
        assert_eq!(
            (answer.status.as_u16(), &answer.headers["retry-after"]),
            (429, &expected.parse().unwrap())
        );
    }
    assert_eq!(told(refused(503, "server_is_overloaded", None)), ("no_key_available", Some(5)));
    assert_eq!(
        told(refused(503, "server_is_overloaded", Some("2"))),
        ("no_key_available", Some(2))
    );
}

/// Each 429 that reaches the client in the upstream's words has a `Retry-After`.
#[test]
fn delivered_429_has_a_retry_after() {
    let error = |code: &str, class: &str, message: &str| {
        let error = serde_json::json!({ "code": code, "type": class, "message": message });
        serde_json::json!({ "error": error }).to_string()
    };
    let usual = "rate_limit_exceeded";
    for (case, body, told, expected) in [
        (CASE, error("resource_unavailable", "", ""), "", "20"),
        (CASE, error("", "images", ""), "", "20"),
        (CASE, error(usual, "tokens", "Limit 30000, Requested 40000."), "", "20"),
        (CASE, error(usual, "tokens", "Limit 9, Requested 10. Please try again in 3s."), "", "3"),
        (CASE, error(usual, "tokens", "Limit 9, Requested 10."), "7", "7"),
        (CASE, error(usual, "", "Rate limit reached for gpt-image-1 in organization o"), "", "20"),
        (CASE, error("slow_down", "", ""), "", "20"),
        (CASE, "<html>busy</html>".into(), "", "20"),
        (CASE, r#"{"error":"busy"}"#.into(), "5", "5"),
        (Case { met: Met::Free, ..CASE }, error(usual, "tokens", ""), "", "20"),
        (Case { asked: ModelUse::default(), ..CASE }, error(usual, "", ""), "", "20"),
    ] {
        let mut answer = answer(429);
        if !told.is_empty() {
            answer.headers.insert("retry-after", told.parse().unwrap());
        }
        let outcome =
            Outcome::Refused(Refusal { answer, error: ErrorBody::parse(body.as_bytes()) });
        let (Verdict::Deliver(answer) | Verdict::TooSteep(answer)) =
            decide(outcome, case, false, SystemTime::UNIX_EPOCH)
        else {
            panic!("it is about its request: {body}")
        };
        assert_eq!(answer.headers["retry-after"], expected, "{body}");
    }
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
            decide(outcome, CASE, true, SystemTime::UNIX_EPOCH),
            Verdict::Again(Err(_))
        ));
    }
    for outcome in [Outcome::Unreachable("refused".into()), Outcome::NotSpoken] {
        assert!(matches!(
            decide(outcome, CASE, true, SystemTime::UNIX_EPOCH),
            Verdict::GiveUp(_, Reason::Unreachable)
        ));
    }
    // The upstream says that it has not processed the turn.
    let unprocessed = decided(Outcome::Unprocessed("refused stream".into()));
    assert!(matches!(unprocessed, Verdict::Again(Err(error)) if error.status() == 502));
    for resends in [false, true] {
        for outcome in [Outcome::Broken("framing".into()), Outcome::Unreadable("gzip".into())] {
            let verdict = decide(outcome, CASE, resends, SystemTime::UNIX_EPOCH);
            assert!(matches!(verdict, Verdict::GiveUp(error, _) if error.status() == 502));
        }
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
        assert_eq!(answer.headers["retry-after"], told, "the upstream's own Retry-After counts");
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
        let verdict = decide(outcome, CASE, resends, SystemTime::UNIX_EPOCH);
        let expected = match (status, &verdict) {
            (401, Verdict::Doubted(..))
            | (403 | 404, Verdict::Denied(_))
            | (400, Verdict::Foreign(_)) => true,
            // Codex gives up on a limit without a `Retry-After`.
            (429 | 503, Verdict::GiveUp(error, _)) => error.retry_after.is_some(),
            (429, Verdict::Limited(wait)) => *wait <= limit::LONGEST_WAIT,
            (429, Verdict::Exhausted(_)) => true,
            (500 | 502 | 503 | 504, Verdict::Again(Ok(_))) => true,
            (401 | 500 | 502..=504, _) => false,
            (429, Verdict::Deliver(answer) | Verdict::TooSteep(answer)) => {
                answer.headers.contains_key("retry-after")
            }
            (403 | 404, Verdict::Deliver(_)) => true,
            (_, Verdict::Deliver(answer)) => answer.status.as_u16() == status,
            _ => false,
        };
        prop_assert!(expected, "{status} {code:?}");
    }
}

/// If an upstream has its own name for a model, its errors use that name.
#[test]
fn upstreams_own_name_of_a_model_is_the_models() {
    let case = Case { sent: Some("deployed"), ..CASE };
    let judged = |status, code: &str, message: &str| {
        let body = serde_json::json!({"error": {"code": code, "message": message}}).to_string();
        let (answer, error) = (answer(status), ErrorBody::parse(body.as_bytes()));
        let outcome = Outcome::Refused(Refusal { answer, error });
        decide(outcome, case, false, SystemTime::UNIX_EPOCH)
    };
    for (name, is_own) in [("m", true), ("deployed", true), ("gpt-image-9", false)] {
        let denied = judged(404, "model_not_found", &format!("The model `{name}` does not exist"));
        assert_eq!(matches!(denied, Verdict::Denied(_)), is_own, "{name}");
        let message = format!("Rate limit reached for {name} in organization o on tokens per min.");
        let limited = judged(429, "rate_limit_exceeded", &message);
        assert_eq!(matches!(limited, Verdict::Limited(_)), is_own, "{name}");
    }
}
