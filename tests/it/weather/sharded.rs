//! Tests a Cluster whose shards die, are taken over, and give their slots away.

use super::*;
use crate::world::redis::shape::Shape;
use crate::world::redis::shards::{Shards, slot_of};
use crate::world::replica::Replica;

const EXISTING: &str = r#"warmkey_bindings_total{result="existing"}"#;
const DEGRADED: &str = r#"warmkey_bindings_total{result="degraded"}"#;

/// Turns in flight at one replica when it waits for a core.
const AT_ONCE: f64 = 4.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shard_whose_replica_takes_over_moves_no_session() {
    let mut scene = Scene::set(Cluster::new().redis_as(Shape::Cluster)).await;
    let before = scene.waits().await;
    scene.cluster.shards().kill_primary(0).await;
    scene.newcomers_join();
    scene.cluster.shards().failed_over(0).await;
    scene.recovers().await;
    scene.has_waited_little(&before).await;
    scene.judge().await;
}

/// B-11, under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shard_that_comes_back_empty_moves_no_session() {
    let mut scene = Scene::set(Cluster::new().redis_as(Shape::Cluster)).await;
    scene.cluster.shards().kill_shard(1).await;
    scene.endures(AWAY).await;
    scene.cluster.shards().restart_shard(1).await;
    scene.recovers().await;
    scene.judge().await;
}

/// B-11: only the sessions of the dead shard go without the store.
#[tokio::test]
async fn dead_shard_concerns_only_its_own_sessions() {
    let mut cluster = Cluster::new()
        .keys(siblings("org-a", 4))
        .redis_as(Shape::Cluster)
        .store("timeout = \"300ms\"")
        .start()
        .await;
    cluster.replica().shows("warmkey_store_up", 1.0).await;
    let mut sessions: Vec<(Codex, usize)> = Vec::new();
    let mut known = BTreeSet::new();
    for _ in 0..24 {
        let mut codex = Codex::new(cluster.address(), ALICE);
        codex.turn("first").await.served();
        let names: BTreeSet<String> = cluster.store().bindings().await.into_iter().collect();
        let new: Vec<&String> = names.difference(&known).collect();
        assert_eq!(new.len(), 1, "one session, one binding");
        sessions.push((codex, Shards::shard_of(new[0])));
        known = names;
    }
    assert!(
        (0..3).all(|shard| sessions.iter().any(|(_, own)| *own == shard)),
        "sessions on every shard"
    );
    cluster.shards().kill_shard(2).await;
    for round in 0..3 {
        for (codex, shard) in &mut sessions {
            let before = counts(cluster.replica()).await;
            codex.turn("a shard is dead").await.served();
            let after = eventually(SOON, "the turn is counted", async || {
                let after = counts(cluster.replica()).await;
                (after != before).then_some(after)
            })
            .await;
            let (existing, degraded) = (after.0 - before.0, after.1 - before.1);
            let expected = if *shard == 2 { (0.0, 1.0) } else { (1.0, 0.0) };
            assert_eq!((existing, degraded), expected, "round {round}, shard {shard}");
        }
    }
    let turns = cluster.turns().await;
    let moved = drift(
        BTreeMap::new(),
        turns.iter().map(|turn| (turn.session.clone().unwrap_or_default(), turn.key.clone())),
    );
    assert!(moved.is_empty(), "{moved:?}");
}

async fn counts(replica: &Replica) -> (f64, f64) {
    let metrics = replica.metrics().await;
    (metrics.get(EXISTING), metrics.get(DEGRADED))
}

/// B-10: every binding moves to another shard. Each slot is first open for the move (ASK) and then
/// elsewhere (MOVED).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_move_under_load_move_no_session() {
    let mut scene = Scene::set(Cluster::new().redis_as(Shape::Cluster)).await;
    scene.newcomers_join();
    let slots: BTreeMap<u16, usize> = {
        let names = scene.cluster.store().bindings().await;
        names.iter().map(|name| (slot_of(name), Shards::shard_of(name))).collect()
    };
    let moves: Vec<(u16, usize)> = slots.into_iter().collect();
    let (failures, degraded) = (scene.failures().await, scene.degraded().await);
    let began = std::time::Instant::now();
    for some in moves.chunks(40) {
        for (slot, shard) in some {
            scene.cluster.shards().open_move(*slot, *shard, (shard + 1) % 3).await;
        }
        scene.goes_on(ms(1_000)).await;
        for (slot, shard) in some {
            scene.cluster.shards().finish_move(*slot, *shard, (shard + 1) % 3).await;
        }
    }
    scene.goes_on(PERIOD).await;
    assert_eq!(scene.failures().await, failures, "a slot that moves is no failure");
    // Whenever a process waits for a core, a few turns may be late, but not one for each slot.
    let (late, excused) = (scene.degraded().await - degraded, scene.lateness(began) * AT_ONCE);
    assert!(
        late < moves.len() as f64 / 5.0 + excused,
        "a slot that moves is no outage: {late} turns, {excused} excused"
    );
    scene.judge().await;
}
