//! Tests which turns are traced, and the spans of background work.

use super::{body, play, traceparent};
use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::collector::Collector;
use crate::world::simulator::{Fault, siblings};
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::Request;

async fn sampled(lines: &str) -> (Collector, Running) {
    let collector = Collector::start().await;
    let options = format!("{}{lines}", collector.options());
    let cluster = Cluster::new().keys(siblings("org-a", 1)).telemetry(&options);
    (collector, cluster.start().await)
}

/// The client's sampled flag is 01, and decides nothing.
#[tokio::test]
async fn failed_and_cold_turns_are_traced_whatever_the_share() {
    let (collector, cluster) = sampled("sample = 0.0").await;
    let request =
        |session| Request::turn(ALICE, body(session)).header("traceparent", &traceparent());
    for session in ["a", "a", "b"] {
        play(&cluster, &request(session), 200).await;
    }
    cluster.upstream().fails_with(Fault::failing("server_error").times(1)).await;
    let failed = play(&cluster, &request("a"), 200).await;
    // Another model reads nothing of the cache that this one has filled.
    let other = body("a").replace("gpt-5.4", "gpt-5.5");
    let cold = play(&cluster, &Request::turn(ALICE, other), 200).await;
    let traces = collector.traced(2).await;
    assert!(failed.ends_with(&traces[0].turn.id), "{failed}");
    assert_eq!(traces[1].turn.trace, cold);
    assert!(!traces[1].turn.said("warmkey.cold_reason").is_empty());
}

#[tokio::test]
async fn slow_turn_is_traced_whatever_the_share() {
    let (collector, cluster) = sampled("sample = 0.0\nslow = \"2500ms\"").await;
    play(&cluster, &Request::turn(ALICE, body("a")), 200).await;
    cluster.upstream().fails_with(Fault::limited(3).times(1)).await;
    let slow = play(&cluster, &Request::turn(ALICE, body("a")), 200).await;
    assert_eq!(collector.traced(1).await[0].turn.trace, slow);
}

/// The merge is about bindings that were made without the store.
#[tokio::test]
async fn merge_is_a_span_of_its_own() {
    let collector = Collector::start().await;
    let cluster = Cluster::new().keys(siblings("org-a", 1)).redis().store("timeout = \"300ms\"");
    let mut cluster = cluster.telemetry(&collector.options()).start().await;
    cluster.redis().kill().await;
    cluster.replica().shows("warmkey_store_up", 0.0).await;
    for session in ["a", "b"] {
        play(&cluster, &Request::turn(ALICE, body(session)), 200).await;
    }
    let merges = || collector.spans().into_iter().filter(|span| span.name == "merge");
    assert_eq!(merges().count(), 0, "there is nothing to merge into");
    cluster.redis().restart().await;
    let merged = eventually(SOON, "the merge is traced", async || {
        merges().find(|span| span.said("merged") == span.said("bindings"))
    })
    .await;
    assert_eq!(
        (merged.said("bindings"), merged.parent.as_str(), merged.is_error),
        ("2", "", false)
    );
    assert!(collector.turns().iter().all(|turn| turn.trace != merged.trace));
    assert_eq!(cluster.redis().bindings().await.len(), 2);
}

#[tokio::test]
async fn reload_is_a_span_of_its_own() {
    let (collector, mut cluster) = sampled("sample = 0.0").await;
    cluster.change(|cluster| cluster.clients("[[client]]\nid = \"carol\"\ntoken = \"t\"\n"));
    cluster.reload(0).await;
    let reload = eventually(SOON, "the reload is traced", async || {
        collector.spans().into_iter().find(|span| span.name == "reload")
    })
    .await;
    assert_eq!((reload.parent.as_str(), reload.resource["service.name"].as_str()), ("", "warmkey"));
    assert!(collector.turns().is_empty());
    let log = cluster.logs();
    assert!(!log.contains("\"spans\"") && !log.contains("\"span\""), "lines stand alone: {log}");
}
