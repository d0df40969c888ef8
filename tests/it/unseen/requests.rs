//! Number 6: a request that no rule can read in one way, or at all, never passes.

use super::{BODY, turn, two};
use crate::world::cluster::ALICE;
use crate::world::recorder::{Recorder, completed};
use crate::world::socket::{Upstream, session};
use crate::world::wire::{Request, ask};

/// A message that asks for a response only by one of its types, and a turn of two tiers,
/// would be judged as what they are not.
#[tokio::test]
async fn message_that_can_be_read_in_two_ways_never_passes() {
    let (http, upstream) = (Recorder::answering(completed()).await, Upstream::start().await);
    let cluster = two().recorded_by(&http).start().await;
    for fields in [
        r#""service_tier":"flex","service_tier":"default""#,
        r#""service_tier":null,"service_\u0074ier":"flex""#,
    ] {
        let body = BODY.replacen('{', &format!("{{{fields},"), 1);
        let answer = ask(cluster.address(), &turn(&body)).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_request"), "{body}");
    }
    assert!(http.seen().is_empty());
    let cluster = two().upstream_at(&upstream.url()).start().await;
    let (mut client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    for (fields, lane) in [
        (r#""type":"response.create","type":"x""#, "one"),
        (r#""type":null,"t\u0079pe":"response\u002ecreate""#, "two"),
        (r#""type":"response.create","service_tier":"flex","service_tier":"auto""#, "three"),
    ] {
        client.send(&format!(r#"{{{fields},"stream_id":"{lane}","input":"hi"}}"#)).await;
        let told = client.event(&["error"]).await;
        assert_eq!((&told["status"], &told["stream_id"]), (&400.into(), &lane.into()), "{told}");
    }
    client.send(r#"{"type":"x","type":"response.cancel"}"#).await;
    assert_eq!(there.text().await, r#"{"type":"x","type":"response.cancel"}"#, "the first");
}

/// A request to cancel a response has no fields that a rule could check.
#[tokio::test]
async fn body_of_a_cancellation_never_passes_unread() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = two().recorded_by(&upstream).start().await;
    assert_eq!(ask(cluster.address(), &turn(BODY)).await.status, 200);
    let cancel = || Request::new("POST", "/v1/responses/resp_1/cancel").bearer(ALICE);
    for body in [r#"{"previous_response_id":"resp_2"}"#, "resp_2", "[]", "{ } x"] {
        let answer = ask(cluster.address(), &cancel().body(body)).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_request"), "{body}");
        let encoded = zstd::encode_all(body.as_bytes(), 1).expect("memory is enough");
        let encoded = cancel().header("content-encoding", "zstd").body(encoded);
        assert_eq!(ask(cluster.address(), &encoded).await.status, 400, "{body}");
    }
    assert_eq!(upstream.seen().len(), 1, "the turn alone");
    for body in ["", "{}", " {\n} "] {
        assert_eq!(ask(cluster.address(), &cancel().body(body)).await.status, 200, "{body}");
        let seen = upstream.seen().pop().expect("it was asked");
        assert_eq!(seen.body, body.as_bytes(), "as it came");
    }
}
