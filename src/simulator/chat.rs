//! Chat Completions: a request's body, checked as strictly as the real service checks it, and its
//! messages as a history.
//!
//! Caching is that of Responses: messages are rendered as sent, and a `prompt_cache_key` steers.
//! No answer holds sealed reasoning, since chat has no place for it.

use std::borrow::Cow;
use std::collections::HashSet;

use http::StatusCode;

use super::json::{Kind, Value};
use super::key::Key;
use super::model;
use super::prefix::History;
use super::refusal::Refusal;
use super::reply;
use super::request::{Ask, cache_key, caching, missing, object, text, truth, typed};

pub mod spelling;

/// Every documented parameter.
const PARAMETERS: &[&str] = &[
    "audio",
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "metadata",
    "modalities",
    "model",
    "moderation",
    "n",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "response_format",
    "safety_identifier",
    "seed",
    "service_tier",
    "stop",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
    "web_search_options",
];

const OF_A_MESSAGE: &[&str] = &[
    "role",
    "content",
    "name",
    "refusal",
    "annotations",
    "audio",
    "function_call",
    "tool_calls",
    "tool_call_id",
];

fn unknown(place: &str) -> Refusal {
    let message = format!("Unrecognized request argument supplied: {place}");
    Refusal::invalid(Some("unknown_parameter"), Some(place), message)
}

fn wrong(place: &str, what: &str) -> Refusal {
    let message = format!("Invalid value for '{place}': {what}.");
    Refusal::invalid(Some("invalid_value"), Some(place), message)
}

/// Whether the client asks for a last chunk with the usage.
pub fn includes_usage(body: Value<'_>) -> bool {
    let options = body.get("stream_options").and_then(|options| options.get("include_usage"));
    options.and_then(Value::truth).unwrap_or(false)
}

pub fn read(body: Value<'_>) -> Result<Ask<'_>, Refusal> {
    if body.kind() != Kind::Object {
        return Err(Refusal::invalid(None, None, "The request body must be a JSON object."));
    }
    let mut names = HashSet::new();
    for (name, _) in body.entries() {
        let name = name.text().unwrap_or_default();
        if !PARAMETERS.contains(&&*name) {
            return Err(unknown(&name));
        }
        if !names.insert(name.clone().into_owned()) {
            // The real service lets the last one win; a gateway must never write one twice.
            return Err(wrong(&name, "it came more than once"));
        }
    }
    let model = text(body, "model")?.ok_or_else(|| missing("model"))?;
    let regime = model::regime(&model).ok_or_else(|| {
        let message =
            format!("The model `{model}` does not exist or you do not have access to it.");
        Refusal::invalid(Some("model_not_found"), None, message).with_status(StatusCode::NOT_FOUND)
    })?;
    let messages = typed(body, "messages", &[Kind::Array])?.ok_or_else(|| missing("messages"))?;
    let options = object(body, "prompt_cache_options")?;
    let stream = truth(body, "stream")?.unwrap_or(false);
    let stream_options = object(body, "stream_options")?;
    if stream_options.is_some() && !stream {
        return Err(wrong("stream_options", "it is only allowed when 'stream' is set"));
    }
    truth(body, "store")?;
    object(body, "response_format")?;
    object(body, "metadata")?;
    text(body, "reasoning_effort")?;
    Ok(Ask {
        caching: caching(body, &model, regime, options)?,
        prewarm: false,
        lane: None,
        comparison: None,
        stream,
        obfuscate: stream_options
            .and_then(|options| options.get("include_obfuscation"))
            .and_then(Value::truth)
            .unwrap_or(true),
        sealed_reasoning: false,
        tools: typed(body, "tools", &[Kind::Array])?,
        instructions: None,
        tier: text(body, "service_tier")?
            .filter(|tier| tier != "auto")
            .unwrap_or(Cow::Borrowed("default")),
        compact: false,
        background: false,
        input: messages,
        previous: None,
        cache_key: cache_key(body)?,
        store: false,
        body,
        model,
    })
}

/// Adds the messages to `history`. Tool calls are answered at once, and by messages that name them.
pub fn take(key: &Key, messages: Value<'_>, history: &mut History) -> Result<(), Refusal> {
    if messages.items().next().is_none() {
        return Err(wrong("messages", "it is empty"));
    }
    let mut open: HashSet<String> = HashSet::new();
    for (index, message) in messages.items().enumerate() {
        let place = format!("messages[{index}]");
        if message.kind() != Kind::Object {
            return Err(wrong(&place, "expected an object"));
        }
        for (name, value) in message.entries() {
            // OpenAI's Python SDK sends `parsed: null` back, and the real service takes it.
            let is_empty = value.kind() == Kind::Null;
            if !is_empty && !OF_A_MESSAGE.iter().any(|known| name.is_text(known)) {
                let name = name.text().unwrap_or_default();
                return Err(unknown(&format!("{place}.{name}")));
            }
        }
        let role = text(message, "role")?.unwrap_or_default();
        if role != "tool" && !open.is_empty() {
            let message = "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'.";
            return Err(Refusal::invalid(None, Some("messages"), message));
        }
        match role.as_ref() {
            "system" | "developer" | "user" => said(key, message, &place)?,
            "assistant" => {
                let calls = message
                    .get("tool_calls")
                    .into_iter()
                    .flat_map(|calls| calls.items().collect::<Vec<_>>());
                open.extend(
                    calls
                        .filter_map(|call| call.get("id").and_then(Value::text))
                        .map(Cow::into_owned),
                );
            }
            "tool" => {
                let id = text(message, "tool_call_id")?.unwrap_or_default();
                if !open.remove(id.as_ref()) {
                    let message = "Messages with role 'tool' must be a response to a preceding message with 'tool_calls'.";
                    return Err(Refusal::invalid(None, Some(&format!("{place}.role")), message));
                }
            }
            _ => return Err(wrong(&format!("{place}.role"), "no such role")),
        }
        history.take(message);
    }
    match open.is_empty() {
        true => Ok(()),
        false => {
            Err(Refusal::invalid(None, Some("messages"), "No tool output found for a tool call."))
        }
    }
}

fn said(key: &Key, message: Value<'_>, place: &str) -> Result<(), Refusal> {
    let content = message.get("content").ok_or_else(|| missing(&format!("{place}.content")))?;
    if content.kind() == Kind::String {
        return Ok(());
    }
    for part in content.items() {
        let kind = text(part, "type")?.unwrap_or_default();
        if !["text", "image_url", "input_audio", "file"].contains(&&*kind) {
            return Err(wrong(&format!("{place}.content"), "no such part"));
        }
        if let Some(id) =
            part.get("file").and_then(|file| file.get("file_id")).and_then(Value::text)
        {
            reply::find(&id, key)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
