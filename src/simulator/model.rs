//! Decides by a model's name whether the model exists here, and by which rules its prompt cache
//! works.
//!
//! Source: the model table of OpenAI's prompt caching guide.

use std::time::Duration;

use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::key::Key;
use super::refusal::Refusal;

/// Which caching rules a model follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regime {
    /// Before GPT-5.6: every prefix is cached in steps of this many tokens.
    Steps { tokens: u64 },
    /// GPT-5.6 and later: exact breakpoints, whose cache writes have a price.
    Breakpoints,
}

/// The models that `GET /models` lists. Other models of the same families are served as well.
const LISTED: &[&str] = &[
    "gpt-4.1",
    "gpt-4o",
    "gpt-5",
    "gpt-5-codex",
    "gpt-5.1-codex",
    "gpt-5.2",
    "gpt-5.4",
    "gpt-5.5",
    "gpt-5.6-sol",
    "gpt-6-sol",
    "gpt-6.1-sol",
];

/// Models that cache for 24 hours unless the request says otherwise. Older models cache in memory.
const RETAINED: &[&str] = &["gpt-5", "gpt-4.1"];

/// An entry ends when it is idle for longer than the first span, or older than the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub idle: Duration,
    pub age: Duration,
}

pub const IN_MEMORY: Life =
    Life { idle: Duration::from_secs(10 * 60), age: Duration::from_secs(3600) };
/// "Typically about 30 minutes, at most 24 hours": the typical life, since the service does not
/// promise the maximum.
pub const RETAINED_24H: Life =
    Life { idle: Duration::from_secs(30 * 60), age: Duration::from_secs(24 * 3600) };

/// The regime of a model; `None` if no such model exists.
pub fn regime(model: &str) -> Option<Regime> {
    if let Some((major, minor)) = model.strip_prefix("gpt-").and_then(version) {
        return Some(match (major, minor) {
            (5, 5) => Regime::Steps { tokens: 2048 },
            _ if (major, minor) >= (5, 6) => Regime::Breakpoints,
            _ => Regime::Steps { tokens: 128 },
        });
    }
    let reasoning =
        model.strip_prefix('o').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    (reasoning || model.starts_with("codex-")).then_some(Regime::Steps { tokens: 128 })
}

/// Whether a response of this model can be steered: GPT-6 and later.
pub fn is_steerable(model: &str) -> bool {
    model.strip_prefix("gpt-").and_then(version).is_some_and(|(major, _)| major >= 6)
}

/// How long a model of the steps regime caches when the request does not say.
pub fn usual_life(model: &str) -> Life {
    if RETAINED.iter().any(|family| model.starts_with(family)) { RETAINED_24H } else { IN_MEMORY }
}

/// Reads `5.4-mini` as (5, 4), `4o` as (4, 0), `6-sol` as (6, 0).
fn version(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| {
        text.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok())
    };
    let major = number(text)?;
    let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
    Some((major, rest.strip_prefix('.').and_then(number).unwrap_or(0)))
}

/// The version of the list that Codex asks for.
pub const ETAG: &str = "\"simulated-1\"";

/// Returns the models that the key's project may use. If the key's models are configured, their
/// list includes models of its own, such as fine-tuned ones.
fn listed(key: &Key) -> impl Iterator<Item = &str> {
    let own = key.models.iter().map(String::as_str).filter(|model| !LISTED.contains(model));
    LISTED.iter().copied().filter(|model| key.may_use(model)).chain(own)
}

/// The body of `GET /models` for Codex: everything that it needs to know of a model.
pub fn codex_list(key: &Key) -> String {
    let models: Vec<_> = listed(key)
        .map(|slug| {
            json!({
                "slug": slug, "display_name": slug, "description": null,
                "default_reasoning_level": "medium",
                "supported_reasoning_levels": [{"effort": "medium", "description": "usual"}],
                "shell_type": "shell_command", "visibility": "list", "supported_in_api": true,
                "priority": 1, "base_instructions": "You are a coding agent.",
                "supports_reasoning_summaries": true, "support_verbosity": false,
                "truncation_policy": {"mode": "tokens", "limit": 10_000},
                "supports_parallel_tool_calls": true, "context_window": 272_000,
                "experimental_supported_tools": [],
            })
        })
        .collect();
    json!({"models": models}).to_string()
}

/// The body of `GET /models`.
pub fn list(key: &Key) -> String {
    let data: Vec<_> = listed(key).map(described).collect();
    json!({"object": "list", "data": data}).to_string()
}

/// Returns the body of `GET /models/{id}`. `spelled`: the path after `/models/`. The same words
/// refuse a model that does not exist and one that the project may not use.
pub fn one(key: &Key, spelled: &str) -> Result<String, Refusal> {
    let id = percent_decode_str(spelled).decode_utf8_lossy();
    if listed(key).any(|own| own == id) {
        return Ok(described(&id).to_string());
    }
    let message = format!("The model '{id}' does not exist");
    Err(Refusal::invalid(Some("model_not_found"), Some("model"), message)
        .with_status(StatusCode::NOT_FOUND))
}

fn described(id: &str) -> Value {
    json!({"id": id, "object": "model", "created": 1_790_000_000, "owned_by": "openai"})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regime_follows_the_version() {
        for (model, expected) in [
            ("gpt-4o", Some(Regime::Steps { tokens: 128 })),
            ("gpt-5", Some(Regime::Steps { tokens: 128 })),
            ("gpt-5.4-mini", Some(Regime::Steps { tokens: 128 })),
            ("gpt-5.5-pro", Some(Regime::Steps { tokens: 2048 })),
            ("gpt-5.6-sol", Some(Regime::Breakpoints)),
            ("gpt-5.10", Some(Regime::Breakpoints)),
            ("gpt-6-luna", Some(Regime::Breakpoints)),
            ("gpt-6.1-sol", Some(Regime::Breakpoints)),
            ("o3", Some(Regime::Steps { tokens: 128 })),
            ("claude", None),
            ("gpt-", None),
            ("omni", None),
            ("", None),
        ] {
            assert_eq!(regime(model), expected, "{model}");
        }
    }

    #[test]
    fn steering_began_with_gpt_6() {
        assert!(is_steerable("gpt-6.1-sol") && !is_steerable("gpt-5.6-sol") && !is_steerable("o3"));
    }

    #[test]
    fn documented_models_are_served() {
        assert!(LISTED.iter().all(|model| regime(model).is_some()));
        assert_eq!((usual_life("gpt-5.4"), usual_life("gpt-4o")), (RETAINED_24H, IN_MEMORY));
    }
}
