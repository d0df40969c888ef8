//! Tests 5xx answers and broken connections: how often a turn is sent, and which answer its client
//! receives.

use std::time::Duration;

use super::{pool, three};
use crate::world::cable::Weather;
use crate::world::cluster::{ALICE, BOB};
use crate::world::codex::Codex;
use crate::world::sessions::{attempts, begin_on, decided, go_on, last_turn, path};
use crate::world::simulator::{Fault, siblings};
use crate::world::waiting::{Budget, SOON, eventually};

/// C11: the turn is sent once more with the same key, and then with a sibling. The binding stays.
#[tokio::test]
async fn failure_is_tried_again_here_and_then_at_a_sibling() {
    for (status, times) in [(500, 1), (502, 2), (503, 2), (504, 1)] {
        let cluster = three().keys(pool()).start().await;
        let (mut codex, turn) = begin_on(&cluster, "org-a").await;
        let before = cluster.turns().await.len();
        cluster
            .upstream()
            .fails_with(
                Fault::down(status).code("server_error").session(&codex.session).times(times),
            )
            .await;
        codex.turn("goes on").await.served();
        let mut sent = attempts(&cluster, &codex, before).await;
        let (served_by, _) = sent.pop().expect("it was served");
        assert_eq!(sent, vec![(turn.key.clone(), status); times as usize]);
        assert_eq!(
            served_by == turn.key,
            times == 1,
            "the same key once more, then a sibling: {served_by}"
        );
        assert!(served_by.starts_with("org-a"));
        assert_eq!(decided(&cluster, "retry", "failed").await, times as f64);
        go_on(&cluster, &mut codex, 3).await;
        assert_eq!(last_turn(&cluster, &codex).await.key, turn.key, "its first key again");
    }
}

/// C12: whatever fails, a turn has at most three attempts, and all turns together have at most a
/// fifth more attempts than turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn constant_failure_is_not_sent_much_more_often() {
    let cluster = three().keys(pool()).start().await;
    cluster.upstream().fails_with(Fault::down(503).code("server_error")).await;
    let (offered, budget) = (120, Budget::begin(Duration::from_secs(60)));
    for number in 0..offered {
        let ended = Codex::new(cluster.address(), ALICE).turn("fails").await;
        assert_eq!(
            (ended.answer.status, ended.answer.code().as_str()),
            (503, "server_error"),
            "turn {number}"
        );
        assert!(ended.answer.retry_after() >= 1, "turn {number}");
    }
    let turns = cluster.turns().await;
    assert!(turns.len() * 10 <= offered * 12, "{} attempts for {offered} turns", turns.len());
    let mut by_session = std::collections::BTreeMap::<_, usize>::new();
    turns.iter().for_each(|turn| *by_session.entry(turn.session.clone()).or_default() += 1);
    assert!(by_session.values().all(|count| *count <= 3));
    assert!(turns.len() > offered, "some were tried again");
    budget.holds("turns that wait only a little");
    for key in ["org-a-1", "org-b-1"] {
        cluster
            .replica()
            .shows(&format!("warmkey_key_state{{key=\"{key}\",state=\"ready\"}}"), 1.0)
            .await;
    }
}

/// If another key would not help, the client learns when to retry, by a code that does not end its
/// turn.
#[tokio::test]
async fn overloaded_model_is_not_shopped_around() {
    let cluster = three().keys(pool()).start().await;
    let (mut codex, turn) = begin_on(&cluster, "org-a").await;
    let before = cluster.turns().await.len();
    cluster.upstream().fails_with(Fault::overloaded().session(&codex.session).times(1)).await;
    let ended = codex.turn("overloaded").await;
    assert_eq!((ended.answer.status, ended.answer.code().as_str()), (503, "no_key_available"));
    assert!(ended.answer.retry_after() >= 1);
    assert_eq!(attempts(&cluster, &codex, before).await, [(turn.key, 503)]);
    assert_eq!(decided(&cluster, "refuse", "overloaded").await, 1.0);
}

/// B15: a turn that may have been served is sent once, unless the operator allows more.
#[tokio::test]
async fn b15_at_most_once() {
    for resends in [false, true] {
        let cluster = three()
            .keys(pool())
            .binding(&format!("[failover]\nambiguous = {resends}"))
            .start()
            .await;
        let mut codex = Codex::new(cluster.address(), ALICE);
        codex.turn("first").await.served();
        let before = cluster.turns().await.len();
        cluster.upstream().fails_with(Fault::breaking().times(1)).await;
        let ended = codex.turn("breaks").await;
        match resends {
            true => assert_eq!(ended.answer.status, 200),
            false => {
                assert_eq!(
                    (ended.answer.status, ended.answer.code().as_str()),
                    (503, "upstream_interrupted")
                );
                assert!(ended.answer.retry_after() >= 1);
                assert_eq!(decided(&cluster, "refuse", "failed").await, 1.0);
            }
        }
        let sent = cluster.turns().await.len() - before;
        assert_eq!(sent, if resends { 2 } else { 1 });
    }
    // A refusal is an answer: the upstream has not served that turn.
    let cluster = three().keys(pool()).start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("first").await.served();
    for (fault, more) in [
        (Fault::down(400), 0),
        (Fault::down(413), 0),
        (Fault::down(422), 0),
        (Fault::down(500).code("server_error"), 1),
    ] {
        let before = cluster.turns().await.len();
        cluster.upstream().fails_with(fault.times(1)).await;
        codex.turn("refused").await;
        assert_eq!(cluster.turns().await.len() - before, 1 + more);
    }
}

/// C10: a fault of the request says nothing about the key, whichever client causes it, and however
/// often.
#[tokio::test]
async fn refusal_of_the_request_is_sent_once_and_changes_no_key() {
    let cluster = three().keys(pool()).start().await;
    let mut all = vec![Codex::new(cluster.address(), ALICE), Codex::new(cluster.address(), BOB)];
    for codex in &mut all {
        codex.turn("first").await.served();
    }
    let states = async || {
        let mut states = Vec::new();
        for replica in &cluster.replicas {
            let page = replica.probe("/metrics").await.text();
            states.extend(
                page.lines()
                    .filter(|line| line.starts_with("warmkey_key_state{"))
                    .map(str::to_owned),
            );
        }
        states
    };
    let (before, decisions) = (states().await, "warmkey_decisions_total");
    assert_eq!(
        before.iter().filter(|line| line.contains("\"ready\"} ") && line.ends_with(" 1")).count(),
        3 * pool().len()
    );
    for (status, code) in [
        (400, "invalid_value"),
        (404, "not_found"),
        (413, "request_too_large"),
        (422, "unprocessable"),
    ] {
        for codex in &mut all {
            for number in 0..3 {
                codex.moves_to(cluster.replicas[number].address());
                let sent = cluster.turns().await.len();
                cluster
                    .upstream()
                    .fails_with(Fault::down(status).code(code).session(&codex.session).times(1))
                    .await;
                let ended = codex.turn("refused").await;
                assert_eq!((ended.answer.status, ended.answer.code().as_str()), (status, code));
                let tried = path(&cluster, codex).await;
                assert_eq!(
                    attempts(&cluster, codex, sent).await,
                    [(tried[0].clone(), status)],
                    "one attempt, at its first key"
                );
            }
        }
    }
    for codex in &mut all {
        go_on(&cluster, codex, 3).await;
        assert_eq!(path(&cluster, codex).await.len(), 1);
    }
    assert_eq!(states().await, before, "no state of any key at any replica");
    for replica in &cluster.replicas {
        assert!(
            replica.metrics().await.sum(decisions).abs() < f64::EPSILON,
            "and nothing was decided"
        );
    }
}

/// C1: if no server is at the upstream's address, that is the host's fault, and no key's.
#[tokio::test]
async fn upstream_that_is_not_there_condemns_no_key() {
    let cluster = three().keys(siblings("org-a", 3)).cabled().start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("first").await.served();
    cluster.cable().set(Weather::Refused);
    // An open connection is lost first. Later attempts find no connection at all.
    let unreachable =
        async || (codex.turn("nobody").await.answer.code() == "upstream_unreachable").then_some(());
    eventually(SOON, "the upstream is called unreachable", unreachable).await;
    for key in ["org-a-1", "org-a-2", "org-a-3"] {
        cluster
            .replica()
            .shows(&format!("warmkey_key_state{{key=\"{key}\",state=\"ready\"}}"), 1.0)
            .await;
    }
    assert!(decided(&cluster, "refuse", "unreachable").await >= 1.0);
    cluster.cable().set(Weather::Fair);
    codex.turn("back").await.served();
    assert_eq!(path(&cluster, &codex).await.len(), 1);
}

/// C19: a failure inside an answer passes to the client, and a limit that it states counts for the
/// key.
#[tokio::test]
async fn failure_inside_an_answer_counts_for_the_key() {
    let cluster = three().keys(pool()).start().await;
    let (mut codex, turn) = begin_on(&cluster, "org-a").await;
    cluster
        .upstream()
        .fails_with(Fault::failing("insufficient_quota").session(&codex.session).times(1))
        .await;
    let ended = codex.turn("fails").await;
    assert!(ended.answer.status == 200 && ended.answer.text().contains("event: response.failed"));
    cluster
        .replica()
        .shows(&format!("warmkey_key_state{{key=\"{}\",state=\"disabled\"}}", turn.key), 1.0)
        .await;
    assert_eq!(codex.turn("known").await.answer.code(), "insufficient_quota");
    assert!(decided(&cluster, "refuse", "exhausted").await >= 1.0, "and the limit counts");
}
