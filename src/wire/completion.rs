//! Reads the end of a chat completion: its outcome and its token usage. Pure.

use serde::Deserialize;

use crate::wire::peek::fields;
use crate::wire::terminal::{Terminal, Usage, readable};

/// The data of the event that ends a stream of chunks.
pub const DONE: &[u8] = b"[DONE]";

/// What one chunk, or a whole completion, says about the answer's end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ChatEnd {
    /// Why a choice ended.
    pub terminal: Option<Terminal>,
    pub usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Completion {
    #[serde(default, deserialize_with = "readable")]
    choices: Vec<Choice>,
    #[serde(default, deserialize_with = "readable")]
    usage: Option<Counts>,
    #[serde(default, deserialize_with = "readable")]
    service_tier: Option<String>,
    #[serde(default, deserialize_with = "readable")]
    id: Option<String>,
    #[serde(default, deserialize_with = "readable")]
    model: Option<String>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default, deserialize_with = "readable")]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Counts {
    #[serde(default, deserialize_with = "readable")]
    prompt_tokens: u64,
    #[serde(default, deserialize_with = "readable")]
    prompt_tokens_details: Details,
    #[serde(default, deserialize_with = "readable")]
    completion_tokens: u64,
    #[serde(default, deserialize_with = "readable")]
    completion_tokens_details: OutputDetails,
}

#[derive(Default, Deserialize)]
struct Details {
    #[serde(default, deserialize_with = "readable")]
    cached_tokens: u64,
    #[serde(default, deserialize_with = "readable")]
    cache_write_tokens: u64,
}

#[derive(Default, Deserialize)]
struct OutputDetails {
    #[serde(default, deserialize_with = "readable")]
    reasoning_tokens: u64,
}

impl ChatEnd {
    /// Reads a chunk or a completion.
    pub fn of(text: &[u8]) -> Self {
        let Ok(read) = serde_json::from_slice::<Completion>(text) else { return Self::default() };
        let reasons = read.choices.iter().filter_map(|choice| choice.finish_reason.as_deref());
        let terminal = reasons.fold(None, |so_far, reason| match (so_far, reason) {
            (Some(Terminal::Incomplete), _) | (_, "length" | "content_filter") => {
                Some(Terminal::Incomplete)
            }
            _ => Some(Terminal::Completed),
        });
        let usage = read.usage.map(|counts| Usage {
            input: counts.prompt_tokens,
            cached: counts.prompt_tokens_details.cached_tokens,
            written: counts.prompt_tokens_details.cache_write_tokens,
            output: counts.completion_tokens,
            reasoning: counts.completion_tokens_details.reasoning_tokens,
            tier: read.service_tier,
            id: read.id,
            model: read.model,
            ..Usage::default()
        });
        Self { terminal, usage }
    }
}

/// Whether a chunk may say something about the end. Nearly all chunks hold `null` in these fields,
/// or lack them.
pub fn may_end(data: &[u8]) -> bool {
    [&br#""finish_reason""#[..], br#""usage""#].iter().any(|name| {
        memchr::memmem::find_iter(data, name).any(|at| {
            let value = data[at + name.len()..].trim_ascii_start();
            let value = value.strip_prefix(b":").map(<[u8]>::trim_ascii_start);
            value.is_some_and(|value| !value.starts_with(b"null"))
        })
    })
}

/// The error object of an event that ends a stream in failure.
pub fn failure(data: &[u8]) -> Option<&[u8]> {
    memchr::memmem::find(data, br#""error""#)?;
    let [error] = fields(data, ["error"]).ok()?;
    error.filter(|error| *error != b"null")
}
