//! Files, and what else a project stores apart from responses: only that project finds them.
//!
//! The simulator finds a file in the project that its id names, and nowhere else.

use super::*;
use crate::simulator::Ill;
use crate::socket::{Socket, open, session};

fn refers_to(file: &str) -> Value {
    json!({ "input": [{ "type": "message", "role": "user", "content": [
        { "type": "input_text", "text": uuid() }, { "type": "input_file", "file_id": file } ] }] })
}

/// A turn on a socket that refers to `file`, if it is one: the key that served it, or the code of the error that answered it.
async fn asks(socket: &mut Socket, file: Option<&str>) -> Result<(), (u64, String)> {
    let mut frame = json!({ "type": "response.create", "model": "gpt-5.4", "input": uuid(), "store": false });
    if let Some(file) = file {
        frame["input"] = refers_to(file)["input"].clone();
    }
    socket.send(&frame.to_string()).await;
    loop {
        let event = socket.json().await;
        match event["type"].as_str() {
            Some("response.completed") => return Ok(()),
            Some("error") => {
                let (status, code) = (event["status"].as_u64(), event["error"]["code"].as_str());
                return Err((status.unwrap_or_default(), code.unwrap_or_default().to_owned()));
            }
            _ => {}
        }
    }
}

/// A session that is bound to `key`.
async fn bound_to(cluster: &Running, key: &str) -> Chain {
    let id = stored_by(cluster, key).await;
    let name = made(&cluster.turns().await, &id).session.clone().expect("it has a session");
    Chain::new(cluster.address()).of_session(&name)
}

/// Who was asked with a file since then, with which status.
async fn asked_since(cluster: &Running, before: usize) -> Vec<(String, u16)> {
    cluster.turns().await.into_iter().skip(before).map(|turn| (turn.key, turn.status)).collect()
}

async fn passing() -> Running {
    Cluster::new().keys(two_projects()).redis().server("foreign_ids", "\"pass\"").start().await
}

#[tokio::test]
async fn a_turn_that_refers_to_a_file_is_served_by_its_sessions_project_or_by_nobody() {
    let cluster = passing().await;
    let chain = bound_to(&cluster, "a-1").await;
    let name = chain.session.clone().expect("a session");
    assert_eq!(chain.asks(refers_to("file-one-7")).await.status, 200);
    cluster.upstream().ails(Ill::limited(3_000).key("a-1")).await;
    let before = cluster.turns().await.len();
    let plain = chain.asks(json!({})).await;
    let held = chain.asks(refers_to("file-one-7")).await;
    // So does its fork, whose history it is.
    let mut fields = refers_to("file-one-7");
    fields["model"] = json!("gpt-5.4");
    let metadata = json!({ "forked_from_thread_id": name }).to_string();
    let fork = Request::turn(ALICE, fields.to_string()).header("session-id", &uuid()).header("x-codex-turn-metadata", &metadata);
    let forked = ask(cluster.address(), &fork).await;
    for refused in [held, forked] {
        assert_eq!((refused.status, refused.code().as_str()), (429, "rate_limit_exceeded"), "{}", refused.text());
        assert!(refused.text().contains("org-a/one"), "{}", refused.text());
        let wait: u64 = refused.header("retry-after").and_then(|wait| wait.parse().ok()).expect("when to come again");
        assert!((2_900..=3_000).contains(&wait), "{wait}");
    }
    // A socket has one key for life.
    let headers = [("session-id", &*name), ("x-codex-turn-metadata", r#"{"model":"gpt-5.4"}"#)];
    let (mut socket, _) = open(cluster.address(), ALICE, &headers).await.expect("the other key takes it");
    assert_eq!(asks(&mut socket, None).await, Ok(()));
    assert_eq!(asks(&mut socket, Some("file-one-7")).await, Err((503, "no_key_available".into())));
    assert_eq!(asks(&mut socket, None).await, Ok(()));
    assert_eq!(plain.status, 200);
    let away = ("a-3".to_owned(), 200);
    assert_eq!(asked_since(&cluster, before).await, [("a-1".into(), 429), away.clone(), away.clone(), away]);
}

#[tokio::test]
async fn a_session_does_not_move_for_a_turn_that_could_not_follow() {
    let cluster = passing().await;
    let chain = bound_to(&cluster, "a-1").await;
    cluster.upstream().revoke("a-1").await;
    let before = cluster.turns().await.len();
    for _ in 0..3 {
        let refused = chain.asks(refers_to("file-one-7")).await;
        assert_eq!((refused.status, refused.code().as_str()), (503, "no_key_available"), "{}", refused.text());
    }
    assert!(asked_since(&cluster, before).await.iter().all(|(key, status)| (key.as_str(), *status) == ("a-1", 401)));
    let before = cluster.turns().await.len();
    assert_eq!(chain.asks(json!({})).await.status, 200);
    assert_eq!(asked_since(&cluster, before).await, [("a-3".into(), 200)], "one that refers to nothing takes the session along");
    assert_eq!(chain.asks(refers_to("file-two-7")).await.status, 200);
}

#[tokio::test]
async fn files_that_never_passed_through_here_are_not_found() {
    let cluster = Cluster::new().keys(two_projects()).start().await;
    let chain = Chain::new(cluster.address()).of_session("s");
    let stores = json!({ "tools": [{ "type": "file_search", "vector_store_ids": ["vs_1"] }] });
    for fields in [refers_to("file-one-7"), stores] {
        let refused = chain.asks(fields).await;
        assert_eq!((refused.status, refused.code().as_str()), (404, "file_not_found"), "{}", refused.text());
    }
    let mut socket = session(cluster.address(), ALICE, "s").await;
    assert_eq!(asks(&mut socket, Some("file-one-7")).await, Err((404, "file_not_found".into())));
    assert!(cluster.turns().await.is_empty(), "nothing of it went upstream");
    // What is only spoken of is nobody's.
    assert_eq!(chain.asks(json!({ "input": r#"{"file_id":"file-one-7"}"# })).await.status, 200);
    assert_eq!(asks(&mut socket, None).await, Ok(()));
}
