//! Number 5 on a WebSocket: a key that limits again the turn of a client that has waited.

use serde_json::json;

use super::two;
use crate::world::sessions::{begin_on, decided};
use crate::world::simulator::{Fault, Key, path_of};
use crate::world::socket::{open, plain};

/// One wait in vain, then the client connects anew, and a sibling of the same cache serves. The
/// binding stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strained_key_is_waited_for_once_on_a_socket() {
    let key = |id: &str, project: &str| Key::new(id, "org-a").of_project(project);
    for keeps_socket in [true, false] {
        let cluster = two().keys(vec![key("a-1", "one"), key("a-2", "two")]).start().await;
        let id = begin_on(&cluster, "a-1").await.0.session;
        let metadata = json!({ "session_id": id, "thread_id": id, "model": "gpt-5.4" }).to_string();
        let headers =
            [("session-id", &*id), ("thread-id", &*id), ("x-codex-turn-metadata", &*metadata)];
        let connect = async || {
            open(cluster.address(), crate::world::cluster::ALICE, &headers)
                .await
                .expect("a WebSocket")
                .0
        };
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
                        // As Codex does after each error.
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
