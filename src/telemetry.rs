//! Logs, and the id of a turn.
//!
//! Each turn logs one line, as JSON or text, on standard error. No level logs bodies, prompts,
//! header values or secrets. Sessions appear by their stored hash only.

use std::fmt;
use std::hash::{BuildHasher, RandomState};

use http::HeaderMap;
use serde::Deserialize;

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Json,
    Text,
}

/// The options in `[telemetry]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub log: LogFormat,
}

/// Starts logging for this process. A second call changes nothing.
pub fn start(settings: &Settings) {
    let lines = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_max_level(tracing::Level::INFO);
    // The first subscriber of a process stays, so that several replicas in one process share it.
    let _ = match settings.log {
        LogFormat::Json => {
            tracing::subscriber::set_global_default(lines.json().flatten_event(true).finish())
        }
        LogFormat::Text => tracing::subscriber::set_global_default(lines.finish()),
    };
}

/// A turn's trace id (W3C Trace Context: 16 bytes, lower-case hex). The client gets it as
/// `x-warmkey-turn`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TurnId([u8; 16]);

impl TurnId {
    /// Takes the trace id of a valid inbound `traceparent`, or draws a new one.
    pub fn of(headers: &HeaderMap) -> Self {
        headers
            .get("traceparent")
            .and_then(|value| Self::from_traceparent(value.as_bytes()))
            .unwrap_or_else(Self::random)
    }

    fn from_traceparent(value: &[u8]) -> Option<Self> {
        let [_, _, b'-', rest @ ..] = value else { return None };
        let (hex, [b'-', ..]) = rest.split_at_checked(32)? else { return None };
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(hex.chunks_exact(2)) {
            if !pair.iter().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(c)) {
                return None;
            }
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        (id != [0; 16]).then_some(Self(id))
    }

    /// Draws a unique id from the hash keys that the standard library seeds once a thread. This
    /// needs no system call for each turn.
    pub fn random() -> Self {
        let keyed = RandomState::new();
        let half = |number: u64| u128::from(keyed.hash_one(number));
        Self((half(0) << 64 | half(1)).to_be_bytes())
    }
}

impl fmt::Display for TurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turn_id_is_the_clients_trace_id_or_random() {
        let id = |text: &str| TurnId::from_traceparent(text.as_bytes()).map(|id| id.to_string());
        let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(id(given).as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        for wrong in [
            "",
            "00-",
            "00-4bf9-00f0-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            &given.to_uppercase(),
        ] {
            assert_eq!(id(wrong), None, "{wrong}");
        }
        // A later version may append fields. A shorter or longer id is invalid.
        assert!(id(&format!("{given}-more")).is_some());
        assert_eq!(
            (id(&given.replacen("4bf", "4b", 1)), id(&given.replacen("4bf", "4bff", 1))),
            (None, None)
        );
        assert_eq!(id(&given.replacen("4bf", "4bg", 1)), None);
        let headers = |value: &str| {
            HeaderMap::from_iter([("traceparent".parse().unwrap(), value.parse().unwrap())])
        };
        assert_eq!(TurnId::of(&headers(given)).to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let (one, other) = (TurnId::of(&HeaderMap::new()), TurnId::of(&headers("00-x")));
        assert!(
            one != other && one.to_string().len() == 32,
            "a turn without a trace id gets its own"
        );
    }
}
