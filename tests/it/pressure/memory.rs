//! The memory that clients make a replica hold is counted and bounded.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use crate::world::cluster::{ALICE, Cluster};
use crate::world::socket::{Socket, Upstream, create, session, turn};
use crate::world::waiting::{Budget, SOON, within};

const MIB: usize = 1 << 20;

/// A client's frame with this first byte. The mask is zero.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, 0x80 | 127];
    frame.extend((payload.len() as u64).to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// Sends raw bytes for as long as the other side reads them. Returns the refusal that follows.
async fn refusal(client: &mut Socket, bytes: &[u8]) -> (serde_json::Value, u16) {
    // The library reads from the same connection only between two writes.
    for part in bytes.chunks(256 << 10) {
        let sending = client.0.get_mut().write_all(part);
        if !matches!(tokio::time::timeout(SOON, sending).await, Ok(Ok(()))) {
            break;
        }
    }
    (client.json().await, client.closed().await)
}

#[tokio::test]
async fn unfinished_message_counts_in_the_memory_for_bodies() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new()
        .upstream_at(&upstream.url())
        .server("replay_total", "\"40MiB\"")
        .server("max_body", "\"1MiB\"")
        .start()
        .await;
    let before = cluster.replica().process().resident();
    let (mut sockets, mut refused) = (Vec::new(), 0);
    // The messages lack their last fragment, and have 7 MiB each.
    let part = frame(0x01, &vec![b'x'; 7 * MIB]);
    for number in 0..12 {
        let name = format!("s{number}");
        let (mut client, there) =
            tokio::join!(session(cluster.address(), ALICE, &name), upstream.accept());
        if number < 2 {
            client.0.get_mut().write_all(&part).await.expect("it is taken");
            sockets.push((client, there));
            // All bytes of the message have come, so the next message is the one that finds no
            // memory.
            let held = (number + 1) * 7 * MIB;
            cluster.replica().shows("warmkey_body_memory_bytes", held as f64).await;
            continue;
        }
        let (error, code) = refusal(&mut client, &part).await;
        assert_eq!(
            (&error["status"], &error["error"]["code"], &error["headers"]["retry-after"]),
            (&json!(503), &json!("no_key_available"), &json!("1"))
        );
        assert_eq!(code, 1013);
        refused += 1;
    }
    assert_eq!(refused, 10);
    let grown = cluster.replica().process().peak().saturating_sub(before);
    assert!(grown < 40 * MIB as u64, "{} MiB more", grown >> 20);
    // An open connection goes on, and the memory of the closed one is free again.
    drop(sockets.pop());
    cluster.replica().shows("warmkey_active_websockets", 1.0).await;
    cluster.replica().shows("warmkey_body_memory_bytes", (7 * MIB) as f64).await;
    let (mut client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "other"), upstream.accept());
    let text = format!("\"{}\"", "x".repeat(6 * MIB));
    let (_, come) = tokio::join!(client.send(&text), there.text());
    assert_eq!(come.len(), text.len());
    turn(&mut client, &mut there, "resp_1").await;
}

/// Pongs keep a connection alive, but not a message that never ends.
#[tokio::test]
async fn message_that_never_ends_has_a_deadline() {
    let upstream = Upstream::start().await;
    let cluster =
        Cluster::new().upstream_at(&upstream.url()).server("ping", "\"1s\"").start().await;
    let (mut client, there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    let (began, budget) = (Instant::now(), Budget::begin(Duration::from_secs(45)));
    client.0.get_mut().write_all(&frame(0x01, b"{\"type\":")).await.expect("it is taken");
    let mut there = there;
    let (error, _) = tokio::join!(client.json(), async {
        // The upstream answers its pings meanwhile.
        tokio::time::timeout(Duration::from_secs(50), there.next()).await
    });
    assert_eq!(
        (&error["status"], &error["error"]["code"]),
        (&json!(408), &json!("request_timeout"))
    );
    assert_eq!(client.closed().await, 1008);
    budget.holds("the deadline of a message");
    assert!(began.elapsed() >= Duration::from_secs(29), "{:?}", began.elapsed());
}

/// Names that a client chooses are kept with its turns.
#[tokio::test]
async fn long_name_of_a_lane_is_refused() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new().upstream_at(&upstream.url()).start().await;
    let (mut client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    let named = |length: usize| {
        let lane = "l".repeat(length);
        create(None).replace("\"model\"", &format!("\"stream_id\":{lane:?},\"model\""))
    };
    client.send(&named(513)).await;
    assert_eq!(client.json().await["error"]["code"], "invalid_request");
    client.send(&named(512)).await;
    assert_eq!(within(SOON, "the request", there.text()).await, named(512));
}

/// A message that cannot be read is refused on its lane.
#[tokio::test]
async fn refusal_of_an_unreadable_message_names_its_lane() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new().upstream_at(&upstream.url()).start().await;
    let (mut client, _there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    for (text, lane) in [
        (r#"{"type":"response.create","stream_id":"lane","input":[}"#, json!("lane")),
        (r#"{"type":"response.create","input":[}"#, json!(null)),
    ] {
        client.send(text).await;
        let error = client.json().await;
        assert_eq!((&error["error"]["code"], &error["stream_id"]), (&json!("invalid_json"), &lane));
    }
}
