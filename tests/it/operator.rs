//! The operator's word on keys: heard by all replicas at once, over either transport, and not
//! forgotten.

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

/// A turn at each replica that names no session: it goes by load, and the first of idle keys is the
/// first in the file.
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

/// A WebSocket of a session that is bound to this key, after its first turn.
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
    let done = cluster.replicas[1].word("disable", &key).await;
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
        "nobody was sent there"
    );
    for codex in &sessions[..12] {
        let path = path_of(&turns, &codex.session);
        let is_bound = path[0] == key;
        assert_eq!(
            path.len(),
            if is_bound { 2 } else { 1 },
            "one sibling stands in, and nobody else moves: {path:?}"
        );
        assert!(!is_bound || path[1].starts_with("org-a"), "within the organization: {path:?}");
    }
    // Through another replica than the word before.
    cluster.replicas[2].word("enable", &key).await;
    cluster.all_have(&key, READY).await;
    turn_each(&cluster, &mut sessions, 0).await;
    let turns = cluster.turns().await;
    for codex in &sessions[..12] {
        let path = path_of(&turns, &codex.session);
        assert!(path.last() == path.first(), "its sessions are back: {path:?}");
    }
    for codex in &sessions[12..] {
        assert_eq!(path_of(&turns, &codex.session).len(), 1, "and nobody else comes");
    }
}

/// Twice in a row: by sessions that have never moved, and by one that has, from the first key in
/// the file to the next.
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
        cluster.replicas[0].word("drain", &key).await;
        cluster.all_have(&key, DISABLED).await;
        turn_each(&cluster, &mut sessions, moves).await;
        begin(&cluster, 6).await;
        nameless(&cluster).await;
        let turns = cluster.turns().await;
        assert!(
            turns[before.len()..].iter().all(|turn| turn.is_served() && turn.key != key),
            "nobody was sent to {key}"
        );
        cluster.replicas[1].word("enable", &key).await;
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
                "whoever was on {key} has moved, once and not back, and nobody else: {now:?}"
            );
            let organizations: BTreeSet<_> = now.iter().map(|key| &key[..5]).collect();
            assert_eq!(organizations.len(), 1, "its history is sealed: {now:?}");
        }
    }
    let path = path_of(&cluster.turns().await, &sessions[11].session);
    assert!(path.len() == 3 && path[0] == "org-a-1", "one move for each word: {path:?}");
}

#[tokio::test]
async fn websocket_obeys_a_command_between_its_turns() {
    // Wherever a session begins, there is a sibling to go to.
    let cluster = three_replicas().keys(siblings("org-a", 3)).start().await;
    for verb in ["disable", "drain"] {
        let mut talk = Codex::new(cluster.replicas[0].address(), ALICE).by_websocket();
        talk.turn("one").await;
        let key = first_key(&cluster.turns().await, &talk.codex);
        let mut quiet = socket_on(&cluster, 1, &key).await;
        let mut busy = socket_on(&cluster, 2, &key).await;
        busy.send(&plain("SLOW:4x1s")).await;
        busy.event(&["response.created"]).await;
        cluster.replicas[1].word(verb, &key).await;
        assert_eq!(quiet.closed().await, 1001, "{verb}");
        // A response that has begun comes to its end.
        busy.event(&["response.completed"]).await;
        assert_eq!(busy.closed().await, 1001, "{verb}");
        talk.turn("two").await;
        cluster.replicas[2].word("enable", &key).await;
        cluster.all_have(&key, READY).await;
        talk.turn("three").await;
        talk.hang_up();
        talk.turn("four").await;
        let path = path_of(&cluster.turns().await, &talk.codex.session);
        let expected = if verb == "disable" { 3 } else { 2 };
        assert_eq!((path.len(), &path[0]), (expected, &key), "{verb}: {path:?}");
        assert!(
            verb == "drain" || path[2] == key,
            "back on its own with the next connection: {path:?}"
        );
    }
}

#[tokio::test]
async fn command_on_an_organization_is_one_on_all_its_keys() {
    let cluster = three_replicas().start().await;
    let mut there = begin_on(&cluster, "org-b").await.0;
    let before = cluster.turns().await;
    let done = cluster.replicas[0].word("disable", "org:org-b").await;
    assert_eq!(done["keys"].as_array().map(Vec::len), Some(1), "{done}");
    cluster.all_have("org-b-1", DISABLED).await;
    // What it knows only its organization can open: it waits for it.
    let ended = there.turn("nobody may").await;
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
        "new sessions go elsewhere"
    );
    // Its own word still stands when that on its organization is ended.
    cluster.replicas[1].word("drain", "org-b-1").await;
    cluster.replicas[1].word("enable", "org:org-b").await;
    assert_eq!(cluster.replicas[2].key("org-b-1").await["conditions"][0]["reason"], "drained");
    cluster.replicas[1].word("enable", "org-b-1").await;
    cluster.all_have("org-b-1", READY).await;
    there.turn("as before").await.served();
    assert_eq!(path_of(&cluster.turns().await, &there.session), ["org-b-1"]);
}

#[tokio::test]
async fn command_outlives_replicas_and_the_store() {
    let mut cluster = three_replicas().server("drain", "\"2s\"").start().await;
    cluster.replicas[0].word("disable", "org-a-1").await;
    cluster.replicas[0].word("drain", "org:org-b").await;
    cluster.replicas[1].word("disable", "org-a-2").await;
    cluster.replicas[2].word("enable", "org-a-2").await;
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
    // One replica has been away while another word was said, and comes back to a store that has
    // lost all of them.
    cluster.redis().tell(&["FLUSHALL"]).await;
    cluster.replicas[0].kill().await;
    cluster.restart(0).await;
    holds(&cluster).await;
    let told: Vec<String> = cluster.redis().ask(&["HVALS", "warmkey:board"]).await;
    let count = |word: &str| told.iter().filter(|value| value.ends_with(word)).count();
    assert_eq!((count(" disabled"), count(" drained"), count(" enabled")), (1, 1, 1), "{told:?}");
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
    let done = cluster.replicas[0].word("disable", "org-a-1").await;
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
        "it is heeded here"
    );
    assert_eq!(cluster.replicas[1].key("org-a-1").await["state"], READY);
    cluster.redis().restart().await;
    eventually(SOON, "the others have heard", async || {
        let mut states = BTreeSet::new();
        for replica in &cluster.replicas {
            states.insert(replica.key("org-a-1").await["state"].to_string());
        }
        (states == BTreeSet::from([format!("{DISABLED:?}")])).then_some(())
    })
    .await;
}

#[tokio::test]
async fn probe_brings_back_what_has_been_put_right() {
    let cluster = three_replicas().start().await;
    let mut sessions = begin(&cluster, 8).await;
    let mut there = begin_on(&cluster, "org-a").await.0;
    cluster.upstream().exhaust("org-a").await;
    there.turn("no credit").await;
    cluster.all_have("org-a-2", DISABLED).await;
    cluster.upstream().heal().await;
    assert_eq!(there.turn("nobody has been told").await.answer.status, 429);
    let done = cluster.replicas[2].word("probe", "org:org-a").await;
    let answers = done["answers"].as_array().expect("answers");
    assert!(
        answers.len() == 3
            && answers
                .iter()
                .all(|answer| answer["status"] == 200 && answer["is_accepted"] == true),
        "{done}"
    );
    for key in ["org-a-1", "org-a-2", "org-a-3"] {
        // Ready, not coming back little by little.
        cluster.all_have(key, READY).await;
    }
    there.turn("topped up").await.served();
    // What has not been put right stays out of use.
    cluster.upstream().revoke("org-a-2").await;
    let done = cluster.replicas[0].word("probe", "org-a-2").await;
    assert_eq!(
        (&done["answers"][0]["status"], &done["answers"][0]["is_accepted"]),
        (&json!(401), &json!(false)),
        "{done}"
    );
    assert_eq!(done["keys"][0]["conditions"][0]["reason"], "rejected", "{done}");
    cluster.all_have("org-a-2", DISABLED).await;
    turn_each(&cluster, &mut sessions, 1).await;
    assert!(
        cluster.turns().await.iter().all(|turn| turn.status != 401),
        "no turn had to find that out"
    );
}

/// The first key in the file, which has a session that has never moved, and one that an operator's
/// word has moved to it.
#[tokio::test]
async fn key_without_weight_keeps_its_sessions_and_takes_no_new_ones() {
    let mut cluster =
        three_replicas().keys([siblings("org-a", 2), siblings("org-b", 1)].concat()).start().await;
    let mut sessions = begin(&cluster, 10).await;
    sessions.push(begin_on(&cluster, "org-a-1").await.0);
    sessions.push(begin_on(&cluster, "org-a-2").await.0);
    cluster.replicas[0].word("drain", "org-a-2").await;
    cluster.all_have("org-a-2", DISABLED).await;
    turn_each(&cluster, &mut sessions, 1).await;
    cluster.replicas[0].word("enable", "org-a-2").await;
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
        assert_eq!(path, now, "nobody moves");
    }
    let there = kept[before.len()..].iter().filter(|turn| turn.key == "org-a-1").count();
    assert!(there >= 2, "those that it has stay, however they came: {there}");
    begin(&cluster, 24).await;
    nameless(&cluster).await;
    let turns = cluster.turns().await;
    let nameless: Vec<_> =
        turns[kept.len()..].iter().filter(|turn| turn.session.is_none()).collect();
    assert_eq!(nameless.len(), 3, "turns that name no session go on");
    assert!(
        turns[kept.len()..].iter().all(|turn| turn.is_served() && turn.key != "org-a-1"),
        "nobody new comes"
    );
    assert_eq!(cluster.replicas[1].key("org-a-1").await["weight"], 0);
    eventually(ms(2_000), "nothing in flight", async || {
        cluster.replicas[1].keys().await.iter().all(|key| key["in_flight"] == 0).then_some(())
    })
    .await;
}
