//! Plays a thread as a client of Chat Completions: no header and no field names its session, and
//! each request carries the whole conversation.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::http::{Received, receive};
use super::{PACE, Player, TIMEOUT};
use crate::demo::script::token;

/// Plays all turns of the thread, which begins with `history`. Returns each turn's wait for its
/// first token, and the history at the end.
pub async fn play(
    player: Player<'_>,
    client: &reqwest::Client,
    history: Vec<String>,
) -> Result<(Vec<Duration>, Vec<String>), String> {
    let mut history: Vec<String> = history.iter().map(|item| message(item)).collect();
    let mut waits = Vec::new();
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for turn in 0..player.thread.turns {
        pace.tick().await;
        let began = Instant::now();
        let answer = tokio::time::timeout(TIMEOUT, ask(player, turn, &history, client));
        let (first_token, said) =
            answer.await.map_err(|_| format!("a turn took more than {TIMEOUT:?}"))??;
        waits.push(first_token - began);
        let call = said["tool_calls"][0]["id"].as_str().map(str::to_owned);
        history.push(said.to_string());
        history.push(message(&player.thread.reply(turn, call.as_deref())));
    }
    Ok((waits, history))
}

/// An input item as a message. A message stays as it is.
fn message(text: &str) -> String {
    let item: Value = serde_json::from_str(text).unwrap_or_default();
    match (item["call_id"].as_str(), item["content"][0]["text"].as_str()) {
        (Some(id), _) => json!({ "role": "tool", "tool_call_id": id, "content": item["output"] }),
        (None, Some(said)) => json!({ "role": item["role"], "content": said }),
        (None, None) => return text.to_owned(),
    }
    .to_string()
}

async fn ask(
    player: Player<'_>,
    turn: usize,
    history: &[String],
    client: &reqwest::Client,
) -> Result<(Instant, Value), String> {
    let request = client
        .post(format!("http://{}/v1/chat/completions", player.proxy))
        .header("authorization", format!("Bearer {}", token(player.session.user)))
        .header("content-type", "application/json")
        .body(player.session.chat_body(player.model(turn), history));
    let Received { status, text, first_token } = receive(request, |_| false).await?;
    if status != 200 || !text.ends_with("data: [DONE]\n\n") {
        let start: String = text.chars().take(300).collect();
        return Err(format!("a turn was answered {status}: {start}"));
    }
    Ok((first_token, said(&text)))
}

/// The assistant's message of a stream of chunks.
fn said(stream: &str) -> Value {
    let (mut text, mut call, mut arguments) = (String::new(), Value::Null, String::new());
    for data in stream.lines().filter_map(|line| line.strip_prefix("data: ")) {
        let chunk: Value = serde_json::from_str(data).unwrap_or_default();
        let delta = &chunk["choices"][0]["delta"];
        text.push_str(delta["content"].as_str().unwrap_or_default());
        let piece = &delta["tool_calls"][0];
        if piece["id"].is_string() {
            call = piece.clone();
        }
        arguments.push_str(piece["function"]["arguments"].as_str().unwrap_or_default());
    }
    if call.is_null() {
        return json!({ "role": "assistant", "content": text });
    }
    let function = json!({ "name": call["function"]["name"], "arguments": arguments });
    let call = json!({ "id": call["id"], "type": "function", "function": function });
    json!({ "role": "assistant", "content": null, "tool_calls": [call] })
}
