//! Tests errors that an upstream sends on a WebSocket: which pass, and which make the client
//! reconnect.

use super::*;

#[tokio::test]
async fn refusal_of_the_key_makes_the_client_reconnect() {
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
        // The next connection uses the other key.
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

/// A reconnect finds another key only if the handshake names the model. It finds another
/// organization only if the session is unsealed.
#[tokio::test]
async fn limit_makes_the_client_reconnect_where_that_helps() {
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
        let (mut client, _) = client.expect("the handshake is accepted");
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
    // On these errors, Codex would give up if they passed unchanged.
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
    // After the first event, the error passes as it came.
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

/// C19: a failure inside an answer passes to the client, and counts for the key.
#[tokio::test]
async fn failure_inside_an_answer_counts_for_the_key() {
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
async fn forgotten_organization_is_found_again_by_reconnecting() {
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
            assert_eq!(client.text().await, refusal, "no organization is left");
        } else {
            assert_eq!(client.json().await["error"]["code"], "websocket_connection_limit_reached");
            assert_eq!(client.closed().await, 1001);
        }
    }
    tried.sort_unstable();
    tried.dedup();
    assert_eq!(tried.len(), 3, "each organization was asked once");
}
