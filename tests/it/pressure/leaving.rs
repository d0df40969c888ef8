//! Tests the end of a drain: clients on kept-alive connections learn of it in advance, and requests
//! that still come are served.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::streams;
use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::recorder::{COMPLETED, Recorder, Step, chunk, stream_head};
use crate::world::waiting::{SOON, eventually, within};
use crate::world::wire::{Answer, Connection, Request};

const BODY: &str = r#"{"model":"gpt-5.4","prompt_cache_key":"s","stream":true,"input":"hello"}"#;

async fn turn(connection: &mut Connection) -> Option<Answer> {
    let mut answer = connection.ask(&Request::turn(ALICE, BODY)).await?;
    connection.finish(&mut answer).await;
    answer.whole.then_some(answer)
}

#[tokio::test]
async fn kept_connection_is_told_before_the_end_of_a_drain() {
    let mut cluster = Cluster::new().server("drain_delay", "\"2s\"").start().await;
    let [mut early, mut late] =
        [Connection::open(cluster.address()).await, Connection::open(cluster.address()).await];
    for connection in [&mut early, &mut late] {
        let answer = turn(connection).await.expect("an answer");
        assert_eq!((answer.status, answer.header("connection")), (200, None));
    }
    cluster.replica().terminate().await;
    eventually(SOON, "not ready", async || {
        (cluster.replica().probe("/readyz").await.status == 503).then_some(())
    })
    .await;
    let answer = turn(&mut early).await.expect("it is still served");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    within(SOON, "the connection ends", early.closed()).await;
    let mut new = Connection::open(cluster.address()).await;
    assert_eq!(turn(&mut new).await.expect("served").header("connection"), Some("close"));
    // This client has not learned of the drain. Its request is on its way when the delay ends.
    cluster.replica().says("waiting for turns in flight").await;
    let answer = turn(&mut late).await.expect("what still comes is served");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(cluster.replicas[0].exit(SOON).await.code(), Some(0));
}

const DATA: u8 = 0;
const GOAWAY: u8 = 7;

/// A client that speaks HTTP/2 by hand.
struct Raw {
    stream: TcpStream,
    come: Vec<u8>,
}

impl Raw {
    async fn open(cluster: &Running) -> Self {
        let stream = TcpStream::connect(cluster.address()).await.expect("the listener accepts");
        Self { stream, come: Vec::new() }
    }

    /// Sends the preface, empty settings, and `GET / HTTP/2` on stream 1.
    async fn ask(&mut self) {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        bytes.extend([0, 0, 6, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x41, 1, b'x']);
        self.stream.write_all(&bytes).await.expect("it is taken");
    }

    /// Whether a frame of this type has come.
    fn has(&self, kind: u8) -> bool {
        let mut rest = &self.come[..];
        while let [a, b, c, come, _, _, _, _, _, more @ ..] = rest {
            if *come == kind {
                return true;
            }
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            rest = more.get(length..).unwrap_or_default();
        }
        false
    }

    /// Reads until a frame of this type has come.
    async fn awaits(&mut self, kind: u8) {
        while !self.has(kind) {
            let read = within(SOON, "a frame", self.stream.read_buf(&mut self.come)).await;
            assert!(read.expect("the connection is open") > 0, "{kind} is missing");
        }
    }
}

#[tokio::test]
async fn client_of_http2_is_told_to_go_away_at_once() {
    let cluster = Cluster::new().server("drain_delay", "\"60s\"").start().await;
    let mut client = Raw::open(&cluster).await;
    client.ask().await;
    client.awaits(DATA).await;
    assert!(!client.has(GOAWAY));
    cluster.replica().terminate().await;
    client.awaits(GOAWAY).await;
}

/// Only a new connection's first request shows which protocol its client speaks.
#[tokio::test]
async fn client_of_http2_that_comes_late_is_told_to_go_away_at_once() {
    let cluster = Cluster::new().server("drain_delay", "\"60s\"").start().await;
    let mut silent = Raw::open(&cluster).await;
    cluster.replica().terminate().await;
    eventually(SOON, "not ready", async || {
        (cluster.replica().probe("/readyz").await.status == 503).then_some(())
    })
    .await;
    let mut new = Raw::open(&cluster).await;
    for client in [&mut silent, &mut new] {
        client.ask().await;
        client.awaits(DATA).await;
        client.awaits(GOAWAY).await;
    }
}

/// Turns over HTTP/2 are served if they run, or are on their way, when the delay ends.
#[tokio::test]
async fn turn_over_http2_at_the_end_of_a_drain_is_served() {
    let upstream = Recorder::start(|_| {
        vec![
            Step::Send(stream_head("")),
            Step::Hold,
            Step::Send(chunk(COMPLETED.as_bytes())),
            Step::Send(b"0\r\n\r\n".to_vec()),
        ]
    })
    .await;
    let mut cluster =
        Cluster::new().recorded_by(&upstream).server("drain_delay", "\"2s\"").start().await;
    let [running, late] = [streams::client(&cluster).await, streams::client(&cluster).await];
    let first = streams::turn(&running).await.expect("an answer");
    cluster.replica().terminate().await;
    cluster.replica().says("waiting for turns in flight").await;
    let second = streams::turn(&late).await.expect("what still comes is served");
    upstream.release(2);
    for answer in [first, second] {
        assert_eq!(answer.status(), 200);
        let said = streams::rest(answer).await.expect("a whole answer");
        assert!(said.contains("response.completed"), "{said}");
    }
    drop((running, late));
    assert_eq!(cluster.replicas[0].exit(SOON).await.code(), Some(0));
}
