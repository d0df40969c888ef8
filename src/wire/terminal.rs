//! Reads the end of an answer: its outcome and its token usage. Pure.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// The upstream's own statement of how an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    Completed,
    Incomplete,
    Failed,
}

/// Token counts of the upstream. `cached` and `written` are parts of `input`, and `reasoning` is a
/// part of `output`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The id of the response.
    pub id: Option<String>,
    pub input: u64,
    pub cached: u64,
    pub written: u64,
    /// The part of `written` that lives half a day, and costs more.
    pub written_half_day: u64,
    pub output: u64,
    pub reasoning: u64,
    /// The service tier that the turn was served and billed in (`service_tier` of the response).
    pub tier: Option<String>,
    /// Why nothing was read from the cache, if the upstream states it
    /// (`prompt_cache_diagnostics.reason`).
    pub miss: Option<String>,
}

impl Terminal {
    /// The end that a stream event with this name means. `None` if more events follow.
    pub fn of_event(name: &[u8]) -> Option<Self> {
        match name {
            b"response.completed" => Some(Self::Completed),
            b"response.incomplete" => Some(Self::Incomplete),
            b"response.failed" | b"error" => Some(Self::Failed),
            _ => None,
        }
    }

    /// The end that the `status` of a response object means.
    fn of_status(status: &str) -> Self {
        match status {
            "incomplete" => Self::Incomplete,
            "failed" | "cancelled" => Self::Failed,
            // A JSON answer that is still queued counts as completed: the upstream accepted the
            // request, as the client asked.
            _ => Self::Completed,
        }
    }
}

#[derive(Deserialize)]
struct Event {
    response: Option<Response>,
}

#[derive(Deserialize)]
struct Response {
    #[serde(default, deserialize_with = "readable")]
    id: Option<String>,
    #[serde(default, deserialize_with = "readable")]
    status: Option<String>,
    #[serde(default, deserialize_with = "readable")]
    usage: Option<Counts>,
    #[serde(default, deserialize_with = "readable")]
    service_tier: Option<String>,
    #[serde(default, deserialize_with = "readable")]
    prompt_cache_diagnostics: Option<Diagnostics>,
}

#[derive(Deserialize)]
struct Counts {
    #[serde(default, deserialize_with = "readable")]
    input_tokens: u64,
    #[serde(default, deserialize_with = "readable")]
    input_tokens_details: Details,
    #[serde(default, deserialize_with = "readable")]
    output_tokens: u64,
    #[serde(default, deserialize_with = "readable")]
    output_tokens_details: OutputDetails,
}

#[derive(Default, Deserialize)]
struct Details {
    #[serde(default, deserialize_with = "readable")]
    cached_tokens: u64,
    #[serde(default, deserialize_with = "readable")]
    cache_write_tokens: u64,
    #[serde(default, deserialize_with = "readable")]
    cache_write_tokens_details: WriteDetails,
}

#[derive(Default, Deserialize)]
struct WriteDetails {
    #[serde(default, deserialize_with = "readable")]
    ttl_12h_tokens: u64,
}

#[derive(Default, Deserialize)]
struct OutputDetails {
    #[serde(default, deserialize_with = "readable")]
    reasoning_tokens: u64,
}

#[derive(Deserialize)]
struct Diagnostics {
    #[serde(default, deserialize_with = "readable")]
    reason: Option<String>,
}

/// A field's value, or the default if the value is null or has another type. One odd field thus
/// makes no other field unreadable.
fn readable<'de, D: Deserializer<'de>, T: Default + DeserializeOwned>(
    field: D,
) -> Result<T, D::Error> {
    Ok(serde_json::from_str(<&RawValue>::deserialize(field)?.get()).unwrap_or_default())
}

impl Response {
    fn usage(self) -> Option<Usage> {
        let counts = self.usage?;
        let details = counts.input_tokens_details;
        Some(Usage {
            id: self.id,
            input: counts.input_tokens,
            cached: details.cached_tokens,
            written: details.cache_write_tokens,
            written_half_day: details.cache_write_tokens_details.ttl_12h_tokens,
            output: counts.output_tokens,
            reasoning: counts.output_tokens_details.reasoning_tokens,
            tier: self.service_tier,
            miss: self.prompt_cache_diagnostics.and_then(|diagnostics| diagnostics.reason),
        })
    }
}

/// The usage in the data of a terminal event.
pub fn of_event(data: &[u8]) -> Option<Usage> {
    serde_json::from_slice::<Event>(data).ok()?.response?.usage()
}

/// The end and the usage of an answer that is one JSON document.
pub fn of_document(body: &[u8]) -> (Terminal, Option<Usage>) {
    match serde_json::from_slice::<Response>(body) {
        Ok(response) => (
            response.status.as_deref().map_or(Terminal::Completed, Terminal::of_status),
            response.usage(),
        ),
        Err(_) => (Terminal::Completed, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_from_a_terminal_event() {
        let event = br#"{"type":"response.completed","response":{"id":"r","status":"completed","service_tier":"flex","usage":{"input_tokens":9000,"input_tokens_details":{"cached_tokens":8832,"cache_write_tokens":100,"cache_write_tokens_details":{"ttl_30m_tokens":60,"ttl_12h_tokens":40}},"output_tokens":7,"output_tokens_details":{"reasoning_tokens":1},"total_tokens":9007},"prompt_cache_diagnostics":{"type":"cache_miss","reason":"tools_changed"}}}"#;
        let expected = Usage {
            id: Some("r".into()),
            input: 9_000,
            cached: 8_832,
            written: 100,
            written_half_day: 40,
            output: 7,
            reasoning: 1,
            tier: Some("flex".into()),
            miss: Some("tools_changed".into()),
        };
        assert_eq!(of_event(event), Some(expected));
        for nothing in ["", "{}", r#"{"response":null}"#, r#"{"response":{"usage":null}}"#, "[1]"] {
            assert_eq!(of_event(nothing.as_bytes()), None, "{nothing}");
        }
    }

    const WHOLE: &str = r#"{"response":{"id":"r","status":"completed","service_tier":"t","usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":8,"cache_write_tokens":3,"cache_write_tokens_details":{"ttl_12h_tokens":2}},"output_tokens":7,"output_tokens_details":{"reasoning_tokens":5}},"prompt_cache_diagnostics":{"reason":"m"}}}"#;

    #[test]
    fn odd_field_makes_no_other_unreadable() {
        let whole = Usage {
            id: Some("r".into()),
            input: 9,
            cached: 8,
            written: 3,
            written_half_day: 2,
            output: 7,
            reasoning: 5,
            tier: Some("t".into()),
            miss: Some("m".into()),
        };
        for (odd, lost) in [
            ("status", whole.clone()),
            ("id", Usage { id: None, ..whole.clone() }),
            ("input_tokens", Usage { input: 0, ..whole.clone() }),
            ("cached_tokens", Usage { cached: 0, ..whole.clone() }),
            ("cache_write_tokens", Usage { written: 0, ..whole.clone() }),
            ("ttl_12h_tokens", Usage { written_half_day: 0, ..whole.clone() }),
            ("cache_write_tokens_details", Usage { written_half_day: 0, ..whole.clone() }),
            (
                "input_tokens_details",
                Usage { cached: 0, written: 0, written_half_day: 0, ..whole.clone() },
            ),
            ("output_tokens", Usage { output: 0, ..whole.clone() }),
            ("reasoning_tokens", Usage { reasoning: 0, ..whole.clone() }),
            ("output_tokens_details", Usage { reasoning: 0, ..whole.clone() }),
            ("service_tier", Usage { tier: None, ..whole.clone() }),
            ("reason", Usage { miss: None, ..whole.clone() }),
            ("prompt_cache_diagnostics", Usage { miss: None, ..whole }),
        ] {
            for value in ["null", "-1", "1.5", "true", "[[]]"] {
                let mut event = WHOLE.to_owned();
                // Equal names would be an error, so the right field gets another name.
                let name = format!("\"{odd}\":");
                event = event.replace(&name, &format!("{name}{value},\"was_{odd}\":"));
                assert_eq!(of_event(event.as_bytes()), Some(lost.clone()), "{event}");
            }
        }
        assert_eq!(
            of_document(br#"{"status":5,"usage":{"input_tokens":null,"output_tokens":7}}"#)
                .1
                .map(|usage| usage.output),
            Some(7)
        );
        for usage in ["null", "7", "\"x\""] {
            assert_eq!(
                of_event(format!(r#"{{"response":{{"usage":{usage}}}}}"#).as_bytes()),
                None,
                "{usage}"
            );
        }
    }

    #[test]
    fn document_status_is_its_end() {
        assert_eq!(
            of_document(br#"{"status":"incomplete","usage":{"input_tokens":5}}"#).0,
            Terminal::Incomplete
        );
        assert_eq!(of_document(br#"{"status":"failed"}"#), (Terminal::Failed, None));
        assert_eq!(of_document(br#"{"status":"cancelled"}"#).0, Terminal::Failed);
        for done in ["completed", "queued", "in_progress", "unknown"] {
            assert_eq!(
                of_document(format!(r#"{{"status":"{done}"}}"#).as_bytes()).0,
                Terminal::Completed,
                "{done}"
            );
        }
        assert_eq!(of_document(b"text"), (Terminal::Completed, None));
    }
}
