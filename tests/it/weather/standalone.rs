//! Tests a single Redis that goes away: killed, stopped, or behind a cable that is silent, refused
//! or slow.

use super::*;
use crate::world::cable::{Cable, Weather};
use crate::world::process::Folder;
use crate::world::redis::Redis;
use crate::world::waiting::is_long;

/// A stop of more than a second looks the same to turns. `WARMKEY_LONG=1` makes it a minute.
fn a_long_time() -> Duration {
    if is_long() { Duration::from_secs(60) } else { AWAY }
}

/// Three replicas, each with a cable of its own to the one Redis.
async fn cabled(folder: &Folder) -> (Redis, Vec<Cable>, Cluster) {
    let redis = Redis::start(folder.path()).await;
    let mut cables = Vec::new();
    for _ in 0..3 {
        cables.push(Cable::to(redis.address()).await);
    }
    let urls: Vec<String> = cables.iter().map(Cable::url).collect();
    let cluster = Cluster::new().stores_at(&urls);
    (redis, cables, cluster)
}

/// B-1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_that_comes_back_empty_moves_no_session() {
    let mut scene = Scene::set(Cluster::new().redis()).await;
    scene.cluster.redis().kill().await;
    scene.endures(AWAY).await;
    scene.cluster.redis().restart().await;
    scene.recovers().await;
    scene.judge().await;
}

/// B-2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_redis_that_continues_is_found_again() {
    let mut scene = Scene::set(Cluster::new().redis()).await;
    scene.cluster.redis().signal("STOP").await;
    scene.endures(a_long_time()).await;
    scene.cluster.redis().signal("CONT").await;
    scene.recovers().await;
    scene.judge().await;
}

/// B-3: first silence, and then a worse fault: the address refuses connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_behind_a_silent_cable_costs_no_turn() {
    let folder = Folder::new();
    let (_redis, cables, cluster) = cabled(&folder).await;
    let mut scene = Scene::set(cluster).await;
    for weather in [Weather::Silent, Weather::Refused] {
        cables.iter().for_each(|cable| cable.set(weather));
        scene.endures(AWAY).await;
        cables.iter().for_each(|cable| cable.set(Weather::Fair));
        scene.recovers().await;
    }
    scene.judge().await;
}

/// A Redis that is slower than any deadline counts as away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_that_answers_too_late_costs_no_turn() {
    let folder = Folder::new();
    let (_redis, cables, cluster) = cabled(&folder).await;
    let mut scene = Scene::set(cluster).await;
    for late in [50, 500] {
        // Each way has half of the delay.
        cables.iter().for_each(|cable| cable.set(Weather::Slow(ms(late / 2))));
        scene.endures(AWAY).await;
        cables.iter().for_each(|cable| cable.set(Weather::Fair));
        scene.recovers().await;
    }
    scene.judge().await;
}

/// If Redis is slow but in time, turns wait for its answer, and nothing else changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_redis_that_is_in_time_is_used() {
    let folder = Folder::new();
    let (redis, cables, cluster) = cabled(&folder).await;
    let mut scene = Scene::set(cluster).await;
    let asked = redis.calls("get").await;
    cables.iter().for_each(|cable| cable.set(Weather::Slow(ms(5))));
    scene.newcomers_join();
    scene.goes_on(AWAY).await;
    assert!(redis.calls("get").await > asked + 100, "the store is asked all the same");
    scene.judge().await;
}

/// Connections that break or fall silent are replaced. Meanwhile the replica's memory answers the
/// questions in flight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_again_and_again_cost_no_turn() {
    let folder = Folder::new();
    let (_redis, cables, cluster) = cabled(&folder).await;
    let mut scene = Scene::set(cluster).await;
    scene.newcomers_join();
    for end in [Cable::reset, Cable::close, Cable::strand] {
        cables.iter().for_each(end);
        scene.goes_on(ms(1_500)).await;
        scene.is_found(Instant::now()).await;
    }
    scene.judge().await;
}
