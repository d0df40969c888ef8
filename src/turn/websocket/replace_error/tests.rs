//! Tests of the replacements: one row of the table for each error frame.

use std::time::Duration;

use super::*;
use crate::binding::demand::Sealed;
use crate::client::Client;
use crate::health::condition::Subject;
use crate::health::diagnose::Scope;
use crate::turn::tests::{bound, decided, gateway};

const TWO: [(&str, &str, &str); 2] = [("a", "o", "p"), ("b", "q", "p")];
const SECOND: Duration = Duration::from_secs(1);
const EXHAUSTED: Diagnosis = Diagnosis::Ailing(Ailment::Exhausted(Scope::Organization));
const REJECTED: Diagnosis = Diagnosis::Ailing(Ailment::Rejected(Scope::Key));
/// A refused first response, for the model of the handshake, under a provisional binding.
const FIRST: Case = Case {
    says: None,
    has_begun: false,
    is_provisional: true,
    is_announced: true,
    is_sealed: false,
};

#[derive(Clone, Copy)]
struct Case {
    /// The frame's `retry-after`.
    says: Option<&'static str>,
    has_begun: bool,
    is_provisional: bool,
    is_announced: bool,
    is_sealed: bool,
}

/// Returns the replacement, and the decisions counted. The replacement is the upstream's frame, a
/// code with its wait, or a reconnect. The decisions are a retry, a refusal, and a move of the
/// session.
async fn heard(
    keys: &[(&str, &str, &str)],
    diagnosis: Diagnosis,
    case: Case,
) -> (String, [u32; 3]) {
    let (gateway, client) = (gateway(keys), Client::unrestricted("alice"));
    let (mut turn, binding, _) = bound(&gateway, &client).await;
    turn.demand.carries_sealed = Sealed::Known(case.is_sealed);
    let mut headers = HeaderMap::new();
    if let Some(wait) = case.says {
        headers.insert(RETRY_AFTER, wait.parse().unwrap());
    }
    let Case { has_begun, is_provisional, is_announced, .. } = case;
    let refused = Refused { diagnosis, headers: &headers, has_begun, is_provisional, is_announced };
    let reason = refused.reason().map(Reason::name);
    let instead =
        Replacement::of(&gateway, &binding, (&turn.demand, turn.tried.clone()), refused).await;
    let count = |decision| reason.as_ref().map_or(0, |reason| decided(&gateway, decision, reason));
    let said = match &instead {
        Replacement::Nothing => "nothing".into(),
        Replacement::Error(error) => {
            format!("{} {:?}", error.code(), error.retry_after.map(|wait| wait.as_secs()))
        }
        Replacement::Anew => "anew".into(),
    };
    (said, [count("retry"), count("refuse"), count("move")])
}

async fn is_heard(
    what: &str,
    keys: &[(&str, &str, &str)],
    diagnosis: Diagnosis,
    case: Case,
    expected: &str,
) {
    let (said, decided) = heard(keys, diagnosis, case).await;
    assert_eq!(said, expected, "{what}");
    let is_told =
        diagnosis != Diagnosis::Sound && (diagnosis != Diagnosis::Foreign || case.is_provisional);
    let is_anew = expected == "anew";
    // The session moves if the next connection needs another organization, and never otherwise.
    let is_moved = is_anew && diagnosis == Diagnosis::Foreign;
    assert_eq!(decided, [is_anew, is_told && !is_anew, is_moved].map(u32::from), "{what}");
}

#[tokio::test(start_paused = true)]
async fn what_is_the_keys_is_a_reason_to_connect_anew_where_another_one_serves() {
    let (one, beside) = (&TWO[..1], [TWO[0], ("c", "o", "p")]);
    let (begun, sealed) = (Case { has_begun: true, ..FIRST }, Case { is_sealed: true, ..FIRST });
    is_heard("another organization", &TWO, EXHAUSTED, FIRST, "anew").await;
    is_heard("of which nobody is left", one, EXHAUSTED, FIRST, "insufficient_quota None").await;
    is_heard("in mid-response", &TWO, EXHAUSTED, begun, "nothing").await;
    is_heard("a sibling", &beside, REJECTED, FIRST, "anew").await;
    is_heard("it may yet be accepted", &TWO, REJECTED, FIRST, "no_key_available Some(1)").await;
    is_heard(
        "in mid-response nobody hears of our key",
        &TWO,
        REJECTED,
        begun,
        "no_key_available Some(1)",
    )
    .await;
    is_heard(
        "another project",
        &[TWO[0], ("c", "o", "r")],
        Diagnosis::Ailing(Ailment::Exhausted(Scope::Project)),
        sealed,
        "anew",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_accepted_when_it_is_asked_again_serves_the_next_connection() {
    let (gateway, client) = (gateway(&TWO[..1]), Client::unrestricted("alice"));
    let (turn, binding, _) = bound(&gateway, &client).await;
    let headers = HeaderMap::new();
    let refused = Refused {
        diagnosis: REJECTED,
        headers: &headers,
        has_begun: false,
        is_provisional: true,
        is_announced: false,
    };
    let asked = async {
        tokio::time::sleep(SECOND).await;
        gateway.registry.recovered(Subject::of(&binding.key, Scope::Key), "a");
    };
    let (instead, ()) = tokio::join!(
        Replacement::of(&gateway, &binding, (&turn.demand, turn.tried.clone()), refused),
        asked
    );
    assert!(matches!(instead, Replacement::Anew));
}

#[tokio::test(start_paused = true)]
async fn a_limit_is_a_reason_to_connect_anew_only_where_the_next_one_finds_another_key() {
    let limited =
        |seconds: Option<u32>| Diagnosis::Limited(seconds.map(|seconds| SECOND * seconds));
    let unannounced = Case { is_announced: false, ..FIRST };
    is_heard("another organization", &TWO, limited(Some(9)), FIRST, "anew").await;
    is_heard("soon over", &TWO, limited(Some(3)), FIRST, "rate_limit_exceeded Some(3)").await;
    is_heard(
        "sealed",
        &TWO,
        limited(Some(9)),
        Case { is_sealed: true, ..FIRST },
        "rate_limit_exceeded Some(9)",
    )
    .await;
    is_heard("nobody else", &TWO[..1], limited(Some(9)), FIRST, "rate_limit_exceeded Some(9)")
        .await;
    is_heard(
        "another model than was announced",
        &TWO,
        limited(None),
        unannounced,
        "rate_limit_exceeded Some(20)",
    )
    .await;
    is_heard(
        "in mid-response",
        &TWO,
        limited(Some(9)),
        Case { has_begun: true, ..FIRST },
        "nothing",
    )
    .await;
    for (says, expected) in [
        ("9", "nothing"),
        ("1.5", "rate_limit_exceeded Some(9)"),
        ("-1", "rate_limit_exceeded Some(9)"),
    ] {
        is_heard(says, &TWO, limited(Some(9)), Case { says: Some(says), ..unannounced }, expected)
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_key_does_not_help_against_says_when_to_come_again() {
    let (overloaded, too_steep) = (Diagnosis::Overloaded(None), Diagnosis::TooSteep(None));
    let (says, begun) = (Case { says: Some("9"), ..FIRST }, Case { has_begun: true, ..FIRST });
    is_heard("overloaded", &TWO, overloaded, FIRST, "no_key_available Some(5)").await;
    is_heard(
        "for a time",
        &TWO,
        Diagnosis::Overloaded(Some(9 * SECOND)),
        says,
        "no_key_available Some(9)",
    )
    .await;
    is_heard("in mid-response", &TWO, overloaded, begun, "nothing").await;
    is_heard("too steep", &TWO, too_steep, FIRST, "rate_limit_exceeded Some(20)").await;
    is_heard("and it says so", &TWO, too_steep, says, "nothing").await;
    for diagnosis in [Diagnosis::Failed, Diagnosis::Sound, Diagnosis::NoAccess] {
        is_heard("the client's", &TWO, diagnosis, FIRST, "nothing").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_organization_is_looked_for_only_under_a_guess() {
    is_heard("a guess", &TWO, Diagnosis::Foreign, FIRST, "anew").await;
    is_heard("nobody else", &TWO[..1], Diagnosis::Foreign, FIRST, "nothing").await;
    is_heard("known", &TWO, Diagnosis::Foreign, Case { is_provisional: false, ..FIRST }, "nothing")
        .await;
    is_heard(
        "in mid-response",
        &TWO,
        Diagnosis::Foreign,
        Case { has_begun: true, ..FIRST },
        "nothing",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_model_that_two_clients_may_not_have_is_denied_to_the_project() {
    let gateway = gateway(&TWO[..1]);
    for (name, is_denied) in [("alice", false), ("alice", false), ("bob", true)] {
        let client = Client::unrestricted(name);
        let (turn, binding, _) = bound(&gateway, &client).await;
        let headers = HeaderMap::new();
        let refused = Refused {
            diagnosis: Diagnosis::NoAccess,
            headers: &headers,
            has_begun: false,
            is_provisional: false,
            is_announced: true,
        };
        assert!(matches!(
            Replacement::of(&gateway, &binding, (&turn.demand, turn.tried.clone()), refused).await,
            Replacement::Nothing
        ));
        assert_eq!(!gateway.registry.is_ready(&binding.key, "m"), is_denied, "{name}");
        assert!(gateway.registry.is_ready(&binding.key, "n"));
    }
}
