//! The roll of replicas, asked in a real Redis by its script alone: which ordinal a set of keys has, and whose sets are told.

use crate::patience::{SOON, eventually};
use crate::process::Folder;
use crate::redis::Redis;

const SCRIPT: &str = include_str!("../../src/store/roll.lua");
/// Longer than a test takes.
const LONG: u64 = 600_000;

/// One Redis and the replicas that answer it.
struct Roll {
    redis: Redis,
    _folder: Folder,
}

impl Roll {
    async fn new() -> Self {
        let folder = Folder::new();
        Self { redis: Redis::start(folder.path()).await, _folder: folder }
    }

    /// `replica` has loaded `set`, whose ordinal it believes to be `ordinal`, and lives for `life` milliseconds. Returns the
    /// ordinal and the other sets.
    async fn tell(&self, replica: &str, set: &str, ordinal: u32, life: u64) -> (u32, Vec<String>) {
        let (tags, ordinal, life) = (format!("tags of {set}"), ordinal.to_string(), life.to_string());
        self.redis.ask(&["EVAL", SCRIPT, "1", "w:generations", replica, set, &tags, &ordinal, &life]).await
    }

    async fn ordinal(&self, replica: &str, set: &str, ordinal: u32) -> u32 {
        self.tell(replica, set, ordinal, LONG).await.0
    }
}

fn others(sets: &[&str]) -> Vec<String> {
    sets.iter().map(|set| format!("tags of {set}")).collect()
}

#[tokio::test]
async fn each_new_set_is_one_more_than_the_newest() {
    let roll = Roll::new().await;
    assert_eq!(roll.tell("a", "first", 0, LONG).await, (1, Vec::new()));
    assert_eq!(roll.tell("b", "first", 0, LONG).await, (1, Vec::new()));
    assert_eq!(roll.tell("a", "second", 0, LONG).await, (2, others(&["first"])));
    assert_eq!(roll.tell("b", "first", 1, LONG).await, (1, others(&["second"])));
    assert_eq!(roll.tell("b", "second", 0, LONG).await, (2, Vec::new()));
    assert_eq!(roll.tell("a", "second", 2, LONG).await, (2, Vec::new()));
}

#[tokio::test]
async fn a_set_that_all_have_gone_back_to_is_the_newest_again() {
    let roll = Roll::new().await;
    for replica in ["a", "b"] {
        roll.tell(replica, "first", 0, LONG).await;
    }
    for replica in ["a", "b"] {
        assert_eq!(roll.ordinal(replica, "second", 0).await, 2);
    }
    assert_eq!(roll.ordinal("a", "first", 0).await, 1, "the other may still be right");
    assert_eq!(roll.ordinal("a", "first", 1).await, 1);
    assert_eq!(roll.ordinal("b", "first", 0).await, 3, "nobody holds the newer one any more");
    assert_eq!(roll.ordinal("a", "first", 1).await, 3);
    assert_eq!(roll.ordinal("a", "third", 0).await, 4);
}

#[tokio::test]
async fn who_is_early_renews_nothing() {
    let roll = Roll::new().await;
    for set in ["first", "second"] {
        roll.tell("a", set, 0, LONG).await;
    }
    let early = ["EVAL", SCRIPT, "1", "w:generations", "a", "first", "tags of first", "1", "600000", "1"];
    assert_eq!(roll.redis.ask::<(u32, Vec<String>)>(&early).await, (1, Vec::new()), "the others may still come");
    assert_eq!(roll.ordinal("a", "first", 1).await, 3);
}

#[tokio::test]
async fn a_store_that_has_lost_all_takes_the_ordinals_from_its_replicas() {
    let roll = Roll::new().await;
    for (replica, set) in [("a", "first"), ("a", "second"), ("a", "third"), ("b", "second")] {
        roll.tell(replica, set, 0, LONG).await;
    }
    let _: () = roll.redis.ask(&["FLUSHALL"]).await;
    assert_eq!(roll.ordinal("b", "second", 2).await, 2);
    assert_eq!(roll.ordinal("a", "third", 3).await, 3);
    assert_eq!(roll.ordinal("b", "second", 2).await, 2);
    assert_eq!(roll.ordinal("b", "fourth", 0).await, 4);
}

#[tokio::test]
async fn a_dead_replica_is_not_waited_for_after_its_life() {
    let roll = Roll::new().await;
    roll.tell("dead", "first", 0, 300).await;
    assert_eq!(roll.tell("a", "second", 0, LONG).await, (2, others(&["first"])));
    eventually(SOON, "the end of its life", async || roll.tell("a", "second", 2, LONG).await.1.is_empty().then_some(())).await;
    // Its field is gone too: a replica has another name each time that it starts.
    let replicas: Vec<String> = roll.redis.ask(&["HKEYS", "w:generations"]).await;
    assert_eq!(replicas.iter().filter(|name| name.starts_with("r:")).collect::<Vec<_>>(), ["r:a"]);
}

#[tokio::test]
async fn a_replica_that_leaves_is_not_waited_for_at_all() {
    let roll = Roll::new().await;
    roll.tell("b", "first", 0, LONG).await;
    assert_eq!(roll.tell("a", "second", 0, LONG).await, (2, others(&["first"])));
    roll.tell("b", "first", 1, 0).await;
    assert_eq!(roll.tell("a", "second", 2, LONG).await, (2, Vec::new()));
}

#[tokio::test]
async fn what_is_kept_does_not_grow_for_ever() {
    let roll = Roll::new().await;
    for number in 0..200 {
        assert_eq!(roll.ordinal("a", &format!("set {number}"), 0).await, number + 1);
    }
    let fields: u32 = roll.redis.ask(&["HLEN", "w:generations"]).await;
    assert!(fields <= 40, "{fields}");
}
