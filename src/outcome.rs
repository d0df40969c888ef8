//! The result of one attempt at an upstream: facts without decisions.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use hyper::upgrade::OnUpgrade;

use crate::wire::error_body::ErrorBody;

/// The end of an attempt, before any byte of an answer has gone to the client.
pub enum Outcome {
    /// An answer of any status whose body is still to come, because no decision needs that body.
    Answered(Answer),
    /// An error answer whose body was read as far as its meaning needs.
    Refused(Refusal),
    /// The connection failed. The upstream has seen nothing of the turn.
    Unreachable(String),
    /// The connection broke after the upstream may have received the turn.
    Interrupted(String),
    /// The turn needed a WebSocket, and the upstream does not support one.
    NotSpoken,
    /// The upstream sent nothing within its `first_byte_timeout`.
    Silent,
}

impl Outcome {
    /// The upstream's answer, if there is one.
    pub const fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Answered(answer) | Self::Refused(Refusal { answer, .. }) => Some(answer),
            _ => None,
        }
    }

    /// How the attempt failed, if there is no answer.
    pub const fn failure(&self) -> Option<&'static str> {
        match self {
            Self::Answered(_) | Self::Refused(_) => None,
            Self::Unreachable(_) => Some("unreachable"),
            Self::Interrupted(_) => Some("interrupted"),
            Self::NotSpoken => Some("not_spoken"),
            Self::Silent => Some("silent"),
        }
    }
}

/// An answer while it arrives.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// The part of the body that was already read.
    pub head: Bytes,
    /// The rest of the body. `None` once all of it was read.
    pub rest: Option<reqwest::Response>,
    /// The upgraded connection, if the answer is a WebSocket handshake.
    pub upgrade: Option<OnUpgrade>,
}

/// An error answer and its parsed body.
pub struct Refusal {
    pub answer: Answer,
    pub error: ErrorBody,
}
