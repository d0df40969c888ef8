//! The result of one attempt at an upstream: facts without decisions.

pub mod body;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use hyper::upgrade::OnUpgrade;

use crate::error::Error;
use crate::outcome::body::AnswerBody;
use crate::wire::error_body::ErrorBody;

/// The end of an attempt, before any byte of an answer has gone to the client.
pub enum Outcome {
    /// An answer of any status whose body is still to come, because no decision needs that body.
    Answered(Answer),
    /// An error answer whose body was read as far as its meaning needs.
    Refused(Refusal),
    /// This process has no descriptor left for a connection.
    NoDescriptor(String),
    /// The connection failed. The upstream has seen nothing of the turn.
    Unreachable(String),
    /// The connection broke after the upstream may have received the turn.
    Interrupted(String),
    /// The upstream said that it has not processed the turn.
    Unprocessed(String),
    /// The answer breaks the protocol, so that no part of it can be passed on.
    Broken(String),
    /// The answer states success and cannot be decoded, so that no part of it can be passed on. The
    /// upstream has served the turn, and nobody can read its usage.
    Unreadable(String),
    /// The turn needed a WebSocket, and the upstream does not support one.
    NotSpoken,
    /// The turn cannot be written in the dialect of this upstream. Nothing was sent.
    Inexpressible(Error),
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
            Self::NoDescriptor(_) => Some("no_descriptor"),
            Self::Unreachable(_) => Some("unreachable"),
            Self::Interrupted(_) => Some("interrupted"),
            Self::Unprocessed(_) => Some("unprocessed"),
            Self::Broken(_) | Self::Unreadable(_) => Some("broken"),
            Self::NotSpoken => Some("not_spoken"),
            Self::Inexpressible(_) => Some("inexpressible"),
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
    pub rest: Option<AnswerBody>,
    /// The upgraded connection, if the answer is a WebSocket handshake.
    pub upgrade: Option<OnUpgrade>,
}

/// An error answer and its parsed body.
pub struct Refusal {
    pub answer: Answer,
    pub error: ErrorBody,
}
