//! Number 5: a key that is limited again and again. After one wait in vain, a free sibling with the
//! same cache serves, and the binding stays.

use std::time::Duration;

use super::two;
use crate::world::cluster::{ALICE, Running};
use crate::world::codex::Codex;
use crate::world::sessions::{begin_on, decided, go_on};
use crate::world::simulator::{Fault, Key, path_of};
use crate::world::waiting::{Budget, eventually};

fn keys() -> [Key; 2] {
    [Key::new("a-1", "org-a").of_project("one"), Key::new("a-2", "org-a").of_project("two")]
}

/// Sessions that are bound to `a-1`.
async fn sessions(cluster: &Running, count: usize) -> Vec<Codex> {
    let mut all = Vec::new();
    while all.len() < count {
        all.push(begin_on(cluster, "a-1").await.0);
    }
    all
}

/// Plays `rounds` turns of each session, all sessions at once.
async fn play(cluster: &Running, all: Vec<Codex>, rounds: usize) -> Vec<Codex> {
    let addresses: Vec<_> = cluster.replicas.iter().map(|replica| replica.address()).collect();
    let playing = all.into_iter().enumerate().map(|(number, mut codex)| {
        let addresses = addresses.clone();
        tokio::spawn(async move {
            for round in 0..rounds {
                codex.moves_to(addresses[(number + round) % addresses.len()]);
                codex.turn("goes on").await.served();
            }
            codex
        })
    });
    let mut played = Vec::new();
    for playing in playing.collect::<Vec<_>>() {
        played.push(playing.await.expect("no turn fails"));
    }
    played
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strained_key_is_waited_for_once() {
    for keys in [keys().to_vec(), keys().map(Key::unplaced).to_vec()] {
        let cluster = two().keys(keys).start().await;
        let all = sessions(&cluster, 6).await;
        let before = cluster.turns().await.len();
        cluster.upstream().fails_with(Fault::limited(2).key("a-1").times(30)).await;
        let budget = Budget::begin(Duration::from_secs(12));
        let mut all = play(&cluster, all, 5).await;
        budget.holds("thirty turns beside a key that is short");
        let turns = cluster.turns().await;
        let refused = turns[before..].iter().filter(|turn| turn.status == 429).count();
        assert!(refused <= 2 * all.len(), "one wait in vain for each session at most: {refused}");
        for codex in &all {
            let path = path_of(&turns, &codex.session);
            assert_eq!(path, ["a-1", "a-2"], "one way, and no way back while it is short");
        }
        assert!(decided(&cluster, "move", "limited").await.abs() < f64::EPSILON, "bindings stay");
        // The key is not limited for a while, so it serves its sessions again.
        cluster.upstream().heal().await;
        eventually(Duration::from_secs(60), "the key is well for a while", async || {
            let known = cluster.replicas[0].key("a-1").await.to_string();
            (!known.contains("strained")).then_some(())
        })
        .await;
        for codex in &mut all[..2] {
            go_on(&cluster, codex, 2).await;
            let path = path_of(&cluster.turns().await, &codex.session);
            assert_eq!(path, ["a-1", "a-2", "a-1"]);
        }
    }
}

/// A limit that ends a stream counts like a 429: the client tries again, the gateway waits once,
/// and then a sibling serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_whose_streams_end_in_a_limit_is_waited_for_once() {
    let cluster = two().keys(keys().to_vec()).start().await;
    let all = sessions(&cluster, 3).await;
    let mut all: Vec<_> = all.into_iter().map(Codex::patient).collect();
    let before = cluster.turns().await.len();
    let failing = Fault::failing("rate_limit_exceeded").again_in(2);
    cluster.upstream().fails_with(failing.key("a-1").times(30)).await;
    for codex in &mut all {
        codex.turn("goes on").await.served();
    }
    let turns = cluster.turns().await;
    let struck = turns[before..].iter().filter(|turn| turn.key == "a-1").count();
    assert_eq!(struck, 2, "one wait in vain, and all know it");
    for codex in &all {
        assert_eq!(path_of(&turns, &codex.session), ["a-1", "a-2"]);
    }
    assert!(decided(&cluster, "move", "limited").await.abs() < f64::EPSILON, "bindings stay");
}

/// If the configuration names no project, a limit counts for the key alone, until a second key of
/// the organization meets it, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limit_without_a_project_is_the_keys_until_a_second_key_meets_it() {
    let third = Key::new("a-3", "org-a").of_project("three");
    let keys = [keys().to_vec(), vec![third]].concat();
    let cluster = two().keys(keys.into_iter().map(Key::unplaced).collect()).start().await;
    let mut one = begin_on(&cluster, "a-1").await.0;
    let mut two = begin_on(&cluster, "a-2").await.0;
    let mut three = begin_on(&cluster, "a-3").await.0;
    cluster.upstream().fails_with(Fault::limited(60).key("a-1")).await;
    go_on(&cluster, &mut one, 2).await;
    go_on(&cluster, &mut two, 2).await;
    go_on(&cluster, &mut three, 2).await;
    let turns = cluster.turns().await;
    assert_eq!(path_of(&turns, &two.session), ["a-2"], "the limit is the first key's");
    assert_eq!(path_of(&turns, &three.session), ["a-3"]);
    cluster.upstream().fails_with(Fault::limited(60).key("a-2")).await;
    two.turn("meets it, too").await;
    let before = cluster.turns().await.len();
    let ended = three.turn("is not tried").await;
    assert_eq!(ended.answer.status, 429, "{}", ended.answer.text());
    assert!(ended.answer.retry_after() > 50);
    assert_eq!(cluster.turns().await.len(), before, "the limit is the organization's");
}

/// A turn's waits together are bounded by `binding.wait`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_of_a_turn_are_bounded_together() {
    let lone = Key::new("a-1", "org-a");
    let cluster = two().keys(vec![lone]).binding("wait = \"3s\"\n").start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("first").await.served();
    cluster.upstream().fails_with(Fault::limited(2)).await;
    let budget = Budget::begin(Duration::from_millis(3_600));
    let ended = codex.turn("waits").await;
    budget.holds("a wait of three seconds");
    assert_eq!(ended.answer.status, 429, "{}", ended.answer.text());
}
