//! Tests slow connections: each byte that comes shows that the peer is alive, and bytes on their
//! way have the time that they need.

use futures_util::SinkExt;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

use super::memory::frame;
use crate::world::cluster::{ALICE, Cluster};
use crate::world::socket::{Upstream, session, turn};
use crate::world::waiting::{ANSWER, ms, within};

/// The message takes six seconds, and a peer that is silent for two seconds is given up.
#[tokio::test]
async fn large_message_on_a_slow_line_arrives() {
    let upstream = Upstream::start().await;
    let cluster =
        Cluster::new().upstream_at(&upstream.url()).server("ping", "\"1s\"").start().await;
    let (mut client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    let text = format!("\"{}\"", "x".repeat(300_000));
    let whole = frame(0x81, text.as_bytes());
    let sending = async {
        for part in whole.chunks(whole.len() / 24) {
            client.0.get_mut().write_all(part).await.expect("the connection is open");
            tokio::time::sleep(ms(250)).await;
        }
    };
    let ((), come) = tokio::join!(sending, within(ANSWER, "the message", there.text()));
    assert_eq!(come.len(), text.len());
    turn(&mut client, &mut there, "resp_1").await;
}

/// A ping comes after the megabytes that were sent before, so its answer takes as long as they do.
#[tokio::test]
async fn client_on_a_slow_line_has_time_to_read() {
    let upstream = Upstream::start().await;
    let cluster =
        Cluster::new().upstream_at(&upstream.url()).server("ping", "\"1s\"").start().await;
    let (mut client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    let event = format!(r#"{{"type":"later","delta":"{}"}}"#, "z".repeat(1 << 20));
    there.0.send(Message::text(event.as_str())).await.expect("it is taken");
    // The upstream answers its pings, but the client reads nothing.
    let reading = async { while there.next().await.is_some() {} };
    tokio::select! {
        () = reading => panic!("the connection is kept"),
        () = tokio::time::sleep(ms(5_000)) => {}
    }
    assert_eq!(within(ANSWER, "the event", client.text()).await.len(), event.len());
    turn(&mut client, &mut there, "resp_1").await;
}
