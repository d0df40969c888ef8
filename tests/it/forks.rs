//! A fork is a new session with another session's history. It begins on the key of that session.

use crate::world::cluster::{BOB, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::sessions::begin;
use crate::world::simulator::{keys_by_session, siblings};
use crate::world::waiting::{SOON, eventually};

const SESSIONS: usize = 12;
const INHERITED: &str = r#"warmkey_bindings_total{result="inherited"}"#;

/// Two replicas, and sessions most of which are not on the key that their own order would choose
/// now.
async fn displaced() -> (Running, Vec<Codex>) {
    let even = [siblings("org-a", 2), siblings("org-b", 2)].concat();
    let mut lopsided = even.clone();
    lopsided[0].weight = 100;
    let mut cluster = Cluster::new().keys(lopsided).replicas(2).redis().start().await;
    let sessions = begin(&cluster, SESSIONS).await;
    cluster.change(|cluster| cluster.keys(even));
    for number in 0..2 {
        cluster.replace(number).await;
    }
    (cluster, sessions)
}

/// Checks that each of `forks` was served by its parent's key, at the first attempt.
async fn assert_inherited(cluster: &Running, forks: &[(String, Codex)]) {
    let turns = cluster.turns().await;
    let keys = keys_by_session(&turns);
    for (parent, fork) in forks {
        assert_eq!(keys[&fork.session], keys[parent], "one key for both");
        assert!(
            turns
                .iter()
                .all(|turn| turn.session.as_ref() != Some(&fork.session) || turn.is_served()),
            "at once"
        );
    }
}

#[tokio::test]
async fn fork_begins_on_its_parents_key() {
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
async fn fork_of_a_sub_agent_begins_on_the_key_of_its_session() {
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
async fn fork_whose_parent_is_forgotten_finds_its_organization() {
    let (mut cluster, sessions) = displaced().await;
    cluster.redis().run(&["FLUSHALL"]).await;
    for number in 0..2 {
        cluster.replace(number).await;
    }
    for codex in sessions {
        let mut fork = codex.fork().at(cluster.address());
        fork.turn("another way").await.served();
        let turns = cluster.turns().await;
        let first = turns
            .iter()
            .find(|turn| turn.session.as_ref() == Some(&codex.session))
            .expect("the parent was served");
        let attempts: Vec<_> =
            turns.iter().filter(|turn| turn.session.as_ref() == Some(&fork.session)).collect();
        let last = attempts.last().expect("the fork was served");
        assert!(
            last.is_served() && last.organization == first.organization && attempts.len() <= 2,
            "{attempts:?}"
        );
    }
}

/// Bob sends Alice's history and names her thread, but must not learn her key from that. A client
/// that has a history may continue it in the organization that can open it. It finds that
/// organization as for any forgotten session.
#[tokio::test]
async fn fork_inherits_nothing_from_another_client() {
    let (cluster, sessions) = displaced().await;
    let before = cluster.turns().await;
    let keys = keys_by_session(&before);
    let mut elsewhere = 0;
    for codex in &sessions {
        let mut fork = codex.fork();
        fork.shows(BOB);
        fork.moves_to(cluster.address());
        fork.turn("what is this?").await.served();
        let turns = cluster.turns().await;
        let attempts: Vec<_> =
            turns.iter().filter(|turn| turn.session.as_ref() == Some(&fork.session)).collect();
        let (last, others) = attempts.split_last().expect("it was sent");
        let first = before
            .iter()
            .find(|turn| turn.session.as_ref() == Some(&codex.session))
            .expect("the parent was served");
        assert!(last.is_served() && last.organization == first.organization, "{attempts:?}");
        assert!(
            others.iter().all(|turn| turn.status == 400 && turn.organization != first.organization),
            "{attempts:?}"
        );
        elsewhere += usize::from(!keys[&codex.session].contains(&attempts[0].key));
    }
    // By their own order, a quarter of the forks choose their parent's key by chance.
    assert!(elsewhere > 0, "all of them begin on the keys of another client's sessions");
    cluster
        .shows(r#"warmkey_turns_total{transport="http",outcome="completed"}"#, SESSIONS as f64)
        .await;
    cluster.shows(INHERITED, 0.0).await;
}
