//! Tests of WebSocket mode without faults: the same turns as over HTTP, on the same caches, seals
//! and records.

use sha2::{Digest, Sha256};

use super::socket::{Socket, code, create, with};
use super::*;
use crate::simulator::judge::Outcome;

fn cached(frame: &Value) -> u64 {
    frame["response"]["usage"]["input_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap_or_else(|| panic!("{frame}"))
}

#[tokio::test]
async fn conversation_continues_from_responses_of_its_socket() {
    for model in ["gpt-5.4", "gpt-6-sol"] {
        let upstream = upstream().await;
        let mut socket = Socket::open(&upstream, "a-1").await;
        let warm =
            socket.turn(&with(create(model, None, &history()), json!({"generate": false}))).await;
        assert_eq!(
            (warm["type"].as_str(), &warm["response"]["output"]),
            (Some("response.completed"), &json!([])),
            "{warm}"
        );
        let first = socket.turn(&create(model, Some(&warm), &[user("TOOL please")])).await;
        assert!(cached(&first) > 4900, "{model}: {first}");
        let call = &first["response"]["output"][1];
        assert_eq!(call["type"], "function_call");
        let output =
            json!({"type": "function_call_output", "call_id": call["call_id"], "output": "hi"});
        let frame = create(model, Some(&first), &[output]);
        let second = socket.turn(&frame).await;
        assert!(cached(&second) >= cached(&first));

        // The remembered history is like any other: sent in full over HTTP with another key, it is
        // as warm.
        let mut input = history();
        input.push(user("TOOL please"));
        input.extend(first["response"]["output"].as_array().expect("items").iter().cloned());
        input.push(frame["input"][0].clone());
        let over_http = upstream.post("a-2", &ask(model, &input)).await;
        assert_eq!(
            (over_http.status, over_http.cached() >= cached(&second)),
            (200, true),
            "{model}: {}",
            over_http.text
        );

        let turns = upstream.simulator.turns();
        assert!(turns[..3].iter().all(|turn| turn.transport == "websocket"
            && turn.connection == Some(1)
            && turn.status == 200));
        assert!(turns.iter().all(|turn| turn.outcome == Outcome::Completed
            && turn.cached_tokens == turn.ideal_cached_tokens));
        assert_eq!(turns[2].body_sha256, body::hex(&Sha256::digest(frame.to_string())));
        assert_eq!((turns[0].prewarm, turns[1].prewarm, turns[0].output_tokens), (true, false, 0));
        assert_eq!(turns[2].previous_response_id, turns[1].response_id);
        assert_eq!(turns[2].session.as_deref(), Some("session-1"));
    }
}

#[tokio::test]
async fn unstored_response_ends_with_its_socket_and_a_stored_one_does_not() {
    let upstream = upstream().await;
    let mut socket = Socket::open(&upstream, "a-1").await;
    let kept =
        socket.turn(&with(create("gpt-5.4", None, &history()), json!({"store": true}))).await;
    let lost = socket.turn(&create("gpt-5.4", Some(&kept), &[user("and?")])).await;
    assert_eq!(lost["type"], "response.completed");
    drop(socket);
    let mut socket = Socket::open(&upstream, "a-1").await;
    let refused = socket.turn(&create("gpt-5.4", Some(&lost), &[user("and?")])).await;
    assert_eq!(code(&refused), (400, "previous_response_not_found"), "{refused}");
    assert_eq!(refused["error"]["param"], "previous_response_id");
    assert_eq!(
        socket.turn(&create("gpt-5.4", Some(&kept), &[user("and?")])).await["type"],
        "response.completed"
    );
    let over_http = with(
        ask("gpt-5.4", &[user("and?")]),
        json!({"previous_response_id": kept["response"]["id"]}),
    );
    assert_eq!(upstream.post("a-1", &over_http).await.status, 200);
    // Stored for its project.
    let mut other = Socket::open(&upstream, "a-2").await;
    let refused = other.turn(&create("gpt-5.4", Some(&kept), &[user("and?")])).await;
    assert_eq!(code(&refused), (400, "previous_response_not_found"));
}

#[tokio::test]
async fn refusal_evicts_the_parent_that_it_continued_from() {
    let upstream = upstream().await;
    let mut socket = Socket::open(&upstream, "a-1").await;
    let first = socket.turn(&create("gpt-5.4", None, &history())).await;
    let foreign = json!({"type": "reasoning", "summary": [], "encrypted_content": upstream.simulator.world.seal("content", "org-b", 40)});
    let refused = socket.turn(&create("gpt-5.4", Some(&first), &[foreign, user("and?")])).await;
    assert_eq!(code(&refused), (400, "invalid_encrypted_content"), "{refused}");
    let message = refused["error"]["message"].as_str().expect("a message");
    assert!(
        message
            .ends_with("Encrypted content organization_id did not match the target organization."),
        "{message}"
    );
    let again = socket.turn(&create("gpt-5.4", Some(&first), &[user("and?")])).await;
    assert_eq!(code(&again), (400, "previous_response_not_found"));
    assert_eq!(upstream.simulator.turns()[1].outcome, Outcome::Refused);
}
