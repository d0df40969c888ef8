//! The end of a drain: clients on kept-alive connections are told in advance, and requests that
//! still come are served.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::cluster::{ALICE, Cluster};
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
    // This client has received nothing, and its request is on its way when the delay ends.
    cluster.replica().says("waiting for turns in flight").await;
    let answer = turn(&mut late).await.expect("what still comes is served");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(cluster.replicas[0].exit(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn client_of_http2_is_told_to_go_away_at_once() {
    let cluster = Cluster::new().server("drain_delay", "\"20s\"").start().await;
    let mut stream = TcpStream::connect(cluster.address()).await.expect("the listener accepts");
    // The preface, empty settings, and `GET / HTTP/2` on stream 1.
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    bytes.extend([0, 0, 6, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x41, 1, b'x']);
    stream.write_all(&bytes).await.expect("it is taken");
    let mut come = Vec::new();
    let frames = |come: &[u8]| {
        let (mut rest, mut types) = (come, Vec::new());
        while let [a, b, c, kind, _, _, _, _, _, more @ ..] = rest {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            types.push(*kind);
            rest = more.get(length..).unwrap_or_default();
        }
        types
    };
    while !frames(&come).contains(&0) {
        let read = within(SOON, "an answer", stream.read_buf(&mut come)).await;
        assert!(read.expect("the connection is open") > 0);
    }
    assert!(!frames(&come).contains(&7));
    cluster.replica().terminate().await;
    while !frames(&come).contains(&7) {
        let read = within(SOON, "GOAWAY", stream.read_buf(&mut come)).await;
        assert!(read.expect("the connection is open") > 0, "{:?}", frames(&come));
    }
}
