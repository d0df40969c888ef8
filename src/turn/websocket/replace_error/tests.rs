//! Tests of the replacements: one row of the table for each error frame.

use std::time::Duration;

use super::*;
use crate::binding::demand::Sealed;
use crate::client::Client;
use crate::health::diagnose::Scope;
use crate::turn::doubt::Doubts;
use crate::turn::tests::{bound, decided, gateway};

const TWO: [(&str, &str, &str); 2] = [("a", "o", "p"), ("b", "q", "p")];
const DENIED: Judgement = Judgement::Model(Shortage::Denied);
const FOREIGN: Judgement = Judgement::Request(Concern::Foreign);
const EDITED: &str = r#"{"headers":{"retry-after":"20"},"type":"error","status":429}"#;
const SECOND: Duration = Duration::from_secs(1);
const EXHAUSTED: Judgement = Judgement::Organization(Trouble::Spent);
const REJECTED: Judgement = Judgement::Key;
/// A refused first response, for the model of the handshake, under a provisional binding.
const FIRST: Case = Case {
    retry_after: None,
    has_begun: false,
    is_provisional: true,
    is_announced: true,
    is_sealed: false,
};

const fn overloaded_for(wait: Option<Duration>) -> Judgement {
    Judgement::Request(Concern::Overloaded(wait))
}

#[derive(Clone, Copy)]
struct Case {
    /// The frame's `retry-after`.
    retry_after: Option<&'static str>,
    has_begun: bool,
    is_provisional: bool,
    is_announced: bool,
    is_sealed: bool,
}

/// Returns the replacement, and how often each decision was counted. The replacement is the
/// upstream's frame, a code with its wait, or a reconnect. The decisions are a retry, a refusal,
/// and a move of the session.
async fn replaced(
    keys: &[(&str, &str, &str)],
    judgement: Judgement,
    case: Case,
) -> (String, [u32; 3]) {
    let (gateway, client) = (gateway(keys), Client::unrestricted("alice"));
    let (mut turn, binding, _) = bound(&gateway, &client).await;
    turn.demand.carries_sealed = Sealed::Known(case.is_sealed);
    let mut headers = HeaderMap::new();
    if let Some(wait) = case.retry_after {
        headers.insert(RETRY_AFTER, wait.parse().unwrap());
    }
    // Another client has met the same 401, and no probe has decided.
    let bob = Client::unrestricted("bob");
    for scope in [Scope::Key, Scope::Organization] {
        gateway.failover.corroboration.report_doubt(&binding.key, scope, &Demand::of(&bob));
    }
    let Case { has_begun, is_provisional, is_announced, .. } = case;
    let frame = r#"{"type":"error","status":429}"#;
    let (headers, sent) = (&headers, Some(Instant::now()));
    let refused =
        Refused { judgement, frame, headers, sent, has_begun, is_provisional, is_announced };
    let reason = refused.reason().map(Reason::name);
    let instead = Replacement::of(
        &gateway,
        &binding,
        (&turn.demand, turn.tried.clone(), turn.within),
        refused,
    )
    .await;
    let count = |decision| reason.as_ref().map_or(0, |reason| decided(&gateway, decision, reason));
    let replacement = match &instead {
        Replacement::Nothing => "nothing".into(),
        Replacement::Edited(frame) => frame.clone(),
        Replacement::Error(error) => {
            format!("{} {:?}", error.code(), error.retry_after.map(|wait| wait.as_secs()))
        }
        Replacement::Reconnect => "reconnect".into(),
    };
    (replacement, [count("retry"), count("refuse"), count("move")])
}

async fn check(
    what: &str,
    keys: &[(&str, &str, &str)],
    judgement: Judgement,
    case: Case,
    expected: &str,
) {
    let (replacement, decided) = replaced(keys, judgement, case).await;
    assert_eq!(replacement, expected, "{what}");
    let is_recorded = judgement != Judgement::PASSED
        && judgement != Judgement::Request(Concern::Busy(None))
        && (judgement != FOREIGN || case.is_provisional);
    let reconnects = expected == "reconnect";
    // The session moves if the next connection needs another organization, and never otherwise.
    let is_moved = reconnects && judgement == FOREIGN;
    assert_eq!(
        decided,
        [reconnects, is_recorded && !reconnects, is_moved].map(u32::from),
        "{what}"
    );
}

#[tokio::test(start_paused = true)]
async fn fault_of_a_key_makes_the_client_reconnect_if_another_key_serves() {
    let (one, beside) = (&TWO[..1], [TWO[0], ("c", "o", "p")]);
    let (begun, sealed) = (Case { has_begun: true, ..FIRST }, Case { is_sealed: true, ..FIRST });
    check("another organization", &TWO, EXHAUSTED, FIRST, "reconnect").await;
    check("no other organization", one, EXHAUSTED, FIRST, "insufficient_quota None").await;
    check("in mid-response", &TWO, EXHAUSTED, begun, "nothing").await;
    check("a sibling", &beside, REJECTED, FIRST, "reconnect").await;
    check("it may yet be accepted", &TWO, REJECTED, FIRST, "no_key_available Some(1)").await;
    check(
        "in mid-response, without details of the key",
        &TWO,
        REJECTED,
        begun,
        "no_key_available Some(1)",
    )
    .await;
    check("another project", &[TWO[0], ("c", "o", "r")], Judgement::Project, sealed, "reconnect")
        .await;
}

#[tokio::test(start_paused = true)]
async fn limit_makes_the_client_reconnect_only_if_the_next_connection_uses_another_key() {
    let limited = |seconds: Option<u32>| {
        Judgement::Model(Shortage::Limited(seconds.map(|seconds| SECOND * seconds)))
    };
    let unannounced = Case { is_announced: false, ..FIRST };
    check("another organization", &TWO, limited(Some(9)), FIRST, "reconnect").await;
    check("soon over", &TWO, limited(Some(3)), FIRST, "rate_limit_exceeded Some(3)").await;
    check(
        "sealed",
        &TWO,
        limited(Some(9)),
        Case { is_sealed: true, ..FIRST },
        "rate_limit_exceeded Some(9)",
    )
    .await;
    check("no other key", &TWO[..1], limited(Some(9)), FIRST, "rate_limit_exceeded Some(9)").await;
    check(
        "another model than was announced",
        &TWO,
        limited(None),
        unannounced,
        "rate_limit_exceeded Some(20)",
    )
    .await;
    check("in mid-response", &TWO, limited(Some(9)), Case { has_begun: true, ..FIRST }, "nothing")
        .await;
    for (retry_after, expected) in [
        ("9", "nothing"),
        ("1.5", "rate_limit_exceeded Some(9)"),
        ("-1", "rate_limit_exceeded Some(9)"),
    ] {
        check(
            retry_after,
            &TWO,
            limited(Some(9)),
            Case { retry_after: Some(retry_after), ..unannounced },
            expected,
        )
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn error_that_no_other_key_helps_says_when_to_retry() {
    let (overloaded, too_steep) =
        (overloaded_for(None), Judgement::Request(Concern::TooSteep(None)));
    let (retry_after, begun) =
        (Case { retry_after: Some("9"), ..FIRST }, Case { has_begun: true, ..FIRST });
    check("overloaded", &TWO, overloaded, FIRST, "no_key_available Some(5)").await;
    check(
        "for a time",
        &TWO,
        overloaded_for(Some(9 * SECOND)),
        retry_after,
        "no_key_available Some(9)",
    )
    .await;
    check("in mid-response", &TWO, overloaded, begun, "nothing").await;
    check("too steep", &TWO, too_steep, FIRST, EDITED).await;
    check("busy", &TWO, Judgement::Request(Concern::Busy(None)), FIRST, EDITED).await;
    check("too steep, in mid-response", &TWO, too_steep, begun, EDITED).await;
    check("and it retry_after so", &TWO, too_steep, retry_after, "nothing").await;
    for judgement in [Judgement::Host, Judgement::PASSED, DENIED] {
        check("the client's", &TWO, judgement, FIRST, "nothing").await;
    }
}

#[tokio::test(start_paused = true)]
async fn limit_of_the_transport_is_no_limit_of_the_key() {
    let limited = Judgement::Transport(Some(9 * SECOND));
    check("another key", &TWO, limited, FIRST, "rate_limit_exceeded Some(9)").await;
    let told = Case { retry_after: Some("9"), ..FIRST };
    check("it says when", &TWO, limited, told, "nothing").await;
    let (gateway, client) = (gateway(&TWO), Client::unrestricted("alice"));
    let (turn, binding, _) = bound(&gateway, &client).await;
    let headers = HeaderMap::new();
    let refused = Refused {
        judgement: limited,
        frame: "{}",
        headers: &headers,
        sent: Some(Instant::now()),
        has_begun: false,
        is_provisional: false,
        is_announced: true,
    };
    let turn = (&turn.demand, turn.tried.clone(), turn.within);
    Replacement::of(&gateway, &binding, turn, refused).await;
    assert!(gateway.registry.is_ready(&binding.key, "m"), "HTTP is not limited");
}

#[tokio::test(start_paused = true)]
async fn forgotten_organization_is_searched_only_under_a_provisional_binding() {
    check("provisional", &TWO, FOREIGN, FIRST, "reconnect").await;
    check("no other key", &TWO[..1], FOREIGN, FIRST, "nothing").await;
    check("known", &TWO, FOREIGN, Case { is_provisional: false, ..FIRST }, "nothing").await;
    check("in mid-response", &TWO, FOREIGN, Case { has_begun: true, ..FIRST }, "nothing").await;
}

#[tokio::test(start_paused = true)]
async fn model_that_two_clients_are_denied_is_denied_to_the_project() {
    let gateway = gateway(&TWO[..1]);
    for (name, is_denied) in [("alice", false), ("alice", false), ("bob", true)] {
        let client = Client::unrestricted(name);
        let (turn, binding, _) = bound(&gateway, &client).await;
        let headers = HeaderMap::new();
        let refused = Refused {
            judgement: DENIED,
            frame: "{}",
            headers: &headers,
            sent: Some(Instant::now()),
            has_begun: false,
            is_provisional: false,
            is_announced: true,
        };
        assert!(matches!(
            Replacement::of(
                &gateway,
                &binding,
                (&turn.demand, turn.tried.clone(), turn.within),
                refused
            )
            .await,
            Replacement::Nothing
        ));
        assert_eq!(!gateway.registry.is_ready(&binding.key, "m"), is_denied, "{name}");
        assert!(gateway.registry.is_ready(&binding.key, "n"));
    }
}

#[tokio::test(start_paused = true)]
async fn undecided_401_is_one_clients_until_a_second_meets_it() {
    let mut gateway = gateway(&TWO);
    gateway.failover.doubts = Doubts::that_stay();
    for (name, is_suspected) in [("alice", false), ("alice", false), ("bob", true)] {
        let client = Client::unrestricted(name);
        let (turn, binding, _) = bound(&gateway, &client).await;
        let headers = HeaderMap::new();
        let refused = Refused {
            judgement: REJECTED,
            frame: "{}",
            headers: &headers,
            sent: Some(Instant::now()),
            has_begun: false,
            is_provisional: false,
            is_announced: true,
        };
        let case = (&turn.demand, turn.tried.clone(), turn.within);
        let instead = Replacement::of(&gateway, &binding, case, refused).await;
        let Replacement::Error(error) = instead else { panic!("{name}: an error") };
        assert!(error.code() == "no_key_available" && error.retry_after.is_some(), "{name}");
        let known = gateway.registry.conditions.of(&binding.key);
        assert_eq!(!known.is_empty(), is_suspected, "{name}: {known:?}");
    }
}

/// A turn that begins now meets a short limit on a connection of the session.
async fn limited_again(gateway: &Gateway, client: &Client) -> (Replacement, Binding) {
    let (turn, binding, _) = bound(gateway, client).await;
    let headers = HeaderMap::from_iter([(RETRY_AFTER, "2".parse().unwrap())]);
    let refused = Refused {
        judgement: Judgement::Model(Shortage::Limited(Some(2 * SECOND))),
        frame: "{}",
        headers: &headers,
        sent: Some(Instant::now()),
        has_begun: false,
        is_provisional: false,
        is_announced: true,
    };
    let case = (&turn.demand, turn.tried.clone(), turn.within);
    (Replacement::of(gateway, &binding, case, refused).await, binding)
}

#[tokio::test(start_paused = true)]
async fn key_limited_again_after_the_clients_wait_is_relieved_by_a_sibling() {
    let client = Client::unrestricted("alice");
    for (pause, in_vain) in [(SECOND, false), (2 * SECOND, true), (300 * SECOND, false)] {
        let gateway = gateway(&[("a-1", "o", "one"), ("a-2", "o", "two")]);
        let (first, binding) = limited_again(&gateway, &client).await;
        assert!(matches!(first, Replacement::Nothing), "the client is told to wait");
        tokio::time::sleep(pause).await;
        let (second, _) = limited_again(&gateway, &client).await;
        assert_eq!(matches!(second, Replacement::Reconnect), in_vain, "{pause:?}");
        assert_eq!(gateway.registry.is_strained(&binding.key, "m"), in_vain, "{pause:?}");
        let (_, next, _) = bound(&gateway, &client).await;
        assert_eq!(next.key.tag != binding.key.tag, in_vain, "a sibling serves");
        assert_eq!(decided(&gateway, "move", "limited"), 0, "the binding stays");
    }
    let alone = gateway(&[("a-1", "o", "one")]);
    for _ in 0..3 {
        let (told, _) = limited_again(&alone, &client).await;
        assert!(matches!(told, Replacement::Nothing), "no sibling can serve");
        tokio::time::sleep(2 * SECOND).await;
    }
}
