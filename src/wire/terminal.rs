//! Reads the end of an answer: its outcome and its token usage. Pure.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::wire::peek::{Field, fields};
use crate::wire::scan::Scanner;

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
    /// The service tier in which the turn was served and billed: the response's `service_tier`.
    pub tier: Option<String>,
    /// The model that answered, which may be a dated form of the one that was asked for.
    pub model: Option<String>,
    /// Why nothing was read from the cache, if the upstream states it
    /// (`prompt_cache_diagnostics.reason`).
    pub miss: Option<String>,
    /// Whether the upstream states `prompt_cache_diagnostics`. The cache of such an upstream keeps
    /// exactly what the upstream counts as written.
    pub is_diagnosed: bool,
    /// Whether the upstream ran a tool itself. No token count shows the tool's price.
    pub used_hosted_tools: bool,
    /// Whether the answer's items could not be read, and may name such a tool.
    pub has_unread_items: bool,
}

impl Terminal {
    /// Returns the end that a stream event with this name means. `None`: more events follow.
    pub fn of_event(name: &[u8]) -> Option<Self> {
        match name {
            b"response.completed" => Some(Self::Completed),
            b"response.incomplete" => Some(Self::Incomplete),
            b"response.failed" | b"error" => Some(Self::Failed),
            _ => None,
        }
    }

    /// Returns the end that the `status` of a response object means.
    fn of_status(status: &str) -> Self {
        match status {
            "incomplete" => Self::Incomplete,
            "failed" | "cancelled" => Self::Failed,
            // A JSON answer that is still queued counts as completed, because the upstream has
            // accepted the request as the client asked.
            _ => Self::Completed,
        }
    }
}

/// The types of items that show a tool which the upstream runs and bills apart from tokens.
const HOSTED: [&str; 4] =
    ["web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"];

/// Reads a field's value, or the default if the value is null or has another type. An odd field
/// thus makes no other field unreadable.
pub(crate) fn readable<'de, D: Deserializer<'de>, T: Default + DeserializeOwned>(
    field: D,
) -> Result<T, D::Error> {
    Ok(serde_json::from_str(<&RawValue>::deserialize(field)?.get()).unwrap_or_default())
}

/// The usage in the data of a terminal event.
pub fn of_event(data: &[u8]) -> Option<Usage> {
    let [response] = fields(data, ["response"]).ok()?;
    usage(response?)
}

/// Returns the end and the usage of an answer that is one JSON document.
pub fn of_document(body: &[u8]) -> (Terminal, Option<Usage>) {
    let [status] = fields(body, ["status"]).unwrap_or_default();
    let status = Field::of(status);
    (status.text().map_or(Terminal::Completed, Terminal::of_status), usage(body))
}

/// Returns the usage of a response object. `None`: it states none, or one that cannot be read,
/// because an unknown count must not look like a zero.
pub fn usage(response: &[u8]) -> Option<Usage> {
    let [id, usage, tier, diagnostics, model, output_items] = fields(
        response,
        ["id", "usage", "service_tier", "prompt_cache_diagnostics", "model", "output"],
    )
    .ok()?;
    let [input, details, output, output_details] = fields(
        usage.filter(|raw| raw.starts_with(b"{"))?,
        ["input_tokens", "input_tokens_details", "output_tokens", "output_tokens_details"],
    )
    .ok()?;
    let [cached, written, written_details] =
        parts(details, ["cached_tokens", "cache_write_tokens", "cache_write_tokens_details"])?;
    let [half_day] = parts(written_details, ["ttl_12h_tokens"])?;
    let [reasoning] = parts(output_details, ["reasoning_tokens"])?;
    let text = |raw| Field::of(raw).text().map(str::to_owned);
    let [diagnosis, reason] = diagnostics
        .filter(|raw| raw.starts_with(b"{"))
        .and_then(|raw| fields(raw, ["type", "reason"]).ok())
        .unwrap_or_default();
    let names_tools = output_items.map_or(Some(false), names_hosted_tools);
    Some(Usage {
        id: text(id),
        input: count(input?)?,
        cached: part(cached)?,
        written: part(written)?,
        written_half_day: part(half_day)?,
        output: output.map_or(Some(0), count)?,
        reasoning: part(reasoning)?,
        tier: text(tier),
        model: text(model),
        is_diagnosed: text(diagnosis).is_some(),
        used_hosted_tools: names_tools == Some(true),
        has_unread_items: names_tools.is_none(),
        miss: text(reason),
    })
}

/// Whether the items of an answer's `output` name a hosted tool. `None`: they cannot be read.
fn names_hosted_tools(output: &[u8]) -> Option<bool> {
    let mut items = Scanner::new(output);
    if output == b"null" || items.take(b'[') && items.take(b']') {
        return Some(false);
    }
    loop {
        let item = items.value().ok().filter(|item| item.starts_with(b"{"))?;
        let [kind] = fields(item, ["type"]).ok()?;
        if Field::of(kind).text().is_some_and(|kind| HOSTED.contains(&kind)) {
            return Some(true);
        }
        if !items.take(b',') {
            return items.expect(b']').ok().map(|()| false);
        }
    }
}

/// Returns the fields of details that may be absent. `None`: the details cannot be read.
pub(crate) fn parts<'b, const N: usize>(
    details: Option<&'b [u8]>,
    names: [&str; N],
) -> Option<[Option<&'b [u8]>; N]> {
    match details {
        None | Some(b"null") => Some([None; N]),
        Some(raw) if raw.starts_with(b"{") => fields(raw, names).ok(),
        Some(_) => None,
    }
}

/// Reads a count that is zero if absent. `None`: the count cannot be read.
pub(crate) fn part(raw: Option<&[u8]>) -> Option<u64> {
    match raw {
        None | Some(b"null") => Some(0),
        Some(raw) => count(raw),
    }
}

/// Reads a count in any spelling of JSON: `9000`, `9000.0`, `9e3`.
pub(crate) fn count(raw: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(raw).ok()?;
    if let Ok(count) = text.parse() {
        return Some(count);
    }
    // Above this number, a floating-point value no longer names one exact count.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let number: f64 = text.parse().ok()?;
    let is_count = text.starts_with(|first: char| first.is_ascii_digit() || first == '-')
        && (0.0..=EXACT).contains(&number)
        && number.fract() == 0.0;
    is_count.then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_from_a_terminal_event() {
        let event = br#"{"type":"response.completed","response":{"id":"r","model":"m","output":[{"type":"message"}],"status":"completed","service_tier":"flex","usage":{"input_tokens":9000,"input_tokens_details":{"cached_tokens":8832,"cache_write_tokens":100,"cache_write_tokens_details":{"ttl_30m_tokens":60,"ttl_12h_tokens":40}},"output_tokens":7,"output_tokens_details":{"reasoning_tokens":1},"total_tokens":9007},"prompt_cache_diagnostics":{"type":"cache_miss","reason":"tools_changed"}}}"#;
        let expected = Usage {
            id: Some("r".into()),
            input: 9_000,
            cached: 8_832,
            written: 100,
            written_half_day: 40,
            output: 7,
            reasoning: 1,
            tier: Some("flex".into()),
            model: Some("m".into()),
            miss: Some("tools_changed".into()),
            is_diagnosed: true,
            used_hosted_tools: false,
            has_unread_items: false,
        };
        assert_eq!(of_event(event), Some(expected));
        for nothing in ["", "{}", r#"{"response":null}"#, r#"{"response":{"usage":null}}"#, "[1]"] {
            assert_eq!(of_event(nothing.as_bytes()), None, "{nothing}");
        }
    }

    const WHOLE: &str = r#"{"response":{"id":"r","status":"completed","service_tier":"t","model":"n","output":[{"type":"web_search_call"}],"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":8,"cache_write_tokens":3,"cache_write_tokens_details":{"ttl_12h_tokens":2}},"output_tokens":7,"output_tokens_details":{"reasoning_tokens":5}},"prompt_cache_diagnostics":{"kind":"k","type":"d","reason":"m"}}}"#;

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
            model: Some("n".into()),
            miss: Some("m".into()),
            is_diagnosed: true,
            used_hosted_tools: true,
            has_unread_items: false,
        };
        // A count that cannot be read makes the whole usage unknown. An absent part counts as zero.
        for odd in [
            "input_tokens",
            "cached_tokens",
            "cache_write_tokens",
            "ttl_12h_tokens",
            "output_tokens",
            "reasoning_tokens",
            "input_tokens_details",
            "output_tokens_details",
            "cache_write_tokens_details",
        ] {
            for value in ["null", "-1", "1.5", "true", "[[]]", "\"9\""] {
                let name = format!("\"{odd}\":");
                let event = WHOLE.replace(&name, &format!("{name}{value},\"was_{odd}\":"));
                let is_part = !matches!(odd, "input_tokens" | "output_tokens");
                let found = of_event(event.as_bytes());
                assert_eq!(found.is_some(), value == "null" && is_part, "{event}");
            }
        }
        for (odd, expected) in [
            ("status", whole.clone()),
            ("id", Usage { id: None, ..whole.clone() }),
            ("service_tier", Usage { tier: None, ..whole.clone() }),
            ("reason", Usage { miss: None, ..whole.clone() }),
            ("model", Usage { model: None, ..whole.clone() }),
            ("output", Usage { used_hosted_tools: false, has_unread_items: true, ..whole.clone() }),
            (
                "prompt_cache_diagnostics",
                Usage { miss: None, is_diagnosed: false, ..whole.clone() },
            ),
        ] {
            for value in ["null", "-1", "true", "[[]]"] {
                let name = format!("\"{odd}\":");
                let event = WHOLE.replace(&name, &format!("{name}{value},\"was_{odd}\":"));
                let mut expected = expected.clone();
                if odd == "output" && value == "null" {
                    expected.has_unread_items = false;
                }
                assert_eq!(of_event(event.as_bytes()), Some(expected), "{event}");
            }
        }
        for spelling in ["9.0", "9e0", "90E-1", "0.9e1"] {
            let event =
                WHOLE.replace("\"input_tokens\":9", &format!("\"input_tokens\":{spelling}"));
            assert_eq!(of_event(event.as_bytes()), Some(whole.clone()), "{event}");
        }
        let escaped = WHOLE.replace("\"usage\"", "\"\\u0075sage\"");
        assert_eq!(of_event(escaped.as_bytes()), Some(whole.clone()), "{escaped}");
        let twice = WHOLE.replace("\"usage\"", "\"usage\":{\"input_tokens\":1},\"usage\"");
        assert_eq!(of_event(twice.as_bytes()), Some(whole), "the last one counts");
        assert_eq!(
            of_document(br#"{"status":5,"usage":{"input_tokens":2,"output_tokens":7}}"#)
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
    fn tool_that_the_upstream_runs_is_noticed() {
        for (kind, is_hosted) in [
            ("web_search_call", true),
            ("file_search_call", true),
            ("code_interpreter_call", true),
            ("image_generation_call", true),
            ("function_call", false),
            ("local_shell_call", false),
            ("message", false),
        ] {
            let document = format!(
                r#"{{"output":[{{}},{{"type":"reasoning"}},{{"type":"{kind}"}}],"usage":{{"input_tokens":5}}}}"#
            );
            let usage = of_document(document.as_bytes()).1.expect("usage");
            assert_eq!(usage.used_hosted_tools, is_hosted, "{kind}");
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
