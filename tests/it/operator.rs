//! Tests an operator's commands on keys: all replicas obey at once, over either transport, and none
//! forgets.

use std::collections::BTreeSet;

use serde_json::json;

use crate::world::admin::TOKEN;
use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::{Codex, uuid};
use crate::world::sessions::{begin, begin_on, first_key, turn_each};
use crate::world::simulator::{Key, Turn, path_of, siblings};
use crate::world::socket::{Socket, plain, session};
use crate::world::waiting::{SOON, eventually, found, ms};
use crate::world::wire::{Request, ask};

const DISABLED: &str = "disabled";
const READY: &str = "ready";

fn three_replicas() -> Cluster {
    let keys = [siblings("org-a", 3), siblings("org-b", 1)].concat();
    Cluster::new().keys(keys).redis().replicas(3).server("admin_token", &format!("{TOKEN:?}"))
}

/// Plays a turn without a session at each replica. The load decides such a turn's key: of idle
/// keys, the first one in the file serves.
async fn nameless(cluster: &Running) {
    for replica in &cluster.replicas {
        let turn = Request::turn(ALICE, r#"{"model":"gpt-5.4","stream":true,"input":[]}"#);
        let answer = ask(replica.address(), &turn).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

/// A key of org-a that one of `sessions` is bound to.
fn a_key_of(turns: &[Turn], sessions: &[Codex]) -> String {
    let keys = sessions.iter().map(|codex| first_key(turns, codex));
    keys.into_iter().find(|key| key.starts_with("org-a")).expect("a session in org-a")
}

/// Returns a WebSocket of a session that is bound to this key, after its first turn.
async fn socket_on(cluster: &Running, replica: usize, key: &str) -> Socket {
    found("a WebSocket on a key", async || {
        let id = uuid();
        let mut socket = session(cluster.replicas[replica].address(), ALICE, &id).await;
        socket.send(&plain("hello")).await;
        socket.event(&["response.completed"]).await;
        (path_of(&cluster.turns().await, &id) == [key]).then_some(socket)
    })
    .await
}

#[tokio::test]
async fn disabled_key_is_left_alone_and_keeps_its_sessions() {
    let cluster = three_replicas().start().await;
    let mut sessions = begin(&cluster, 12).await;
    let before = cluster.turns().await;
    let key = a_key_of(&before, &sessions);
    let done = cluster.replicas[1].command("disable", &key).await;
    assert_eq!(
        (&done["shared"], &done["keys"][0]["state"]),
        (&json!(true), &json!(DISABLED)),
        "{done}"
    );
    cluster.all_have(&key, DISABLED).await;
    for round in 1..3 {
        turn_each(&cluster, &mut sessions, round).await;
    }
    sessions.extend(begin(&cluster, 12).await);
    let turns = cluster.turns().await;
    assert!(
        turns[before.len()..].iter().all(|turn| turn.is_served() && turn.key != key),
        "no turn was sent there"
    );
    for codex in &sessions[..12] {
        let path = path_of(&turns, &codex.session);
        let is_bound = path[0] == key;
        assert_eq!(
            path.len(),
            if is_bound { 2 } else { 1 },
            "one sibling serves instead, and no other session moves: {path:?}"
        );
        assert!(!is_bound || path[1].starts_with("org-a"), "within the organization: {path:?}");
    }
    // This command goes to another replica than the command before.
    cluster.replicas[2].command("enable", &key).await;
    cluster.all_have(&key, READY).await;
    turn_each(&cluster, &mut sessions, 0).await;
    let turns = cluster.turns().await;
    for codex in &sessions[..12] {
        let path = path_of(&turns, &codex.session);
        assert!(path.last() == path.first(), "its sessions are back: {path:?}");
    }
    for codex in &sessions[12..] {
        assert_eq!(path_of(&turns, &codex.session).len(), 1, "and no other session comes");
    }
}

/// Drains two keys in a row. One key has sessions that have never moved. The other has one that has
/// moved from the first key in the file to the next.
#[tokio::test]
async fn drained_key_is_left_for_good() {
    let cluster = three_replicas().start().await;
    let mut sessions = begin(&cluster, 11).await;
    sessions.push(begin_on(&cluster, "org-a-1").await.0);
    for moves in 0..2 {
        let before = cluster.turns().await;
        let path = path_of(&before, &sessions[11].session);
        let key = path.last().expect("it was served").clone();
        assert_eq!(path.len(), moves + 1, "{path:?}");
        cluster.replicas[0].command("drain", &key).await;
        cluster.all_have(&key, DISABLED).await;
        turn_each(&cluster, &mut sessions, moves).await;
        begin(&cluster, 6).await;
        nameless(&cluster).await;
        let turns = cluster.turns().await;
        assert!(
            turns[before.len()..].iter().all(|turn| turn.is_served() && turn.key != key),
            "no turn was sent to {key}"
        );
        cluster.replicas[1].command("enable", &key).await;
        cluster.all_have(&key, READY).await;
        for round in 1..3 {
            turn_each(&cluster, &mut sessions, moves + round).await;
        }
        let after = cluster.turns().await;
        for codex in &sessions {
            let (path, now) = (path_of(&before, &codex.session), path_of(&after, &codex.session));
            let expected = path.len() + usize::from(path.last() == Some(&key));
            assert_eq!(
                now.len(),
                expected,
                "the sessions of {key} have moved, once and not back, and no others: {now:?}"
            );
            let organizations: BTreeSet<_> = now.iter().map(|key| &key[..5]).collect();
            assert_eq!(organizations.len(), 1, "its history is sealed: {now:?}");
        }
    }
    let path = path_of(&cluster.turns().await, &sessions[11].session);
    assert!(path.len() == 3 && path[0] == "org-a-1", "one move for each command: {path:?}");
}

#[tokio::test]
async fn websocket_obeys_a_command_between_its_turns() {
    // All keys are siblings, so that every session can move.
    let cluster = three_replicas().keys(siblings("org-a", 3)).start().await;
    for command in ["disable", "drain"] {
        let mut talk = Codex::new(cluster.replicas[0].address(), ALICE).by_websocket();
        talk.turn("one").await;
        let key = first_key(&cluster.turns().await, &talk.codex);
        let mut quiet = socket_on(&cluster, 1, &key).await;
        let mut busy = socket_on(&cluster, 2, &key).await;
        busy.send(&plain("SLOW:4x1s")).await;
        busy.event(&["response.created"]).await;
        cluster.replicas[1].command(command, &key).await;
        assert_eq!(quiet.closed().await, 1001, "{command}");
        // A response that has begun is sent to its end.
        busy.event(&["response.completed"]).await;
        assert_eq!(busy.closed().await, 1001, "{command}");
        talk.turn("two").await;
        cluster.replicas[2].command("enable", &key).await;
        cluster.all_have(&key, READY).await;
        talk.turn("three").await;
        talk.hang_up();
        talk.turn("four").await;
        let path = path_of(&cluster.turns().await, &talk.codex.session);
        let expected = if command == "disable" { 3 } else { 2 };
        assert_eq!((path.len(), &path[0]), (expected, &key), "{command}: {path:?}");
        assert!(
            command == "drain" || path[2] == key,
            "back on its own with the next connection: {path:?}"
        );
    }
}

#[tokio::test]
async fn command_on_an_organization_is_one_on_all_its_keys() {
    let cluster = three_replicas().start().await;
    let mut there = begin_on(&cluster, "org-b").await.0;
    let before = cluster.turns().await;
    let done = cluster.replicas[0].command("disable", "org:org-b").await;
    assert_eq!(done["keys"].as_array().map(Vec::len), Some(1), "{done}");
    cluster.all_have("org-b-1", DISABLED).await;
    // Only this organization can open the session's history, so the session waits.
    let ended = there.turn("not now").await;
    assert_eq!(
        (ended.answer.status, ended.answer.code().as_str()),
        (503, "no_key_available"),
        "{}",
        ended.answer.text()
    );
    assert!(ended.answer.header("retry-after").is_some_and(|wait| wait.parse::<u32>().is_ok()));
    begin(&cluster, 12).await;
    let turns = cluster.turns().await;
    assert!(
        turns[before.len()..].iter().all(|turn| turn.organization == "org-a"),
        "new sessions use other keys"
    );
    // The command on the key outlives the command on its organization.
    cluster.replicas[1].command("drain", "org-b-1").await;
    cluster.replicas[1].command("enable", "org:org-b").await;
    assert_eq!(cluster.replicas[2].key("org-b-1").await["conditions"][0]["reason"], "drained");
    cluster.replicas[1].command("enable", "org-b-1").await;
    cluster.all_have("org-b-1", READY).await;
    there.turn("as before").await.served();
    assert_eq!(path_of(&cluster.turns().await, &there.session), ["org-b-1"]);
}

#[tokio::test]
async fn command_outlives_replicas_and_the_store() {
    let mut cluster = three_replicas().server("drain", "\"2s\"").start().await;
    cluster.replicas[0].command("disable", "org-a-1").await;
    cluster.replicas[0].command("drain", "org:org-b").await;
    cluster.replicas[1].command("disable", "org-a-2").await;
    cluster.replicas[2].command("enable", "org-a-2").await;
    let holds = async |cluster: &Running| {
        cluster.all_have("org-a-1", DISABLED).await;
        cluster.all_have("org-a-2", READY).await;
        cluster.all_have("org-b-1", DISABLED).await;
    };
    holds(&cluster).await;
    for number in 0..3 {
        cluster.replicas[number].terminate().await;
        assert_eq!(cluster.replicas[number].exit(SOON).await.code(), Some(0));
        cluster.restart(number).await;
        holds(&cluster).await;
    }
    // One replica was away during another command, and comes back to a store that has lost all
    // commands.
    cluster.redis().run(&["FLUSHALL"]).await;
    cluster.replicas[0].kill().await;
    cluster.restart(0).await;
    holds(&cluster).await;
    let notes: Vec<String> = cluster.redis().ask(&["HVALS", "warmkey:board"]).await;
    let count = |word: &str| notes.iter().filter(|value| value.ends_with(word)).count();
    assert_eq!((count(" disabled"), count(" drained"), count(" enabled")), (1, 1, 1), "{notes:?}");
    cluster.redis().kill().await;
    cluster.redis().restart().await;
    for replica in &cluster.replicas {
        replica.shows("warmkey_store_up", 1.0).await;
    }
    for number in 0..2 {
        cluster.replace(number).await;
        holds(&cluster).await;
    }
    begin(&cluster, 12).await;
    let used: BTreeSet<String> = cluster.turns().await.into_iter().map(|turn| turn.key).collect();
    assert_eq!(used, BTreeSet::from(["org-a-2", "org-a-3"].map(String::from)));
}

#[tokio::test]
async fn command_is_taken_without_the_store_and_shared_once_it_is_back() {
    let mut cluster = three_replicas().start().await;
    let mut sessions = begin(&cluster, 6).await;
    cluster.redis().kill().await;
    for replica in &cluster.replicas {
        replica.shows("warmkey_store_up", 0.0).await;
    }
    let done = cluster.replicas[0].command("disable", "org-a-1").await;
    assert_eq!(
        (&done["shared"], &done["keys"][0]["state"]),
        (&json!(false), &json!(DISABLED)),
        "{done}"
    );
    let before = cluster.turns().await.len();
    for codex in &mut sessions {
        codex.moves_to(cluster.replicas[0].address());
        codex.turn("without the store").await.served();
    }
    assert!(
        cluster.turns().await[before..].iter().all(|turn| turn.key != "org-a-1"),
        "this replica obeys"
    );
    assert_eq!(cluster.replicas[1].key("org-a-1").await["state"], READY);
    cluster.redis().restart().await;
    eventually(SOON, "the other replicas obey", async || {
        let mut states = BTreeSet::new();
        for replica in &cluster.replicas {
            states.insert(replica.key("org-a-1").await["state"].to_string());
        }
        (states == BTreeSet::from([format!("{DISABLED:?}")])).then_some(())
    })
    .await;
}

#[tokio::test]
async fn probe_brings_back_a_key_that_is_well_again() {
    let cluster = three_replicas().start().await;
    let mut sessions = begin(&cluster, 8).await;
    let mut there = begin_on(&cluster, "org-a").await.0;
    cluster.upstream().exhaust("org-a").await;
    there.turn("no credit").await;
    cluster.all_have("org-a-2", DISABLED).await;
    cluster.upstream().heal().await;
    assert_eq!(there.turn("before the probe").await.answer.status, 429);
    let done = cluster.replicas[2].command("probe", "org:org-a").await;
    let answers = done["answers"].as_array().expect("answers");
    assert!(
        answers.len() == 3
            && answers
                .iter()
                .all(|answer| answer["status"] == 200 && answer["is_accepted"] == true),
        "{done}"
    );
    for key in ["org-a-1", "org-a-2", "org-a-3"] {
        // The key is ready at once, without a ramp.
        cluster.all_have(key, READY).await;
    }
    there.turn("topped up").await.served();
    // A key that still fails stays out of use.
    cluster.upstream().revoke("org-a-2").await;
    let done = cluster.replicas[0].command("probe", "org-a-2").await;
    assert_eq!(
        (&done["answers"][0]["status"], &done["answers"][0]["is_accepted"]),
        (&json!(401), &json!(false)),
        "{done}"
    );
    assert_eq!(done["keys"][0]["conditions"][0]["reason"], "rejected", "{done}");
    cluster.all_have("org-a-2", DISABLED).await;
    turn_each(&cluster, &mut sessions, 1).await;
    assert!(cluster.turns().await.iter().all(|turn| turn.status != 401), "no turn was refused");
}

/// The first key in the file has a session that has never moved, and a session that a drain has
/// moved there.
#[tokio::test]
async fn key_without_weight_keeps_its_sessions_and_takes_no_new_ones() {
    let mut cluster =
        three_replicas().keys([siblings("org-a", 2), siblings("org-b", 1)].concat()).start().await;
    let mut sessions = begin(&cluster, 10).await;
    sessions.push(begin_on(&cluster, "org-a-1").await.0);
    sessions.push(begin_on(&cluster, "org-a-2").await.0);
    cluster.replicas[0].command("drain", "org-a-2").await;
    cluster.all_have("org-a-2", DISABLED).await;
    turn_each(&cluster, &mut sessions, 1).await;
    cluster.replicas[0].command("enable", "org-a-2").await;
    cluster.all_have("org-a-2", READY).await;
    let before = cluster.turns().await;
    assert_eq!(path_of(&before, &sessions[11].session), ["org-a-2", "org-a-1"]);
    let emptied = [
        vec![Key { weight: 0, ..Key::new("org-a-1", "org-a") }],
        siblings("org-a", 2).split_off(1),
        siblings("org-b", 1),
    ];
    cluster.change(|cluster| cluster.keys(emptied.concat()));
    for number in 0..3 {
        cluster.reload(number).await;
    }
    turn_each(&cluster, &mut sessions, 2).await;
    let kept = cluster.turns().await;
    for codex in &sessions {
        let (path, now) = (path_of(&before, &codex.session), path_of(&kept, &codex.session));
        assert_eq!(path, now, "no session moves");
    }
    let there = kept[before.len()..].iter().filter(|turn| turn.key == "org-a-1").count();
    assert!(there >= 2, "the key's own sessions stay, however they came: {there}");
    begin(&cluster, 24).await;
    nameless(&cluster).await;
    let turns = cluster.turns().await;
    let nameless: Vec<_> =
        turns[kept.len()..].iter().filter(|turn| turn.session.is_none()).collect();
    assert_eq!(nameless.len(), 3, "turns that name no session go on");
    assert!(
        turns[kept.len()..].iter().all(|turn| turn.is_served() && turn.key != "org-a-1"),
        "no new session comes"
    );
    assert_eq!(cluster.replicas[1].key("org-a-1").await["weight"], 0);
    eventually(ms(2_000), "nothing in flight", async || {
        cluster.replicas[1].keys().await.iter().all(|key| key["in_flight"] == 0).then_some(())
    })
    .await;
}
