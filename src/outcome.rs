//! What an upstream did with an attempt: facts, no decisions.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use hyper::upgrade::OnUpgrade;
use serde::Deserialize;

use crate::limit;

/// How an attempt ended, before any byte of an answer has gone to the client.
pub enum Outcome {
    /// An answer whose body is still to come, of any status that no decision needs the body of.
    Answered(Answer),
    /// An error answer whose body was read, as far as it is needed to know what it means.
    Refused(Refusal),
    /// No connection came about; the upstream has seen nothing of the turn.
    Unreachable(String),
    /// The connection broke after the turn may have been received.
    Interrupted(String),
    /// A WebSocket was wanted, and the upstream does not speak it.
    NotSpoken,
    /// Nothing came within the upstream's `first_byte_timeout`.
    Silent,
}

impl Outcome {
    /// What the upstream answered, if it did.
    pub const fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Answered(answer) | Self::Refused(Refusal { answer, .. }) => Some(answer),
            _ => None,
        }
    }
}

/// An answer as it arrives.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// What was already read of the body.
    pub head: Bytes,
    /// What is still to come; `None` once all of it was read.
    pub rest: Option<reqwest::Response>,
    /// The connection itself, where that is the answer.
    pub upgrade: Option<OnUpgrade>,
}

/// An error answer, and what its body says.
pub struct Refusal {
    pub answer: Answer,
    pub error: ErrorBody,
}

/// The fields of an OpenAI error body that decisions are made on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorBody {
    pub code: Option<String>,
    pub class: Option<String>,
    /// The request is larger than the limit that it was refused by.
    pub is_beyond_limit: bool,
    /// When to come again, as its message says.
    pub wait: Option<Duration>,
}

#[derive(Deserialize)]
struct Envelope {
    error: Fields,
}

#[derive(Deserialize)]
struct Fields {
    code: Option<serde_json::Value>,
    r#type: Option<serde_json::Value>,
    message: Option<serde_json::Value>,
}

impl ErrorBody {
    /// Reads `{"error":{"code","type"}}`; anything else says nothing.
    pub fn parse(body: &[u8]) -> Self {
        match serde_json::from_slice::<Envelope>(body) {
            Ok(Envelope { error }) => Self::of(error),
            Err(_) => Self::default(),
        }
    }

    fn of(error: Fields) -> Self {
        let text = |value: Option<serde_json::Value>| value.as_ref().and_then(|v| v.as_str()).map(str::to_owned);
        let message = text(error.message).unwrap_or_default();
        Self {
            code: text(error.code),
            class: text(error.r#type),
            is_beyond_limit: limit::is_beyond_limit(&message),
            wait: limit::wait_in(&message),
        }
    }

    /// Reads what a stream's `response.failed` or `error` event says went wrong.
    pub fn of_event(data: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Event {
            response: Option<Envelope>,
            #[serde(flatten)]
            own: Fields,
        }
        let event: Event = serde_json::from_slice(data).ok()?;
        Some(Self::of(event.response.map_or(event.own, |response| response.error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_what_went_wrong() {
        let code = |data: &str| ErrorBody::of_event(data.as_bytes()).and_then(|error| error.code);
        let failed = r#"{"type":"response.failed","response":{"id":"r","error":{"code":"rate_limit_exceeded","message":"m"}}}"#;
        assert_eq!(code(failed).as_deref(), Some("rate_limit_exceeded"));
        assert_eq!(code(r#"{"type":"error","code":"insufficient_quota","message":"m"}"#).as_deref(), Some("insufficient_quota"));
        assert_eq!((code("{}"), code(r#"{"response":{"error":null}}"#), code("text")), (None, None, None));
    }

    #[test]
    fn a_message_says_how_long_a_limit_holds_and_whether_it_is_for_good() {
        let message = |text: &str| format!(r#"{{"error":{{"code":"rate_limit_exceeded","message":"{text}"}}}}"#);
        let event = |text: &str| format!(r#"{{"type":"response.failed","response":{}}}"#, message(text));
        for (text, wait, is_beyond_limit) in [
            ("Limit 30000, Used 22999, Requested 12528. Please try again in 11.054s.", Some(11_054), false),
            ("Limit 30000, Requested 40000.", None, true),
            ("Slow down.", None, false),
        ] {
            for read in [ErrorBody::parse(message(text).as_bytes()), ErrorBody::of_event(event(text).as_bytes()).unwrap()] {
                let found = (read.wait.map(|wait| wait.as_millis()), read.is_beyond_limit);
                assert_eq!(found, (wait, is_beyond_limit), "{text}");
            }
        }
    }

    #[test]
    fn an_error_body_is_read_with_tolerance() {
        let read = |body: &str| ErrorBody::parse(body.as_bytes());
        let both =
            read(r#"{"error":{"message":"m","type":"insufficient_quota","param":null,"code":"credit_balance_exhausted"}}"#);
        assert_eq!(both.code.as_deref(), Some("credit_balance_exhausted"));
        assert_eq!(both.class.as_deref(), Some("insufficient_quota"));
        for nothing in ["", "<html>", "{}", r#"{"error":"text"}"#, r#"{"error":{"code":429,"type":null}}"#] {
            assert_eq!(read(nothing), ErrorBody::default(), "{nothing}");
        }
    }
}
