//! Tests of what the simulated Chat Completions answers, caches and refuses.

use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::super::form::Form;
use super::super::{Config, Simulator, http as turns};

fn simulator() -> std::sync::Arc<Simulator> {
    let config: Config =
        serde_json::from_str(r#"{"key":[{"secret":"sk-1","organization":"org-a"}],"events":2}"#)
            .unwrap();
    Simulator::new(&config).unwrap()
}

async fn ask(simulator: &Simulator, body: Value) -> (u16, String) {
    let body = body.to_string();
    let request = Request::post("/v1/chat/completions")
        .header("authorization", "Bearer sk-1")
        .header("content-length", body.len())
        .body(body.into())
        .unwrap();
    let response = turns::serve(&simulator.world, Form::Chat, request).await;
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

fn user(text: &str) -> Value {
    json!({ "role": "user", "content": text })
}

#[tokio::test]
async fn growing_conversation_is_read_from_the_cache() {
    let simulator = simulator();
    let mut messages = vec![user(&"word ".repeat(2_000))];
    for turn in 0..3 {
        let body = json!({ "model": "gpt-5.4", "prompt_cache_key": "k", "messages": messages });
        let (status, text) = ask(&simulator, body).await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &answer["choices"][0]["finish_reason"]), (200, &json!("stop")));
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert_eq!(cached > 2_000, turn > 0, "{text}");
        messages.push(answer["choices"][0]["message"].clone());
        messages.push(user("go on"));
    }
    let turns = simulator.turns();
    assert!(turns.iter().all(|turn| turn.session.as_deref() == Some("k")));
    assert_eq!(turns[0].method_path, "POST /v1/chat/completions");
}

#[tokio::test]
async fn stream_ends_in_usage_and_done() {
    let body = json!({ "model": "gpt-5.4", "stream": true, "messages": [user("hi")],
        "stream_options": { "include_usage": true } });
    let (_, text) = ask(&simulator(), body).await;
    let lines: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(lines.len(), 1 + 2 + 1 + 1 + 1, "{text}");
    assert!(lines[4].contains("\"prompt_tokens\"") && lines[5] == "data: [DONE]");
}

#[tokio::test]
async fn request_that_the_real_service_refuses_is_refused() {
    let simulator = simulator();
    let call = json!({ "role": "assistant", "tool_calls": [{ "id": "c", "type": "function",
        "function": { "name": "f", "arguments": "{}" } }] });
    let tool = json!({ "role": "tool", "tool_call_id": "c", "content": "x" });
    for (body, status) in [
        (json!({ "model": "gpt-5.4", "messages": [user("hi")], "input": "x" }), 400),
        (json!({ "model": "gpt-5.4", "messages": [] }), 400),
        (json!({ "model": "gpt-5.4" }), 400),
        (
            json!({ "model": "gpt-5.4", "messages": [{ "role": "user", "content": "x", "x": 1 }] }),
            400,
        ),
        (json!({ "model": "gpt-5.4", "messages": [tool] }), 400),
        (json!({ "model": "gpt-5.4", "messages": [call, user("hi")] }), 400),
        (json!({ "model": "gpt-5.4", "messages": [call, tool] }), 200),
        (
            json!({ "model": "gpt-5.4", "messages": [user("x")], "prompt_cache_key": "k".repeat(65) }),
            400,
        ),
        (json!({ "model": "gpt-5.4", "messages": [user("x")], "stream_options": {} }), 400),
    ] {
        let (found, text) = ask(&simulator, body.clone()).await;
        assert_eq!(found, status, "{body}: {text}");
    }
}
