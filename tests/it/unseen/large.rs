//! Number 11: an upstream's message on a WebSocket may be as large as an event over HTTP. The limit
//! of clients' messages stays.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::{counted, picture, two};
use crate::world::cluster::ALICE;
use crate::world::socket::{Socket, Upstream, create, session, turn};
use crate::world::waiting::{ANSWER, within};

const MIB: usize = 1 << 20;

/// Returns the same connection, without limits on the test's own side.
async fn unlimited(socket: Socket) -> Socket {
    let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    let stream = socket.0.into_inner();
    Socket(WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_message_of_an_upstream_passes_whole() {
    let upstream = Upstream::start().await;
    let cluster = two().upstream_at(&upstream.url()).start().await;
    let (client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    let mut client = unlimited(client).await;
    for size in [20 * MIB, 65 * MIB] {
        let filler: String = (0..size / 8).map(|number| format!("{number:08}")).collect();
        let event = format!(r#"{{"type":"response.image","b64":"{filler}"}}"#);
        let ((), come) = tokio::join!(there.send(&event), within(ANSWER, "it", client.text()));
        assert!(come == event, "{} of {} bytes", come.len(), event.len());
    }
    turn(&mut client, &mut there, "resp_1").await;
}

/// Number 9, on a WebSocket: usage is found in a terminal event of any length, or missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_of_a_large_event_is_found_or_missing() {
    let usage =
        r#"{"output_tokens":7,"input_tokens_details":{"cached_tokens":8.0e3},"input_tokens":9000}"#;
    let kind = r#""type":"response.completed""#;
    let found = [8_000.0, 9_000.0, 7.0, 0.0];
    let long = picture(usage);
    for (event, expected) in [
        (format!(r#"{{{kind},"response":{long}}}"#), found),
        (format!(r#"{{"response":{long},{kind}}}"#), found),
        (
            format!(r#"{{{kind},"response":{}}}"#, picture(r#"{"input_tokens":"many"}"#)),
            [0.0, 0.0, 0.0, 1.0],
        ),
    ] {
        let upstream = Upstream::start().await;
        let cluster = two().upstream_at(&upstream.url()).start().await;
        let (mut client, mut there) =
            tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
        client.send(&create(None)).await;
        assert_eq!(there.text().await, create(None));
        there.send(&event).await;
        assert!(client.text().await == event, "it passes whole");
        cluster.shows("warmkey_active_turns", 0.0).await;
        assert_eq!(counted(&cluster).await, expected);
    }
}

/// A message beyond 256 MiB breaks the limit, whatever length it announces. The gateway closes with
/// 1009, and reserves no memory for the message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_message_of_an_upstream_is_refused() {
    let upstream = Upstream::start().await;
    let cluster = two().upstream_at(&upstream.url()).start().await;
    let (mut client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    let mut head = vec![0x81, 127];
    head.extend((257_u64 << 20).to_be_bytes());
    there.0.get_mut().write_all(&head).await.expect("it is taken");
    assert_eq!(within(ANSWER, "a close", there.closed()).await, 1009);
    assert_eq!(within(ANSWER, "a close", client.closed()).await, 1001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_message_of_a_client_is_refused() {
    let upstream = Upstream::start().await;
    let cluster = two().upstream_at(&upstream.url()).start().await;
    let (mut client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    let stream = client.0.get_mut();
    // A masked frame of 17 MiB is announced.
    let mut head = vec![0x81, 0x80 | 127];
    head.extend((17_u64 << 20).to_be_bytes());
    head.extend([0; 4]);
    stream.write_all(&head).await.expect("it is taken");
    assert_eq!(within(ANSWER, "a close", client.closed()).await, 1009);
    let mut rest = [0; 1024];
    // The upstream gets a close, and no byte of the message.
    let come = within(ANSWER, "an end", there.0.get_mut().read(&mut rest)).await.unwrap_or(0);
    assert!(come < 200 && rest[0] != 0x81, "{come} bytes");
}
