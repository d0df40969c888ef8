//! Tests the invariants of the binding. Each test has its invariant's name, and the upstream's
//! record is the judge.
//!
//! Replicas that share nothing would still agree if all computed the same order. So that these
//! tests can fail, the replicas differ in their weights, as in the middle of a deploy. Only the
//! store can then make them agree.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::recorder::{Recorder, Step, completed};
use crate::world::redis::shape::Shape;
use crate::world::simulator::{Key, keys_by_session, path_of, siblings};
use crate::world::waiting::{SOON, eventually, found, ms};
use crate::world::wire::{Request, ask};

const CREATED: &str = r#"warmkey_bindings_total{result="created"}"#;
const EXISTING: &str = r#"warmkey_bindings_total{result="existing"}"#;

/// The invariants that hold for every shape of Redis: a module for each invariant, with a test for
/// each shape.
macro_rules! on_every_redis {
    ($($invariant:ident)*) => { $(
        mod $invariant {
            use crate::world::redis::shape::Shape;

            #[tokio::test]
            async fn on_one_redis() {
                super::$invariant(Shape::Standalone).await;
            }

            #[tokio::test]
            async fn on_sentinel() {
                super::$invariant(Shape::Sentinel).await;
            }

            #[tokio::test]
            async fn on_cluster() {
                super::$invariant(Shape::Cluster).await;
            }
        }
    )* };
}

on_every_redis! {
    b1_agreement
    b2_first_turn_race
    b3_single_winner_rebind
    b6_key_addition
    b10_restart_and_scale
    b16_sliding_ttl
}

/// Two organizations of three keys each. The weights of replica `number` alone would send nearly
/// all sessions to one key.
fn weights(number: usize) -> Vec<Key> {
    let mut keys = [siblings("org-a", 3), siblings("org-b", 3)].concat();
    keys[number * 2].weight = 50;
    keys
}

/// Three replicas behind HAProxy that agree on nothing but the store.
async fn disagreeing(shape: Shape) -> Running {
    let mut cluster =
        Cluster::new().keys(weights(0)).replicas(3).redis_as(shape).balanced().start().await;
    for number in 1..3 {
        cluster.change(|cluster| cluster.keys(weights(number)));
        cluster.replace(number).await;
    }
    cluster
}

async fn served_by_all(cluster: &Running) {
    for (number, replica) in cluster.replicas.iter().enumerate() {
        assert!(
            replica.metrics().await.sum("warmkey_turns_total") > 0.0,
            "replica {number} took its part"
        );
    }
}

async fn b1_agreement(shape: Shape) {
    let cluster = disagreeing(shape).await;
    let mut sessions = JoinSet::new();
    for _ in 0..20 {
        let mut codex = Codex::new(cluster.address(), ALICE);
        sessions.spawn(async move {
            for turn in 0..6 {
                codex.turn(&format!("turn {turn}")).await.served();
            }
        });
    }
    while let Some(session) = sessions.join_next().await {
        session.expect("a session plays to its end");
    }
    let keys = keys_by_session(&cluster.turns().await);
    assert_eq!(keys.len(), 20);
    assert!(keys.values().all(|keys| keys.len() == 1), "one key a session: {keys:?}");
    let used: BTreeSet<_> = keys.into_values().flatten().collect();
    assert!(used.len() > 1, "more than one key is at work");
    served_by_all(&cluster).await;
}

async fn b2_first_turn_race(shape: Shape) {
    let mut cluster = disagreeing(shape).await;
    for _ in 0..6 {
        let root = Codex::new(cluster.address(), ALICE);
        let mut race = JoinSet::new();
        for number in 0..32 {
            let mut agent = root.spawn().at(cluster.replicas[number % 3].address());
            race.spawn(async move { agent.turn("first").await.served() });
        }
        while let Some(turn) = race.join_next().await {
            turn.expect("a racer ends");
        }
        assert_eq!(path_of(&cluster.turns().await, &root.session).len(), 1, "all 32 on one key");
    }
    // Each session has one binding.
    cluster.shows(CREATED, 6.0).await;
    assert_eq!(cluster.store().bindings().await.len(), 6);
    served_by_all(&cluster).await;
}

async fn b3_single_winner_rebind(shape: Shape) {
    let mut cluster = disagreeing(shape).await;
    for round in 1..=3_u32 {
        let mut root = Codex::new(cluster.address(), ALICE);
        root.turn("first").await.served();
        let first = path_of(&cluster.turns().await, &root.session);
        cluster.upstream().revoke(&first[0]).await;
        let mut race = JoinSet::new();
        for number in 0..32 {
            let mut agent = root.spawn().at(cluster.replicas[number % 3].address());
            // The client does not retry, so that the gateway's own answer counts.
            race.spawn(async move { agent.turn("again").await });
        }
        while let Some(turn) = race.join_next().await {
            let turn = turn.expect("a racer ends");
            assert_eq!(turn.answer.status, 200, "round {round}: {}", turn.answer.text());
            turn.served();
        }
        root.turn("after").await.served();
        let turns = cluster.turns().await;
        let mut keys = path_of(&turns, &root.session);
        assert_eq!((keys.len(), &keys[0]), (2, &first[0]), "one move, to one key: {keys:?}");
        let organization = |key: &str| {
            turns.iter().find(|turn| turn.key == key).map(|turn| turn.organization.clone())
        };
        let last = keys.pop().expect("there are two");
        assert_eq!(
            organization(&first[0]),
            organization(&last),
            "what is sealed stays in its organization"
        );
        let (_, value) = cluster.store().binding().await;
        assert_eq!(
            value.split(' ').nth(1),
            Some("2"),
            "the epoch has been incremented once: {value:?}"
        );
        // The next round begins with all keys and an empty store.
        cluster.upstream().heal().await;
        cluster.store().run(&["FLUSHALL"]).await;
        for number in 0..3 {
            cluster.change(|cluster| cluster.keys(weights(number)));
            cluster.replace(number).await;
        }
        // Replicas report what they know of keys again, so a probe must end that condition.
        cluster.replicas[0].command("probe", &first[0]).await;
        for replica in &cluster.replicas {
            replica
                .shows(&format!("warmkey_key_state{{key=\"{}\",state=\"ready\"}}", first[0]), 1.0)
                .await;
        }
    }
}

/// B5: both keys of a sealed session's organization die within a sub-agent's first turn, whose body
/// shows nothing sealed.
#[tokio::test]
async fn b5_forced_moves_stay_where_a_session_is_sealed() {
    let cluster =
        Cluster::new().keys([siblings("org-a", 2), siblings("org-b", 3)].concat()).start().await;
    let root = found("a session in org-a", async || {
        let mut root = Codex::new(cluster.address(), ALICE);
        root.turn("first").await.served();
        path_of(&cluster.turns().await, &root.session)[0].starts_with("org-a").then_some(root)
    })
    .await;
    for key in ["org-a-1", "org-a-2"] {
        cluster.upstream().revoke(key).await;
    }
    let before = cluster.turns().await.len();
    let ended = root.spawn().turn("no key is left").await;
    assert_eq!(
        (ended.answer.status, ended.answer.code().as_str()),
        (503, "no_key_available"),
        "{}",
        ended.answer.text()
    );
    let turns = cluster.turns().await.split_off(before);
    let mut asked: Vec<_> = turns.iter().map(|turn| (turn.key.as_str(), turn.status)).collect();
    asked.sort_unstable();
    assert_eq!(
        asked,
        [("org-a-1", 401), ("org-a-2", 401)],
        "each key of its own once, and no other"
    );
}

async fn b6_key_addition(shape: Shape) {
    let keys = [siblings("org-a", 2), siblings("org-b", 1)].concat();
    let mut cluster = knowing(&keys, shape).await;
    let mut sessions: Vec<Codex> = (0..40).map(|_| Codex::new(cluster.address(), ALICE)).collect();
    for session in &mut sessions {
        session.turn("first").await.served();
    }
    let before = keys_by_session(&cluster.turns().await);
    cluster.change(|cluster| cluster.keys([keys, vec![Key::new("org-b-new", "org-b")]].concat()));
    for number in 0..2 {
        cluster.replace(number).await;
    }
    for session in &mut sessions {
        session.turn("second").await.served();
    }
    assert_eq!(keys_by_session(&cluster.turns().await), before, "no bound session has moved");
    // The killed processes count as replicas until their reports expire.
    cluster.shows("warmkey_keys_waiting", 0.0).await;
    for _ in 0..80 {
        Codex::new(cluster.address(), ALICE).turn("first").await.served();
    }
    let mut fresh = keys_by_session(&cluster.turns().await);
    fresh.retain(|session, _| !before.contains_key(session));
    let share = fresh.values().filter(|keys| keys.contains("org-b-new")).count();
    assert!(
        (7..=36).contains(&share),
        "a quarter of 80 new sessions, give or take four deviations: {share}"
    );
}

/// Two replicas with these keys, and an upstream that also knows `org-b-new`.
async fn knowing(keys: &[Key], shape: Shape) -> Running {
    let all = [keys, &[Key::new("org-b-new", "org-b")]].concat();
    let keys = keys.to_vec();
    let mut cluster = Cluster::new().keys(all).replicas(2).redis_as(shape).balanced().start().await;
    cluster.change(|cluster| cluster.keys(keys));
    for number in 0..2 {
        cluster.replace(number).await;
    }
    cluster
}

async fn b10_restart_and_scale(shape: Shape) {
    let mut cluster = disagreeing(shape).await;
    let mut sessions: Vec<Codex> =
        (0..10).map(|_| Codex::new(cluster.address(), ALICE).patient()).collect();
    for step in 0..5 {
        for session in &mut sessions {
            session.turn(&format!("step {step}")).await.served();
        }
        match step {
            0 => cluster.replicas[0].kill().await,
            1 => {
                cluster.replicas[1].terminate().await;
                cluster.replicas[1].exit(SOON).await;
            }
            2 => {
                // The replica comes back with other weights.
                cluster.change(|cluster| cluster.keys(weights(1)));
                cluster.restart(0).await;
                cluster.replicas[2].kill().await;
            }
            _ => {
                let away = if step == 3 { 1 } else { 2 };
                cluster.change(|cluster| cluster.keys(weights(0)));
                cluster.restart(away).await;
            }
        }
    }
    let keys = keys_by_session(&cluster.turns().await);
    assert!(
        keys.len() == 10 && keys.values().all(|keys| keys.len() == 1),
        "one key a session: {keys:?}"
    );
}

async fn b16_sliding_ttl(shape: Shape) {
    let upstream = Recorder::answering(completed()).await;
    let ttl = "ttl = \"4s\"";
    let mut cluster = Cluster::new()
        .recorded_by(&upstream)
        .replicas(2)
        .redis_as(shape)
        .binding(ttl)
        .start()
        .await;
    let addresses = [cluster.replicas[0].address(), cluster.replicas[1].address()];
    let turn = async |number: usize| {
        // The requests have `store: false`, because recording a response's owner would be another
        // write.
        let request = Request::turn(
            ALICE,
            r#"{"model":"gpt-5.4","prompt_cache_key":"s","input":"x","store":false}"#,
        );
        assert_eq!(ask(addresses[number % 2], &request).await.status, 200);
    };
    turn(0).await;
    let (name, _) = cluster.store().binding().await;
    // The session is used often, for twice its TTL.
    let began = Instant::now();
    let (mut number, mut refreshes, mut last) = (0, 0, 4_000);
    while began.elapsed() < Duration::from_secs(8) {
        turn(number).await;
        number += 1;
        let left: i64 = cluster.store().ask(&["PTTL", &name]).await;
        assert!(left > 1_500, "never close to its end: {left} ms");
        refreshes += u64::from(left > last);
        last = left;
        sleep(ms(50)).await;
    }
    let quarters = began.elapsed().as_secs() + 1;
    assert!(
        (4..=quarters).contains(&refreshes),
        "at most one a quarter: {refreshes} in {quarters} quarters"
    );
    cluster.shows(CREATED, 1.0).await;
    cluster.shows(EXISTING, number as f64).await;
    // A refresh is due, but Redis takes no writes, and no turn waits for the refresh. A heartbeat
    // on the same connection is a write and may delay one turn by chance. A refresh that turns wait
    // for would delay every turn.
    let redis = cluster.store();
    let mut waited = Vec::new();
    while waited.len() < 6 && waited.last().is_none_or(|took| *took >= ms(1_000)) {
        eventually(SOON, "a refresh is due", async || {
            let left: i64 = redis.ask(&["PTTL", &name]).await;
            (left < 2_900).then_some(())
        })
        .await;
        redis.run(&["CLIENT", "PAUSE", "1500", "WRITE"]).await;
        let paused = Instant::now();
        turn(0).await;
        waited.push(paused.elapsed());
        redis.run(&["CLIENT", "UNPAUSE"]).await;
    }
    assert!(
        waited.last().is_some_and(|took| *took < ms(1_000)),
        "a turn waits for no write: {waited:?}"
    );
    // If a session is unused for its TTL, its binding ends, and the next turn binds it anew.
    let redis = cluster.store();
    eventually(SOON, "the end of an unused binding", async || {
        redis.bindings().await.is_empty().then_some(())
    })
    .await;
    turn(0).await;
    cluster.shows(CREATED, 2.0).await;
}

#[tokio::test]
async fn b17_no_session() {
    let mut script = vec![Step::Hold];
    script.extend(completed());
    let upstream = Recorder::answering(script).await;
    let mut cluster =
        Cluster::new().keys(siblings("org-a", 4)).recorded_by(&upstream).redis().start().await;
    let address = cluster.address();
    let mut turns = JoinSet::new();
    for _ in 0..16 {
        turns.spawn(async move {
            ask(address, &Request::turn(ALICE, r#"{"model":"gpt-5.4","stream":true,"input":[]}"#))
                .await
        });
    }
    upstream.reached(16).await;
    let mut load = BTreeMap::<String, usize>::new();
    for seen in upstream.seen() {
        *load.entry(seen.key().to_owned()).or_default() += 1;
    }
    upstream.release(16);
    while let Some(turn) = turns.join_next().await {
        assert_eq!(turn.expect("a turn ends").status, 200);
    }
    assert!(
        load.len() == 4 && load.values().all(|turns| (2..=6).contains(turns)),
        "spread by load: {load:?}"
    );
    cluster.shows(r#"warmkey_bindings_total{result="none"}"#, 16.0).await;
    assert_eq!(cluster.store().bindings().await, Vec::<String>::new(), "nothing is bound");
}
