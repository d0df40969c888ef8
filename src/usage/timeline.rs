//! The instants of a turn's stages: plain data that the turn's account notes as the turn goes on.
//! Spans and the ledger's durations are made from it afterwards.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use crate::key::Key;
use crate::metrics::{Reason, Transport};
use crate::outcome::Outcome;

/// The instants of one turn. `None`: the turn did not reach that stage.
pub struct Timeline {
    pub began: Instant,
    /// When the client was known. On a WebSocket: when the turn was permitted.
    pub authenticated: Option<Instant>,
    /// When the session was known. On a WebSocket: when the message was read, which comes first.
    pub identified: Option<Instant>,
    /// When the last byte of the request had arrived.
    pub received: Option<Instant>,
    /// When the key was chosen.
    pub bound: Option<Instant>,
    /// The first attempt. Nearly all turns have only this one, so it needs no allocation.
    first: Option<Sending>,
    later: Vec<Sending>,
    pub waits: Vec<Waited>,
    /// When the answer to the client began.
    pub answered: Option<Instant>,
    /// When the answer's first byte arrived.
    pub first_byte: Option<Instant>,
    /// Whether the answer is a stream of events.
    pub is_stream: bool,
}

/// One attempt at an upstream.
pub struct Sending {
    pub key: Arc<Key>,
    pub began: Instant,
    /// When the attempt ended. `None`: it ended with the turn.
    pub ended: Option<Instant>,
    /// The status of the upstream's answer.
    pub status: Option<StatusCode>,
    /// How the attempt failed, if there was no answer.
    pub failure: Option<&'static str>,
    /// Why the turn did not simply end with the attempt's outcome.
    pub reason: Option<Reason>,
}

/// A wait in place for a limited key.
pub struct Waited {
    pub key: Arc<Key>,
    pub began: Instant,
    pub pause: Duration,
}

impl Timeline {
    pub const fn from(began: Instant) -> Self {
        Self {
            began,
            authenticated: None,
            identified: None,
            received: None,
            bound: None,
            first: None,
            later: Vec::new(),
            waits: Vec::new(),
            answered: None,
            first_byte: None,
            is_stream: false,
        }
    }

    /// The attempts, in order.
    pub fn sendings(&self) -> impl Iterator<Item = &Sending> {
        self.first.iter().chain(&self.later)
    }

    /// Notes that an attempt with `key` begins.
    pub fn sends(&mut self, key: Arc<Key>, began: Instant) {
        let (status, failure, reason) = (None, None, None);
        let sending = Sending { key, began, ended: None, status, failure, reason };
        match self.first {
            None => self.first = Some(sending),
            Some(_) => self.later.push(sending),
        }
    }

    /// Notes the outcome of the attempt that began last.
    pub fn end_attempt(&mut self, outcome: &Outcome) {
        if let Some(sending) = self.last() {
            sending.ended = Some(Instant::now());
            sending.status = outcome.answer().map(|answer| answer.status);
            sending.failure = outcome.failure();
        }
    }

    /// Notes that the attempt that began last has an answer.
    pub fn answers(&mut self, status: StatusCode) {
        let now = Instant::now();
        self.answered.get_or_insert(now);
        if let Some(sending) = self.last().filter(|sending| sending.ended.is_none()) {
            (sending.ended, sending.status) = (Some(now), Some(status));
        }
    }

    /// Notes why the turn does not simply end with the last attempt's outcome.
    pub fn note_leave_reason(&mut self, reason: Option<Reason>) {
        if let Some(sending) = self.last() {
            sending.reason = reason;
        }
    }

    /// Returns how long the gateway itself took to choose the key, from the last byte of an HTTP
    /// request. `None`: no key was chosen, or the turn came on a WebSocket.
    pub fn to_binding(&self) -> Option<Duration> {
        Some(self.bound?.duration_since(self.received?))
    }

    /// Returns how long the client waited for the answer's first byte.
    pub fn to_first_byte(&self) -> Option<Duration> {
        Some(self.first_byte?.duration_since(self.began))
    }

    /// Returns the time that the gateway itself took before the first attempt. On a WebSocket, a
    /// message arrives as a whole.
    pub fn overhead(&self, transport: Transport) -> Option<Duration> {
        let since = match transport {
            Transport::Http => self.received?,
            Transport::Websocket => self.received.unwrap_or(self.began),
        };
        Some(self.bound?.duration_since(since))
    }

    fn last(&mut self) -> Option<&mut Sending> {
        self.later.last_mut().or(self.first.as_mut())
    }
}
