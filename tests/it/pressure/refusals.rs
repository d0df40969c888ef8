//! A refusal reaches a client that writes its whole request before it reads.

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::recorder::{Recorder, completed};
use crate::world::waiting::{ANSWER, within};
use crate::world::wire::Connection;

/// Writes a request of `size` bytes, and only then reads. Returns the status.
pub async fn written_first(
    cluster: &Running,
    line: &str,
    token: &str,
    size: usize,
) -> Option<(u16, String)> {
    let mut connection = Connection::open(cluster.address()).await;
    let head = format!(
        "{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {size}\r\n\r\n"
    );
    connection.send_raw(head.as_bytes()).await.ok()?;
    let part = vec![b' '; 64 << 10];
    for _ in 0..size / part.len() {
        within(ANSWER, "the body is taken", connection.send_raw(&part)).await.ok()?;
    }
    let mut answer = connection.head().await?;
    connection.finish(&mut answer).await;
    answer.whole.then(|| (answer.status, answer.code()))
}

/// Requests that are refused before their bodies have come, where `max_body` is 24 MiB and
/// `replay_total` 4 MiB: line, token, bytes, and the answer.
pub const CASES: [(&str, &str, usize, (u16, &str)); 4] = [
    ("POST /responses", "sk-wrong", 12 << 20, (401, "invalid_api_key")),
    ("POST /v2/responses", ALICE, 12 << 20, (404, "unknown_url")),
    ("POST /responses", ALICE, 32 << 20, (413, "request_too_large")),
    ("POST /responses", ALICE, 16 << 20, (503, "no_key_available")),
];

#[tokio::test]
async fn refusal_reaches_a_client_that_writes_first() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new()
        .recorded_by(&upstream)
        .server("max_body", "\"24MiB\"")
        .server("replay_total", "\"4MiB\"")
        .start()
        .await;
    for (line, token, size, expected) in CASES {
        for attempt in 0..4 {
            let refusal = written_first(&cluster, line, token, size).await;
            let refusal = refusal.as_ref().map(|(status, code)| (*status, code.as_str()));
            assert_eq!(refusal, Some(expected), "{line}, attempt {attempt}");
        }
    }
    assert!(upstream.seen().is_empty());
}

/// After a refusal, 64 MiB of the rest are read, and no more.
#[tokio::test]
async fn refused_body_is_read_within_a_bound() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let mut connection = Connection::open(cluster.address()).await;
    let head = "POST /responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-wrong\r\ncontent-length: 1000000000\r\n\r\n";
    connection.send_raw(head.as_bytes()).await.expect("the head is taken");
    let (part, mut taken) = (vec![b' '; 64 << 10], 0);
    while within(ANSWER, "the body is taken, or not", connection.send_raw(&part)).await.is_ok() {
        taken += part.len();
        assert!(taken < 100 << 20, "it has no end");
    }
    // Some bytes are in the systems' buffers.
    assert!((64 << 20..88 << 20).contains(&taken), "{} MiB", taken >> 20);
    cluster.replica().shows(r#"warmkey_connections{listener="clients"}"#, 0.0).await;
}
