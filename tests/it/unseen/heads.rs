//! Number 11: a head that is too large or unreadable is answered with the gateway's own error. Even
//! a client that is still writing reads it.

use crate::world::cluster::ALICE;
use crate::world::waiting::{ANSWER, within};
use crate::world::wire::{Answer, Connection};

use super::{BODY, two};

/// Sends raw bytes at once, and then reads the answer.
async fn told(address: std::net::SocketAddr, bytes: &[u8]) -> (Answer, Connection) {
    let mut connection = Connection::open(address).await;
    // The gateway may close its half before all bytes are written.
    let _ = within(ANSWER, "the bytes are written", connection.send_raw(bytes)).await;
    let mut answer = within(ANSWER, "a head", connection.head()).await.expect("an answer");
    within(ANSWER, "a body", connection.finish(&mut answer)).await;
    (answer, connection)
}

fn is_own(answer: &Answer, status: u16, code: &str, what: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{what}");
    assert_eq!(answer.json()["error"]["type"], "invalid_request_error", "{what}");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{what}");
    assert_eq!(answer.header("connection"), Some("close"), "{what}");
    assert!(answer.whole, "{what}");
}

fn post(lines: &str) -> String {
    let length = BODY.len();
    format!(
        "POST /v1/responses HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {ALICE}\r\n{lines}content-length: {length}\r\n\r\n{BODY}"
    )
}

#[tokio::test]
async fn head_that_is_too_large_is_told_so() {
    let cluster = two().start().await;
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    for (what, head, status) in [
        ("one header", post(&format!("x-large: {}\r\n", "x".repeat(70_000))), 431),
        ("megabytes", post(&format!("x-large: {}\r\n", "x".repeat(8 << 20))), 431),
        ("many headers", post(&many), 431),
        ("without an end", format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(400_000)), 431),
        ("HTTP/1.0", format!("GET / HTTP/1.0\r\nx: {}\r\n\r\n", "x".repeat(70_000)), 431),
        ("a URL", format!("GET /{} HTTP/1.1\r\nhost: h\r\n\r\n", "x".repeat(65_535)), 431),
    ] {
        let (answer, mut connection) = told(cluster.address(), head.as_bytes()).await;
        is_own(&answer, status, "request_too_large", what);
        within(ANSWER, "the connection ends", connection.closed()).await;
    }
    // The same on a kept connection, after a whole request.
    let mut connection = Connection::open(cluster.address()).await;
    for size in [100, 300_000] {
        let head = format!("GET /nothing HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n", "x".repeat(size));
        connection.send_raw(head.as_bytes()).await.expect("it is taken");
        let mut answer = connection.head().await.expect("an answer");
        connection.finish(&mut answer).await;
        assert!(answer.whole && answer.status == if size > 1_000 { 431 } else { 404 });
        assert!(!answer.code().is_empty());
    }
    // The admin listener speaks the same.
    let head = format!("GET /livez HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n", "x".repeat(70_000));
    let (answer, _) = told(cluster.replica().admin(), head.as_bytes()).await;
    is_own(&answer, 431, "request_too_large", "admin");
}

#[tokio::test]
async fn head_that_nobody_can_read_is_told_so() {
    let cluster = two().start().await;
    for head in [
        "POST /v1/responses HTTP/1.1\r\nhost: h\r\nno colon\r\n\r\n",
        "POST /v1/responses HTTP/1.1\r\nhost: h\r\n: empty\r\n\r\n",
        "POST /v1/responses HTTP/1.1\r\nhost: h\r\ncontent-length: x\r\n\r\n",
        "POST /v1/responses HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        "POST /v1/responses HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip\r\n\r\n",
        "G@T / HTTP/1.1\r\nhost: h\r\n\r\n",
        "GET / HTTP/3.7\r\nhost: h\r\n\r\n",
        "GET \u{1} HTTP/1.1\r\nhost: h\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1} a handshake of TLS\r\n\r\n",
    ] {
        let (answer, _) = told(cluster.address(), head.as_bytes()).await;
        is_own(&answer, 400, "invalid_request", head);
    }
}

/// Over HTTP/2, the gateway reads larger heads than it serves, so that it can answer with an error.
#[tokio::test]
async fn head_that_is_too_large_over_http2_is_told_so() {
    let cluster = two().start().await;
    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
    let url = format!("http://{}/v1/responses", cluster.address());
    for size in [17_000, 40_000] {
        let request = client.post(&url).header("x-large", "x".repeat(size)).body(BODY);
        let answer = within(ANSWER, "an answer", request.send()).await.expect("an answer");
        assert_eq!(answer.status(), 431);
        let body: serde_json::Value =
            serde_json::from_slice(&answer.bytes().await.unwrap()).expect("JSON");
        assert_eq!(body["error"]["code"], "request_too_large", "{body}");
    }
    let request = client.post(&url).bearer_auth(ALICE).header("x", "x".repeat(10_000)).body(BODY);
    let answer = within(ANSWER, "an answer", request.send()).await.expect("an answer");
    assert_eq!(answer.status(), 200, "a head of 10 kB is served");
}
