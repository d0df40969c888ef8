//! Tests why a chat turn was cold. Native and translated turns state the same reason for each
//! cause. The ledger has the model that answered, and the response's id.

use serde_json::{Value, json};

use super::RESPONSES;
use crate::ledger::written_at;
use crate::world::admin::asked;
use crate::world::chat::Chat;
use crate::world::cluster::{ALICE, Running};
use crate::world::collector::Collector;
use crate::world::simulator::siblings;
use crate::world::waiting::{SOON, eventually};

/// A change of a conversation between two turns, and the reason that the second turn then states.
type Cause = (&'static str, Option<&'static str>, fn(Chat) -> Chat);

const CAUSES: [Cause; 8] = [
    ("grows", None, |chat| chat),
    ("tools", Some("prefix_changed"), |chat| {
        chat.field("tools", json!([{ "type": "function", "function": { "name": "look" } }]))
    }),
    ("system", Some("prefix_changed"), |mut chat| {
        let text = chat.messages[0]["content"].as_str().expect("a text").replace("quick", "slow");
        chat.messages[0]["content"] = json!(text);
        chat
    }),
    ("history", Some("prefix_changed"), |mut chat| {
        chat.messages.remove(1);
        chat
    }),
    ("format", Some("prefix_changed"), |chat| {
        chat.field("response_format", json!({ "type": "json_object" }))
    }),
    ("effort", Some("prefix_changed"), |chat| chat.field("reasoning_effort", json!("high"))),
    ("verbosity", Some("prefix_changed"), |chat| chat.field("verbosity", json!("low"))),
    ("model", Some("model_changed"), |chat| chat.model("gpt-6.1-sol")),
];

/// The cold reasons of a session's turns, oldest first.
async fn reasons(cluster: &Running, session: &str, turns: usize) -> Vec<Value> {
    let target = format!("/sessions?client=alice&id={session}");
    eventually(SOON, &format!("{session} is written down"), async || {
        let page = asked(cluster.replica().admin(), "GET", &target).await.json();
        let found = page["turns"].as_array()?;
        let reasons = found.iter().map(|turn| turn["cold_reason"].clone());
        (found.len() == turns).then(|| reasons.collect())
    })
    .await
}

/// Plays a conversation for each cause: it begins, continues warm, and then changes.
async fn told(upstream: &str, api: &str) {
    let collector = Collector::start().await;
    let cluster = written_at("sqlite:ledger.db").telemetry(&collector.options());
    let cluster = cluster.keys(siblings("org-a", 1)).upstream(upstream).start().await;
    for (name, expected, change) in CAUSES {
        let chat = Chat::new(cluster.address(), ALICE).model("gpt-6-sol").with_tool();
        let mut chat =
            chat.field("prompt_cache_key", json!(name)).field("service_tier", json!("flex"));
        for text in ["one", "two"] {
            chat.turn(text).await.served();
            // The promise of the turn before is stored by now.
            reasons(&cluster, name, chat.messages.len() / 2).await;
        }
        chat = change(chat);
        chat.turn("three").await.served();
        let found = reasons(&cluster, name, 3).await;
        let first = json!("first_turn");
        assert_eq!(found, [first, Value::Null, json!(expected)], "{name}");
    }
    let traces = collector.traced(3 * CAUSES.len()).await;
    for trace in &traces {
        let [attempt] = trace.attempts()[..] else { panic!("one attempt: {trace:?}") };
        assert_eq!(attempt.said("openai.api.type"), api);
        for span in [&trace.turn, attempt] {
            assert_eq!(span.said("openai.request.service_tier"), "flex");
            assert_eq!(span.said("gen_ai.response.model"), span.said("gen_ai.request.model"));
        }
        assert!(!attempt.said("gen_ai.response.id").is_empty(), "{attempt:?}");
    }
}

#[tokio::test]
async fn chat_turn_has_the_reason_of_its_cause() {
    told("", "chat_completions").await;
}

#[tokio::test]
async fn translated_chat_turn_has_the_reason_of_its_cause() {
    told(RESPONSES, "responses").await;
}
