//! A primary that goes away, and Sentinels that promote another: the last acknowledged writes are
//! lost.

use super::*;
use crate::world::redis::shape::Shape;
use crate::world::simulator::path_of;

/// B-12: the primary is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_primary_is_replaced() {
    let mut scene = Scene::set(Cluster::new().redis_as(Shape::Sentinel)).await;
    let before = scene.waits().await;
    let dead = scene.cluster.sentinel().kill_primary().await;
    scene.newcomers_join();
    scene.cluster.sentinel().failed_over(dead).await;
    scene.recovers().await;
    scene.has_waited_little(&before).await;
    scene.judge().await;
}

/// B-12: the old primary still accepts connections, and comes back as a replica that takes no
/// writes (B-5).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_primary_is_replaced() {
    let mut scene = Scene::set(Cluster::new().redis_as(Shape::Sentinel)).await;
    let before = scene.waits().await;
    let trio = scene.cluster.sentinel();
    let stopped = trio.primary_number().await;
    trio.node(stopped).signal("STOP").await;
    scene.newcomers_join();
    scene.cluster.sentinel().failed_over(stopped).await;
    scene.recovers().await;
    scene.has_waited_little(&before).await;
    let old = scene.cluster.sentinel().node(stopped);
    old.signal("CONT").await;
    old.reports("replication", &["role:slave"]).await;
    scene.goes_on(PERIOD).await;
    scene.judge().await;
}

/// B9: only moves just before the failover may be lost with the primary. A replica that has seen
/// the newer epoch uses it further, and tells the new primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b9_failover() {
    let keys = siblings("org-a", 4);
    let mut cluster =
        Cluster::new().keys(keys).replicas(2).redis_as(Shape::Sentinel).store("").start().await;
    for replica in &cluster.replicas {
        replica.shows("warmkey_store_up", 1.0).await;
    }
    let mut sessions: Vec<Codex> =
        (0..40).map(|_| Codex::new(cluster.replicas[0].address(), ALICE)).collect();
    sessions = turn_each(sessions).await;
    let dead = path_of(&cluster.turns().await, &sessions[0].session).remove(0);
    // The replicas of Redis have all writes so far, and receive none from now on.
    cluster.sentinel().primary().await.is_copied().await;
    cluster.sentinel().cut_replicas_off().await;
    cluster.upstream().revoke(&dead).await;
    sessions = turn_each(sessions).await;
    let before = cluster.turns().await;
    let moved: Vec<String> = sessions
        .iter()
        .map(|codex| codex.session.clone())
        .filter(|session| path_of(&before, session).len() == 2)
        .collect();
    assert!(!moved.is_empty() && moved.len() < sessions.len(), "some have moved: {}", moved.len());
    cluster.upstream().heal().await;
    // The other replica knows the moves only by announcement. By its own knowledge, the old key
    // would serve.
    sessions.iter_mut().for_each(|session| session.moves_to(cluster.replicas[1].address()));
    sessions = turn_each(sessions).await;

    let killed = cluster.sentinel().kill_primary().await;
    cluster.sentinel().failed_over(killed).await;
    for replica in &cluster.replicas {
        replica.shows("warmkey_store_up", 1.0).await;
    }
    for number in [1, 0, 1] {
        sessions
            .iter_mut()
            .for_each(|session| session.moves_to(cluster.replicas[number].address()));
        sessions = turn_each(sessions).await;
    }
    let turns = cluster.turns().await;
    let others: Vec<_> = sessions
        .iter()
        .filter(|codex| path_of(&turns, &codex.session) != path_of(&before, &codex.session))
        .collect();
    assert!(others.is_empty(), "{} of {} sessions drifted", others.len(), sessions.len());
    let lagging = async || {
        let mut lagging = 0.0;
        for replica in &cluster.replicas {
            lagging += replica.metrics().await.get("warmkey_lagging_rebinds_total");
        }
        (lagging >= moved.len() as f64).then_some(())
    };
    eventually(SOON, "the metric that bounds what may drift", lagging).await;
}

/// B8 and B9: every replica knows a binding that differs from its session's own order. This holds
/// for a replica that has not served the session, and for one that was started since. It also holds
/// for a binding that the store has lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b9_first_bindings() {
    let cluster =
        Cluster::new().keys(siblings("org-a", 4)).replicas(3).redis_as(Shape::Sentinel).store("");
    let mut cluster = cluster.start().await;
    for replica in &cluster.replicas {
        replica.says("what is bound in the store is known").await;
    }
    cluster.replicas[0].command("disable", "org-a-1").await;
    cluster.all_have("org-a-1", "disabled").await;
    let new = |cluster: &Running| -> Vec<Codex> {
        (0..24).map(|_| Codex::new(cluster.replicas[0].address(), ALICE)).collect()
    };
    let mut sessions = turn_each(new(&cluster)).await;
    cluster.replicas[2].kill().await;
    cluster.restart(2).await;
    cluster.replicas[2].says("what is bound in the store is known").await;
    cluster.sentinel().primary().await.is_copied().await;
    cluster.sentinel().cut_replicas_off().await;
    sessions.extend(turn_each(new(&cluster)).await);
    let before = cluster.turns().await;
    cluster.replicas[0].command("enable", "org-a-1").await;
    for replica in &cluster.replicas {
        replica.shows("warmkey_key_state{key=\"org-a-1\",state=\"disabled\"}", 0.0).await;
    }

    let killed = cluster.sentinel().kill_primary().await;
    for number in [2, 1, 0] {
        sessions
            .iter_mut()
            .for_each(|session| session.moves_to(cluster.replicas[number].address()));
        sessions = turn_each(sessions).await;
    }
    cluster.sentinel().failed_over(killed).await;
    for replica in &cluster.replicas {
        replica.shows("warmkey_store_up", 1.0).await;
    }
    sessions = turn_each(sessions).await;
    let turns = cluster.turns().await;
    let others = sessions
        .iter()
        .filter(|codex| path_of(&turns, &codex.session) != path_of(&before, &codex.session))
        .count();
    assert_eq!(others, 0, "of {} sessions", sessions.len());
}
