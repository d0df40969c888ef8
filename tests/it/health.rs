//! Keys fall ill, sessions do not: what the upstream refuses, and where turns go then. Three
//! replicas, a real Redis, and the upstream's record as the judge.

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::simulator::{Ill, Key, Turn, path_of, siblings};

mod attempts;
mod herd;
mod limited;
mod refused;
mod spoken;

/// Two organizations: one of two projects with two keys each, one of a single project.
fn pool() -> Vec<Key> {
    let side =
        (3..=4).map(|number| Key::new(&format!("org-a-{number}"), "org-a").of_project("side"));
    [siblings("org-a", 2), side.collect(), siblings("org-b", 2)].concat()
}

fn three() -> Cluster {
    Cluster::new().replicas(3).redis()
}

/// Sessions that have had a first turn, each by another replica than the one before.
async fn sessions(cluster: &Running, count: usize) -> Vec<Codex> {
    let mut all = Vec::new();
    for number in 0..count {
        let mut codex =
            Codex::new(cluster.replicas[number % cluster.replicas.len()].address(), ALICE);
        codex.turn("first").await.served();
        all.push(codex);
    }
    all
}

/// The key that each of these sessions began with.
async fn homes(cluster: &Running, all: &[Codex]) -> Vec<String> {
    let turns = cluster.turns().await;
    all.iter().map(|codex| path_of(&turns, &codex.session).remove(0)).collect()
}

/// A session that is bound in this organization.
async fn one_of(cluster: &Running, organization: &str) -> (Codex, Turn) {
    for _ in 0..40 {
        let mut codex = Codex::new(cluster.address(), ALICE);
        codex.turn("first").await.served();
        let turn = last_of(cluster, &codex).await;
        if turn.organization == organization {
            return (codex, turn);
        }
    }
    panic!("some session begins in {organization}");
}

async fn last_of(cluster: &Running, codex: &Codex) -> Turn {
    let mut turns = cluster.turns().await;
    turns.retain(|turn| turn.session.as_deref() == Some(&codex.session));
    turns.pop().expect("the session has a turn")
}

/// Goes on by each replica in turn.
async fn goes_on(cluster: &Running, codex: &mut Codex, turns: usize) {
    for number in 0..turns {
        codex.moves_to(cluster.replicas[number % cluster.replicas.len()].address());
        codex.turn("goes on").await.served();
    }
}

async fn path(cluster: &Running, codex: &Codex) -> Vec<String> {
    path_of(&cluster.turns().await, &codex.session)
}

/// How often this session was sent upstream since `before` turns were in the record.
async fn attempts(cluster: &Running, codex: &Codex, before: usize) -> Vec<(String, u16)> {
    let turns = cluster.turns().await;
    let own = turns[before..].iter().filter(|turn| turn.session.as_deref() == Some(&codex.session));
    own.map(|turn| (turn.key.clone(), turn.status)).collect()
}

/// Waits until all replicas know that this key is in this state.
async fn all_know(cluster: &Running, key: &str, state: &str) {
    for replica in &cluster.replicas {
        replica.shows(&format!("warmkey_key_state{{key=\"{key}\",state=\"{state}\"}}"), 1.0).await;
    }
}

async fn decided(cluster: &Running, decision: &str, reason: &str) -> f64 {
    let mut sum = 0.0;
    for replica in &cluster.replicas {
        let series =
            format!("warmkey_decisions_total{{decision=\"{decision}\",reason=\"{reason}\"}}");
        sum += replica.metrics().await.get(&series);
    }
    sum
}

/// B5: nothing but what is listed there moves a session: not a limit that is waited for or spilled,
/// not a failure, not a key that is added or weighs otherwise, not a deploy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b5_forced_moves_only() {
    let mut cluster = three().keys(pool()).spare(siblings("org-c", 1)).start().await;
    let mut all = sessions(&cluster, 12).await;
    let homes = {
        let turns = cluster.turns().await;
        all.iter().map(|codex| path_of(&turns, &codex.session).remove(0)).collect::<Vec<_>>()
    };
    for ill in [Ill::limited(1), Ill::down(500), Ill::down(503), Ill::withdrawn(), Ill::forbidden()]
    {
        cluster.upstream().ails(ill.times(2)).await;
        for codex in &mut all {
            codex.turn("whatever comes").await;
        }
        cluster.upstream().heal().await;
    }
    cluster.change(|description| description.keys([pool(), siblings("org-c", 1)].concat()));
    for number in 0..3 {
        cluster.reload(number).await;
    }
    cluster.replace(0).await;
    for codex in &mut all {
        goes_on(&cluster, codex, 3).await;
    }
    let turns = cluster.turns().await;
    for (codex, home) in all.iter().zip(&homes) {
        let path = path_of(&turns, &codex.session);
        assert_eq!((path.first(), path.last()), (Some(home), Some(home)), "it stays: {path:?}");
    }
    for replica in &cluster.replicas {
        let rebound = replica.metrics().await.get(r#"warmkey_bindings_total{result="rebound"}"#);
        assert!(rebound.abs() < f64::EPSILON, "no binding has changed");
    }
}
