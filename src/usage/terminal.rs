//! Reads what the end of an answer says: how it ended, and what it cost. Pure.

use serde::Deserialize;

/// How the upstream itself says that an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    Completed,
    Incomplete,
    Failed,
}

/// Tokens, as the upstream counts them. `cached` and `written` are parts of `input`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub input: u64,
    pub cached: u64,
    pub written: u64,
    pub output: u64,
    /// Why nothing was read from the cache, where the upstream says so (`prompt_cache_diagnostics.reason`).
    pub miss: Option<String>,
}

impl Terminal {
    /// By the name of a stream event. `None`: more is to come.
    pub fn of_event(name: &[u8]) -> Option<Self> {
        match name {
            b"response.completed" => Some(Self::Completed),
            b"response.incomplete" => Some(Self::Incomplete),
            b"response.failed" | b"error" => Some(Self::Failed),
            _ => None,
        }
    }

    /// By the `status` of a response object.
    fn of_status(status: &str) -> Self {
        match status {
            "incomplete" => Self::Incomplete,
            "failed" | "cancelled" => Self::Failed,
            // A response that is answered as JSON and still queued was accepted: that is what was asked for.
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
    status: Option<String>,
    usage: Option<Counts>,
    prompt_cache_diagnostics: Option<Diagnostics>,
}

#[derive(Deserialize)]
struct Counts {
    #[serde(default)]
    input_tokens: u64,
    input_tokens_details: Option<Details>,
    #[serde(default)]
    output_tokens: u64,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Diagnostics {
    reason: Option<String>,
}

impl Response {
    fn usage(self) -> Option<Usage> {
        let counts = self.usage?;
        let details = counts.input_tokens_details;
        Some(Usage {
            input: counts.input_tokens,
            cached: details.as_ref().and_then(|details| details.cached_tokens).unwrap_or(0),
            written: details.as_ref().and_then(|details| details.cache_write_tokens).unwrap_or(0),
            output: counts.output_tokens,
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
        Ok(response) => (response.status.as_deref().map_or(Terminal::Completed, Terminal::of_status), response.usage()),
        Err(_) => (Terminal::Completed, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_where_it_is() {
        let event = br#"{"type":"response.completed","response":{"id":"r","status":"completed","usage":{"input_tokens":9000,"input_tokens_details":{"cached_tokens":8832,"cache_write_tokens":100},"output_tokens":7,"output_tokens_details":{"reasoning_tokens":1},"total_tokens":9007},"prompt_cache_diagnostics":{"type":"cache_miss","reason":"tools_changed"}}}"#;
        let expected = Usage { input: 9_000, cached: 8_832, written: 100, output: 7, miss: Some("tools_changed".into()) };
        assert_eq!(of_event(event), Some(expected));
        for nothing in ["", "{}", r#"{"response":null}"#, r#"{"response":{"usage":null}}"#, "[1]"] {
            assert_eq!(of_event(nothing.as_bytes()), None, "{nothing}");
        }
    }

    #[test]
    fn a_document_says_how_it_ended() {
        assert_eq!(of_document(br#"{"status":"incomplete","usage":{"input_tokens":5}}"#).0, Terminal::Incomplete);
        assert_eq!(of_document(br#"{"status":"failed"}"#), (Terminal::Failed, None));
        assert_eq!(of_document(b"text"), (Terminal::Completed, None));
    }
}
