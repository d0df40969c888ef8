//! Tests the store alone, with every shape of Redis: what it answers, which primary it follows, and
//! how soon it recovers.

use tokio::time::Instant;
use warmkey::setting::SecretSource;
use warmkey::store::name::Name;
use warmkey::store::{Replaced, StoreSettings};

use crate::world::cable::{Cable, Weather};
use crate::world::certificates::Certificates;
use crate::world::port;
use crate::world::process::Folder;
use crate::world::redis::Redis;
use crate::world::redis::sentinel::{self, Sentinel};
use crate::world::redis::shape::{self, Shape};
use crate::world::redis::shards::{Shards, slot_of};
use crate::world::store::{LONG, Opened, TIMEOUT, one_of_each, settings};
use crate::world::waiting::{Budget, SOON, eventually, ms, within};

mod scan;
mod tls;

#[tokio::test]
async fn store_does_the_same_in_every_shape() {
    for shape in [Shape::Standalone, Shape::Sentinel, Shape::Cluster] {
        let folder = Folder::new();
        let redis = shape::Store::start(shape, folder.path(), &[]).await;
        let opened = Opened::at(&redis.url()).await;
        let store = &opened.store;
        let mut announcements = store.announcements();
        within(SOON, "the store subscribes", store.resubscribed().wait_for(|count| *count > 0))
            .await
            .expect("the store lives");
        for id in one_of_each() {
            assert_eq!(opened.finds(&id).await, Some(false), "{shape:?}");
            assert!(opened.claims(&id).await);
            assert_eq!(
                store
                    .claim(Name::Binding(&id), "other 1 1", LONG, &mut store.budget())
                    .await
                    .unwrap(),
                Some("key 1 1".into())
            );
            redis.run(&["SCRIPT", "FLUSH"]).await;
            let budget = &mut store.budget();
            assert_eq!(
                store.rebind(Name::Binding(&id), "wrong", "x 2 1", LONG, budget).await.unwrap(),
                Replaced::Lost("key 1 1".into())
            );
            let budget = &mut store.budget();
            assert_eq!(
                store.rebind(Name::Binding(&id), "key 1 1", "key 2 1", LONG, budget).await.unwrap(),
                Replaced::Done
            );
            assert_eq!(
                store
                    .replace(Name::Binding(&id), "key 2 1", "key 2 1 s", LONG, &mut store.budget())
                    .await
                    .unwrap(),
                Replaced::Done
            );
            store
                .extend(Name::Binding(&id), "key 2 1 s", LONG * 2, &mut store.budget())
                .await
                .unwrap();
            // The name has this life already, so nothing is written or announced.
            store
                .extend(Name::Binding(&id), "key 2 1 s", LONG * 2, &mut store.budget())
                .await
                .unwrap();
            let entry = store
                .get(Name::Binding(&id), &mut store.budget())
                .await
                .unwrap()
                .expect("the value is stored");
            assert!(entry.value == "key 2 1 s" && entry.left > LONG, "{entry:?}");
            assert_eq!(
                store
                    .merge(Name::Binding(&id), "key 3 1", 3, LONG, &mut store.budget())
                    .await
                    .unwrap(),
                None
            );
            assert_eq!(
                store
                    .merge(Name::Binding(&id), "key 2 1", 2, LONG, &mut store.budget())
                    .await
                    .unwrap(),
                Some("key 3 1".into())
            );
            assert_eq!(
                store
                    .begin(Name::Binding(&id), "key 1 1", false, LONG, &mut store.budget())
                    .await
                    .unwrap(),
                Some("key 3 1".into())
            );
            let next = format!("{id}-next");
            assert_eq!(
                store
                    .begin(Name::Binding(&next), "key 1 1", true, LONG, &mut store.budget())
                    .await
                    .unwrap(),
                None
            );
            // A value is announced if it was stored or prolonged. A claim is not announced, and
            // neither is a write that lost. The announcements of one session keep their order.
            let (mut values, mut next_values) = (Vec::new(), Vec::new());
            for _ in 0..5 {
                let announcement =
                    within(SOON, "a binding is announced", announcements.recv()).await.unwrap();
                if announcement.id == next { &mut next_values } else { &mut values }
                    .push(announcement.value);
            }
            assert_eq!(values, ["key 2 1", "key 2 1 s", "key 2 1 s", "key 3 1"], "{shape:?}");
            assert_eq!(next_values, ["key 1 1"], "{shape:?}");
        }
        assert_eq!(opened.series("warmkey_lagging_rebinds_total"), 0, "{shape:?}");
    }
}

#[tokio::test]
async fn store_that_is_stopped_is_left_and_found_again() {
    let folder = Folder::new();
    let redis = Redis::start(folder.path()).await;
    let opened = Opened::at(&redis.url()).await;
    redis.signal("STOP").await;
    let budget = Budget::begin(TIMEOUT * 3 + ms(1_500));
    assert_eq!(opened.finds("s").await, None);
    opened.becomes(false).await;
    // The link needs one timeout, and then two more questions in parallel. With heartbeats alone,
    // this would take two seconds more.
    budget.holds("a stopped store is left");
    // The store connects again after an attempt that got no answer, and this attempt gets none,
    // either.
    let hung = async || opened.store.fault().filter(|fault| fault.contains("no greeting"));
    eventually(SOON, "an attempt to connect hangs", hung).await;
    redis.signal("CONT").await;
    let budget = Budget::begin(ms(2_000));
    opened.becomes(true).await;
    budget.holds("the store is found again");
    assert_eq!(opened.finds("s").await, Some(false));
}

#[tokio::test]
async fn slow_store_is_used_only_if_it_is_in_time() {
    let folder = Folder::new();
    let redis = Redis::start(folder.path()).await;
    let cable = Cable::to(redis.address()).await;
    cable.set(Weather::Slow(ms(300)));
    let opened = Opened::of(&settings(&cable.url()));
    let late = async || opened.store.fault().filter(|fault| fault.contains("answers too late"));
    eventually(SOON, "the store answers, too late", late).await;
    assert!(!*opened.store.health().borrow());
    cable.set(Weather::Slow(ms(10)));
    opened.becomes(true).await;
    assert_eq!(opened.finds("s").await, Some(false));
}

#[tokio::test]
async fn failover_is_followed() {
    let folder = Folder::new();
    let mut trio = Sentinel::start(folder.path()).await;
    let opened = Opened::at(&trio.url()).await;
    assert!(opened.claims("s").await);
    trio.primary().await.is_copied().await;
    let dead = trio.kill_primary().await;
    opened.becomes(false).await;
    trio.failed_over(dead).await;
    let budget = Budget::begin(ms(2_000));
    opened.becomes(true).await;
    budget.holds("the store is found again");
    assert_eq!(opened.finds("s").await, Some(true));
}

#[tokio::test]
async fn rebind_that_no_replica_has_is_counted() {
    let folder = Folder::new();
    let trio = Sentinel::start(folder.path()).await;
    let opened = Opened::at(&trio.url()).await;
    assert!(opened.claims("s").await);
    let store = &opened.store;
    let rebind = async || {
        let value = "key 1 1";
        assert_eq!(
            store
                .rebind(Name::Binding("s"), value, value, LONG, &mut store.budget())
                .await
                .unwrap(),
            Replaced::Done
        );
    };
    rebind().await;
    let primary = trio.primary().await;
    eventually(SOON, "the rebind was waited for", async || {
        (primary.calls("wait").await > 0).then_some(())
    })
    .await;
    primary.reports("clients", &["blocked_clients:0"]).await;
    trio.cut_replicas_off().await;
    rebind().await;
    // A merge that writes counts, too, and so does a first binding that other replicas do not
    // expect.
    assert_eq!(
        store.merge(Name::Binding("s"), "key 2 1", 2, LONG, &mut store.budget()).await.unwrap(),
        None
    );
    assert_eq!(
        store.begin(Name::Binding("t"), "key 1 1", false, LONG, &mut store.budget()).await.unwrap(),
        None
    );
    assert_eq!(
        store.begin(Name::Binding("u"), "key 1 1", true, LONG, &mut store.budget()).await.unwrap(),
        None
    );
    assert!(
        store
            .merge(Name::Binding("s"), "key 1 1", 1, LONG, &mut store.budget())
            .await
            .unwrap()
            .is_some()
    );
    let is_counted = async || (opened.series("warmkey_lagging_rebinds_total") == 3).then_some(());
    eventually(SOON, "three of them lag, and the one before does not", is_counted).await;
}

#[tokio::test]
async fn slots_that_move_are_followed() {
    let folder = Folder::new();
    let mut shards = Shards::start(folder.path()).await;
    let opened = Opened::at(&shards.url()).await;
    let id = &one_of_each()[0];
    let slot = slot_of(&format!("w:{id}"));
    assert!(opened.claims(id).await);
    shards.open_move(slot, 0, 1).await;
    assert_eq!(opened.finds(id).await, Some(true), "the name has not moved yet");
    shards.node(0).run(&["DEL", &format!("w:{id}")]).await;
    assert_eq!(opened.finds(id).await, Some(false), "asked for elsewhere");
    assert!(opened.claims(id).await);
    let (store, budget) = (&opened.store, &mut opened.store.budget());
    assert_eq!(
        store.replace(Name::Binding(id), "key 1 1", "key 2 1", LONG, budget).await.unwrap(),
        Replaced::Done
    );
    shards.finish_move(slot, 0, 1).await;
    assert_eq!(shards.node(1).ask::<String>(&["GET", &format!("w:{id}")]).await, "key 2 1");
    for _ in 0..10 {
        assert_eq!(opened.finds(id).await, Some(true), "moved");
    }
    assert!(*opened.store.health().borrow());
}

#[tokio::test]
async fn dead_shard_costs_only_its_own() {
    let folder = Folder::new();
    let mut shards = Shards::start(folder.path()).await;
    let opened = Opened::at(&shards.url()).await;
    let ids = one_of_each();
    for id in &ids {
        assert!(opened.claims(id).await);
    }
    for number in 0..3 {
        let has_written = async || {
            (!shards.node(number).ask::<Vec<String>>(&["KEYS", "w:*probe"]).await.is_empty())
                .then_some(())
        };
        eventually(SOON, "each node has taken a write as proof", has_written).await;
    }
    shards.kill_shard(1).await;
    opened.becomes(false).await;
    let (began, mut found, mut late) = (Instant::now(), 0, 0);
    while began.elapsed() < ms(3_000) {
        // The long budget allows a second. No caller here may use all of it.
        let (budget, mut patient) = (Budget::begin(ms(500)), opened.store.background_budget());
        assert!(opened.store.get(Name::Binding(&ids[1]), &mut patient).await.is_err());
        budget.holds("a question to the dead shard");
        for id in [&ids[0], &ids[2]] {
            match opened.finds(id).await {
                Some(is_there) => {
                    assert!(is_there, "no value is lost there");
                    found += 1;
                }
                // A machine that compiles meanwhile is late now and then.
                None => late += 1,
            }
        }
        tokio::time::sleep(ms(20)).await;
    }
    assert!(found > late * 4, "the others answer: {found} times, and {late} times not");
    shards.restart_shard(1).await;
    opened.becomes(true).await;
    assert_eq!(opened.finds(&ids[1]).await, Some(false), "the shard is empty, and answers");
}

#[tokio::test]
async fn shards_failover_is_followed() {
    let folder = Folder::new();
    let mut shards = Shards::start(folder.path()).await;
    let opened = Opened::at(&shards.url()).await;
    let id = &one_of_each()[2];
    assert!(opened.claims(id).await);
    shards.node(2).is_copied().await;
    shards.kill_primary(2).await;
    opened.becomes(false).await;
    shards.failed_over(2).await;
    let budget = Budget::begin(ms(3_000));
    opened.becomes(true).await;
    budget.holds("the new primary is found");
    assert_eq!(opened.finds(id).await, Some(true));
}

#[tokio::test]
async fn rotated_password_needs_no_restart() {
    let folder = Folder::new();
    let redis = Redis::start(folder.path()).await;
    let rotate = async |password: &str| {
        let rules = [
            "ACL",
            "SETUSER",
            "gateway",
            "reset",
            "on",
            &format!(">{password}"),
            "~w:*",
            "&w:*",
            "+@all",
        ];
        redis.run(&rules).await;
        redis.run(&["CLIENT", "KILL", "USER", "gateway"]).await;
    };
    let write = |password: &str| {
        folder.write("url", &format!("redis://gateway:{password}@{}\n", redis.address()))
    };
    rotate("canary-1").await;
    let file = write("canary-1");
    let opened =
        Opened::ready(&StoreSettings { url: SecretSource::File(file), ..settings("") }).await;
    rotate("canary-2").await;
    opened.becomes(false).await;
    let fault = async || opened.store.fault().filter(|fault| fault.contains("password"));
    assert!(!eventually(SOON, "the old one is refused", fault).await.contains("canary"));
    assert!(opened.failures("authentication") > 0);
    write("canary-2");
    opened.becomes(true).await;
    assert_eq!(opened.finds("s").await, Some(false));
}

/// The rights that the options' reference lists.
#[tokio::test]
async fn user_with_the_documented_rights_is_enough() {
    let words = include_str!("../../src/config/default.toml")
        .lines()
        .find_map(|line| line.strip_prefix("#   ACL SETUSER "));
    let words = words
        .expect("the reference says which")
        .replace("warmkey:", "w:")
        .replace("PASSWORD", "canary");
    for shape in [Shape::Standalone, Shape::Sentinel, Shape::Cluster] {
        let folder = Folder::new();
        let redis = shape::Store::start(shape, folder.path(), &[]).await;
        let rules: Vec<&str> =
            ["ACL", "SETUSER"].into_iter().chain(words.split_whitespace()).collect();
        redis.run(&rules).await;
        let name = words.split_whitespace().next().expect("a user");
        let opened = Opened::at(&redis.url().replace("://", &format!("://{name}:canary@"))).await;
        let store = &opened.store;
        let mut announcements = store.announcements();
        within(SOON, "the store subscribes", store.resubscribed().wait_for(|count| *count > 0))
            .await
            .expect("the store lives");
        assert!(opened.claims("s").await);
        assert_eq!(opened.finds("s").await, Some(true));
        store.extend(Name::Binding("s"), "key 1 1", LONG, &mut store.budget()).await.unwrap();
        store.merge(Name::Binding("s"), "key 2 1", 2, LONG, &mut store.budget()).await.unwrap();
        store.append("s", &["a line".into()], LONG, &mut store.budget()).await.unwrap();
        assert_eq!(store.list("s", &mut store.budget()).await.unwrap(), ["a line"]);
        within(SOON, "a binding is announced", announcements.recv()).await.unwrap();
        assert!(store.scan().unwrap().step().await.is_some_and(|some| some.is_ok()), "{shape:?}");
        assert_eq!(
            (opened.failures("denied"), opened.series("warmkey_lagging_rebinds_total")),
            (0, 0),
            "{shape:?}"
        );
    }
}
