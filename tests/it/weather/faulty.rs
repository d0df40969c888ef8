//! Tests a Redis that answers wrongly: emptied, full, read-only, loading, without its scripts.

use super::*;
use crate::world::simulator::path_of;

/// B-8, for sessions that a replica remembers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushed_redis_moves_no_session() {
    let mut scene = Scene::set(Cluster::new().redis()).await;
    scene.newcomers_join();
    for _ in 0..3 {
        scene.cluster.redis().run(&["FLUSHALL"]).await;
        scene.goes_on(ms(1_500)).await;
    }
    scene.goes_on(PERIOD * 2).await;
    // The store itself holds the sessions that have played since, and not only the replicas'
    // memory.
    assert_eq!(scene.cluster.redis().bindings().await.len(), KNOWN + NEW);
    scene.judge().await;
}

/// B-7: the bindings of bound sessions are found. New sessions follow their own order, and are
/// stored as soon as Redis has room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_redis_costs_no_turn() {
    let mut scene = Scene::set(Cluster::new().redis()).await;
    let stored = scene.cluster.redis().bindings().await.len();
    for setting in [["maxmemory-policy", "noeviction"], ["maxmemory", "1"]] {
        scene.cluster.redis().run(&["CONFIG", "SET", setting[0], setting[1]]).await;
    }
    scene.does_without(AWAY).await;
    assert_eq!(scene.cluster.redis().bindings().await.len(), stored, "Redis was full");
    scene.names("out_of_memory").await;
    scene.cluster.redis().run(&["CONFIG", "SET", "maxmemory", "0"]).await;
    scene.recovers().await;
    everything_is_stored(&mut scene).await;
    scene.judge().await;
}

/// Waits until the bindings made meanwhile are merged.
async fn everything_is_stored(scene: &mut Scene) {
    let redis = scene.cluster.redis();
    let is_stored = async || (redis.bindings().await.len() == KNOWN + NEW).then_some(());
    eventually(SOON, "every binding in the store", is_stored).await;
}

/// B-5: the primary has become a replica of a node that does not exist.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_that_takes_no_writes_costs_no_turn() {
    let mut scene = Scene::set(Cluster::new().redis()).await;
    let nowhere = crate::world::port::free();
    let (host, port) = (nowhere.ip().to_string(), nowhere.port().to_string());
    scene.cluster.redis().run(&["REPLICAOF", &host, &port]).await;
    scene.endures(AWAY).await;
    scene.names("readonly").await;
    scene.cluster.redis().run(&["REPLICAOF", "NO", "ONE"]).await;
    scene.recovers().await;
    everything_is_stored(&mut scene).await;
    scene.judge().await;
}

/// B-6: Redis loads its data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loading_redis_costs_no_turn() {
    let arguments = ["--enable-debug-command", "yes", "--rdbcompression", "no"];
    let mut scene = Scene::set(Cluster::new().redis_with(&arguments)).await;
    let redis = scene.cluster.redis();
    // Redis answers between keys while it loads, and each key takes two milliseconds: five seconds
    // in all.
    redis.run(&["DEBUG", "POPULATE", "2500", "elsewhere", "1100"]).await;
    for setting in [["key-load-delay", "2000"], ["loading-process-events-interval-bytes", "1024"]] {
        redis.run(&["CONFIG", "SET", setting[0], setting[1]]).await;
    }
    redis.send(&["DEBUG", "RELOAD"]).await;
    redis.reports("persistence", &["\nloading:1\r"]).await;
    scene.endures(ms(3_000)).await;
    scene.names("loading").await;
    scene.cluster.redis().reports("persistence", &["\nloading:1\r"]).await;
    scene.cluster.redis().reports("persistence", &["\nloading:0\r"]).await;
    scene.recovers().await;
    scene.judge().await;
}

/// B-15: if Redis does not know a script, the same turn sends it along.
#[tokio::test]
async fn redis_without_its_scripts_is_given_them_again() {
    let mut cluster = Cluster::new().keys(siblings("org-a", 6)).redis().start().await;
    cluster.replica().shows("warmkey_store_up", 1.0).await;
    let forget = async |cluster: &mut Running| cluster.redis().run(&["SCRIPT", "FLUSH"]).await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    for epoch in 1..=3 {
        forget(&mut cluster).await;
        codex.turn("by scripts").await.served();
        let (_, value) = cluster.redis().binding().await;
        let words: Vec<&str> = value.split(' ').collect();
        assert_eq!(
            (words[1], words.get(3)),
            (epoch.to_string().as_str(), Some(&"s")),
            "moved and sealed: {value:?}"
        );
        let key =
            path_of(&cluster.turns().await, &codex.session).pop().expect("the session has a key");
        if epoch < 3 {
            cluster.upstream().revoke(&key).await;
        }
    }
    assert!(
        cluster.replica().metrics().await.get(r#"warmkey_bindings_total{result="degraded"}"#).abs()
            < f64::EPSILON
    );
}
