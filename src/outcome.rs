//! What an upstream did with an attempt: facts, no decisions.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use hyper::upgrade::OnUpgrade;

use crate::wire::error_body::ErrorBody;

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
