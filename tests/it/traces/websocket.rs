//! Tests turns on a WebSocket: each has one trace, below the span that its message names.

use serde_json::json;

use super::{PROMPT, SPAN, TRACE, agrees, judged, traced, traceparent};
use crate::world::cluster::{ALICE, Cluster};
use crate::world::collector::Collector;
use crate::world::simulator::{Fault, siblings};
use crate::world::socket::{self, Socket, Upstream, open};
use crate::world::wire::value;

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

/// The handshake's own `traceparent` belongs to the prewarm, and to no turn.
#[tokio::test]
async fn turn_on_a_websocket_belongs_to_the_span_in_its_message() {
    let (collector, mut cluster) = traced(Cluster::new().keys(siblings("org-a", 1))).await;
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
    drop(socket);
    collector.traced_in_all(&mut cluster, 3).await;
}

#[tokio::test]
async fn failed_turn_on_a_websocket_is_one_trace() {
    let (collector, mut cluster) = traced(Cluster::new().keys(siblings("org-a", 1))).await;
    let (mut socket, _) =
        open(cluster.address(), ALICE, &[("session-id", "a")]).await.expect("a WebSocket");
    turn(&mut socket, &create(None)).await;
    cluster.upstream().fails_with(Fault::down(500).times(1)).await;
    socket.send(&create(Some(&traceparent()))).await;
    socket.event(&["error"]).await;
    drop(socket);
    let traces = collector.traced_in_all(&mut cluster, 2).await;
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

/// A handshake that another key accepts is no turn, and adds nothing to the turns after it.
#[tokio::test]
async fn handshake_that_another_key_takes_is_no_trace() {
    let (collector, mut cluster) = traced(Cluster::new().keys(siblings("org-a", 2))).await;
    let headers = [("session-id", "a"), ("thread-id", "a")];
    let (mut socket, _) = open(cluster.address(), ALICE, &headers).await.expect("a WebSocket");
    turn(&mut socket, &create(None)).await;
    drop(socket);
    let key = collector.traced(1).await[0].turn.said("warmkey.key").to_owned();
    cluster.upstream().revoke(&key).await;
    let (mut socket, _) = open(cluster.address(), ALICE, &headers).await.expect("a WebSocket");
    turn(&mut socket, &create(Some(&traceparent()))).await;
    drop(socket);
    let traces = collector.traced_in_all(&mut cluster, 2).await;
    let served: Vec<_> = judged(&cluster).await;
    let served: Vec<_> = served.iter().filter(|turn| turn["status"] == 200).collect();
    for (trace, recorded) in traces.iter().zip(&served) {
        agrees(trace, recorded, "websocket");
    }
    let moved = &traces[1].turn;
    assert_eq!((moved.trace.as_str(), moved.parent.as_str()), (TRACE, SPAN));
    assert_ne!(moved.said("warmkey.key"), key);
    assert_eq!(moved.said("warmkey.binding"), "rebound");
}

/// A handshake belongs to no span. The upstream receives the client's own `traceparent` or none,
/// and every message byte by byte.
#[tokio::test]
async fn upstream_gets_no_span_of_ours_on_a_websocket() {
    let collector = Collector::start().await;
    let upstream = Upstream::start().await;
    let options = format!("{}propagate = true", collector.options());
    let cluster = Cluster::new().upstream_at(&upstream.url()).telemetry(&options).start().await;
    let parent = traceparent();
    for own in [None, Some(parent.as_str())] {
        let mut headers = vec![("session-id", "a")];
        headers.extend(own.map(|own| ("traceparent", own)));
        let (opened, mut above) = tokio::join!(open(cluster.address(), ALICE, &headers), async {
            let asked = upstream.asked().await;
            assert_eq!(value(&asked.headers, "traceparent"), own, "{:?}", asked.headers);
            asked.accept("").await
        });
        let (mut client, _) = opened.expect("a WebSocket");
        socket::turn(&mut client, &mut above, "resp_1").await;
        let message = create(own);
        client.send(&message).await;
        assert_eq!(above.text().await, message);
        above.send(&socket::completed("resp_2")).await;
        client.text().await;
    }
    let traces = collector.traced(4).await;
    assert_eq!(traces[3].turn.trace, TRACE);
}
