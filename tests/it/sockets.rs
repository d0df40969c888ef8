//! The promise over WebSocket: one connection has one key, and a session has the same key over both
//! transports.

use std::collections::BTreeSet;

use serde_json::json;

use crate::world::cluster::{ALICE, Cluster};
use crate::world::codex::{Codex, sha256};
use crate::world::simulator::{Turn, keys_by_session, path_of, siblings};

fn cluster() -> Cluster {
    let keys = [siblings("org-a", 4), siblings("org-b", 2)].concat();
    Cluster::new().keys(keys).redis().replicas(2).balanced().simulator("time_scale = 50")
}

/// The turns that generated an answer, without refused handshakes.
fn served(turns: &[Turn], session: &str) -> Vec<Turn> {
    turns
        .iter()
        .filter(|turn| turn.is_served() && turn.session.as_deref() == Some(session))
        .cloned()
        .collect()
}

#[tokio::test]
async fn session_has_one_key_by_either_transport() {
    let cluster = cluster().start().await;
    let mut frames = BTreeSet::new();
    for number in 0..8 {
        let mut codex = Codex::new(cluster.address(), ALICE);
        if number % 2 == 0 {
            codex.turn("the session begins over HTTP").await.served();
        }
        let mut talk = codex.by_websocket();
        for text in ["one", "two"] {
            frames.insert(sha256(talk.turn(text).await.0.as_bytes()));
        }
        talk.hang_up();
        frames.insert(sha256(talk.turn("on a new connection").await.0.as_bytes()));
        talk.codex.turn("over HTTP").await.served();
        talk.hang_up();
        frames.insert(sha256(talk.turn("and back").await.0.as_bytes()));
        assert_eq!(talk.connections, 3);
    }
    let turns = cluster.turns().await;
    let keys = keys_by_session(&turns);
    assert_eq!(keys.len(), 8);
    assert!(keys.values().all(|keys| keys.len() == 1), "{keys:?}");
    assert!(keys.values().flatten().collect::<BTreeSet<_>>().len() > 1, "and not all the same one");
    let recorded: BTreeSet<_> = turns
        .iter()
        .filter(|turn| turn.transport.eq_ignore_ascii_case("websocket"))
        .map(|turn| turn.body_sha256.clone())
        .collect();
    assert!(frames.is_subset(&recorded), "every frame came as it was sent");
    // The cache had the whole history, whichever transport had brought it.
    for session in keys.keys() {
        let later: Vec<_> = served(&turns, session).into_iter().skip(2).collect();
        assert!(
            later.iter().all(|turn| turn.cached_tokens * 100 >= turn.ideal_cached_tokens * 99),
            "{later:?}"
        );
    }
}

#[tokio::test]
async fn b20_one_connection_one_key() {
    let cluster = cluster().start().await;
    let mut talks: Vec<_> =
        (0..6).map(|_| Codex::new(cluster.address(), ALICE).by_websocket()).collect();
    for talk in &mut talks {
        for text in ["one", "two", "three"] {
            talk.turn(text).await;
        }
        assert_eq!(talk.connections, 1);
    }
    // The key of a session dies: its connection ends, and the next one uses another key, on every
    // replica.
    let turns = cluster.turns().await;
    let dead = path_of(&turns, &talks[0].codex.session)[0].clone();
    cluster.upstream().revoke(&dead).await;
    for talk in &mut talks {
        for text in ["four", "five"] {
            talk.turn(text).await;
        }
        talk.codex.turn("over HTTP").await.served();
    }
    let turns = cluster.turns().await;
    for talk in &talks {
        let path = path_of(&turns, &talk.codex.session);
        let is_moved = path[0] == dead;
        assert_eq!(
            (path.len(), talk.connections),
            (1 + usize::from(is_moved), 1 + usize::from(is_moved)),
            "{path:?}"
        );
        let organizations: BTreeSet<_> =
            served(&turns, &talk.codex.session).into_iter().map(|turn| turn.organization).collect();
        assert_eq!(organizations.len(), 1, "its history is sealed by one organization");
    }
    assert!(
        turns.iter().filter(|turn| turn.key == dead && turn.status == 401).count()
            <= 2 * talks.len()
    );
}

#[tokio::test]
async fn upstream_that_closes_at_its_limit_costs_nothing() {
    // With this clock, sixty minutes last 7.2 seconds.
    let cluster = Cluster::new().simulator("time_scale = 500").start().await;
    let mut talk = Codex::new(cluster.address(), ALICE).by_websocket();
    let mut turns = 0;
    while talk.connections < 2 {
        talk.turn("on and on").await;
        turns += 1;
        assert!(turns < 10_000, "the limit is reached");
    }
    talk.turn("after it").await;
    let record = cluster.turns().await;
    assert_eq!(path_of(&record, &talk.codex.session).len(), 1);
}

#[tokio::test]
async fn replica_that_is_killed_in_mid_turn_costs_a_connection() {
    let mut cluster = cluster().start().await;
    let mut talk = Codex::new(cluster.address(), ALICE).by_websocket();
    talk.turn("one").await;
    let mut victim = None;
    for (number, replica) in cluster.replicas.iter().enumerate() {
        if replica.metrics().await.get("warmkey_active_websockets") > 0.0 {
            victim = Some(number);
        }
    }
    let victim = victim.expect("a replica has the connection");
    cluster.upstream().fault(json!({ "session": talk.codex.session, "stall": "1s", "cut_after_events": 2, "times": 1 })).await;
    let killing = async {
        cluster.replicas[victim].shows("warmkey_active_turns", 1.0).await;
        cluster.replicas[victim].kill().await;
    };
    tokio::join!(talk.turn("two"), killing);
    talk.turn("three").await;
    assert_eq!(talk.connections, 2);
    assert_eq!(path_of(&cluster.turns().await, &talk.codex.session).len(), 1);
}
