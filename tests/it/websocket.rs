//! Tests Responses over WebSocket: what passes, what is recorded, and what a connection may ask
//! for.

use futures_util::SinkExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::simulator::siblings;
use crate::world::socket::{Socket, Upstream, completed, create, created, open, session, turn};
use crate::world::waiting::{ANSWER, SOON, eventually, ms, within};

mod errors;
mod naming;

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
}

#[tokio::test]
async fn response_is_a_turn_of_its_own() {
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
        "counted before the client has the terminal event"
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
async fn socket_continues_from_its_own_ids_only() {
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
async fn frame_that_is_no_json_is_refused_and_the_connection_goes_on() {
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
async fn client_may_be_limited_to_some_models() {
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
async fn slow_reader_holds_the_upstream_back() {
    let (_cluster, _upstream, client, mut there) = connected(Cluster::new()).await;
    let event = Message::text(format!(
        r#"{{"type":"response.output_text.delta","delta":"{}"}}"#,
        "z".repeat(60_000)
    ));
    let mut sent = 0_usize;
    // The system's buffers are finite, so bytes that the client does not read are not taken from
    // the upstream.
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

#[tokio::test]
async fn session_is_sealed_by_its_first_answer_and_by_no_warm_up_or_failure() {
    let failed = r#"{"type":"response.failed","response":{"id":"resp_1","status":"failed","error":{"code":"server_error"}}}"#;
    let (normal, warm_up) =
        (create(None), create(None).replace("\"tools\"", "\"generate\":false,\"tools\""));
    for (ask, event, is_sealed) in [
        (&warm_up, created("resp_1"), false),
        // The first event is enough, because a client may keep the part of an answer that it has
        // received before a cut.
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

/// Requests sent without waiting for an answer have a limit.
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

/// The events pass, but the gateway keeps a lane and a turn for a limited number of responses only.
#[tokio::test]
async fn responses_that_an_upstream_begins_by_itself_are_followed_up_to_a_limit() {
    let (cluster, _upstream, mut client, mut there) = connected(Cluster::new()).await;
    for number in 0..300 {
        let on = format!("\"stream_id\":\"{number}\",\"response\"");
        let event = created(&format!("resp_{number}")).replace("\"response\"", &on);
        there.send(&event).await;
        assert_eq!(client.text().await, event);
    }
    cluster.replica().shows("warmkey_active_turns", 256.0).await;
    drop(client);
    cluster.replica().shows("warmkey_active_turns", 0.0).await;
}
