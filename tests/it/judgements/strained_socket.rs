//! Number 5 on a WebSocket: a key that limits a turn again after its client has waited.

use serde_json::json;

use super::two;
use crate::world::cluster::{ALICE, Running};
use crate::world::sessions::{begin_on, decided};
use crate::world::simulator::{Fault, Key, path_of};
use crate::world::socket::{Socket, Upstream, open, plain, session};

/// Opens a WebSocket as Codex does for the session `id`, and names the model.
async fn connect(cluster: &Running, id: &str) -> Socket {
    let metadata = json!({ "session_id": id, "thread_id": id, "model": "gpt-5.4" }).to_string();
    let headers = [("session-id", id), ("thread-id", id), ("x-codex-turn-metadata", &*metadata)];
    open(cluster.address(), ALICE, &headers).await.expect("a WebSocket").0
}

fn keys() -> Vec<Key> {
    let key = |id: &str, project: &str| Key::new(id, "org-a").of_project(project);
    vec![key("a-1", "one"), key("a-2", "two")]
}

/// After one wait in vain, the client reconnects, and a sibling of the same cache serves. The
/// binding stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strained_key_is_waited_for_once_on_a_socket() {
    for keeps_socket in [true, false] {
        let cluster = two().keys(keys()).start().await;
        let id = begin_on(&cluster, "a-1").await.0.session;
        let connect = async || connect(&cluster, &id).await;
        cluster.upstream().fails_with(Fault::limited(2).key("a-1").times(30)).await;
        let mut socket = connect().await;
        let (mut waits, mut reconnects) = (0, 0);
        loop {
            socket.send(&plain("goes on")).await;
            let event = socket.event(&["error", "response.completed"]).await;
            if event["type"] == "response.completed" {
                break;
            }
            match event["error"]["code"].as_str() {
                Some("websocket_connection_limit_reached") => {
                    reconnects += 1;
                    socket = connect().await;
                }
                _ => {
                    assert_eq!(event["status"], 429, "{event}");
                    assert_eq!(event["headers"]["retry-after"], "2", "{event}");
                    waits += 1;
                    assert_eq!(waits, 1, "one wait in vain at most");
                    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
                    if !keeps_socket {
                        // Codex reconnects after each error.
                        socket = connect().await;
                    }
                }
            }
        }
        assert_eq!((waits, reconnects), (1, 1), "keeps its socket: {keeps_socket}");
        assert_eq!(path_of(&cluster.turns().await, &id), ["a-1", "a-2"]);
        assert!(
            decided(&cluster, "move", "limited").await.abs() < f64::EPSILON,
            "the binding stays"
        );
    }
}

/// If a limit ends an answer that has begun, the answer's end passes as it came. After one wait in
/// vain, the socket then closes, and a sibling serves the next connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_whose_answers_end_in_a_limit_is_waited_for_once_on_a_socket() {
    for keeps_socket in [true, false] {
        let cluster = two().keys(keys()).start().await;
        let id = begin_on(&cluster, "a-1").await.0.session;
        let failing = Fault::failing("rate_limit_exceeded").again_in(2).key("a-1");
        cluster.upstream().fails_with(failing.times(30)).await;
        let mut socket = connect(&cluster, &id).await;
        for is_last in [false, true] {
            socket.send(&plain("goes on")).await;
            let event = socket.event(&["error", "response.failed", "response.completed"]).await;
            assert_eq!(event["type"], "response.failed", "it passes as it came: {event}");
            assert_eq!(event["response"]["error"]["code"], "rate_limit_exceeded", "{event}");
            if is_last {
                assert_eq!(socket.closed().await, 1001, "the client connects anew");
            }
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            if is_last || !keeps_socket {
                socket = connect(&cluster, &id).await;
            }
        }
        socket.send(&plain("goes on")).await;
        let event = socket.event(&["error", "response.failed", "response.completed"]).await;
        assert_eq!(event["type"], "response.completed", "{event}");
        assert_eq!(path_of(&cluster.turns().await, &id), ["a-1", "a-2"]);
        let moves = decided(&cluster, "move", "limited").await;
        assert!(moves.abs() < f64::EPSILON, "the binding stays");
    }
}

/// Number 12, on a WebSocket: a date in a frame is compared with the upstream's clock, which the
/// handshake's answer has stated.
#[tokio::test]
async fn date_in_a_frame_is_measured_by_the_handshakes_date() {
    const NOW: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATER: &str = "Sun, 06 Nov 1994 08:59:37 GMT";
    for (of_handshake, of_frame, expected) in [
        (format!("date: {NOW}\r\n"), json!({ "retry-after": LATER }), 590..=600),
        (String::new(), json!({ "retry-after": LATER, "date": NOW }), 600..=600),
        // By the gateway's own clock, this date is in the past.
        (String::new(), json!({ "retry-after": LATER }), 1..=1),
    ] {
        let upstream = Upstream::start().await;
        let cluster = two().upstream_at(&upstream.url()).start().await;
        let accepting = async { upstream.asked().await.accept(&of_handshake).await };
        let (mut client, mut there) =
            tokio::join!(session(cluster.address(), ALICE, "s"), accepting);
        client.send(&plain("is limited")).await;
        there.text().await;
        let error = json!({ "type": "tokens", "code": "rate_limit_exceeded", "message": "m" });
        let frame = json!({ "type": "error", "status": 429, "error": error, "headers": of_frame });
        there.send(&frame.to_string()).await;
        let told = client.json().await;
        let wait = told["headers"]["retry-after"].as_str().and_then(|wait| wait.parse().ok());
        assert!(wait.is_some_and(|wait: u64| expected.contains(&wait)), "{expected:?}: {told}");
    }
}
