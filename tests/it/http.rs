//! Tests HTTP itself: HTTP/2, `100 Continue`, and clients that are still sending when they are
//! refused.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::world::certificates::Certificates;
use crate::world::cluster::{ALICE, Cluster};
use crate::world::codex::Codex;
use crate::world::fixtures::shapes;
use crate::world::port;
use crate::world::process::Folder;
use crate::world::recorder::{COMPLETED, Recorder, Step, chunk, completed, stream_head};
use crate::world::simulator::{Simulator, siblings};
use crate::world::waiting::{ANSWER, Budget, SOON, eventually, ms, within};
use crate::world::wire::{Connection, Request, ask};

const BODY: &str = r#"{"model":"gpt-5.4","prompt_cache_key":"s","stream":true,"input":"hello"}"#;

fn http2() -> reqwest::Client {
    reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().expect("a client is made")
}

#[tokio::test]
async fn http2_client_is_served_the_same() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let client = http2();
    for (number, shape) in shapes().into_iter().enumerate() {
        let mut request =
            client.post(format!("http://{}/responses", cluster.address())).bearer_auth(ALICE);
        for (name, value) in &shape.headers {
            request = request.header(name, value);
        }
        let answer = within(ANSWER, "an answer", request.body(shape.body.clone()).send())
            .await
            .expect("an answer");
        assert_eq!(
            (answer.status(), answer.version()),
            (200.try_into().expect("a status"), reqwest::Version::HTTP_2)
        );
        assert!(answer.bytes().await.expect("a body").ends_with(COMPLETED.as_bytes()));
        let seen = &upstream.seen()[number];
        assert!(seen.body == shape.body, "{}: the same bytes", shape.name);
        assert_eq!(seen.header("content-length"), Some(shape.body.len().to_string().as_str()));
        assert_eq!(
            seen.header("session-id"),
            shape.headers.iter().find(|(n, _)| n == "session-id").map(|(_, v)| v.as_str())
        );
    }
}

/// Every HTTP/2 connection begins with these bytes.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Starts a TLS proxy in front of `upstream`, for one connection that must use HTTP/2. Dropping the
/// child ends it.
async fn http2_alone(port: SocketAddr, certificates: &Certificates, upstream: SocketAddr) -> Child {
    let (certificate, key) = (certificates.path("server.pem"), certificates.path("server.key"));
    let mut command = Command::new("openssl");
    command.args([
        "s_server",
        "-quiet",
        "-alpn",
        "h2",
        "-accept",
        &port.to_string(),
        "-cert",
        &certificate,
        "-key",
        &key,
    ]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut openssl = command.spawn().expect("openssl runs: install the package openssl");
    eventually(SOON, "openssl listens", async || TcpStream::connect(port).await.ok().map(drop))
        .await;
    let (mut to, mut from) =
        (openssl.stdin.take().expect("a pipe"), openssl.stdout.take().expect("a pipe"));
    let (mut back, mut there) =
        TcpStream::connect(upstream).await.expect("the upstream listens").into_split();
    tokio::spawn(async move {
        let mut preface = [0; PREFACE.len()];
        from.read_exact(&mut preface).await?;
        if preface == *PREFACE {
            there.write_all(&preface).await?;
            tokio::try_join!(copy(&mut from, &mut there), copy(&mut back, &mut to))?;
        }
        std::io::Result::Ok(())
    });
    openssl
}

/// With `http2 = true`, the upstream receives the client's bytes, on one connection.
#[tokio::test]
async fn http2_upstream_is_asked_the_same() {
    let (folder, port, keys) = (Folder::new(), port::free(), siblings("org-a", 1));
    let simulator = Simulator::start(&folder, &keys, "").await;
    let certificates = Certificates::make(folder.path(), "upstream").await;
    let _openssl = http2_alone(port, &certificates, simulator.address()).await;
    let options = format!("http2 = true\nca_file = {:?}\n", certificates.authority());
    let cluster = Cluster::new()
        .keys(keys)
        .upstream_at(&format!("https://{port}/v1"))
        .upstream(&options)
        .start()
        .await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    let sent =
        [codex.turn("first").await.served().sha256, codex.turn("second").await.served().sha256];
    let seen = simulator.turns().await;
    assert_eq!(seen.iter().map(|turn| turn.body_sha256.as_str()).collect::<Vec<_>>(), sent);
    assert!(seen[1].cached_tokens > 0, "the second one went on from the first");
}

/// HEAD over either version has the length of GET's answer, and no body.
#[tokio::test]
async fn head_is_answered_without_a_body() {
    let cluster = Cluster::new().start().await;
    let http1 = reqwest::Client::builder().no_proxy().build().expect("a client is made");
    for client in [http1, http2()] {
        for path in ["/responses", "/elsewhere"] {
            let url = format!("http://{}{path}", cluster.address());
            let answer =
                within(ANSWER, "an answer", client.get(&url).send()).await.expect("an answer");
            let body = answer.bytes().await.expect("a body");
            // HEAD is one byte longer than GET, because the error's message names the method.
            let answer =
                within(ANSWER, "a head", client.head(&url).send()).await.expect("an answer");
            assert_eq!(answer.status(), 404);
            assert_eq!(answer.headers()["content-length"], (body.len() + 1).to_string());
            assert_eq!(within(ANSWER, "its end", answer.bytes()).await.expect("no more"), "");
        }
    }
}

#[tokio::test]
async fn http2_stream_that_is_reset_cancels_upstream_and_no_other() {
    let hold = vec![
        Step::Send(stream_head("")),
        Step::Send(chunk(b"data: 1\n\n")),
        Step::Hold,
        Step::Send(chunk(COMPLETED.as_bytes())),
        Step::Send(b"0\r\n\r\n".to_vec()),
    ];
    let upstream = Recorder::answering(hold).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let client = http2();
    let turn = || {
        client
            .post(format!("http://{}/responses", cluster.address()))
            .bearer_auth(ALICE)
            .body(BODY)
            .send()
    };
    let leaving = within(ANSWER, "a head", turn()).await.expect("an answer");
    let staying = within(ANSWER, "a head", turn()).await.expect("an answer");
    let soon = Budget::begin(Duration::from_secs(1));
    drop(leaving);
    soon.held_at(upstream.left(0).await, "the upstream hears that the client left");
    upstream.release(1);
    let rest = within(ANSWER, "the rest", staying.bytes()).await.expect("the other stream goes on");
    assert!(rest.ends_with(COMPLETED.as_bytes()));
}

#[tokio::test]
async fn client_that_waits_for_a_go_ahead_gets_one() {
    let upstream = Recorder::answering(completed()).await;
    let cluster =
        Cluster::new().recorded_by(&upstream).server("max_body", "\"1MiB\"").start().await;
    let head = |length: usize| {
        format!(
            "POST /responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ALICE}\r\ncontent-length: {length}\r\nexpect: 100-continue\r\n\r\n"
        )
    };
    let mut patient = Connection::open(cluster.address()).await;
    patient.send_raw(head(BODY.len()).as_bytes()).await.expect("the head is taken");
    assert_eq!(within(SOON, "a go-ahead", patient.interim()).await, Some(100));
    patient.send_raw(BODY.as_bytes()).await.expect("the body is taken");
    assert_eq!(within(SOON, "an answer", patient.head()).await.expect("an answer").status, 200);
    assert_eq!(upstream.only().header("expect"), None, "the header was for this hop");
    // A body that is too large is refused at once, without `100 Continue`.
    let mut large = Connection::open(cluster.address()).await;
    large.send_raw(head(2 << 20).as_bytes()).await.expect("the head is taken");
    assert_eq!(within(SOON, "an answer", large.interim()).await, Some(413));
}

#[tokio::test]
async fn refusal_reaches_a_client_that_is_still_sending() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new()
        .recorded_by(&upstream)
        .server("max_body", "\"4MiB\"")
        .server("replay_total", "\"1MiB\"")
        .start()
        .await;
    let body = |size: usize| format!("{{\"input\":\"{}\"}}", "x".repeat(size));
    for _ in 0..10 {
        let refused = [
            (401, Request::turn("unknown", body(3 << 20))),
            (404, Request::turn(ALICE, body(3 << 20)).target("/nowhere")),
            (413, Request::turn(ALICE, body(5 << 20))),
            (503, Request::turn(ALICE, body(3 << 20))),
        ];
        for (status, request) in refused {
            assert_eq!(ask(cluster.address(), &request).await.status, status);
        }
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn upstream_that_closes_its_idle_connections_costs_no_turn() {
    let mut steps = completed();
    steps.extend([Step::Pause(ms(20)), Step::Close]);
    let upstream = Recorder::answering(steps).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    for turn in 1..=40 {
        let answer = ask(cluster.address(), &Request::turn(ALICE, BODY)).await;
        assert_eq!(answer.status, 200, "turn {turn}: {}", answer.text());
        // If the upstream had closed a connection that the gateway still holds, it would not be
        // idle.
        let is_closed = async || (upstream.is_idle() && upstream.peers() == 0).then_some(());
        eventually(SOON, "both ends have closed", is_closed).await;
    }
    assert_eq!(
        (upstream.seen().len(), upstream.connections()),
        (40, 40),
        "each turn was sent once"
    );
}

/// Sends a request that two parties on the way could read differently.
fn ambiguous(lines: &str) -> String {
    format!(
        "POST /responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ALICE}\r\n{lines}\r\n4\r\n{{  }}\r\n0\r\n\r\n"
    )
}

#[tokio::test]
async fn request_of_doubtful_length_is_refused() {
    // If two parties on the way read a request differently, one client's request may become
    // another's.
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let wrong = [
        "content-length: 4\r\ncontent-length: 5\r\n",
        "content-length: 4, 4\r\n",
        "content-length: +4\r\n",
        "content-length: 0x4\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding : chunked\r\n",
        "x-folded: a\r\n b\r\ncontent-length: 4\r\n",
        "x-nul: a\0b\r\ncontent-length: 4\r\n",
        "x-return: a\rb\r\ncontent-length: 4\r\n",
    ];
    for lengths in wrong {
        let mut client = Connection::open(cluster.address()).await;
        client.send_raw(ambiguous(lengths).as_bytes()).await.expect("the request is taken");
        assert_eq!(within(SOON, "an answer", client.interim()).await, Some(400), "{lengths}");
        within(SOON, "the end", client.closed()).await;
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn length_beside_chunks_begins_no_second_request() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    for both in [
        "content-length: 4\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 4\r\n",
    ] {
        let mut client = Connection::open(cluster.address()).await;
        let smuggled = format!(
            "POST /responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ALICE}\r\ncontent-length: 2\r\n\r\n{{}}"
        );
        client
            .send_raw(format!("{}{smuggled}", ambiguous(both)).as_bytes())
            .await
            .expect("the request is taken");
        // The request is refused, or read by its chunks. In both cases the connection ends, because
        // bytes after it cannot be trusted.
        within(SOON, "the end", client.closed()).await;
    }
    assert!(upstream.seen().iter().all(|seen| seen.body == b"{  }"), "{:?}", upstream.seen().len());
}
