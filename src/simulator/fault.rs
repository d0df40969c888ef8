//! Scripted faults: which request fails, and how.
//!
//! Decides by key, organization, project, model and session; each fault strikes so many times, or until it is cleared. The first
//! one added that fits wins. Plays nothing itself.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;

use super::key::Key;
use super::refusal::{Caller, Refusal};
use crate::setting::Span;

/// Faults kept at once.
const MOST_FAULTS: usize = 10_000;

/// One scripted fault: what it narrows to, and what happens. `POST /_sim/fault` takes it as JSON.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fault {
    pub key: Option<String>,
    pub organization: Option<String>,
    pub project: Option<String>,
    pub model: Option<String>,
    pub session: Option<String>,
    /// Only turns that merely prepare, or only those that do not: Codex begins every WebSocket with one that does.
    pub prewarm: Option<bool>,
    /// Answered with this status; 200 is a stream that begins well and ends in `response.failed`.
    pub status: Option<u16>,
    /// The error's code; absent, the usual one of the status.
    pub code: Option<String>,
    /// `5` (seconds) or `"1500ms"`.
    #[serde(deserialize_with = "seconds_or_span")]
    pub retry_after: Option<Duration>,
    /// Waits so long, in real time: before the headers, or after `cut_after_events` events.
    pub stall: Option<Span>,
    /// Ends the stream after so many events, without a terminal one.
    pub cut_after_events: Option<u64>,
    /// Breaks the connection: after `cut_after_events` events, or before the first byte.
    pub reset: bool,
    /// A `code` under status 200 comes as a bare `error` event instead of `response.failed`.
    pub error_event: bool,
    /// Closes the WebSocket with this code: after `cut_after_events` events, after the error or the answer, or in place of it.
    /// In a handshake: accepts, and closes at once.
    pub close: Option<u16>,
    /// What it strikes. Absent: turns, and a 401 that names neither model nor session also WebSocket handshakes.
    pub at: Option<At>,
    /// How many requests it strikes; absent, all until it is cleared.
    pub times: Option<u64>,
}

/// A request that a fault may strike, as far as it is known by then.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub at: At,
    pub key: &'a Key,
    pub model: Option<&'a str>,
    pub session: Option<&'a str>,
    pub prewarm: bool,
}

/// What a fault strikes: a turn over either transport, or the handshake of a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum At {
    Turn,
    Handshake,
}

fn seconds_or_span<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Seconds(f64),
        Span(Span),
    }
    match Option::<Written>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Written::Span(span)) => Ok(Some(span.0)),
        Some(Written::Seconds(seconds)) => Duration::try_from_secs_f64(seconds).map(Some).map_err(serde::de::Error::custom),
    }
}

impl Fault {
    fn fits(&self, target: Target<'_>) -> bool {
        let Target { at, key, model, session, prewarm } = target;
        let narrows = |wanted: &Option<String>, own: Option<&str>| wanted.as_deref().is_none_or(|wanted| own == Some(wanted));
        self.at.map_or(at == At::Turn || self.concerns_the_key(), |own| own == at)
            && self.prewarm.is_none_or(|wanted| wanted == prewarm)
            && narrows(&self.key, Some(&key.id))
            && narrows(&self.organization, Some(&key.organization))
            && narrows(&self.project, Some(&key.project))
            && narrows(&self.model, model)
            && narrows(&self.session, session)
    }

    /// Whether it makes the key useless for whatever it is asked, not only for answers.
    fn concerns_the_key(&self) -> bool {
        self.status == Some(401) && self.model.is_none() && self.session.is_none() && self.at.is_none() && self.prewarm.is_none()
    }

    /// The error that it answers with, under a status.
    pub fn refusal(&self, status: StatusCode, key: &Key, model: &str) -> Refusal {
        let caller = Caller { organization: &key.organization, project: &key.project, model, masked: &key.masked };
        // A rate limit without a wait is terminal for Codex: the real one always names it.
        let usual = (status == StatusCode::TOO_MANY_REQUESTS
            && self.code.as_deref().is_none_or(|code| code == "rate_limit_exceeded"))
        .then_some(Duration::from_secs(1));
        let refusal = Refusal::scripted(status, self.code.as_deref(), caller, self.retry_after.or(usual));
        Refusal { close: self.close, ..refusal }
    }
}

/// The faults that wait for their requests.
#[derive(Debug, Default)]
pub struct Faults(Vec<Fault>);

impl Faults {
    pub fn add(&mut self, fault: Fault) -> Result<(), String> {
        if let Some(status) = fault.status.filter(|status| !(200..=599).contains(status)) {
            return Err(format!("{status} is no status that a fault can have"));
        }
        // The codes that RFC 6455 lets an endpoint send.
        if let Some(code) = fault.close.filter(|code| !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)) {
            return Err(format!("{code} is no code that a WebSocket can be closed with"));
        }
        if self.0.len() >= MOST_FAULTS {
            return Err(format!("{MOST_FAULTS} faults are enough"));
        }
        self.0.push(fault);
        Ok(())
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The fault that strikes here, counted.
    pub fn strike(&mut self, target: Target<'_>) -> Option<Fault> {
        let index = self.0.iter().position(|fault| fault.times != Some(0) && fault.fits(target))?;
        if let Some(times) = &mut self.0[index].times {
            *times -= 1;
        }
        let fault = self.0[index].clone();
        if fault.times == Some(0) {
            self.0.remove(index);
        }
        Some(fault)
    }

    /// A standing fault of the key itself, which a probe meets as well. Does not count as a strike.
    pub fn of_key(&self, key: &Key) -> Option<Fault> {
        let target = Target { at: At::Turn, key, model: None, session: None, prewarm: false };
        self.0.iter().find(|fault| fault.concerns_the_key() && fault.times != Some(0) && fault.fits(target)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        let text = |text: &str| text.to_owned();
        Key { id: text("a-1"), organization: text("org-a"), project: text("proj-1"), region: text("us"), masked: text("*") }
    }

    fn strike(faults: &mut Faults, at: At, model: Option<&str>, prewarm: bool) -> Option<Fault> {
        faults.strike(Target { at, key: &key(), model, session: None, prewarm })
    }

    fn fault(json: &str) -> Fault {
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    #[test]
    fn a_fault_strikes_whom_it_names_as_often_as_it_says() {
        let mut faults = Faults::default();
        faults.add(fault(r#"{"organization":"org-b","status":500}"#)).expect("added");
        faults.add(fault(r#"{"key":"a-1","model":"gpt-5.4","status":429,"times":2}"#)).expect("added");
        let mut strike = |model| strike(&mut faults, At::Turn, Some(model), false).and_then(|fault| fault.status);
        assert_eq!(
            (strike("gpt-5.5"), strike("gpt-5.4"), strike("gpt-5.4"), strike("gpt-5.4")),
            (None, Some(429), Some(429), None)
        );
    }

    #[test]
    fn retry_after_is_seconds_or_a_span() {
        assert_eq!(fault(r#"{"retry_after":2}"#).retry_after, Some(Duration::from_secs(2)));
        assert_eq!(fault(r#"{"retry_after":"1500ms"}"#).retry_after, Some(Duration::from_millis(1500)));
        assert!(serde_json::from_str::<Fault>(r#"{"retry_after":-1}"#).is_err());
        assert!(serde_json::from_str::<Fault>(r#"{"statsu":1}"#).is_err());
        assert!(Faults::default().add(fault(r#"{"status":99}"#)).is_err());
        assert!(Faults::default().add(fault(r#"{"close":1006}"#)).is_err(), "no endpoint sends it");
    }

    #[test]
    fn a_handshake_is_struck_by_what_names_it_and_by_a_dead_key() {
        let strikes = |json: &str, at| {
            let mut faults = Faults::default();
            faults.add(fault(json)).expect("added");
            strike(&mut faults, at, None, false).is_some()
        };
        for (json, handshake, turn) in [
            (r#"{"status":401}"#, true, true),
            (r#"{"status":429}"#, false, true),
            (r#"{"status":429,"at":"handshake"}"#, true, false),
            (r#"{"status":401,"at":"turn"}"#, false, true),
        ] {
            assert_eq!((strikes(json, At::Handshake), strikes(json, At::Turn)), (handshake, turn), "{json}");
        }
    }

    #[test]
    fn a_fault_can_let_prewarms_pass() {
        let mut faults = Faults::default();
        faults.add(fault(r#"{"status":500,"prewarm":false}"#)).expect("added");
        assert!(strike(&mut faults, At::Turn, None, true).is_none() && strike(&mut faults, At::Turn, None, false).is_some());
    }

    #[test]
    fn a_probe_meets_a_dead_key_and_does_not_revive_it() {
        let mut faults = Faults::default();
        faults.add(fault(r#"{"key":"a-1","status":401,"times":1}"#)).expect("added");
        assert!(faults.of_key(&key()).is_some() && faults.of_key(&key()).is_some());
        assert!(strike(&mut faults, At::Turn, None, false).is_some());
        assert!(faults.of_key(&key()).is_none());
    }
}
