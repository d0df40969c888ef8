//! Redis is away: every turn is served, no turn waits for Redis, and the replicas still agree.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::world::cable::Cable;
use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::port;
use crate::world::process::Folder;
use crate::world::redis::Redis;
use crate::world::simulator::{Key, keys_by_session, path_of, siblings};
use crate::world::waiting::{Budget, SOON, eventually, ms};

/// Time of a turn apart from its wait for the store, on a slow machine that also compiles.
const SLACK: Duration = Duration::from_secs(2);

#[tokio::test]
async fn replicas_start_and_agree_without_redis() {
    let keys = [siblings("org-a", 2), siblings("org-b", 2)].concat();
    let nowhere = format!("redis://{}", port::free());
    let cluster = Cluster::new()
        .keys(keys)
        .replicas(3)
        .store_at(&nowhere)
        .store("timeout = \"300ms\"")
        .start()
        .await;
    for replica in &cluster.replicas {
        assert_eq!(replica.probe("/readyz").await.status, 200, "ready whatever the store does");
        replica.shows("warmkey_store_up", 0.0).await;
        assert!(replica.metrics().await.has("warmkey_store_up"));
    }
    for _ in 0..12 {
        let mut codex = Codex::new(cluster.address(), ALICE);
        for replica in &cluster.replicas {
            codex.moves_to(replica.address());
            let budget = Budget::begin(ms(300) + SLACK);
            codex.turn("without a store").await.served();
            budget.holds("a turn without the store");
        }
    }
    let keys = keys_by_session(&cluster.turns().await);
    assert!(
        keys.len() == 12 && keys.values().all(|keys| keys.len() == 1),
        "the same order everywhere: {keys:?}"
    );
    let used: BTreeSet<_> = keys.into_values().flatten().collect();
    assert!(used.len() > 1, "and not one key for all: {used:?}");
}

#[tokio::test]
async fn redis_that_dies_costs_no_turn_and_moves_no_session() {
    let mut cluster = Cluster::new()
        .keys(siblings("org-a", 4))
        .redis()
        .store("timeout = \"300ms\"")
        .start()
        .await;
    let mut sessions: Vec<Codex> = (0..8).map(|_| Codex::new(cluster.address(), ALICE)).collect();
    for session in &mut sessions {
        session.turn("first").await.served();
    }
    cluster.redis().kill().await;
    for _ in 0..2 {
        for session in &mut sessions {
            let budget = Budget::begin(ms(300) + SLACK);
            session.turn("no store").await.served();
            budget.holds("a turn without the store");
        }
    }
    for session in &sessions {
        assert_eq!(path_of(&cluster.turns().await, &session.session).len(), 1);
    }
    cluster.replica().shows("warmkey_store_up", 0.0).await;
}

#[tokio::test]
async fn redis_that_hangs_is_waited_for_at_most_the_timeout() {
    let mut cluster = Cluster::new()
        .keys(siblings("org-a", 4))
        .redis()
        .store("timeout = \"300ms\"")
        .start()
        .await;
    let mut bound = Codex::new(cluster.address(), ALICE);
    bound.turn("first").await.served();
    cluster.redis().signal("STOP").await;
    for _ in 0..3 {
        for session in [&mut bound, &mut Codex::new(cluster.address(), ALICE)] {
            let budget = Budget::begin(ms(300) + SLACK);
            session.turn("a store that hangs").await.served();
            budget.holds("a turn without the store");
        }
    }
    cluster.redis().signal("CONT").await;
    finds_again(&cluster, &mut bound).await;
    assert_eq!(path_of(&cluster.turns().await, &bound.session).len(), 1);
    cluster.replica().shows("warmkey_store_up", 1.0).await;
}

#[tokio::test]
async fn connection_that_falls_silent_is_remade() {
    let folder = Folder::new();
    let redis = Redis::start(folder.path()).await;
    let wire = Cable::to(redis.address()).await;
    let cluster = Cluster::new()
        .keys(siblings("org-a", 4))
        .store_at(&wire.url())
        .store("timeout = \"300ms\"")
        .start()
        .await;
    cluster.replica().shows("warmkey_store_up", 1.0).await;
    let mut bound = Codex::new(cluster.address(), ALICE);
    bound.turn("first").await.served();
    finds_again(&cluster, &mut bound).await;
    wire.strand();
    let budget = Budget::begin(ms(1_500) + SLACK);
    finds_again(&cluster, &mut bound).await;
    budget.holds("three turns that wait, and one that does not");
    assert_eq!(path_of(&cluster.turns().await, &bound.session).len(), 1);
    cluster.replica().shows("warmkey_store_up", 1.0).await;
}

#[tokio::test]
async fn error_for_one_session_is_no_outage() {
    let mut cluster = Cluster::new().keys(siblings("org-a", 4)).redis().start().await;
    cluster.replica().shows("warmkey_store_up", 1.0).await;
    let mut odd = Codex::new(cluster.address(), ALICE);
    odd.turn("first").await.served();
    let (name, _) = cluster.redis().binding().await;
    let _: () = cluster.redis().ask(&["DEL", &name]).await;
    let _: () = cluster.redis().ask(&["LPUSH", &name, "not ours"]).await;
    odd.turn("the wrong type").await.served();
    assert!((cluster.replica().metrics().await.get("warmkey_store_up") - 1.0).abs() < f64::EPSILON);
}

/// Plays turns until the store has answered one.
async fn finds_again(cluster: &Running, session: &mut Codex) {
    const EXISTING: &str = r#"warmkey_bindings_total{result="existing"}"#;
    let before = cluster.replica().metrics().await.get(EXISTING);
    eventually(SOON, "a turn is found in the store", async || {
        session.turn("again").await.served();
        (cluster.replica().metrics().await.get(EXISTING) > before).then_some(())
    })
    .await;
}

/// The sessions began when there was one organization. A replica that has started since then cannot
/// learn of them, and their own order now begins with another one. Each provisional key needs a
/// connection.
#[tokio::test]
async fn websocket_finds_its_organization_again_without_redis() {
    let new: Vec<Key> = ["org-b", "org-c"]
        .map(|name| Key { weight: 20, ..Key::new(&format!("{name}-1"), name) })
        .into();
    let cluster = Cluster::new().keys(siblings("org-a", 1)).spare(new.clone()).replicas(2).redis();
    let mut cluster = cluster.store("timeout = \"300ms\"").start().await;
    let mut talks = Vec::new();
    for _ in 0..6 {
        let mut talk = Codex::new(cluster.replicas[0].address(), ALICE).by_websocket();
        talk.turn("first").await;
        talk.hang_up();
        talks.push(talk);
    }
    cluster.change(|cluster| cluster.keys([siblings("org-a", 1), new].concat()));
    for number in 0..2 {
        cluster.reload(number).await;
    }
    cluster.shows("warmkey_keys_waiting", 0.0).await;
    cluster.redis().kill().await;
    cluster.shows("warmkey_store_up", 0.0).await;
    cluster.replace(1).await;
    for talk in &mut talks {
        talk.codex.moves_to(cluster.replicas[1].address());
        talk.turn("found again").await;
        talk.turn("and stays there").await;
    }
    let turns = cluster.turns().await;
    let asked = turns.iter().filter(|turn| turn.status == 400).count();
    assert!(
        (6..=12).contains(&asked)
            && turns.iter().all(|turn| !turn.is_served() || turn.organization == "org-a"),
        "{asked}"
    );
}
