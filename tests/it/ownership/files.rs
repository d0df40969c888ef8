//! Tests references to files and other objects that a project stores besides responses. Only that
//! project finds them.
//!
//! The simulator finds such an object only in the project that the object's id names.

use super::*;
use crate::world::simulator::Fault;
use crate::world::socket::{Socket, open, session};

/// Fields of turns that refer to what project `place` stores: a file, a vector store, a container.
fn referring(place: &str) -> [Value; 3] {
    let file = json!({ "type": "input_file", "file_id": format!("file-{place}-7") });
    [
        json!({ "input": [{ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": uuid() }, file] }] }),
        json!({ "tools": [{ "type": "file_search", "vector_store_ids": [format!("vs_{place}-7")] }] }),
        json!({ "tools": [{ "type": "code_interpreter", "container": format!("cntr_{place}-7") }] }),
    ]
}

/// Plays a turn with these fields on a socket. Returns the error of a turn that failed.
async fn asks(socket: &mut Socket, fields: &Value) -> Result<(), (u64, String)> {
    let mut frame =
        json!({ "type": "response.create", "model": "gpt-5.4", "input": uuid(), "store": false });
    for (name, value) in fields.as_object().expect("fields") {
        frame[name] = value.clone();
    }
    socket.send(&frame.to_string()).await;
    let event = socket.event(&["response.completed", "error"]).await;
    if event["type"] == "response.completed" {
        return Ok(());
    }
    let (status, code) = (event["status"].as_u64(), event["error"]["code"].as_str());
    Err((status.unwrap_or_default(), code.unwrap_or_default().to_owned()))
}

/// A session that is bound to `key`.
async fn bound_to(cluster: &Running, key: &str) -> Chain {
    let id = stored_by(cluster, key).await;
    let name = made(&cluster.turns().await, &id).session.clone().expect("it has a session");
    Chain::new(cluster.address()).of_session(&name)
}

/// Returns the keys asked after the first `before` turns of the record, and their statuses.
async fn asked_since(cluster: &Running, before: usize) -> Vec<(String, u16)> {
    cluster.turns().await.into_iter().skip(before).map(|turn| (turn.key, turn.status)).collect()
}

fn passing() -> Cluster {
    Cluster::new().keys(two_projects()).redis().server("foreign_ids", "\"pass\"")
}

#[tokio::test]
async fn turn_that_refers_to_what_a_project_stores_is_served_there_or_nowhere() {
    let cluster = passing().start().await;
    let chain = bound_to(&cluster, "a-1").await;
    let name = chain.session.clone().expect("a session");
    for fields in referring("org-a-one") {
        assert_eq!(chain.asks(fields).await.status, 200);
    }
    cluster.upstream().fails_with(Fault::limited(3_000).key("a-1")).await;
    let before = cluster.turns().await.len();
    assert_eq!(chain.asks(json!({})).await.status, 200);
    let away = ("a-3".to_owned(), 200);
    assert_eq!(
        asked_since(&cluster, before).await,
        [("a-1".into(), 429), away.clone()],
        "a turn without references is spilled"
    );
    let before = cluster.turns().await.len();
    for mut fields in referring("org-a-one") {
        let held = chain.asks(fields.clone()).await;
        // A fork has the same history, so it is refused, too.
        fields["model"] = json!("gpt-5.4");
        let metadata = json!({ "forked_from_thread_id": name }).to_string();
        let fork = Request::turn(ALICE, fields.to_string()).header("session-id", &uuid());
        let forked = ask(cluster.address(), &fork.header("x-codex-turn-metadata", &metadata)).await;
        for refused in [held, forked] {
            assert_eq!(
                (refused.status, refused.code().as_str()),
                (429, "rate_limit_exceeded"),
                "{}",
                refused.text()
            );
            assert!(refused.text().contains("org-a/one"), "{}", refused.text());
            let wait: u64 = refused
                .header("retry-after")
                .and_then(|wait| wait.parse().ok())
                .expect("when to come again");
            assert!((2_900..=3_000).contains(&wait), "{wait}");
        }
    }
    assert!(asked_since(&cluster, before).await.is_empty(), "no other key was asked");
    // A socket keeps its key for life.
    let headers = [("session-id", &*name), ("x-codex-turn-metadata", r#"{"model":"gpt-5.4"}"#)];
    let (mut socket, _) =
        open(cluster.address(), ALICE, &headers).await.expect("the other key takes the socket");
    assert_eq!(asks(&mut socket, &json!({})).await, Ok(()));
    for fields in [&referring("org-a-one")[..], &[json!({ "conversation": "conv_1" })]].concat() {
        assert_eq!(
            asks(&mut socket, &fields).await,
            Err((503, "no_key_available".into())),
            "{fields}"
        );
    }
    assert_eq!(asks(&mut socket, &json!({})).await, Ok(()));
    assert_eq!(asked_since(&cluster, before).await, [away.clone(), away]);
}

#[tokio::test]
async fn socket_on_another_key_ends_for_what_the_sessions_project_stores() {
    let cluster = passing().start().await;
    let chain = bound_to(&cluster, "a-1").await;
    let name = chain.session.clone().expect("a session");
    cluster.upstream().fails_with(Fault::limited(6).key("a-1").times(1)).await;
    assert_eq!(chain.asks(json!({})).await.status, 200);
    let headers = [("session-id", &*name), ("x-codex-turn-metadata", r#"{"model":"gpt-5.4"}"#)];
    let (mut socket, _) =
        open(cluster.address(), ALICE, &headers).await.expect("the other key takes the socket");
    assert_eq!(asks(&mut socket, &json!({})).await, Ok(()));
    let [file, ..] = referring("org-a-one");
    assert_eq!(asks(&mut socket, &file).await, Err((503, "no_key_available".into())));
    let is_told_to_leave = async || {
        let refused = asks(&mut socket, &file).await.expect_err("not found by this key");
        (refused.1 == "websocket_connection_limit_reached").then_some(())
    };
    eventually(ms(8_000), "its key is well again", is_told_to_leave).await;
    assert_eq!(
        socket.closed().await,
        1001,
        "and the gateway closes without waiting for the client"
    );
    let (mut socket, _) =
        open(cluster.address(), ALICE, &headers).await.expect("its own key takes the socket");
    assert_eq!(asks(&mut socket, &file).await, Ok(()));
}

#[tokio::test]
async fn session_does_not_move_for_a_turn_that_could_not_follow() {
    let cluster = passing().replicas(2).balanced().start().await;
    let chain = bound_to(&cluster, "a-1").await;
    cluster.upstream().revoke("a-1").await;
    let before = cluster.turns().await.len();
    for fields in referring("org-a-one") {
        let refused = chain.asks(fields).await;
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (503, "no_key_available"),
            "{}",
            refused.text()
        );
    }
    let asked = asked_since(&cluster, before).await;
    assert!(
        !asked.is_empty()
            && asked.iter().all(|(key, status)| (key.as_str(), *status) == ("a-1", 401)),
        "{asked:?}"
    );
    assert_eq!(chain.asks(json!({})).await.status, 200);
    let asked = asked_since(&cluster, before).await;
    assert_eq!(
        asked.last(),
        Some(&("a-3".into(), 200)),
        "one that refers to nothing takes the session along"
    );
    for fields in referring("org-a-two") {
        assert_eq!(chain.asks(fields).await.status, 200);
    }
}

#[tokio::test]
async fn turn_is_told_to_wait_while_the_owner_cannot_be_known() {
    let mut cluster = passing().replicas(2).store("timeout = \"300ms\"").start().await;
    let chain = bound_to(&cluster, "a-1").await;
    cluster.redis().kill().await;
    // The new process does not know what the old one knew of the session, and the store is away.
    cluster.replace(1).await;
    let there = Chain { address: cluster.replicas[1].address(), ..chain.clone() };
    for fields in referring("org-a-one") {
        assert_eq!(chain.asks(fields.clone()).await.status, 200, "its replica remembers");
        let untold = there.asks(fields).await;
        assert_eq!(
            (untold.status, untold.code().as_str()),
            (503, "no_key_available"),
            "{}",
            untold.text()
        );
        assert_eq!(untold.header("retry-after"), Some("1"));
    }
    let mut socket =
        session(there.address, ALICE, &there.session.clone().expect("a session")).await;
    assert_eq!(
        asks(&mut socket, &referring("org-a-one")[0]).await,
        Err((503, "no_key_available".into()))
    );
}

#[tokio::test]
async fn files_that_never_passed_through_here_are_not_found() {
    let cluster = Cluster::new().keys(two_projects()).start().await;
    let chain = Chain::new(cluster.address()).of_session("s");
    let mut socket = session(cluster.address(), ALICE, "s").await;
    let [file, store, container] = referring("org-a-one");
    for fields in [&file, &store] {
        let refused = chain.asks(fields.clone()).await;
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (404, "file_not_found"),
            "{}",
            refused.text()
        );
        assert_eq!(asks(&mut socket, fields).await, Err((404, "file_not_found".into())));
    }
    assert!(cluster.turns().await.is_empty(), "no request went upstream");
    // A container is made within an answer. An id within a text refers to nothing.
    assert_ne!(chain.asks(container).await.code(), "file_not_found");
    assert_eq!(chain.asks(json!({ "input": file.to_string() })).await.status, 200);
    assert_eq!(cluster.turns().await.len(), 2);
    assert_eq!(asks(&mut socket, &json!({})).await, Ok(()));
}
