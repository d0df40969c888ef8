//! Tests which span is above a turn, and which below: the client's and the upstream's.

use super::{SPAN, TRACE, body, play, traced, traceparent};
use crate::world::admin::{TOKEN, asked};
use crate::world::cluster::{ALICE, Cluster};
use crate::world::collector::Collector;
use crate::world::recorder::{Recorder, completed};
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Request, values};

/// Codex's own tracing sends an empty `tracestate`, and one trace for all rounds of a turn.
#[tokio::test]
async fn turn_is_a_child_of_its_clients_span_and_has_a_name_of_its_own() {
    let (collector, mut cluster) =
        traced(Cluster::new().server("admin_token", &format!("{TOKEN:?}"))).await;
    let request = |session| {
        let request = Request::turn(ALICE, body(session)).header("traceparent", &traceparent());
        request.header("tracestate", "")
    };
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(play(&cluster, &request("a"), 200).await);
    }
    let traces = collector.traced(2).await;
    for (trace, id) in traces.iter().zip(&ids) {
        let turn = &trace.turn;
        assert_eq!((turn.trace.as_str(), turn.parent.as_str()), (TRACE, SPAN));
        assert_eq!(*id, format!("{TRACE}-{}", turn.id));
        assert_eq!(trace.names(), super::SERVED);
    }
    assert_ne!(traces[0].turn.id, traces[1].turn.id);
    // The ledger names both turns by the same ids.
    let target = format!("/sessions/{}", traces[0].turn.said("warmkey.session"));
    eventually(SOON, "both turns are written down", async || {
        let page = asked(cluster.replica().admin(), "GET", &target).await.json();
        let turns = page["turns"].as_array()?.clone();
        let found: Vec<_> = turns.iter().filter_map(|turn| turn["trace"].as_str()).collect();
        (found == ids).then_some(())
    })
    .await;
    let log = cluster.logs();
    assert!(ids.iter().all(|id| log.contains(&format!("\"turn\":\"{id}\""))), "{log}");
    collector.traced_in_all(&mut cluster, 2).await;
}

#[tokio::test]
async fn invalid_parent_begins_a_trace() {
    let (collector, cluster) = traced(Cluster::new()).await;
    for wrong in ["00-0-0-01", "garbage", ""] {
        let request = Request::turn(ALICE, body("a")).header("traceparent", wrong);
        let id = play(&cluster, &request, 200).await;
        assert_eq!(id.len(), 32, "{wrong}: {id}");
    }
    let traces = collector.traced(3).await;
    assert!(traces.iter().all(|trace| trace.turn.parent.is_empty()));
}

#[tokio::test]
async fn upstream_gets_the_attempts_span_only_if_asked_for() {
    let collector = Collector::start().await;
    for propagate in [false, true] {
        let upstream = Recorder::answering(completed()).await;
        let options = format!("{}propagate = {propagate}", collector.options());
        let cluster = Cluster::new().recorded_by(&upstream).telemetry(&options).start().await;
        play(&cluster, &Request::turn(ALICE, body("a")), 200).await;
        let inbound = Request::turn(ALICE, body("a"))
            .header("traceparent", &traceparent())
            .header("tracestate", "vendor=1");
        play(&cluster, &inbound, 200).await;
        let seen = upstream.seen();
        let parents: Vec<_> =
            seen.iter().map(|seen| values(&seen.headers, "traceparent")).collect();
        let states: Vec<_> = seen.iter().map(|seen| values(&seen.headers, "tracestate")).collect();
        assert_eq!(states, [vec![], vec!["vendor=1"]]);
        if !propagate {
            assert_eq!(parents, [vec![], vec![traceparent().as_str()]]);
            collector.traced(2).await;
            continue;
        }
        let traces = collector.traced(4).await;
        for (trace, sent) in traces[2..].iter().zip(parents) {
            let attempt = trace.attempts()[0];
            assert_eq!(sent, [format!("00-{}-{}-01", attempt.trace, attempt.id)]);
        }
        assert_eq!(traces[3].turn.trace, TRACE);
    }
}
