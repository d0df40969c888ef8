//! A newer version runs beside this one. This version skips what it does not know in the shared
//! state, and leaves it there.

use serde_json::json;

use crate::world::admin::TOKEN;
use crate::world::chain::{Chain, id_of, keys, made, project_of};
use crate::world::cluster::{ALICE, Cluster};
use crate::world::codex::Codex;
use crate::world::redis::Redis;
use crate::world::sessions::begin;
use crate::world::simulator::siblings;
use crate::world::waiting::{SOON, eventually};

/// Far in the future, in milliseconds since 1970.
const LATER: &str = "9999999999999";

#[tokio::test]
async fn newer_version_beside_it_is_passed_over() {
    let keys = siblings("org-a", 3);
    let cluster = Cluster::new()
        .keys(keys[..2].to_vec())
        .spare(keys[2..].to_vec())
        .redis()
        .replicas(2)
        .server("admin_token", &format!("{TOKEN:?}"));
    let mut cluster = cluster.start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("first").await.served();
    let (name, bound) = cluster.redis().binding().await;
    let own = cluster.upstream().recorded(1).await[0].key.clone();

    // Unknown fields, known fields with unknown values, and known ones with more words.
    let load = format!("{LATER} nonsense more=words");
    for words in [
        ["HSET", "warmkey:board", "x:new", "other"],
        ["HSET", "warmkey:board", "n:new", "no stamp"],
        ["HSET", "warmkey:board", "n:zkunknown", "1 0 strange"],
        ["HSET", "warmkey:board", "r:newer", &load],
        ["HSET", "warmkey:board", "r:odd", "no expiry"],
        ["HSET", "warmkey:board", "odd", ""],
        ["HSET", "warmkey:generations", "x:new", "other"],
        ["HSET", "warmkey:generations", "s:new", "no ordinal"],
        ["HSET", "warmkey:generations", "r:odd", "no expiry"],
        ["HSET", "warmkey:generations", "odd", ""],
    ] {
        let _: u64 = cluster.redis().ask(&words).await;
    }
    for message in ["v2 of another version", "", "v2=7 \u{0} odd"] {
        eventually(SOON, "both replicas listen", async || {
            let heard: u64 = cluster.redis().ask(&["PUBLISH", "warmkey:moved", message]).await;
            (heard == 2).then_some(())
        })
        .await;
    }
    let newer = format!("{bound} v2=7");
    cluster.redis().run(&["SET", &name, &newer, "KEEPTTL"]).await;
    cluster.redis().run(&["RPUSH", &format!("{name}.trail"), "1 move removed a b and more"]).await;

    // Operators' commands count, and a third replica's set is known.
    cluster.replicas[0].command("disable", &own).await;
    cluster.all_have(&own, "disabled").await;
    cluster.replicas[1].command("enable", &own).await;
    cluster.all_have(&own, "ready").await;
    // A session stays on its key, and a newer version's words stay with it.
    for number in [1, 0, 1] {
        codex.moves_to(cluster.replicas[number].address());
        codex.turn("on").await.served();
    }
    let turns = cluster.turns().await;
    assert!(turns.iter().all(|turn| turn.key == own), "{turns:?}");
    assert!(cluster.redis().binding().await.1.ends_with(" v2=7"), "it stays as it was");
    let id = name.strip_prefix("warmkey:").expect("a binding has the prefix");
    let page = cluster.replica().session(id).await;
    assert_eq!(page["trail"][0]["decision"], "move", "{page}");
    // A new key takes sessions.
    cluster.change(|cluster| cluster.keys(keys));
    for number in [0, 1] {
        cluster.reload(number).await;
    }
    for replica in &cluster.replicas {
        replica.shows("warmkey_keys_waiting", 0.0).await;
    }
    // What it does not know is still there.
    for (hash, field) in [("board", "x:new"), ("board", "n:new"), ("generations", "x:new")] {
        let there: u64 = cluster.redis().ask(&["HEXISTS", &format!("warmkey:{hash}"), field]).await;
        assert_eq!(there, 1, "{hash} {field}");
    }
    for replica in &cluster.replicas {
        let faults = r#"warmkey_store_failures_total{reason="other"}"#;
        assert_eq!(replica.metrics().await.get(faults), 0.0);
    }
}

/// Bytes that are not UTF-8, and numbers that are too large, wherever another writer can put them.
#[tokio::test]
async fn bytes_and_numbers_that_nobody_can_read_are_passed_over() {
    let keys = siblings("org-a", 3);
    let cluster = Cluster::new()
        .keys(keys[..2].to_vec())
        .spare(keys[2..].to_vec())
        .redis()
        .replicas(2)
        .server("admin_token", &format!("{TOKEN:?}"));
    let mut cluster = cluster.start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("first").await.served();
    let (name, _) = cluster.redis().binding().await;
    let own = cluster.upstream().recorded(1).await[0].key.clone();

    let (board, sets): (&[u8], &[u8]) = (b"warmkey:board", b"warmkey:generations");
    let huge = [b'9'; 400];
    for (hash, field, value) in [
        (board, &b"r:new"[..], &b"9999999999999 \xff"[..]),
        (board, b"r:sum", b"9999999999999 a=18446744073709551615"),
        (board, b"r:huge", &[&huge[..], b" a=1"].concat()),
        (board, b"n:x", b"1 0 \xff"),
        (board, b"n:\xff", b"1 0 limited"),
        (board, b"n:huge", &[&huge[..], b" 0 limited"].concat()),
        (board, b"v", b"1e300"),
        (board, b"\xff", b"\xff"),
        (sets, b"r:\xff", b"9999999999999 \xff"),
        (sets, b"s:\xff", b"1 \xff"),
        (sets, b"s:huge", &[&huge[..], b" tags"].concat()),
        (sets, b"s:wide", b"4294967296 tags"),
        (sets, b"\xff", b"\xff"),
    ] {
        cluster.redis().write(&[b"HSET", hash, field, value]).await;
    }
    let trail = format!("{name}.trail");
    cluster.redis().write(&[b"RPUSH", trail.as_bytes(), b"\xff", b"1 move \xff a b"]).await;
    cluster.redis().write(&[b"PUBLISH", b"warmkey:moved", b"warmkey:\xff \xff"]).await;
    // The binding and the owners of one session are no text, and its turns are served.
    let mut other = Codex::new(cluster.address(), ALICE);
    other.turn("first").await.served();
    let bindings = cluster.redis().bindings().await;
    let spoilt = bindings.iter().find(|other| **other != name).expect("another session").clone();
    cluster.redis().write(&[b"SET", spoilt.as_bytes(), b"\xff 1 1", b"PX", b"60000"]).await;
    cluster.redis().write(&[b"SET", b"warmkey:\xff", b"\xff", b"PX", b"60000"]).await;
    for number in [1, 0] {
        other.moves_to(cluster.replicas[number].address());
        other.turn("on").await.served();
    }

    // Operators' commands count, and a new key takes sessions.
    cluster.replicas[0].command("disable", &own).await;
    cluster.all_have(&own, "disabled").await;
    cluster.replicas[1].command("enable", &own).await;
    cluster.all_have(&own, "ready").await;
    for number in [1, 0, 1] {
        codex.moves_to(cluster.replicas[number].address());
        codex.turn("on").await.served();
    }
    let id = name.strip_prefix("warmkey:").expect("a binding has the prefix");
    let page = cluster.replica().session(id).await;
    assert_eq!(page["trail"].as_array().map(Vec::len), Some(1), "{page}");
    cluster.change(|cluster| cluster.keys(keys));
    for number in [0, 1] {
        cluster.reload(number).await;
    }
    for replica in &cluster.replicas {
        replica.shows("warmkey_keys_waiting", 0.0).await;
        let metrics = replica.metrics().await;
        for reason in ["connection", "other"] {
            let faults = format!("warmkey_store_failures_total{{reason={reason:?}}}");
            assert_eq!(metrics.get(&faults), 0.0, "{reason}");
        }
        let log = replica.process().log();
        assert!(!log.contains("dropped the connection to the store"), "no connection is lost");
    }
}

/// Appends a newer version's words to `count` values of this kind, once they are there.
async fn add_words(redis: &Redis, kind: &str, count: usize) {
    let pattern = format!("warmkey:*.{kind}");
    let names = eventually(SOON, "the values are written", async || {
        let names: Vec<String> = redis.ask(&["KEYS", &pattern]).await;
        (names.len() >= count).then_some(names)
    })
    .await;
    for name in &names {
        let value: String = redis.ask(&["GET", name]).await;
        let newer = format!("{value} v2=7 later");
        redis.run(&["SET", name, &newer, "KEEPTTL"]).await;
    }
}

/// The owners of responses and items.
#[tokio::test]
async fn newer_words_behind_an_owner_are_passed_over() {
    let mut cluster = Cluster::new().keys(keys(0)).replicas(2).redis().start().await;
    cluster.change(|cluster| cluster.keys(keys(1)));
    cluster.replace(1).await;
    let (here, there) = (cluster.replicas[0].address(), cluster.replicas[1].address());
    // Without a session, and with one.
    for session in [None, Some("with a session")] {
        let chain = |address| Chain { session: session.map(str::to_owned), ..Chain::new(address) };
        let first = chain(here).asks(json!({})).await;
        let (id, items) = (id_of(&first), first.json()["output"].clone());
        let items: Vec<_> = items.as_array().expect("items").iter().map(|one| &one["id"]).collect();
        for kind in ["response", "item"] {
            add_words(cluster.redis(), kind, 1).await;
        }
        let references: Vec<_> =
            items.iter().map(|id| json!({ "type": "item_reference", "id": id })).collect();
        let question = json!({ "type": "message", "role": "user", "content": "and on" });
        let input: Vec<_> = references.into_iter().chain([question]).collect();
        let alone = Chain::new(there);
        for next in [
            alone.clone().after(&id).asks(json!({})).await,
            alone.asks(json!({ "input": input })).await,
        ] {
            assert_eq!(next.status, 200, "{}", next.text());
            let turns = cluster.turns().await;
            let [next, first] = [&id_of(&next), &id].map(|id| project_of(&made(&turns, id).key));
            assert_eq!(next, first, "where it is stored");
        }
    }
}

/// The session of a thread, from which a fork of a sub-agent begins.
#[tokio::test]
async fn newer_words_behind_a_thread_are_passed_over() {
    let even = [siblings("org-a", 2), siblings("org-b", 2)].concat();
    let mut lopsided = even.clone();
    lopsided[0].weight = 100;
    let mut cluster = Cluster::new().keys(lopsided).replicas(2).redis().start().await;
    let sessions = begin(&cluster, 6).await;
    cluster.change(|cluster| cluster.keys(even));
    for number in 0..2 {
        cluster.replace(number).await;
    }
    let mut agents = Vec::new();
    for codex in &sessions {
        let mut agent = codex.spawn().at(cluster.replicas[0].address());
        agent.turn("look into it").await.served();
        agents.push(agent);
    }
    add_words(cluster.redis(), "thread", agents.len()).await;
    for agent in &agents {
        let mut fork = agent.fork().at(cluster.replicas[1].address());
        fork.turn("another way").await.served();
    }
    cluster.shows(r#"warmkey_bindings_total{result="inherited"}"#, agents.len() as f64).await;
}

/// What a turn has left in the cache: the next one is still compared with it.
#[tokio::test]
async fn newer_words_behind_a_promise_are_passed_over() {
    let mut cluster = Cluster::new().keys(siblings("org-a", 1)).replicas(2).redis().start().await;
    let mut codex = Codex::new(cluster.replicas[0].address(), ALICE);
    codex.turn("first").await.served();
    add_words(cluster.redis(), "last", 1).await;
    codex.moves_to(cluster.replicas[1].address());
    codex.changes_tools();
    codex.turn("second").await.served();
    cluster.replicas[1].shows(r#"warmkey_cold_turns_total{reason="prefix_changed"}"#, 1.0).await;
}
