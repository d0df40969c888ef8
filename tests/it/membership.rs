//! The membership of replicas in a real Redis: the ordinal of each set of keys, and the sets that
//! replicas learn of.

use std::collections::BTreeMap;
use std::time::Duration;

use warmkey::store::MemberReport;

use crate::world::store::Real;
use crate::world::waiting::{SOON, eventually, ms};

/// Longer than a test takes.
const LONG: Duration = Duration::from_secs(600);

/// One Redis, and the membership in it.
struct Membership(Real);

impl Membership {
    async fn new() -> Self {
        Self(Real::new().await)
    }

    /// `replica` reports that it has loaded `set` and that it knows `ordinal`. The report lives for
    /// `life`. Returns the ordinal and the other sets.
    async fn report(
        &self,
        replica: &str,
        set: &str,
        ordinal: u32,
        life: Duration,
    ) -> (u32, Vec<String>) {
        self.call(replica, set, ordinal, life, false).await
    }

    async fn call(
        &self,
        replica: &str,
        set: &str,
        ordinal: u32,
        life: Duration,
        is_early: bool,
    ) -> (u32, Vec<String>) {
        let report = MemberReport {
            replica,
            fingerprint: set,
            keys: &format!("tags of {set}"),
            ordinal,
            life,
        };
        let (store, budget) = (&self.0.store, &mut self.0.store.budget());
        let answer = match is_early {
            true => store.exchange_membership_early(&report, budget).await,
            false => store.exchange_membership(&report, budget).await,
        };
        let answer = answer.expect("an answer");
        (answer.ordinal, answer.others)
    }

    async fn ordinal(&self, replica: &str, set: &str, ordinal: u32) -> u32 {
        self.report(replica, set, ordinal, LONG).await.0
    }
}

fn others(sets: &[&str]) -> Vec<String> {
    sets.iter().map(|set| format!("tags of {set}")).collect()
}

#[tokio::test]
async fn new_set_is_one_more_than_the_newest() {
    let membership = Membership::new().await;
    assert_eq!(membership.report("a", "first", 0, LONG).await, (1, Vec::new()));
    assert_eq!(membership.report("b", "first", 0, LONG).await, (1, Vec::new()));
    assert_eq!(membership.report("a", "second", 0, LONG).await, (2, others(&["first"])));
    assert_eq!(membership.report("b", "first", 1, LONG).await, (1, others(&["second"])));
    assert_eq!(membership.report("b", "second", 0, LONG).await, (2, Vec::new()));
    assert_eq!(membership.report("a", "second", 2, LONG).await, (2, Vec::new()));
}

#[tokio::test]
async fn set_that_all_have_gone_back_to_is_the_newest_again() {
    let membership = Membership::new().await;
    for replica in ["a", "b"] {
        membership.report(replica, "first", 0, LONG).await;
    }
    for replica in ["a", "b"] {
        assert_eq!(membership.ordinal(replica, "second", 0).await, 2);
    }
    assert_eq!(
        membership.ordinal("a", "first", 0).await,
        1,
        "the other set may still be the newest"
    );
    assert_eq!(membership.ordinal("a", "first", 1).await, 1);
    assert_eq!(
        membership.ordinal("b", "first", 0).await,
        3,
        "no replica holds the newer set any more"
    );
    assert_eq!(membership.ordinal("a", "first", 1).await, 3);
    assert_eq!(membership.ordinal("a", "third", 0).await, 4);
}

#[tokio::test]
async fn early_exchange_renews_nothing() {
    let membership = Membership::new().await;
    for set in ["first", "second"] {
        membership.report("a", set, 0, LONG).await;
    }
    for _ in 0..2 {
        assert_eq!(
            membership.call("a", "first", 1, LONG, true).await,
            (1, Vec::new()),
            "the other replicas may still load the set"
        );
    }
    assert_eq!(
        membership.call("a", "third", 0, LONG, true).await,
        (3, Vec::new()),
        "a new set is new"
    );
    assert_eq!(membership.call("a", "first", 1, LONG, true).await, (1, Vec::new()));
    assert_eq!(membership.ordinal("a", "first", 1).await, 4);
}

#[tokio::test]
async fn store_that_has_lost_all_takes_the_ordinals_from_its_replicas() {
    let membership = Membership::new().await;
    for (replica, set) in [("a", "first"), ("a", "second"), ("a", "third"), ("b", "second")] {
        membership.report(replica, set, 0, LONG).await;
    }
    let _: () = membership.0.redis.ask(&["FLUSHALL"]).await;
    assert_eq!(membership.ordinal("b", "second", 2).await, 2);
    assert_eq!(membership.ordinal("a", "third", 3).await, 3);
    assert_eq!(membership.ordinal("b", "second", 2).await, 2);
    assert_eq!(membership.ordinal("b", "fourth", 0).await, 4);
}

#[tokio::test]
async fn dead_replica_is_not_waited_for_after_its_life() {
    let membership = Membership::new().await;
    membership.report("dead", "first", 0, ms(300)).await;
    assert_eq!(membership.report("a", "second", 0, LONG).await, (2, others(&["first"])));
    eventually(SOON, "the end of its life", async || {
        membership.report("a", "second", 2, LONG).await.1.is_empty().then_some(())
    })
    .await;
    // The replica's own field is gone, too. A replica has another name after each start, so old
    // fields would pile up.
    let replicas: Vec<String> = membership.0.redis.ask(&["HKEYS", "w:generations"]).await;
    assert_eq!(replicas.iter().filter(|name| name.starts_with("r:")).collect::<Vec<_>>(), ["r:a"]);
}

/// Other versions read these fields, so they must not change.
#[tokio::test]
async fn fields_of_the_membership_are_written_as_they_always_were() {
    let membership = Membership::new().await;
    membership.report("a", "first", 0, LONG).await;
    let fields: BTreeMap<String, String> =
        membership.0.redis.ask(&["HGETALL", "w:generations"]).await;
    assert_eq!(fields.keys().collect::<Vec<_>>(), ["r:a", "s:first"]);
    assert_eq!(fields["s:first"], "1 tags of first");
    let (expiry, fingerprint) = fields["r:a"].split_once(' ').expect("two words");
    assert_eq!((expiry.len(), fingerprint), (13, "first"), "milliseconds since 1970");
    assert!(expiry.parse::<u64>().is_ok(), "{expiry}");
}

#[tokio::test]
async fn replica_that_leaves_is_not_waited_for_at_all() {
    let membership = Membership::new().await;
    membership.report("b", "first", 0, LONG).await;
    assert_eq!(membership.report("a", "second", 0, LONG).await, (2, others(&["first"])));
    membership.report("b", "first", 1, Duration::ZERO).await;
    assert_eq!(membership.report("a", "second", 2, LONG).await, (2, Vec::new()));
}

#[tokio::test]
async fn kept_ordinals_do_not_grow_for_ever() {
    let membership = Membership::new().await;
    assert_eq!(membership.ordinal("b", "old", 0).await, 1);
    for number in 0..200 {
        let set = format!("set {number}");
        assert_eq!(
            membership.report("a", &set, 0, LONG).await,
            (number + 2, others(&["old"])),
            "the set of a live replica is kept"
        );
    }
    assert_eq!(membership.ordinal("b", "old", 0).await, 1);
    let fields: u32 = membership.0.redis.ask(&["HLEN", "w:generations"]).await;
    assert!(fields <= 40, "{fields}");
}
