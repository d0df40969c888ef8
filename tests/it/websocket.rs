//! Responses over WebSocket: what passes, what is written down, what a connection may ask for.

use futures_util::SinkExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::simulator::siblings;
use crate::world::socket::{Socket, Upstream, completed, create, created, open, session, turn};
use crate::world::waiting::{ANSWER, SOON, eventually, ms, within};

/// A cluster, and both ends of a WebSocket through it.
async fn connected(cluster: Cluster) -> (Running, Upstream, Socket, Socket) {
    let upstream = Upstream::start().await;
    let cluster = cluster.upstream_at(&upstream.url()).start().await;
    let (client, there) = tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    (cluster, upstream, client, there)
}

fn turns(outcome: &str) -> String {
    format!("warmkey_turns_total{{transport=\"websocket\",outcome=\"{outcome}\"}}")
}

#[tokio::test]
async fn text_passes_as_it_came_in_both_directions() {
    let (_cluster, _upstream, mut client, mut there) = connected(Cluster::new()).await;
    let odd = [
        create(None),
        r#" { "type" : "response.interrupt" , "type":"x","n":1.0e2,"u":"\u00e9é" } "#.to_owned(),
        r#"{"type":"response.cancel"}"#.to_owned(),
        "[1,2]".to_owned(),
        format!(r#"{{"type":"response.steer","input":"{}"}}"#, "y".repeat(300_000)),
    ];
    for text in &odd {
        client.send(text).await;
        assert_eq!(there.text().await, *text);
    }
    for text in
        odd.iter().map(String::as_str).chain(["no JSON", r#"{"type":"codex.rate_limits"}"#, ""])
    {
        there.send(text).await;
        assert_eq!(client.text().await, text);
    }
    for bytes in [&b"\0\xff"[..], b""] {
        client.0.send(Message::binary(bytes)).await.expect("the connection is open");
        assert!(matches!(there.next().await, Some(Ok(Message::Binary(data))) if data == bytes));
    }
}

#[tokio::test]
async fn every_response_is_a_turn_in_the_books() {
    let (cluster, _upstream, mut client, mut there) = connected(Cluster::new()).await;
    let replica = cluster.replica();
    replica.shows("warmkey_active_websockets", 1.0).await;
    assert_eq!(replica.metrics().await.sum("warmkey_turns_total"), 0.0, "a handshake is no turn");
    turn(&mut client, &mut there, "resp_1").await;
    turn(&mut client, &mut there, "resp_2").await;
    let metrics = replica.metrics().await;
    assert_eq!(
        metrics.get(&turns("completed")),
        2.0,
        "written down before the client has the last word"
    );
    assert_eq!(metrics.get("warmkey_active_turns"), 0.0);
    assert_eq!(metrics.get(r#"warmkey_bindings_total{result="created"}"#), 1.0);
    assert_eq!(metrics.get(r#"warmkey_bindings_total{result="existing"}"#), 1.0);
    assert_eq!(
        metrics
            .sum_where(|series| series.starts_with("warmkey_input_tokens_total")
                && series.contains("read")),
        17_664.0
    );
    assert_eq!(metrics.sum("warmkey_output_tokens_total"), 14.0);
    // Two lanes, and one response that the upstream starts by itself.
    for lane in ["a", "b"] {
        client
            .send(&create(None).replace("\"model\"", &format!("\"stream_id\":{lane:?},\"model\"")))
            .await;
        there.text().await;
    }
    replica.shows("warmkey_active_turns", 2.0).await;
    let on = |lane: &str, event: String| {
        event.replace("\"response\"", &format!("\"stream_id\":{lane:?},\"response\""))
    };
    let incomplete = completed("resp_b").replace("completed", "incomplete");
    for event in [
        on("b", created("resp_b")),
        on("a", created("resp_a")),
        on("b", incomplete),
        on("b", created("resp_c")),
    ] {
        there.send(&event).await;
        assert_eq!(client.text().await, event);
    }
    let metrics = replica.metrics().await;
    assert_eq!(
        (metrics.get(&turns("incomplete")), metrics.get("warmkey_active_turns")),
        (1.0, 2.0)
    );
    drop(client);
    replica.shows(&turns("client_left"), 2.0).await;
    replica.shows("warmkey_active_turns", 0.0).await;
    replica.shows("warmkey_active_websockets", 0.0).await;
    let log = cluster.logs();
    let line = log
        .lines()
        .find(|line| line.contains("\"transport\":\"websocket\""))
        .expect("a line a turn");
    let line: serde_json::Value = serde_json::from_str(line).expect("a log line is JSON");
    assert_eq!(line["outcome"], "completed", "{line}");
    assert_eq!(
        (&line["client"], &line["status"], &line["cached_tokens"]),
        (&json!("alice"), &json!(200), &json!(8832))
    );
}

#[tokio::test]
async fn only_ids_of_its_own_may_be_gone_on_from() {
    let (cluster, _upstream, mut client, mut there) = connected(Cluster::new()).await;
    turn(&mut client, &mut there, "resp_own").await;
    let refusal = |id: &str| {
        json!({ "type": "error", "status": 400, "error": { "type": "invalid_request_error", "code": "previous_response_not_found",
            "message": format!("Previous response with id '{id}' not found."), "param": "previous_response_id" } })
    };
    client.send(&create(Some("resp_of_bob"))).await;
    assert_eq!(client.json().await, refusal("resp_of_bob"));
    client
        .send(r#"{"type":"response.steer","stream_id":"l","previous_response_id":"resp_\"x"}"#)
        .await;
    let mut expected = refusal("resp_\"x");
    expected["stream_id"] = json!("l");
    assert_eq!(client.json().await, expected);
    cluster.replica().shows(&turns("refused"), 2.0).await;
    // The connection goes on.
    let own = create(Some("resp_own"));
    client.send(&own).await;
    assert_eq!(there.text().await, own);
}

#[tokio::test]
async fn what_is_no_json_is_refused_and_the_connection_goes_on() {
    let (_cluster, _upstream, mut client, mut there) = connected(Cluster::new()).await;
    for text in ["", "{", "text", "{\"type\":\"response.create\",}"] {
        client.send(text).await;
        let frame = client.json().await;
        assert_eq!(
            (&frame["status"], &frame["error"]["code"]),
            (&json!(400), &json!("invalid_json")),
            "{text}"
        );
    }
    turn(&mut client, &mut there, "resp_1").await;
}

#[tokio::test]
async fn a_client_may_be_held_to_some_models() {
    let clients =
        format!("[[client]]\nid = \"alice\"\ntoken = {ALICE:?}\nmodels = [\"gpt-5.4\"]\n");
    let (_cluster, _upstream, mut client, mut there) =
        connected(Cluster::new().clients(&clients)).await;
    for other in [
        create(None).replace("gpt-5.4", "gpt-6"),
        r#"{"type":"response.create","input":"x"}"#.into(),
    ] {
        client.send(&other).await;
        let frame = client.json().await;
        assert_eq!(
            (&frame["status"], &frame["error"]["code"]),
            (&json!(403), &json!("model_not_allowed"))
        );
    }
    turn(&mut client, &mut there, "resp_1").await;
}

#[tokio::test]
async fn a_refusal_of_the_key_becomes_a_reason_to_connect_anew() {
    for (status, code) in [(401, "invalid_api_key"), (429, "credit_balance_exhausted")] {
        let keys = [siblings("org-a", 1), siblings("org-b", 1)].concat();
        let (cluster, upstream, mut client, mut there) = connected(Cluster::new().keys(keys)).await;
        client.send(&create(None)).await;
        there.text().await;
        let refusal = json!({ "type": "error", "status": status, "error": { "type": "t", "code": code, "message": "canary" } });
        there.send(&refusal.to_string()).await;
        let asked = async {
            if status == 401 {
                upstream.is_probed().await;
            }
        };
        let (frame, ()) = tokio::join!(client.json(), asked);
        let message = "Responses websocket connection limit reached (60 minutes). Create a new websocket connection to continue.";
        let error = json!({ "type": "invalid_request_error", "code": "websocket_connection_limit_reached", "message": message });
        assert_eq!(frame, json!({ "type": "error", "status": 400, "error": error }));
        assert_eq!(client.closed().await, 1001);
        cluster.replica().shows(&turns("upstream_error"), 1.0).await;
        // The next connection lands elsewhere.
        let disabled = cluster.replica().metrics().await.sum_where(|series| {
            series.starts_with("warmkey_key_state") && series.contains("state=\"disabled\"")
        });
        assert_eq!(disabled, 1.0);
        let (mut client, mut there) =
            tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
        turn(&mut client, &mut there, "resp_1").await;
        cluster.replica().shows(r#"warmkey_bindings_total{result="rebound"}"#, 1.0).await;
    }
}

/// Only a handshake that names the model finds another key, and only what is not sealed another
/// organization.
#[tokio::test]
async fn a_limit_is_a_reason_to_connect_anew_where_that_helps() {
    let anew = "websocket_connection_limit_reached";
    for (announced, is_sealed, code, decision) in [
        (Some("gpt-5.4"), false, anew, "retry"),
        (Some("gpt-5.4"), true, "rate_limit_exceeded", "refuse"),
        (Some("gpt-6"), false, "rate_limit_exceeded", "refuse"),
        (None, false, "rate_limit_exceeded", "refuse"),
    ] {
        let upstream = Upstream::start().await;
        let keys = [siblings("org-a", 1), siblings("org-b", 1)].concat();
        let cluster = Cluster::new().keys(keys).upstream_at(&upstream.url()).start().await;
        let metadata =
            announced.map_or_else(|| "{}".to_owned(), |model| format!(r#"{{"model":{model:?}}}"#));
        let headers = [("session-id", "s"), ("x-codex-turn-metadata", metadata.as_str())];
        let (client, mut there) =
            tokio::join!(open(cluster.address(), ALICE, &headers), upstream.accept());
        let (mut client, _) = client.expect("it is accepted");
        let sealed = r#"[{"type":"reasoning","encrypted_content":"x"}, "#;
        let ask = if is_sealed { create(None).replacen('[', sealed, 1) } else { create(None) };
        client.send(&ask).await;
        there.text().await;
        there.send(r#"{"type":"error","status":429,"error":{"code":"rate_limit_exceeded"}}"#).await;
        assert_eq!(client.json().await["error"]["code"], code, "{announced:?} {is_sealed}");
        let decided =
            format!("warmkey_decisions_total{{decision={decision:?},reason=\"limited\"}}");
        cluster.replica().shows(&decided, 1.0).await;
    }
}

#[tokio::test]
async fn other_errors_pass_as_they_came_or_say_when_to_come_again() {
    let (_cluster, _upstream, mut client, mut there) = connected(Cluster::new()).await;
    let refuse = async |client: &mut Socket, there: &mut Socket, refusal: &str| {
        client.send(&create(None)).await;
        there.text().await;
        there.send(refusal).await;
        client.text().await
    };
    for refusal in [
        r#"{"type":"error","status":400,"error":{"code":"invalid_value"} }"#,
        r#"{"type":"error","status":500,"error":{"code":"server_error"} }"#,
        r#"{"type":"error","status":429,"error":{"code":"slow_down"},"headers":{"retry-after":"9"} }"#,
        r#"{"type":"error","status":429,"error":{"code":"rate_limit_exceeded"},"headers":{"retry-after":"1"} }"#,
    ] {
        assert_eq!(refuse(&mut client, &mut there, refusal).await, refusal);
    }
    // Codex gives up on these, as they are.
    for (refusal, code, waits) in [
        (
            r#"{"type":"error","status":429,"error":{"code":"rate_limit_exceeded"} }"#,
            "rate_limit_exceeded",
            "20",
        ),
        (
            r#"{"type":"error","status":503,"error":{"code":"server_is_overloaded"} }"#,
            "no_key_available",
            "5",
        ),
    ] {
        let frame: serde_json::Value =
            serde_json::from_str(&refuse(&mut client, &mut there, refusal).await).expect("JSON");
        assert_eq!(
            (&frame["error"]["code"], &frame["headers"]["retry-after"]),
            (&json!(code), &json!(waits))
        );
    }
    // After the first event there is nothing to hide, and nobody to hide it for.
    turn(&mut client, &mut there, "resp_1").await;
    client.send(&create(None)).await;
    there.text().await;
    for event in [
        created("resp_2"),
        r#"{"type":"error","status":429,"error":{"code":"credit_balance_exhausted"}}"#.into(),
    ] {
        there.send(&event).await;
        assert_eq!(client.text().await, event);
    }
}

#[tokio::test]
async fn a_slow_reader_holds_the_upstream_back() {
    let (_cluster, _upstream, client, mut there) = connected(Cluster::new()).await;
    let event = Message::text(format!(
        r#"{{"type":"response.output_text.delta","delta":"{}"}}"#,
        "z".repeat(60_000)
    ));
    let mut sent = 0_usize;
    // Whatever the system's own buffers take, it ends: what nobody reads is not taken.
    eventually(SOON, "the upstream is held back", async || {
        match tokio::time::timeout(ms(500), there.0.send(event.clone())).await {
            Ok(taken) => {
                taken.expect("the connection is open");
                sent += event.len();
                assert!(sent < 64 << 20, "{sent} bytes are on their way");
                None
            }
            Err(_) => Some(()),
        }
    })
    .await;
    drop(client);
    within(ANSWER, "the upstream is let go", async {
        while there.0.send(event.clone()).await.is_ok() {}
    })
    .await;
}

/// C19: what fails inside an answer is passed on, and what it says of the key is known.
#[tokio::test]
async fn failure_inside_an_answer_says_what_it_says_of_the_key() {
    let keys = siblings("org-a", 1);
    let (cluster, _upstream, mut client, mut there) = connected(Cluster::new().keys(keys)).await;
    let failed = r#"{"type":"response.failed","response":{"id":"resp_1","status":"failed","error":{"code":"insufficient_quota"}}}"#;
    client.send(&create(None)).await;
    there.text().await;
    for event in [created("resp_1"), failed.to_owned()] {
        there.send(&event).await;
        assert_eq!(client.text().await, event);
    }
    cluster.replica().shows(r#"warmkey_key_state{key="org-a-1",state="disabled"}"#, 1.0).await;
}

#[tokio::test]
async fn a_session_belongs_to_an_organization_with_its_first_answer_and_not_with_a_warm_up_or_a_failure()
 {
    let failed = r#"{"type":"response.failed","response":{"id":"resp_1","status":"failed","error":{"code":"server_error"}}}"#;
    let (normal, warm_up) =
        (create(None), create(None).replace("\"tools\"", "\"generate\":false,\"tools\""));
    for (ask, event, is_sealed) in [
        (&warm_up, created("resp_1"), false),
        // The first event is enough: what follows may be kept by a client whose answer is cut.
        (&normal, created("resp_1"), true),
        (&normal, completed("resp_1"), true),
        (&normal, failed.to_owned(), false),
    ] {
        let keys = [siblings("org-a", 1), siblings("org-b", 1)].concat();
        let (cluster, upstream, mut client, mut there) = connected(Cluster::new().keys(keys)).await;
        client.send(ask).await;
        there.text().await;
        there.send(&event).await;
        assert_eq!(client.text().await, event);
        drop((client, there));
        let connecting = open(cluster.address(), ALICE, &[("session-id", "s")]);
        let there = async {
            upstream.asked().await.refuse("401 Unauthorized", "invalid_api_key").await;
            if !is_sealed {
                drop(upstream.accept().await);
            }
        };
        let (connected, ()) = tokio::join!(connecting, there);
        match connected {
            Ok(_) => assert!(!is_sealed, "what the session holds no other organization can open"),
            Err(refused) => assert!(is_sealed && refused.status == 503, "{refused:?}"),
        }
    }
}

#[tokio::test]
async fn a_forgotten_organization_is_found_again_by_connecting_anew() {
    let keys = [siblings("org-a", 1), siblings("org-b", 1), siblings("org-c", 1)].concat();
    let upstream = Upstream::start().await;
    let cluster = Cluster::new().keys(keys).upstream_at(&upstream.url()).start().await;
    let refusal = r#"{"type":"error","status":400,"error":{"code":"invalid_encrypted_content"}}"#;
    let mut tried = Vec::new();
    for attempt in 1..=3 {
        let there = async {
            let asked = upstream.asked().await;
            tried.push(asked.key());
            asked.accept("").await
        };
        let (mut client, mut there) = tokio::join!(session(cluster.address(), ALICE, "s"), there);
        client.send(&create(None)).await;
        there.text().await;
        there.send(refusal).await;
        if attempt == 3 {
            assert_eq!(client.text().await, refusal, "nobody is left to ask");
        } else {
            assert_eq!(client.json().await["error"]["code"], "websocket_connection_limit_reached");
            assert_eq!(client.closed().await, 1001);
        }
    }
    tried.sort_unstable();
    tried.dedup();
    assert_eq!(tried.len(), 3, "each organization was asked once");
}

/// What is asked for without waiting for an answer has an end.
#[tokio::test]
async fn turns_in_flight_have_a_limit_on_one_connection() {
    let (cluster, _upstream, mut client, mut there) = connected(Cluster::new()).await;
    let ask = create(None);
    for _ in 0..256 {
        client.send(&ask).await;
        assert_eq!(there.text().await, ask);
    }
    client.send(&ask.replace("\"model\"", "\"stream_id\":\"a\",\"model\"")).await;
    let refused = client.json().await;
    assert_eq!(
        (&refused["status"], &refused["error"]["code"]),
        (&json!(503), &json!("no_key_available")),
        "{refused}"
    );
    assert_eq!(
        (&refused["headers"]["retry-after"], &refused["stream_id"]),
        (&json!("1"), &json!("a"))
    );
    assert_eq!(cluster.replica().metrics().await.get("warmkey_active_turns"), 256.0);
    for event in [created("resp_1"), completed("resp_1")] {
        there.send(&event).await;
        assert_eq!(client.text().await, event);
    }
    client.send(&ask).await;
    assert_eq!(there.text().await, ask, "one has ended");
}
