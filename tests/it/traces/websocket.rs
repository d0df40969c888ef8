//! Turns on a WebSocket: one trace each, below the span that the message names.

use serde_json::json;

use super::{PROMPT, SPAN, TRACE, agrees, judged, traced, traceparent};
use crate::world::cluster::{ALICE, Cluster};
use crate::world::simulator::{Fault, siblings};
use crate::world::socket::{Socket, open};

/// A message as Codex sends it, with its own tracing on or off.
fn create(parent: Option<&str>) -> String {
    let mut metadata = json!({ "session_id": "a" });
    if let Some(parent) = parent {
        metadata["ws_request_header_traceparent"] = json!(parent);
        metadata["ws_request_header_tracestate"] = json!("");
    }
    let text = format!("{PROMPT} {}", "word ".repeat(2_000));
    json!({ "type": "response.create", "model": "gpt-5.4", "store": false,
        "client_metadata": metadata, "input": text })
    .to_string()
}

async fn turn(socket: &mut Socket, text: &str) {
    socket.send(text).await;
    socket.event(&["response.completed"]).await;
}

/// The handshake's own `traceparent` is the prewarm's, and no turn's.
#[tokio::test]
async fn turn_on_a_websocket_belongs_to_the_span_in_its_message() {
    let (collector, cluster) = traced(Cluster::new().keys(siblings("org-a", 1))).await;
    let other = format!("00-{}-{SPAN}-01", TRACE.replace('4', "5"));
    let headers = [("session-id", "a"), ("traceparent", other.as_str()), ("tracestate", "")];
    let (mut socket, _) = open(cluster.address(), ALICE, &headers).await.expect("a WebSocket");
    turn(&mut socket, &create(None)).await;
    turn(&mut socket, &create(Some(&traceparent()))).await;
    turn(&mut socket, &create(Some("garbage"))).await;

    let traces = collector.traced(3).await;
    for (trace, recorded) in traces.iter().zip(&judged(&cluster).await) {
        agrees(trace, recorded, "websocket");
        let stages: Vec<_> = trace.children.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(stages[..3], ["identify", "authenticate", "bind"]);
    }
    let parents: Vec<_> = traces.iter().map(|trace| trace.turn.parent.as_str()).collect();
    assert_eq!(parents, ["", SPAN, ""]);
    assert_eq!(traces[1].turn.trace, TRACE);
    let log = cluster.logs();
    assert!(log.contains(&format!("\"turn\":\"{TRACE}-{}\"", traces[1].turn.id)), "{log}");
    assert!(log.contains(&format!("\"turn\":\"{}\"", traces[0].turn.trace)), "{log}");
}

#[tokio::test]
async fn failed_turn_on_a_websocket_is_one_trace() {
    let (collector, cluster) = traced(Cluster::new().keys(siblings("org-a", 1))).await;
    let (mut socket, _) =
        open(cluster.address(), ALICE, &[("session-id", "a")]).await.expect("a WebSocket");
    turn(&mut socket, &create(None)).await;
    cluster.upstream().fails_with(Fault::down(500).times(1)).await;
    socket.send(&create(Some(&traceparent()))).await;
    socket.event(&["error"]).await;
    let traces = collector.traced(2).await;
    let failed = &traces[1];
    assert_eq!(
        (failed.turn.trace.as_str(), failed.turn.said("warmkey.outcome")),
        (TRACE, "upstream_error")
    );
    assert!(failed.turn.is_error);
    assert_eq!(failed.attempts()[0].said("error.type"), "500");
    for span in collector.spans() {
        assert!(!span.text.contains("canary"), "{}", span.text);
    }
}

/// A handshake is a turn only if it fails.
#[tokio::test]
async fn failed_handshake_is_one_trace() {
    let (collector, cluster) = traced(Cluster::new().keys(siblings("org-a", 1))).await;
    cluster.upstream().fails_with(Fault::exhausted().at_handshakes()).await;
    let headers = [("session-id", "a"), ("traceparent", &traceparent())];
    assert!(open(cluster.address(), ALICE, &headers).await.is_err());
    let traces = collector.traced(1).await;
    assert_eq!((traces[0].turn.trace.as_str(), traces[0].turn.parent.as_str()), (TRACE, SPAN));
    assert!(traces[0].turn.is_error);
    assert_eq!(traces[0].attempts()[0].said("warmkey.reason"), "limited");
}
