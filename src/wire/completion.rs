//! Reads the end of a chat completion: its outcome and its token usage. Pure.

use serde::Deserialize;

use crate::wire::peek::{Field, fields};
use crate::wire::terminal::{Terminal, Usage, count, part, parts, readable};

/// The data of the event that ends a stream of chunks.
pub const DONE: &[u8] = b"[DONE]";

/// What one chunk, or a whole completion, says about the answer's end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ChatEnd {
    /// Why a choice ended.
    pub terminal: Option<Terminal>,
    pub usage: Option<Usage>,
    /// Whether a usage is stated, readable or not.
    pub states_usage: bool,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default, deserialize_with = "readable")]
    finish_reason: Option<String>,
}

impl ChatEnd {
    /// Reads a chunk or a completion.
    pub fn of(text: &[u8]) -> Self {
        let Ok([choices]) = fields(text, ["choices"]) else { return Self::default() };
        let choices: Vec<Choice> =
            choices.and_then(|raw| serde_json::from_slice(raw).ok()).unwrap_or_default();
        let reasons = choices.iter().filter_map(|choice| choice.finish_reason.as_deref());
        let terminal = reasons.fold(None, |so_far, reason| match (so_far, reason) {
            (Some(Terminal::Incomplete), _) | (_, "length" | "content_filter") => {
                Some(Terminal::Incomplete)
            }
            _ => Some(Terminal::Completed),
        });
        let [stated] = fields(text, ["usage"]).unwrap_or_default();
        let states_usage = stated.is_some_and(|raw| raw != b"null");
        Self { terminal, usage: usage(text), states_usage }
    }
}

/// Returns the usage of a chunk or a completion. `None`: it states none, or one that cannot be
/// read, because an unknown count must not look like a zero.
fn usage(text: &[u8]) -> Option<Usage> {
    let [usage, tier, id, model] = fields(text, ["usage", "service_tier", "id", "model"]).ok()?;
    let [input, details, output, output_details] = fields(
        usage.filter(|raw| raw.starts_with(b"{"))?,
        [
            "prompt_tokens",
            "prompt_tokens_details",
            "completion_tokens",
            "completion_tokens_details",
        ],
    )
    .ok()?;
    let [cached, written] = parts(details, ["cached_tokens", "cache_write_tokens"])?;
    let [reasoning] = parts(output_details, ["reasoning_tokens"])?;
    let text = |raw| Field::of(raw).into_text();
    Some(Usage {
        input: count(input?)?,
        cached: part(cached)?,
        written: part(written)?,
        output: output.map_or(Some(0), count)?,
        reasoning: part(reasoning)?,
        tier: text(tier),
        id: text(id),
        model: text(model),
        ..Usage::default()
    })
}

/// Whether a chunk may say something about the answer's end. In nearly all chunks these fields are
/// `null` or absent.
pub fn may_end(data: &[u8]) -> bool {
    let is_stated = |name: &[u8]| {
        memchr::memmem::find_iter(data, name).any(|at| {
            let value = data[at + name.len()..].trim_ascii_start();
            let value = value.strip_prefix(b":").map(<[u8]>::trim_ascii_start);
            value.is_some_and(|value| !value.starts_with(b"null"))
        })
    };
    is_stated(br#""finish_reason""#) || is_stated(br#""usage""#) || has_escaped_letter(data)
}

/// Returns the error object of an event that ends a stream in failure.
pub fn failure(data: &[u8]) -> Option<&[u8]> {
    if memchr::memmem::find(data, br#""error""#).is_none() && !has_escaped_letter(data) {
        return None;
    }
    let [error] = fields(data, ["error"]).ok()?;
    error.filter(|error| *error != b"null")
}

/// Whether a letter of a name may be written as an escape. No usual service writes one so.
fn has_escaped_letter(data: &[u8]) -> bool {
    memchr::memmem::find_iter(data, br"\u00")
        .any(|at| matches!(data.get(at + 4), Some(b'4'..=b'7')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(stated: &str) -> Option<Usage> {
        let text = format!(r#"{{"choices":[{{"finish_reason":"stop"}}],"usage":{stated}}}"#);
        let ChatEnd { terminal, usage, states_usage } = ChatEnd::of(text.as_bytes());
        assert_eq!((terminal, states_usage), (Some(Terminal::Completed), true), "{stated}");
        usage
    }

    #[test]
    fn count_that_cannot_be_read_is_missing_and_never_zero() {
        for odd in [
            "{}",
            "[]",
            "7",
            r#"{"completion_tokens":7}"#,
            r#"{"prompt_tokens":"many","completion_tokens":7}"#,
            r#"{"prompt_tokens":9,"completion_tokens":"7"}"#,
            r#"{"prompt_tokens":9,"completion_tokens":null}"#,
            r#"{"prompt_tokens":-9,"completion_tokens":7}"#,
            r#"{"prompt_tokens":9.5,"completion_tokens":7}"#,
            r#"{"prompt_tokens":9,"prompt_tokens_details":5}"#,
            r#"{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":"8"}}"#,
            r#"{"prompt_tokens":9,"prompt_tokens_details":{"cache_write_tokens":[]}}"#,
            r#"{"prompt_tokens":9,"completion_tokens_details":{"reasoning_tokens":true}}"#,
        ] {
            assert_eq!(usage(odd), None, "{odd}");
        }
        let counts = |text: &str| usage(text).map(|it| (it.input, it.cached, it.output));
        for (text, expected) in [
            (r#"{"prompt_tokens":9.0e3,"completion_tokens":70e-1}"#, (9_000, 0, 7)),
            (r#"{"prompt_tokens":9,"prompt_tokens_details":null}"#, (9, 0, 0)),
            (r#"{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":null}}"#, (9, 0, 0)),
            (r#"{"prompt_tokens":1,"prompt_tokens":9}"#, (9, 0, 0)),
            (
                r#"{"\u0070rompt_tokens":9,"prompt_tokens_details":{"cached_tokens":8.0}}"#,
                (9, 8, 0),
            ),
        ] {
            assert_eq!(counts(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn end_is_found_in_every_spelling() {
        for text in [
            r#"{"choices":[],"usage":{"prompt_tokens":9}}"#,
            r#"{"choices":[],"\u0075sage":{"prompt_tokens":9}}"#,
            r#"{"choices":[],"usag\u0065":{"prompt_tokens":9}}"#,
            r#"{"choices":[{"finish\u005freason":"stop"}]}"#,
            r#"{"choices":[{"\u0066inish_reason" : "stop"}]}"#,
        ] {
            assert!(may_end(text.as_bytes()), "{text}");
            assert_ne!(ChatEnd::of(text.as_bytes()), ChatEnd::default(), "{text}");
        }
        for text in [
            r#"{"choices":[{"delta":{"content":"\u00e9 \u003c \n"},"finish_reason":null}],"usage":null}"#,
            r#"{"choices":[]}"#,
        ] {
            assert!(!may_end(text.as_bytes()), "{text}");
        }
        let error = br#"{"\u0065rror":{"code":"c"}}"#;
        assert_eq!(failure(error), Some(&br#"{"code":"c"}"#[..]));
    }
}
