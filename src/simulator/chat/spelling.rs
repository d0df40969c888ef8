//! An answer as Chat Completions spells it: one document, or a stream of chunks.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::simulator::answer::{Answer, Event};

/// Spells one answer.
pub struct Spelling {
    include_usage: bool,
    /// `id`, `created`, `model` and `service_tier` of each chunk.
    head: Value,
    /// Calls so far.
    calls: usize,
}

impl Spelling {
    pub fn new(include_usage: bool) -> Self {
        Self { include_usage, head: json!({}), calls: 0 }
    }

    /// The body of an unstreamed answer.
    pub fn document(&self, answer: &Answer) -> String {
        let response: Value = serde_json::from_str(&answer.object()).unwrap_or_default();
        let items = response["output"].as_array().cloned().unwrap_or_default();
        let text: Vec<&str> =
            items.iter().filter_map(|item| item["content"][0]["text"].as_str()).collect();
        let calls: Vec<Value> = items
            .iter()
            .filter(|item| item["type"] == "function_call")
            .map(|item| call(item, &item["arguments"]))
            .collect();
        let mut message = json!({ "role": "assistant", "refusal": null, "annotations": [] });
        message["content"] = if text.is_empty() { Value::Null } else { text.concat().into() };
        let reason = if calls.is_empty() { "stop" } else { "tool_calls" };
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        let mut body = head(&response, "chat.completion");
        body["choices"] =
            json!([{ "index": 0, "message": message, "logprobs": null, "finish_reason": reason }]);
        body["usage"] = usage(&response["usage"]);
        body.to_string()
    }

    /// The chunks of one event. `None`: chat has nothing to say about it.
    pub fn chunks(&mut self, event: &Event) -> Option<Bytes> {
        let said: Value = serde_json::from_str(&event.json).unwrap_or_default();
        let text = match event.kind {
            "response.created" => {
                self.head = head(&said["response"], "chat.completion.chunk");
                self.chunk(
                    &json!({ "role": "assistant", "content": "", "refusal": null }),
                    None,
                    &said,
                )
            }
            "response.output_text.delta" => {
                self.chunk(&json!({ "content": said["delta"] }), None, &said)
            }
            "response.output_item.added" if said["item"]["type"] == "function_call" => {
                let mut call = call(&said["item"], &json!(""));
                call["index"] = self.calls.into();
                self.calls += 1;
                self.chunk(&json!({ "tool_calls": [call] }), None, &said)
            }
            "response.function_call_arguments.delta" => {
                let call =
                    json!({ "index": self.calls - 1, "function": { "arguments": said["delta"] } });
                self.chunk(&json!({ "tool_calls": [call] }), None, &said)
            }
            "response.completed" | "response.incomplete" => self.end(&said),
            "response.failed" => error(&said["response"]["error"]),
            "error" => error(&said),
            _ => return None,
        };
        Some(text.into())
    }

    fn end(&self, said: &Value) -> String {
        let reason = match event_reason(said) {
            Some(reason) => reason,
            None if self.calls > 0 => "tool_calls",
            None => "stop",
        };
        let mut text = self.chunk(&json!({}), Some(reason), &Value::Null);
        if self.include_usage {
            let mut last = self.head.clone();
            last["choices"] = json!([]);
            last["usage"] = usage(&said["response"]["usage"]);
            text.push_str(&format!("data: {last}\n\n"));
        }
        text + "data: [DONE]\n\n"
    }

    fn chunk(&self, delta: &Value, reason: Option<&str>, said: &Value) -> String {
        let mut chunk = self.head.clone();
        chunk["choices"] =
            json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": reason }]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        if let Some(padding) = said.get("obfuscation") {
            chunk["obfuscation"] = padding.clone();
        }
        format!("data: {chunk}\n\n")
    }
}

fn event_reason(said: &Value) -> Option<&'static str> {
    said["response"]["incomplete_details"]["reason"].as_str().map(|_| "length")
}

fn head(response: &Value, kind: &str) -> Value {
    let id = response["id"].as_str().unwrap_or_default().replace("resp_", "chatcmpl-");
    json!({ "id": id, "object": kind, "created": response["created_at"], "model": response["model"],
        "service_tier": response["service_tier"], "system_fingerprint": null })
}

fn call(item: &Value, arguments: &Value) -> Value {
    json!({ "id": item["call_id"], "type": "function",
        "function": { "name": item["name"], "arguments": arguments } })
}

fn usage(usage: &Value) -> Value {
    let (inputs, outputs) = (&usage["input_tokens_details"], &usage["output_tokens_details"]);
    json!({
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
        "prompt_tokens_details": { "cached_tokens": inputs["cached_tokens"],
            "cache_write_tokens": inputs["cache_write_tokens"], "audio_tokens": 0 },
        "completion_tokens_details": { "reasoning_tokens": outputs["reasoning_tokens"],
            "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0 },
    })
}

/// An error inside a stream.
fn error(error: &Value) -> String {
    let (message, code) = (&error["message"], &error["code"]);
    let error = json!({ "error": { "message": message, "type": "server_error", "param": null, "code": code } });
    format!("data: {error}\n\n")
}
