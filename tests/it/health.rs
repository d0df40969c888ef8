//! Keys fail, and sessions do not: tests what the upstream refuses, and which keys then serve. Each
//! test has three replicas, a real Redis, and the upstream's record as the judge.

use crate::world::cluster::Cluster;
use crate::world::sessions::{begin, first_keys, go_on};
use crate::world::simulator::{Fault, Key, path_of, siblings};

mod attempts;
mod herd;
mod limited;
mod refused;
mod websocket;

/// Two organizations: one of two projects with two keys each, one of a single project.
fn pool() -> Vec<Key> {
    let side =
        (3..=4).map(|number| Key::new(&format!("org-a-{number}"), "org-a").of_project("side"));
    [siblings("org-a", 2), side.collect(), siblings("org-b", 2)].concat()
}

fn three() -> Cluster {
    Cluster::new().replicas(3).redis()
}

/// B5: only forced moves move a session. A limit that a turn waits for or leaves to a sibling moves
/// none. Neither does a failure, a new key, other weights or a deploy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b5_forced_moves_only() {
    let mut cluster = three().keys(pool()).spare(siblings("org-c", 1)).start().await;
    let mut all = begin(&cluster, 12).await;
    let first_keys = first_keys(&cluster, &all).await;
    for (fault, times) in [
        // After a second limit of the same key, siblings would serve its turns for a while.
        (Fault::limited(1), 1),
        (Fault::down(500), 2),
        (Fault::down(503), 2),
        (Fault::withdrawn(), 2),
        (Fault::forbidden(), 2),
    ] {
        cluster.upstream().fails_with(fault.times(times)).await;
        for codex in &mut all {
            codex.turn("whatever comes").await;
        }
        cluster.upstream().heal().await;
    }
    cluster.change(|description| description.keys([pool(), siblings("org-c", 1)].concat()));
    for number in 0..3 {
        cluster.reload(number).await;
    }
    cluster.replace(0).await;
    for codex in &mut all {
        go_on(&cluster, codex, 3).await;
    }
    let turns = cluster.turns().await;
    for (codex, first_key) in all.iter().zip(&first_keys) {
        let path = path_of(&turns, &codex.session);
        assert_eq!(
            (path.first(), path.last()),
            (Some(first_key), Some(first_key)),
            "the session stays: {path:?}"
        );
    }
    for replica in &cluster.replicas {
        let rebound = replica.metrics().await.get(r#"warmkey_bindings_total{result="rebound"}"#);
        assert!(rebound.abs() < f64::EPSILON, "no binding has changed");
    }
}
