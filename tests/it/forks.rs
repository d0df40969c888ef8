//! Forks: a new session whose history is another's begins on the key of the session it was forked from.

use crate::cluster::{ALICE, BOB, Cluster, Running};
use crate::codex::Codex;
use crate::patience::{SOON, eventually};
use crate::simulator::{keys_by_session, siblings};

const SESSIONS: usize = 12;
const INHERITED: &str = r#"warmkey_bindings_total{result="inherited"}"#;

/// Two replicas, and sessions that are not where their own order would send most of them by now.
async fn displaced() -> (Running, Vec<Codex>) {
    let even = [siblings("org-a", 2), siblings("org-b", 2)].concat();
    let mut lopsided = even.clone();
    lopsided[0].weight = 100;
    let mut cluster = Cluster::new().keys(lopsided).replicas(2).redis().start().await;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let mut codex = Codex::new(cluster.replicas[0].address(), ALICE);
        codex.turn("first").await.served();
        sessions.push(codex);
    }
    cluster.change(|cluster| cluster.keys(even));
    for number in 0..2 {
        cluster.replace(number).await;
    }
    (cluster, sessions)
}

/// Each of `forks` was served by its parent's key, at the first attempt.
async fn assert_inherited(cluster: &Running, forks: &[(String, Codex)]) {
    let turns = cluster.turns().await;
    let keys = keys_by_session(&turns);
    for (parent, fork) in forks {
        assert_eq!(keys[&fork.session], keys[parent], "one key for both");
        assert!(turns.iter().all(|turn| turn.session.as_ref() != Some(&fork.session) || turn.is_served()), "at once");
    }
}

#[tokio::test]
async fn a_fork_begins_on_its_parents_key() {
    let (cluster, sessions) = displaced().await;
    let mut forks = Vec::new();
    for codex in sessions {
        let mut fork = codex.fork().at(cluster.replicas[1].address());
        fork.turn("another way").await.served();
        fork.moves_to(cluster.replicas[0].address());
        fork.turn("and on").await.served();
        forks.push((codex.session, fork));
    }
    assert_inherited(&cluster, &forks).await;
    cluster.shows(INHERITED, SESSIONS as f64).await;
}

#[tokio::test]
async fn a_fork_of_a_sub_agent_begins_on_the_key_of_its_session() {
    let (mut cluster, sessions) = displaced().await;
    let mut agents = Vec::new();
    for codex in &sessions {
        let mut agent = codex.spawn().at(cluster.replicas[0].address());
        agent.turn("look into it").await.served();
        agents.push(agent);
    }
    let redis = cluster.redis();
    eventually(SOON, "the threads are written down", async || {
        let names: Vec<String> = redis.ask(&["KEYS", "warmkey:*.thread"]).await;
        (names.len() == SESSIONS).then_some(())
    })
    .await;
    let mut forks = Vec::new();
    for agent in agents {
        let mut fork = agent.fork().at(cluster.replicas[1].address());
        fork.turn("another way").await.served();
        forks.push((agent.session, fork));
    }
    assert_inherited(&cluster, &forks).await;
    cluster.shows(INHERITED, SESSIONS as f64).await;
}

#[tokio::test]
async fn a_fork_whose_parent_is_forgotten_finds_its_organization() {
    let (mut cluster, sessions) = displaced().await;
    cluster.redis().tell(&["FLUSHALL"]).await;
    for number in 0..2 {
        cluster.replace(number).await;
    }
    for codex in sessions {
        let mut fork = codex.fork().at(cluster.address());
        fork.turn("another way").await.served();
        let turns = cluster.turns().await;
        let home = turns.iter().find(|turn| turn.session.as_ref() == Some(&codex.session)).expect("the parent was served");
        let attempts: Vec<_> = turns.iter().filter(|turn| turn.session.as_ref() == Some(&fork.session)).collect();
        let last = attempts.last().expect("the fork was served");
        assert!(last.is_served() && last.organization == home.organization && attempts.len() <= 2, "{attempts:?}");
    }
}

#[tokio::test]
async fn nobody_inherits_from_another_client() {
    let (cluster, sessions) = displaced().await;
    for codex in &sessions {
        let mut fork = codex.fork();
        fork.shows(BOB);
        // Its history is not Bob's to show; that he names its thread must tell him nothing.
        fork.moves_to(cluster.address());
        fork.turn("what is this?").await;
    }
    let replica = cluster.replica();
    eventually(SOON, "all turns in the books", async || {
        (replica.metrics().await.sum("warmkey_turns_total") >= SESSIONS as f64).then_some(())
    })
    .await;
    cluster.shows(INHERITED, 0.0).await;
}
