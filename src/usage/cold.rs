//! Decides whether a turn was cold, and why. Pure.
//!
//! A turn is cold if it reads less than nine tenths of what its session's last turn had left, and
//! at least 1,024 tokens fewer. New input makes no turn cold: no turn is expected to read more than
//! the last turn left, or more than its own input.

use crate::metrics::ColdReason;
use crate::session::purpose::TurnKind;
use crate::usage::promise::{MINIMUM, Promise, domain};
use crate::usage::record::{Record, Service, Warmth};
use crate::wire::imprint::Imprint;
use crate::wire::terminal::Usage;

/// What is known about the last turn of a record's session.
#[derive(Clone, Copy, Debug)]
pub enum Last<'l> {
    /// The store did not answer.
    Unknown,
    /// The session has had no turn yet.
    Nothing,
    Own(&'l Promise),
    /// The session is a fork, and this is its parent's last turn.
    Parents(&'l Promise),
}

/// Decides whether the turn of `record` was cold. `began`: when it began, in seconds since 1970.
pub fn assess(record: &Record, last: Last<'_>, began: u64) -> Warmth {
    let (Some(service), Some(usage)) = (&record.service, &record.usage) else {
        return Warmth::default();
    };
    if record.kind != TurnKind::Turn {
        return Warmth::default();
    }
    let is_short = usage.input < MINIMUM;
    let cold = |reason| Warmth { expected: None, cold: Some(reason) };
    let (promise, is_fork) = match last {
        Last::Unknown => return Warmth::default(),
        _ if is_short && usage.cached == 0 => return cold(ColdReason::BelowMinimum),
        _ if is_short => return Warmth::default(),
        Last::Nothing if falls_short(usage.cached, usage.input) => {
            return cold(ColdReason::FirstTurn);
        }
        Last::Nothing => return Warmth::default(),
        Last::Own(promise) => (promise, false),
        Last::Parents(promise) => (promise, true),
    };
    let expected = promise.tokens.min(usage.input);
    if expected < MINIMUM {
        return Warmth::default();
    }
    let expected = Some(expected);
    if !falls_short(usage.cached, promise.tokens.min(usage.input)) {
        return Warmth { expected, cold: None };
    }
    let change = Change { service, record, promise, usage, is_fork, began };
    match change.reason() {
        // The upstream has shortened the history, as the client wanted.
        _ if usage.miss.as_deref() == Some(COMPACTED) => Warmth::default(),
        // The parent's cache was never the fork's own, so the fork was expected to read nothing.
        ColdReason::FirstTurn => cold(ColdReason::FirstTurn),
        reason => Warmth { expected, cold: Some(reason) },
    }
}

/// Whether `read` tokens are so much fewer than the `expected` ones that the turn is cold.
fn falls_short(read: u64, expected: u64) -> bool {
    read.saturating_mul(10) < expected.saturating_mul(9) && expected.saturating_sub(read) >= MINIMUM
}

/// The upstream's reason for a miss after it has shortened the history.
const COMPACTED: &str = "context_compacted";

/// A cold turn, and the promise of its session's last turn.
struct Change<'c> {
    service: &'c Service,
    record: &'c Record,
    promise: &'c Promise,
    usage: &'c Usage,
    is_fork: bool,
    began: u64,
}

impl Change<'_> {
    /// Returns the first reason that alone makes a turn cold. Reasons of the gateway come first,
    /// then those of the client, then those of time.
    fn reason(&self) -> ColdReason {
        let key = &self.service.key;
        let model = crate::key::Tag::of("model", self.record.answering_model().as_bytes());
        let miss = self.usage.miss.as_deref();
        if domain(key) != self.promise.domain {
            ColdReason::DomainMoved
        } else if model != self.promise.model || miss == Some("model_changed") {
            ColdReason::ModelChanged
        } else if self.has_another_prefix() {
            ColdReason::PrefixChanged
        } else if self.is_expired() {
            ColdReason::Expired
        } else if key.tag != self.promise.key {
            ColdReason::KeyMoved
        } else if self.is_fork {
            ColdReason::FirstTurn
        } else if miss.is_some() {
            // For any other reason that the upstream states, the client has changed the prefix.
            ColdReason::PrefixChanged
        } else {
            ColdReason::Upstream
        }
    }

    /// Whether the client sent another beginning than in the last turn.
    fn has_another_prefix(&self) -> bool {
        let Some(imprint) = &self.record.imprint else { return false };
        let Imprint { tools, settings, cache_key, input, is_continued, .. } = &**imprint;
        // A fork always has another cache key than its parent.
        let has_other_key = !self.is_fork && *cache_key != self.promise.cache_key;
        let is_other_input = match self.promise.mark {
            _ if *is_continued => false,
            Some(mark) => input.begins_with(mark) != Some(true),
            None => false,
        };
        *tools != self.promise.tools
            || *settings != self.promise.settings
            || has_other_key
            || is_other_input
    }

    /// Whether the cache may have dropped the prefix by now. The prefix may be unread for longer
    /// than a model surely keeps it, or older than a model keeps any.
    fn is_expired(&self) -> bool {
        let life = Life::of(self.record.answering_model(), self.promise.is_long);
        let since = |time: u64| self.began.saturating_sub(time);
        since(self.promise.at) > life.idle || since(self.promise.since) > life.age
    }
}

/// How long a prefix is kept, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Life {
    /// For how long at least, if it is not read.
    idle: u64,
    /// For how long at most, however often it is read.
    age: u64,
}

const HOUR: u64 = 3_600;

/// Models before GPT-5.6 that keep a prefix outside of memory, typically for half an hour.
const RETAINED: [&str; 2] = ["gpt-5", "gpt-4.1"];

impl Life {
    /// Returns the life of a prefix. Source: OpenAI's prompt caching guide, as of November 2026.
    /// `is_long`: whether the client asked for half a day.
    fn of(model: &str, is_long: bool) -> Self {
        if is_long {
            Self { idle: 12 * HOUR, age: u64::MAX }
        } else if keeps_breakpoints(model) {
            // Each read begins the half hour anew.
            Self { idle: HOUR / 2, age: u64::MAX }
        } else if RETAINED.iter().any(|family| model.starts_with(family)) {
            Self { idle: HOUR / 2, age: 24 * HOUR }
        } else {
            Self { idle: 300, age: HOUR }
        }
    }
}

/// Whether a model is GPT-5.6 or later.
fn keeps_breakpoints(model: &str) -> bool {
    let Some(version) = model.strip_prefix("gpt-") else { return false };
    let mut numbers = version.split(|letter: char| !letter.is_ascii_digit());
    let mut number = || numbers.next().and_then(|digits| digits.parse::<u32>().ok());
    let major = number().unwrap_or(0);
    let is_pointed = version.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let minor = if is_pointed.starts_with('.') { number().unwrap_or(0) } else { 0 };
    (major, minor) >= (5, 6)
}

#[cfg(test)]
mod tests;
