//! Tests many sessions of one key that dies.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::three;
use crate::world::sessions::begin;
use crate::world::simulator::{path_of, siblings};
use crate::world::waiting::Budget;

/// B13: the sessions reach their new keys gradually. At first three seconds' worth of them move at
/// once. Then they move at twice the rate of five a second, over all replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b13_herd() {
    let cluster = three().keys(siblings("org-a", 2)).start().await;
    let mut all = begin(&cluster, 150).await;
    let turns = cluster.turns().await;
    all.retain(|codex| path_of(&turns, &codex.session) == ["org-a-1"]);
    let herd = all.len();
    assert!(herd > 50, "{herd}");
    let before = turns.len();
    cluster.upstream().revoke("org-a-1").await;
    let budget = Budget::begin(Duration::from_secs_f64(herd as f64 / 10.0 + 8.0));
    let (began, mut came) = (Instant::now(), 0);
    let mut turns = JoinSet::new();
    for mut codex in all {
        codex = codex.patient();
        turns.spawn(async move {
            codex.turn("moves").await.served();
        });
    }
    // At every moment, the record holds no more moves than that rate allows.
    while !turns.is_empty() {
        tokio::select! {
            ended = turns.join_next() => ended.expect("one is left").expect("all are served"),
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
        let record = cluster.turns().await;
        // The time is taken after the record was read, so the record holds no later move.
        let seconds = began.elapsed().as_secs_f64();
        let moved = record[before..]
            .iter()
            .filter(|turn| turn.key == "org-a-2" && turn.is_served())
            .count();
        assert!(moved <= 31 + (10.0 * seconds) as usize, "{moved} have come after {seconds} s");
        came = moved;
    }
    assert_eq!(came, herd, "each of them once");
    // The herd does not wait much longer than the rate requires, with an allowance for a slow
    // machine.
    budget.holds(&format!("{herd} sessions that move"));
}
