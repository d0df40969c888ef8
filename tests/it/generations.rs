//! Tests generations: replicas load another set of keys at different moments, and only bindings of
//! a removed key move.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinSet;

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::sessions::begin;
use crate::world::simulator::{Key, keys_by_session, path_of, siblings};
use crate::world::waiting::{SOON, eventually};

const WAITING: &str = "warmkey_keys_waiting";

/// Three replicas of these keys behind a balancer. The upstream also knows `spare`.
async fn three(keys: Vec<Key>, spare: Vec<Key>) -> Running {
    Cluster::new().keys(keys).spare(spare).replicas(3).redis().balanced().start().await
}

/// Sessions that take one turn after the other until they are told to stop.
struct Players {
    is_over: Arc<AtomicBool>,
    playing: JoinSet<Codex>,
}

impl Players {
    async fn start(cluster: &Running, count: usize) -> Self {
        let (is_over, mut playing) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for _ in 0..count {
            let (mut codex, is_over) = (Codex::new(cluster.address(), ALICE), Arc::clone(&is_over));
            codex.turn("first").await.served();
            playing.spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    // The turn is played on a clone, so that the history, and with it the machine's
                    // work, does not grow.
                    let mut turn = codex.clone();
                    turn.turn("meanwhile").await.served();
                }
                codex.turn("last").await.served();
                codex
            });
        }
        Self { is_over, playing }
    }

    async fn stop(mut self) -> Vec<Codex> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut sessions = Vec::new();
        while let Some(codex) = self.playing.join_next().await {
            sessions.push(codex.expect("every turn is served"));
        }
        sessions
    }
}

/// How many of `count` new sessions each key serves.
async fn newcomers(cluster: &Running, count: usize) -> BTreeMap<String, usize> {
    let sessions = begin(cluster, count).await;
    let turns = cluster.turns().await;
    let mut keys = BTreeMap::new();
    for key in sessions.iter().flat_map(|codex| path_of(&turns, &codex.session)) {
        *keys.entry(key).or_default() += 1;
    }
    keys
}

#[tokio::test]
async fn new_key_takes_sessions_once_every_replica_has_it() {
    let keys = [siblings("org-a", 2), siblings("org-b", 1)].concat();
    let new = vec![Key::new("org-b-new", "org-b")];
    let mut cluster = three(keys.clone(), new.clone()).await;
    let players = Players::start(&cluster, 12).await;
    cluster.change(|cluster| cluster.keys([keys, new].concat()));
    for number in 0..3 {
        assert_eq!(
            newcomers(&cluster, 12).await.get("org-b-new"),
            None,
            "{number} of three have it"
        );
        cluster.reload(number).await;
        if number < 2 {
            cluster.replicas[number].shows(WAITING, 1.0).await;
        }
    }
    cluster.shows(WAITING, 0.0).await;
    let share = newcomers(&cluster, 48).await.remove("org-b-new").unwrap_or_default();
    assert!((2..=24).contains(&share), "a quarter of 48, give or take: {share}");
    let sessions = players.stop().await;
    let served = keys_by_session(&cluster.turns().await);
    for codex in sessions {
        assert_eq!(
            served[&codex.session].len(),
            1,
            "no bound session has moved: {:?}",
            served[&codex.session]
        );
    }
}

#[tokio::test]
async fn sessions_of_a_removed_key_alone_move_and_each_once() {
    let keys = siblings("org-a", 3);
    let mut cluster = three(keys.clone(), Vec::new()).await;
    let players = Players::start(&cluster, 15).await;
    cluster.change(|cluster| cluster.keys(keys[..2].to_vec()));
    for number in 0..3 {
        cluster.reload(number).await;
    }
    let removed = "warmkey_key_state{key=\"org-a-3\",state=\"ready\"}";
    for replica in &cluster.replicas {
        assert!(!replica.metrics().await.has(removed), "what is removed has no state");
    }
    let sessions = players.stop().await;
    let turns = cluster.turns().await;
    let mut moved = 0;
    for codex in &sessions {
        let path = path_of(&turns, &codex.session);
        let expected = if path[0] == "org-a-3" { 2 } else { 1 };
        assert_eq!(path.len(), expected, "{path:?}");
        moved += expected - 1;
    }
    assert!(moved > 0, "somebody was there");
    cluster.shows("warmkey_bindings_total{result=\"rebound\"}", moved as f64).await;
}

#[tokio::test]
async fn key_that_is_rolled_back_is_left_once_all_have() {
    let keys = [siblings("org-a", 2), siblings("org-b", 1)].concat();
    let new = vec![Key { weight: 4, ..Key::new("org-b-new", "org-b") }];
    let mut cluster = three(keys.clone(), new.clone()).await;
    cluster.change(|cluster| cluster.keys([keys.clone(), new].concat()));
    for number in 0..3 {
        cluster.reload(number).await;
    }
    cluster.shows(WAITING, 0.0).await;
    let players = Players::start(&cluster, 12).await;
    cluster.change(|cluster| cluster.keys(keys));
    for number in 0..2 {
        cluster.reload(number).await;
    }
    // Two replicas have dropped the key, and one still has it. It is not certain which set is the
    // newest. A sibling therefore serves these turns, and no binding moves.
    let rebound = "warmkey_bindings_total{result=\"rebound\"}";
    for replica in &cluster.replicas[..2] {
        let is_spilling = async || {
            replica.metrics().await.get("warmkey_bindings_total{result=\"spilled\"}") > 10.0
        };
        eventually(SOON, "turns of the key that is gone here", async || {
            is_spilling().await.then_some(())
        })
        .await;
    }
    cluster.shows(rebound, 0.0).await;
    cluster.reload(2).await;
    let mut sessions = players.stop().await;
    // By now every replica knows that the old set is the newest again, or it will learn that with
    // the next heartbeat.
    eventually(SOON, "all agree that the key is gone", async || {
        for codex in &mut sessions {
            codex.turn("after").await.served();
        }
        let last = |session: &str, turns: &[_]| path_of(turns, session).pop();
        let turns = cluster.turns().await;
        sessions
            .iter()
            .all(|codex| last(&codex.session, &turns).as_deref() != Some("org-b-new"))
            .then_some(())
    })
    .await;
    let settled = cluster.turns().await.len();
    for replica in &cluster.replicas {
        for codex in &mut sessions {
            codex.moves_to(replica.address());
            codex.turn("settled").await.served();
        }
    }
    let turns = cluster.turns().await;
    let mut came_from_there = 0;
    for codex in &sessions {
        let path = path_of(&turns, &codex.session);
        assert_eq!(path_of(&turns[settled..], &codex.session).len(), 1, "{path:?}");
        let organizations: BTreeSet<_> = turns
            .iter()
            .filter(|turn| turn.session.as_ref() == Some(&codex.session))
            .map(|turn| &turn.organization)
            .collect();
        assert_eq!(organizations.len(), 1, "what is sealed stays: {path:?}");
        came_from_there += usize::from(path[0] == "org-b-new");
        assert!(path[0] == "org-b-new" || path.len() == 1, "{path:?}");
    }
    assert!(came_from_there > 0, "somebody was there");
    cluster.shows(rebound, came_from_there as f64).await;
}

#[tokio::test]
async fn reload_while_redis_is_away_moves_no_session() {
    let keys = [siblings("org-a", 2), siblings("org-b", 2)].concat();
    let new = vec![Key::new("org-b-new", "org-b")];
    let cluster =
        Cluster::new().keys(keys.clone()).spare(new.clone()).replicas(3).redis().balanced();
    let mut cluster = cluster.store("timeout = \"300ms\"").start().await;
    let players = Players::start(&cluster, 10).await;
    cluster.redis().signal("STOP").await;
    cluster.shows("warmkey_store_up", 0.0).await;
    cluster.change(|cluster| cluster.keys([keys, new].concat()));
    for number in 0..3 {
        cluster.reload(number).await;
        cluster.replicas[number].shows(WAITING, 1.0).await;
    }
    assert_eq!(newcomers(&cluster, 24).await.get("org-b-new"), None, "no replica knows the others");
    cluster.redis().signal("CONT").await;
    cluster.shows(WAITING, 0.0).await;
    let share = newcomers(&cluster, 48).await.remove("org-b-new").unwrap_or_default();
    assert!(share > 0, "applied once the store is back");
    let sessions = players.stop().await;
    let served = keys_by_session(&cluster.turns().await);
    for codex in sessions {
        assert_eq!(
            served[&codex.session].len(),
            1,
            "no session has moved: {:?}",
            served[&codex.session]
        );
    }
}

#[tokio::test]
async fn replicas_that_reloaded_in_an_outage_agree_with_one_that_did_not() {
    let keys = [siblings("org-a", 3), siblings("org-b", 2)].concat();
    let cluster =
        Cluster::new().keys(keys.clone()).replicas(3).redis().store("timeout = \"300ms\"");
    let mut cluster = cluster.start().await;
    cluster.redis().signal("STOP").await;
    cluster.shows("warmkey_store_up", 0.0).await;
    // One organization has lost a third of its keys, and the new weights would send nearly
    // everything elsewhere.
    cluster.change(|cluster| {
        let mut keys = [&keys[..2], &keys[3..]].concat();
        keys[3].weight = 50;
        cluster.keys(keys)
    });
    for number in 0..2 {
        cluster.reload(number).await;
    }
    let mut sessions: Vec<Codex> = (0..72).map(|_| Codex::new(cluster.address(), ALICE)).collect();
    for (number, codex) in sessions.iter_mut().enumerate() {
        for turn in 0..3 {
            codex.moves_to(cluster.replicas[(number + turn) % 3].address());
            codex.turn("wherever").await.served();
        }
    }
    cluster.reload(2).await;
    cluster.redis().signal("CONT").await;
    cluster.shows(WAITING, 0.0).await;
    for (number, codex) in sessions.iter_mut().enumerate() {
        codex.moves_to(cluster.replicas[number % 3].address());
        codex.turn("and after").await.served();
    }
    let turns = cluster.turns().await;
    let mut stayed = 0;
    for codex in &sessions {
        let path = path_of(&turns, &codex.session);
        let is_forced = path.iter().any(|key| key == "org-a-3");
        assert!(is_forced || path.len() == 1, "{path:?}");
        assert!(path.iter().all(|key| key[..5] == path[0][..5]), "what is sealed stays: {path:?}");
        stayed += usize::from(!is_forced);
    }
    assert!(
        (1..72).contains(&stayed),
        "some were on the key that is gone, and some were not: {stayed}"
    );
}
