//! The events of one answer, and its response object, in the shapes of the real service.
//!
//! This file decides the order and the form of events. `stream` decides when each event is sent,
//! whether all are sent, and over which transport.

use std::fmt::Arguments;

use bytes::Bytes;
use serde_json::Value;

use item::part;

pub use item::{Item, Text, quoted};

mod item;

/// Tokens of a turn's input, by the price that they have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub input: u64,
    pub cached: u64,
    pub written: u64,
    /// The part of `written` that lives 12 hours. `None`: the regime has no cache writes.
    pub written_half_day: Option<u64>,
}

/// One answer, before it is sent.
#[derive(Clone, Debug)]
pub struct Answer {
    pub id: String,
    /// In seconds since 1970.
    pub created_at: u64,
    pub items: Vec<Item>,
    pub usage: Usage,
    /// Fields of the response object that echo the request: `"model":...,"store":...`.
    pub echo: String,
    /// Whether the answer is made while its client does not wait.
    pub background: bool,
    /// Whether text events are padded, as the service does by default.
    pub obfuscate: bool,
    /// The named lane of a WebSocket, which every event repeats.
    pub lane: Option<String>,
}

/// One event: its type, and the object that goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: &'static str,
    pub json: String,
}

impl Event {
    /// The event as server-sent events spell it.
    pub fn sse(&self) -> Bytes {
        let Self { kind, json } = self;
        Bytes::from(format!("event: {kind}\ndata: {json}\n\n"))
    }
}

/// One step of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Created,
    InProgress,
    Added(usize),
    PartAdded(usize),
    Delta(usize, u64),
    TextDone(usize),
    PartDone(usize),
    Arguments(usize),
    ArgumentsDone(usize),
    Done(usize),
    Completed,
}

impl Answer {
    /// All steps of the answer, in order.
    pub fn steps(&self) -> Vec<Step> {
        let mut steps = vec![Step::Created, Step::InProgress];
        for (index, item) in self.items.iter().enumerate() {
            steps.push(Step::Added(index));
            match item {
                Item::Message { text, .. } => {
                    steps.push(Step::PartAdded(index));
                    steps.extend((0..text.events()).map(|event| Step::Delta(index, event)));
                    steps.extend([Step::TextDone(index), Step::PartDone(index)]);
                }
                Item::Call { .. } => {
                    steps.extend([Step::Arguments(index), Step::ArgumentsDone(index)])
                }
                Item::Reasoning { .. } | Item::Compaction { .. } => {}
            }
            steps.push(Step::Done(index));
        }
        steps.push(Step::Completed);
        steps
    }

    /// Output tokens of the first `items` items.
    pub fn output_tokens(&self, items: usize) -> u64 {
        self.items.iter().take(items).map(Item::tokens).sum()
    }

    /// The response object at the end: the whole body of an unstreamed answer.
    pub fn object(&self) -> String {
        self.response("completed", "null", "null", Some(&self.items))
    }

    /// The response object before its end: `queued`, `in_progress` or `cancelled`.
    pub fn unfinished(&self, status: &str) -> String {
        self.response(status, "null", "null", None)
    }

    /// The answer of `POST /responses/compact`.
    pub fn compaction(&self) -> String {
        let output: Vec<String> = self.items.iter().map(Item::json).collect();
        format!(
            r#"{{"id":"{}","object":"response.compaction","created_at":{},"output":[{}],"usage":{}}}"#,
            self.id,
            self.created_at,
            output.join(","),
            self.usage(&self.items)
        )
    }

    /// Returns the response object. `items` are the finished items. `None` leaves out the usage,
    /// too.
    fn response(&self, status: &str, error: &str, details: &str, items: Option<&[Item]>) -> String {
        let output: Vec<String> = items.unwrap_or_default().iter().map(Item::json).collect();
        let usage = items.map_or_else(|| "null".into(), |items| self.usage(items));
        format!(
            r#"{{"id":"{}","object":"response","created_at":{},"status":"{status}","background":{},"error":{error},"incomplete_details":{details},{},"output":[{}],"usage":{usage}}}"#,
            self.id,
            self.created_at,
            self.background,
            self.echo,
            output.join(",")
        )
    }

    fn usage(&self, items: &[Item]) -> String {
        let Usage { input, cached, written, written_half_day } = self.usage;
        let details = written_half_day.map(|half_day| {
            let half_hour = written - half_day;
            format!(r#","cache_write_tokens_details":{{"ttl_30m_tokens":{half_hour},"ttl_12h_tokens":{half_day}}}"#)
        });
        let reasoning: u64 = items
            .iter()
            .filter(|item| matches!(item, Item::Reasoning { .. }))
            .map(Item::tokens)
            .sum();
        let output: u64 = items.iter().map(Item::tokens).sum();
        format!(
            r#"{{"input_tokens":{input},"input_tokens_details":{{"cached_tokens":{cached},"cache_write_tokens":{written}{}}},"output_tokens":{output},"output_tokens_details":{{"reasoning_tokens":{reasoning}}},"total_tokens":{}}}"#,
            details.unwrap_or_default(),
            input + output
        )
    }

    /// One event of an answer that succeeds.
    pub fn event(&self, step: Step, number: u64) -> Event {
        match step {
            Step::Created => self.of_kind(
                "response.created",
                number,
                format_args!(r#""response":{}"#, self.begun()),
            ),
            Step::InProgress => self.of_kind(
                "response.in_progress",
                number,
                format_args!(r#""response":{}"#, self.begun()),
            ),
            Step::Completed => self.of_kind(
                "response.completed",
                number,
                format_args!(r#""response":{}"#, self.object()),
            ),
            Step::Added(index) => {
                self.item_event("response.output_item.added", index, false, number)
            }
            Step::Done(index) => self.item_event("response.output_item.done", index, true, number),
            Step::PartAdded(index) => self.part_event(
                "response.content_part.added",
                index,
                format_args!(r#""part":{}"#, part("\"\"")),
                number,
            ),
            Step::PartDone(index) => {
                let part = part(&self.text(index, None));
                self.part_event(
                    "response.content_part.done",
                    index,
                    format_args!(r#""part":{part}"#),
                    number,
                )
            }
            Step::Delta(index, event) => {
                let delta = self.text(index, Some(event));
                let pad = if self.obfuscate {
                    format!(r#","obfuscation":"{}""#, &self.id[self.id.len().saturating_sub(16)..])
                } else {
                    String::new()
                };
                self.part_event(
                    "response.output_text.delta",
                    index,
                    format_args!(r#""delta":{delta},"logprobs":[]{pad}"#),
                    number,
                )
            }
            Step::TextDone(index) => {
                let text = self.text(index, None);
                self.part_event(
                    "response.output_text.done",
                    index,
                    format_args!(r#""text":{text},"logprobs":[]"#),
                    number,
                )
            }
            Step::Arguments(index) => {
                self.call_event("response.function_call_arguments.delta", "delta", index, number)
            }
            Step::ArgumentsDone(index) => {
                self.call_event("response.function_call_arguments.done", "arguments", index, number)
            }
        }
    }

    /// The event that ends a stream in failure. `error` is the inner object of a refusal.
    pub fn failed(&self, error: &Value, number: u64) -> Event {
        let error = format!(r#"{{"code":{},"message":{}}}"#, error["code"], error["message"]);
        self.of_kind(
            "response.failed",
            number,
            format_args!(r#""response":{}"#, self.response("failed", &error, "null", None)),
        )
    }

    /// The event that ends a stream early, with the items that are finished.
    pub fn incomplete(&self, reason: &str, items: usize, number: u64) -> Event {
        let details = format!(r#"{{"reason":"{reason}"}}"#);
        let response = self.response("incomplete", "null", &details, Some(&self.items[..items]));
        self.of_kind("response.incomplete", number, format_args!(r#""response":{response}"#))
    }

    fn begun(&self) -> String {
        self.response("in_progress", "null", "null", None)
    }

    /// The bare, flat `error` event that ends a stream in failure.
    pub fn error(&self, error: &Value, number: u64) -> Event {
        let fields = format_args!(
            r#""code":{},"message":{},"param":{}"#,
            error["code"], error["message"], error["param"]
        )
        .to_string();
        self.of_kind("error", number, format_args!("{fields}"))
    }

    fn text(&self, index: usize, event: Option<u64>) -> String {
        if let Item::Message { text, .. } = &self.items[index] {
            text.spelled(event)
        } else {
            "\"\"".into()
        }
    }

    fn item_event(&self, kind: &'static str, index: usize, done: bool, number: u64) -> Event {
        self.of_kind(
            kind,
            number,
            format_args!(r#""output_index":{index},"item":{}"#, self.items[index].spelled(done)),
        )
    }

    fn part_event(
        &self,
        kind: &'static str,
        index: usize,
        fields: Arguments<'_>,
        number: u64,
    ) -> Event {
        let id = self.items[index].id();
        self.of_kind(
            kind,
            number,
            format_args!(r#""item_id":"{id}","output_index":{index},"content_index":0,{fields}"#),
        )
    }

    fn call_event(&self, kind: &'static str, field: &str, index: usize, number: u64) -> Event {
        let arguments = if let Item::Call { arguments, .. } = &self.items[index] {
            quoted(arguments)
        } else {
            "\"\"".into()
        };
        let id = self.items[index].id();
        self.of_kind(
            kind,
            number,
            format_args!(r#""item_id":"{id}","output_index":{index},"{field}":{arguments}"#),
        )
    }

    fn of_kind(&self, kind: &'static str, number: u64, fields: Arguments<'_>) -> Event {
        let lane = self
            .lane
            .as_ref()
            .map(|lane| format!(r#","stream_id":{}"#, quoted(lane)))
            .unwrap_or_default();
        Event {
            kind,
            json: format!(r#"{{"type":"{kind}","sequence_number":{number}{lane},{fields}}}"#),
        }
    }
}

#[cfg(test)]
mod tests;
