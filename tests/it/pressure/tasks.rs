//! Tests the tasks on which everything depends: each of them panics once, and the replica works as
//! before.

use crate::world::cluster::{ALICE, Cluster};
use crate::world::collector::Collector;
use crate::world::redis::shape::Shape;
use crate::world::simulator::siblings;
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Request, ask};

const RESTARTS: &str = "warmkey_task_restarts_total";

fn body(session: usize) -> String {
    format!(
        r#"{{"model":"gpt-5.4","prompt_cache_key":"s-{session}","stream":true,"input":"hello"}}"#
    )
}

/// Returns the tasks that a replica has begun again, as the log names them.
fn begun_again(log: &str) -> std::collections::BTreeSet<String> {
    let lines = log.lines().filter(|line| line.contains("begins again"));
    lines
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|line| line["task"].as_str().map(str::to_owned))
        .collect()
}

/// The thread that exports traces panics within an export, and exports what comes later.
#[tokio::test]
async fn export_of_traces_that_panics_begins_again() {
    let collector = Collector::start().await;
    let mut cluster = Cluster::new()
        .keys(siblings("org-a", 2))
        .telemetry(&collector.options())
        .environment("WARMKEY_PANIC", "traces")
        .start()
        .await;
    for turn in 1..=3 {
        let answer = ask(cluster.address(), &Request::turn(ALICE, body(turn))).await;
        assert!(answer.status == 200 && answer.whole, "{}", answer.text());
        collector.traced(turn).await;
        cluster.replica().shows(RESTARTS, 1.0).await;
    }
    assert!(begun_again(&cluster.logs()).contains("traces"));
    cluster.replica().terminate().await;
    assert_eq!(cluster.replicas[0].exit(SOON).await.code(), Some(0));
}

/// Each background task panics in the middle of its work.
#[tokio::test]
async fn task_that_panics_begins_again() {
    for (shape, own) in [
        (None, vec!["ledger_tokens", "ledger_writer"]),
        (Some(Shape::Standalone), vec!["gossip", "store_link", "store_subscriber"]),
        (Some(Shape::Sentinel), vec!["gossip", "store_lag", "store_link", "store_subscriber"]),
        (Some(Shape::Cluster), vec!["gossip", "store_cluster", "store_lag", "store_link"]),
    ] {
        let keys = siblings("org-a", 2);
        let cluster = Cluster::new()
            .keys(keys[..1].to_vec())
            .spare(keys[1..].to_vec())
            .shell("export WARMKEY_PANIC=all");
        let cluster = match shape {
            Some(shape) => cluster.redis_as(shape).replicas(2),
            None => cluster.ledger("url = \"sqlite:ledger.db\""),
        };
        let mut cluster = cluster.start().await;
        let replicas = 0..cluster.replicas.len();
        let mut all = vec![
            "admin",
            "clients",
            "heartbeat",
            "ledger_teller",
            "log_writer",
            "membership",
            "merging",
            "owners",
            "prober",
            "reload",
            "trail",
        ];
        all.extend(&own);
        for number in replicas.clone() {
            eventually(SOON, "each task has panicked", async || {
                let begun = begun_again(&cluster.replicas[number].process().log());
                all.iter().all(|task| begun.contains(*task)).then_some(())
            })
            .await;
            cluster.replicas[number].shows("warmkey_store_up", 1.0).await;
        }
        let restarts = cluster.replica().metrics().await.get(RESTARTS);
        assert!(restarts >= all.len() as f64, "{restarts} are counted");
        // Everything works: turns, sessions, the ledger, the board, the reload.
        let mut served = Vec::new();
        for number in [0, 1, 0] {
            let address = cluster.replicas[number % replicas.len()].address();
            let answer = ask(address, &Request::turn(ALICE, body(1))).await;
            assert!(answer.status == 200 && answer.whole, "{}", answer.text());
            served.push(cluster.upstream().recorded(served.len() + 1).await.pop().unwrap().key);
        }
        assert!(served.iter().all(|key| *key == served[0]), "{served:?}");
        if shape.is_none() {
            eventually(SOON, "the ledger has the turns", async || {
                let usage = cluster.replica().probe("/usage").await.json();
                (usage["total"]["turns"] == 3).then_some(())
            })
            .await;
        }
        cluster.change(|cluster| cluster.keys(keys.clone()));
        for number in replicas.clone() {
            cluster.reload(number).await;
        }
        for number in replicas {
            cluster.replicas[number].shows("warmkey_keys_waiting", 0.0).await;
        }
        if !matches!(shape, Some(Shape::Cluster)) {
            // Links to the nodes of a Cluster come and go, and each panics once.
            let now = cluster.replica().metrics().await.get(RESTARTS);
            assert_eq!(now, restarts, "once each");
        }
        cluster.replica().terminate().await;
        assert_eq!(cluster.replicas[0].exit(SOON).await.code(), Some(0));
    }
}
