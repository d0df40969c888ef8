//! Tests refusals before the body has come, for every way in which a body comes. Each refusal
//! reaches a client that writes its whole request before it reads.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::refusals::CASES;
use super::streams;
use crate::world::certificates::Certificates;
use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::nginx::Nginx;
use crate::world::process::Folder;
use crate::world::recorder::{Recorder, completed};
use crate::world::waiting::{ANSWER, within};
use crate::world::wire::Connection;

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framed {
    Sized,
    Chunked,
    /// The client sends `Expect: 100-continue`, and does not wait for the answer.
    Expecting,
}

const PART: usize = 64 << 10;

fn cluster(upstream: &Recorder) -> Cluster {
    Cluster::new()
        .recorded_by(upstream)
        .server("max_body", "\"24MiB\"")
        .server("replay_total", "\"4MiB\"")
}

fn head(line: &str, token: &str, size: usize, framed: Framed) -> String {
    let framing = match framed {
        Framed::Chunked => "transfer-encoding: chunked".to_owned(),
        Framed::Sized => format!("content-length: {size}"),
        Framed::Expecting => format!("content-length: {size}\r\nexpect: 100-continue"),
    };
    format!("{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n{framing}\r\n\r\n")
}

/// The bytes of the body, part by part.
fn parts(size: usize, framed: Framed) -> impl Iterator<Item = Vec<u8>> {
    let part = match framed {
        Framed::Chunked => [b"10000\r\n", &[b' '; PART][..], b"\r\n"].concat(),
        _ => vec![b' '; PART],
    };
    let last = if framed == Framed::Chunked { b"0\r\n\r\n".to_vec() } else { Vec::new() };
    std::iter::repeat_n(part, size / PART).chain([last])
}

/// Writes a whole request, and only then reads.
async fn refusal(
    address: SocketAddr,
    (line, token, size): (&str, &str, usize),
    framed: Framed,
) -> Option<(u16, String)> {
    let mut connection = Connection::open(address).await;
    connection.send_raw(head(line, token, size, framed).as_bytes()).await.ok()?;
    for part in parts(size, framed) {
        within(ANSWER, "the body is taken", connection.send_raw(&part)).await.ok()?;
    }
    let mut answer = connection.head().await?;
    while answer.status == 100 {
        answer = connection.head().await?;
    }
    connection.finish(&mut answer).await;
    answer.whole.then(|| (answer.status, answer.code()))
}

/// Returns the expected refusal. A body without a stated length fills the memory before the gateway
/// knows that it is too large. A server in front of the gateway may gather such a body, and state
/// its length.
fn expected(answer: (u16, &'static str), framed: Framed, is_gathered: bool) -> (u16, &'static str) {
    match answer {
        (413, _) if framed == Framed::Chunked && !is_gathered => (503, "no_key_available"),
        answer => answer,
    }
}

async fn each_arrives(address: SocketAddr, framed: &[Framed], is_gathered: bool) {
    for (line, token, size, (status, code)) in CASES {
        for framed in framed {
            let told = refusal(address, (line, token, size), *framed).await;
            let (status, code) = expected((status, code), *framed, is_gathered);
            assert_eq!(told, Some((status, code.to_owned())), "{line}, {framed:?}");
        }
    }
}

#[tokio::test]
async fn refusal_of_a_body_of_unknown_length_reaches_a_client_that_writes_first() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = cluster(&upstream).start().await;
    each_arrives(cluster.address(), &[Framed::Chunked], false).await;
    let small = Cluster::new().recorded_by(&upstream).server("max_body", "\"2MiB\"").start().await;
    let told = refusal(small.address(), ("POST /responses", ALICE, 12 << 20), Framed::Chunked);
    assert_eq!(told.await, Some((413, "request_too_large".into())));
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn refusal_reaches_a_client_that_does_not_wait_for_100_continue() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = cluster(&upstream).start().await;
    each_arrives(cluster.address(), &[Framed::Expecting], false).await;
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn refusal_reaches_a_client_behind_nginx_that_writes_first() {
    let (upstream, folder) = (Recorder::answering(completed()).await, Folder::new());
    let cluster = cluster(&upstream).start().await;
    for is_gathered in [true, false] {
        let nginx = Nginx::start(&folder, cluster.address(), is_gathered).await;
        each_arrives(nginx.address(), &[Framed::Sized, Framed::Chunked], is_gathered).await;
    }
    assert!(upstream.seen().is_empty());
}

/// Through TLS, the rest of a body is read, too, before the connection ends.
#[tokio::test]
async fn refusal_reaches_a_client_behind_tls_that_writes_first() {
    let (upstream, folder) = (Recorder::answering(completed()).await, Folder::new());
    let made = Certificates::make(folder.path(), "one").await;
    let files = format!(
        "{{ cert_file = {:?}, key_file = {:?} }}",
        made.path("server.pem"),
        made.path("server.key")
    );
    let cluster = cluster(&upstream).server("tls", &files).start().await;
    for (line, token, size, (status, code)) in CASES {
        for framed in [Framed::Sized, Framed::Chunked] {
            let mut stream = made.connect(cluster.address()).await;
            let head = head(line, token, size, framed);
            stream.write_all(head.as_bytes()).await.expect("the head is taken");
            for part in parts(size, framed) {
                let writing = within(ANSWER, "the body is taken", stream.write_all(&part)).await;
                writing.expect("the connection is open");
            }
            stream.flush().await.expect("the connection is open");
            let mut text = Vec::new();
            let _ = within(ANSWER, "an answer", stream.read_to_end(&mut text)).await;
            let text = String::from_utf8_lossy(&text);
            let (status, code) = expected((status, code), framed, false);
            let begin = format!("HTTP/1.1 {status} ");
            assert!(text.starts_with(&begin) && text.contains(code), "{line} {framed:?}: {text}");
        }
    }
    assert!(upstream.seen().is_empty());
}

/// Writes for as long as the gateway reads.
async fn refusal_over_http2(
    cluster: &Running,
    (line, token, size): (&str, &str, usize),
) -> (u16, String) {
    let mut client = streams::client(cluster).await.ready().await.expect("it is open");
    let path = line.trim_start_matches("POST ");
    let request = Request::post(format!("http://gateway{path}"))
        .header("authorization", format!("Bearer {token}"))
        .header("content-length", size)
        .body(())
        .expect("a valid request");
    let (answer, mut body) = client.send_request(request, false).expect("a stream");
    let mut left = size;
    let writing = async {
        while left > 0 {
            body.reserve_capacity(left.min(PART));
            let Some(Ok(room)) = std::future::poll_fn(|cx| body.poll_capacity(cx)).await else {
                return;
            };
            if body.send_data(Bytes::from(vec![b' '; room]), left == room).is_err() {
                return;
            }
            left -= room;
        }
    };
    within(ANSWER, "the body is taken, or refused", writing).await;
    let answer = within(ANSWER, "an answer", answer).await.expect("an answer");
    let status = answer.status().as_u16();
    (status, streams::rest(answer).await.expect("a whole answer"))
}

#[tokio::test]
async fn refusal_over_http2_reaches_a_client_that_writes_first() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = cluster(&upstream).start().await;
    for (line, token, size, (status, code)) in CASES {
        let (told, text) = refusal_over_http2(&cluster, (line, token, size)).await;
        assert!(told == status && text.contains(code), "{line}: {told} {text}");
    }
    // The connection's other turns are not disturbed: the next one is served.
    let answer = streams::turn(&streams::client(&cluster).await).await.expect("an answer");
    assert_eq!(answer.status(), 200);
}
