//! Tests a collector that is down, silent, late or behind TLS. No turn waits for it, and neither
//! does a replica's end.

use std::net::SocketAddr;
use std::time::Duration;

use super::{body, play};
use crate::world::certificates::Certificates;
use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::collector::{Collector, options};
use crate::world::port;
use crate::world::process::Folder;
use crate::world::trap::Trap;
use crate::world::waiting::{Budget, SOON, eventually};
use crate::world::wire::Request;

const DROPPED: &str = "warmkey_traces_dropped_total";
/// Turns that are played.
const TURNS: usize = 40;
/// Time that a hanging collector would cost if a turn or an end waited for it.
const LIMIT: Duration = Duration::from_secs(10);

async fn traced_at(address: SocketAddr) -> Running {
    Cluster::new().telemetry(&options(address)).start().await
}

async fn turns(cluster: &Running) {
    let budget = Budget::begin(LIMIT);
    for number in 0..TURNS {
        play(cluster, &Request::turn(ALICE, body(&format!("s{}", number % 4))), 200).await;
    }
    budget.holds("turns that wait for nothing");
}

/// How often the log says this.
fn said(cluster: &Running, text: &str) -> usize {
    cluster.logs().matches(text).count()
}

#[tokio::test]
async fn collector_that_is_down_costs_traces_and_nothing_else() {
    let address = port::free();
    let mut cluster = traced_at(address).await;
    assert_eq!(cluster.replica().metrics().await.get(DROPPED), 0.0);
    turns(&cluster).await;
    // Spans of other work are dropped, too, so there may be more.
    eventually(SOON, "all traces are counted as dropped", async || {
        (cluster.replica().metrics().await.get(DROPPED) >= TURNS as f64).then_some(())
    })
    .await;
    cluster.replica().says("the collector did not take traces").await;
    assert_eq!(said(&cluster, "the collector did not take traces"), 1, "{}", cluster.logs());

    let collector = Collector::start_at(address).await;
    let id = play(&cluster, &Request::turn(ALICE, body("late")), 200).await;
    let traces = collector.traced(1).await;
    assert_eq!(traces[0].turn.trace, id, "a collector that comes late gets what comes later");
    cluster.replica().says("the collector takes traces again").await;
    cluster.replica().terminate().await;
    assert!(cluster.replicas[0].exit(SOON).await.success());
}

/// Spans that wait are exported before the replica ends.
#[tokio::test]
async fn replica_that_leaves_exports_what_waits() {
    let collector = Collector::start().await;
    let mut cluster = Cluster::new().telemetry(&collector.options()).start().await;
    for _ in 0..3 {
        play(&cluster, &Request::turn(ALICE, body("a")), 200).await;
    }
    cluster.replica().terminate().await;
    assert!(cluster.replicas[0].exit(SOON).await.success());
    assert_eq!(collector.turns().len(), 3);
}

/// The collector accepts connections, and never answers.
#[tokio::test]
async fn collector_that_hangs_costs_neither_turns_nor_the_end() {
    let mut cluster = traced_at(Trap::start().await.address()).await;
    turns(&cluster).await;
    eventually(SOON, "what no collector took is counted", async || {
        (cluster.replica().metrics().await.get(DROPPED) >= TURNS as f64).then_some(())
    })
    .await;
    // This turn's trace still waits when the replica ends.
    play(&cluster, &Request::turn(ALICE, body("last")), 200).await;
    let budget = Budget::begin(LIMIT);
    cluster.replica().terminate().await;
    assert!(cluster.replicas[0].exit(SOON).await.success());
    budget.holds("the end of a replica whose collector hangs");
}

/// The trusted authorities are those of the system, or those that `SSL_CERT_FILE` names.
#[tokio::test]
async fn collector_behind_tls_is_believed_only_with_its_authority() {
    let folder = Folder::new();
    let [made, other] = [
        Certificates::make(folder.path(), "one").await,
        Certificates::make(folder.path(), "other").await,
    ];
    let collector = Collector::start_with(&made).await;
    let options = format!("otlp_endpoint = \"https://{}\"\n", collector.address());
    let traced_with = async |authority: String| {
        let cluster = Cluster::new().telemetry(&options);
        cluster.environment("SSL_CERT_FILE", &authority).start().await
    };
    let wrong = traced_with(other.authority()).await;
    play(&wrong, &Request::turn(ALICE, body("a")), 200).await;
    eventually(SOON, "the trace is counted as dropped", async || {
        (wrong.replica().metrics().await.get(DROPPED) >= 1.0).then_some(())
    })
    .await;
    assert!(collector.spans().is_empty(), "nothing is told to a stranger");

    let right = traced_with(made.authority()).await;
    let id = play(&right, &Request::turn(ALICE, body("b")), 200).await;
    assert_eq!(collector.traced(1).await[0].turn.trace, id);
    assert_eq!(right.replica().metrics().await.get(DROPPED), 0.0);
}
