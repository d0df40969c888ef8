//! Error frames about something else than a key: about no turn, or from a gateway about its own
//! token.

use serde_json::json;

use super::two;
use crate::world::cluster::{ALICE, Running};
use crate::world::socket::{Upstream, create, session, turn};

async fn all_are_ready(cluster: &Running) {
    for replica in &cluster.replicas {
        for key in replica.keys().await {
            assert_eq!(key["state"], "ready", "{key}");
        }
    }
}

/// Number 4. A limit without a turn names no model, so the limit is nobody's.
#[tokio::test]
async fn limit_of_no_turn_limits_nobody() {
    let upstream = Upstream::start().await;
    let cluster = two().upstream_at(&upstream.url()).start().await;
    let (mut client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    turn(&mut client, &mut there, "resp_1").await;
    let frame = json!({ "type": "error", "status": 429, "headers": { "retry-after": "60" },
        "error": { "type": "rate_limit_error", "code": "rate_limit_exceeded" } });
    there.send(&frame.to_string()).await;
    assert_eq!(client.event(&["error"]).await, frame, "the client receives the frame itself");
    all_are_ready(&cluster).await;
    turn(&mut client, &mut there, "resp_2").await;
}

/// Number 1. Another Warmkey refuses the token of this one, which is no fault of the client's own.
#[tokio::test]
async fn refusing_frame_of_a_gateway_never_reaches_the_client() {
    let upstream = Upstream::start().await;
    let clients = format!(
        "[hop]\nsecret = \"hop-0123456789abcdef\"\n[[client]]\nid = \"alice\"\ntoken = {ALICE:?}\n"
    );
    let cluster = two().upstream("kind = \"gateway\"\n").clients(&clients);
    let cluster = cluster.upstream_at(&upstream.url()).start().await;
    let (mut client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    client.send(&create(None)).await;
    there.text().await;
    let frame = json!({ "type": "error", "status": 401,
        "error": { "code": "invalid_api_key", "message": "The token was revoked." } });
    there.send(&frame.to_string()).await;
    let told = client.event(&["error"]).await;
    // No probe decides at this upstream. The doubt of an only client counts at once, so the next
    // connection has another key.
    let code = &told["error"]["code"];
    assert_eq!(
        (&told["status"], code),
        (&json!(400), &json!("websocket_connection_limit_reached"))
    );
    assert!(!told.to_string().contains("revoked"), "{told}");
}
