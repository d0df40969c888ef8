//! WebSockets that ask nothing take no place from other clients.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::memory::frame;
use crate::world::cluster::{ALICE, Cluster};
use crate::world::socket::{Upstream, completed, create, created, open, plain, session, turn};
use crate::world::waiting::{Budget, SOON, eventually};
use crate::world::wire::{Connection, Request};

const CLIENTS: &str = r#"warmkey_connections{listener="clients"}"#;
const GAVE_WAY: &str = r#"warmkey_connections_refused_total{reason="silent"}"#;

/// One client takes each place with a WebSocket: two of them work, and all others are silent.
#[tokio::test]
async fn silent_websocket_gives_way_to_a_client() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new().upstream_at(&upstream.url()).shell("ulimit -n 128").start().await;
    let replica = cluster.replica();
    let most = replica.metrics().await.get("warmkey_connections_limit") as usize;
    let mut sockets = Vec::new();
    for number in 0..most {
        let name = format!("s{number}");
        let (client, there) =
            tokio::join!(session(cluster.address(), ALICE, &name), upstream.accept());
        replica.shows(CLIENTS, (number + 1) as f64).await;
        sockets.push((client, there));
    }
    // The oldest one has a turn in flight, and the message of the next one is underway.
    let mut busy: Vec<_> = sockets.drain(..2).collect();
    let [(asking, asked), (sending, _)] = &mut busy[..] else { panic!("two sockets") };
    asking.send(&create(None)).await;
    asked.text().await;
    let long = plain(&"x".repeat(256 << 10));
    let raw = sending.0.get_mut();
    raw.write_all(&frame(0x01, long.as_bytes())).await.expect("it is taken");
    eventually(SOON, "the part of a message has come", async || {
        let held = replica.metrics().await.get("warmkey_body_memory_bytes");
        // A part of a page counts nothing.
        (held >= f64::from(256 << 10)).then_some(())
    })
    .await;
    asked.send(&created("resp_1")).await;
    asking.text().await;
    // The next one has served a turn since, so that it is not the longest silent one.
    let (client, there) = &mut sockets[0];
    turn(client, there, "resp_2").await;

    // New clients, by HTTP and on a WebSocket, are served one after the other.
    let budget = Budget::begin(Duration::from_secs(20));
    let mut talk = Connection::open(cluster.address()).await;
    let models = talk.ask(&Request::new("GET", "/unknown").bearer(ALICE)).await;
    assert_eq!(models.expect("an answer").status, 404, "the request is read");
    let (next, there) = tokio::join!(open(cluster.address(), ALICE, &[]), upstream.accept());
    let (mut next, mut there) = (next.expect("a WebSocket").0, there);
    turn(&mut next, &mut there, "resp_3").await;
    budget.holds("two new clients are served");
    replica.shows(GAVE_WAY, 2.0).await;
    // The longest silent ones were told as by a replica that leaves, and their upstreams, too.
    for (client, there) in &mut sockets[1..3] {
        assert_eq!((client.closed().await, there.closed().await), (1001, 1001));
    }
    let (client, there) = &mut sockets[3];
    turn(client, there, "resp_4").await;
    let (client, there) = &mut sockets[0];
    turn(client, there, "resp_5").await;
    // Work goes on where there was some.
    let [(asking, asked), (sending, sent)] = &mut busy[..] else { panic!("two sockets") };
    asked.send(&completed("resp_1")).await;
    assert!(asking.text().await.contains("response.completed"));
    sending.0.get_mut().write_all(&frame(0x80, b"")).await.expect("it is taken");
    assert_eq!(sent.text().await, long);
    eventually(SOON, "no place is taken twice", async || {
        (replica.metrics().await.get(CLIENTS) <= most as f64).then_some(())
    })
    .await;
}
