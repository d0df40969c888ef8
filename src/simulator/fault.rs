//! A scripted fault: which requests it strikes, and what it answers.
//!
//! A fault narrows its requests by key, organization, project, model and session. Its texts and
//! headers are sent exactly as written.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Deserializer};

use super::date::http_text;
use super::key::Key;
use super::refusal::{Besides, Caller, Refusal, usual_code};
use crate::setting::Span;
use crate::simulator::judge::now_millis;

/// One scripted fault: which requests it strikes, and what happens. `POST /_sim/fault` takes it as
/// JSON.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fault {
    pub key: Option<String>,
    pub organization: Option<String>,
    pub project: Option<String>,
    pub model: Option<String>,
    pub session: Option<String>,
    /// Whether the fault strikes only prewarms (`true`) or only other turns (`false`). Codex begins
    /// every WebSocket with a prewarm.
    pub prewarm: Option<bool>,
    /// The status of the answer. With 200, a stream begins well and ends in `response.failed`.
    pub status: Option<u16>,
    /// The error's code. Default: the usual one of the status.
    pub code: Option<String>,
    /// The error's `type`. Default: the usual one of the code.
    pub class: Option<String>,
    /// Strikes only requests that ask for this service tier.
    pub tier: Option<String>,
    /// The coding of the error, sent with exactly this spelling: `gzip`, `x-gzip` or `zstd` in any
    /// case.
    pub encoding: Option<String>,
    /// The error's message. Default: the usual one.
    pub message: Option<String>,
    /// Sent instead of the error, as a proxy before the service would. A WebSocket frame has no
    /// room for a page.
    pub html: Option<String>,
    /// When to come back: `5` (seconds), `"1500ms"`, or `false`, which leaves the time out of all
    /// headers and messages.
    pub retry_after: Wait,
    /// Sends the time to come back as a date.
    pub retry_after_date: bool,
    /// Sent as `retry-after` instead of a time, even if the text means nothing.
    pub retry_after_text: Option<String>,
    /// Further headers. Each replaces another header of the same name. If the fault refuses
    /// nothing, the answer carries them.
    pub headers: BTreeMap<String, String>,
    /// Real time to wait: before the headers, or after `cut_after_events` events.
    pub stall: Option<Span>,
    /// Ends the stream after so many events, without a terminal event.
    pub cut_after_events: Option<u64>,
    /// Breaks the connection: after `cut_after_events` events, or before the first byte.
    pub reset: bool,
    /// Sends a `code` under status 200 as a bare `error` event instead of `response.failed`.
    pub error_event: bool,
    /// Closes the WebSocket with this code: after `cut_after_events` events, after the error or the
    /// answer, or in place of it. A handshake is accepted, and closed at once.
    pub close: Option<u16>,
    /// Which requests the fault strikes. Default: turns. A 401 that names neither model nor session
    /// also strikes WebSocket handshakes and, without counting them, probes.
    pub at: Option<At>,
    /// How many requests the fault strikes. Default: all, until it is cleared.
    pub times: Option<u64>,
}

/// A request that a fault may strike, as far as the request is known at that point.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub at: At,
    pub key: &'a Key,
    pub model: Option<&'a str>,
    pub session: Option<&'a str>,
    pub tier: Option<&'a str>,
    pub prewarm: bool,
}

/// What a fault strikes: a turn over either transport, the handshake of a WebSocket, or a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum At {
    Turn,
    Handshake,
    Probe,
}

/// Which faults to clear: those that name everything that the scope names. `DELETE /_sim/fault`
/// takes it as JSON.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scope {
    pub key: Option<String>,
    pub organization: Option<String>,
    pub project: Option<String>,
    pub model: Option<String>,
    pub session: Option<String>,
}

/// When a refusal says to come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// The time that the real service names: only a rate limit has one.
    #[default]
    Usual,
    Never,
    For(Duration),
}

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Said(bool),
            Seconds(f64),
            Span(Span),
        }
        let wrong = |text: String| serde::de::Error::custom(text);
        match Option::<Written>::deserialize(deserializer)? {
            None => Ok(Self::Usual),
            Some(Written::Said(false)) => Ok(Self::Never),
            Some(Written::Said(true)) => Err(wrong("retry_after: a time, or false".into())),
            Some(Written::Span(span)) => Ok(Self::For(span.0)),
            Some(Written::Seconds(seconds)) => Duration::try_from_secs_f64(seconds)
                .map(Self::For)
                .map_err(|error| wrong(error.to_string())),
        }
    }
}

impl Fault {
    /// Checks the fault. The error says what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        if let Some(status) = self.status.filter(|status| !(200..=599).contains(status)) {
            return Err(format!("{status} is no status that a fault can have"));
        }
        // The close codes that RFC 6455 lets an endpoint send.
        if let Some(code) =
            self.close.filter(|code| !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999))
        {
            return Err(format!("{code} is no code that a WebSocket can be closed with"));
        }
        self.headers().map(drop)
    }

    pub fn is_of(&self, scope: &Scope) -> bool {
        let names =
            |wanted: &Option<String>, own: &Option<String>| wanted.is_none() || wanted == own;
        names(&scope.key, &self.key)
            && names(&scope.organization, &self.organization)
            && names(&scope.project, &self.project)
            && names(&scope.model, &self.model)
            && names(&scope.session, &self.session)
    }

    pub fn fits(&self, target: Target<'_>) -> bool {
        let Target { at, key, model, session, tier, prewarm } = target;
        let narrows = |wanted: &Option<String>, own: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| own == Some(wanted))
        };
        let usually = at == At::Turn || at == At::Handshake && self.concerns_the_key();
        self.at.map_or(usually, |own| own == at)
            && self.prewarm.is_none_or(|wanted| wanted == prewarm)
            && narrows(&self.key, Some(&key.id))
            && narrows(&self.organization, Some(&key.organization))
            && narrows(&self.project, Some(&key.project))
            && narrows(&self.model, model)
            && narrows(&self.session, session)
            && narrows(&self.tier, tier)
    }

    /// Whether the fault makes the key useless for every request, and not only for answers.
    pub fn concerns_the_key(&self) -> bool {
        self.status == Some(401)
            && self.model.is_none()
            && self.session.is_none()
            && self.tier.is_none()
            && self.at.is_none()
            && self.prewarm.is_none()
    }

    /// Returns the error that the fault answers with under `status`.
    pub fn refusal(&self, status: StatusCode, key: &Key, model: &str) -> Refusal {
        let caller = Caller {
            organization: &key.organization,
            project: &key.project,
            model,
            masked: &key.masked,
        };
        let wait = match self.retry_after {
            _ if self.retry_after_text.is_some() => None,
            Wait::For(span) => Some(span),
            Wait::Never => None,
            Wait::Usual => {
                let is_limit =
                    self.code.as_deref().unwrap_or(usual_code(status)) == "rate_limit_exceeded";
                is_limit.then_some(Duration::from_secs(1))
            }
        };
        let mut refusal = Refusal::scripted(status, self.code.as_deref(), caller, wait);
        let headers = self.answer_headers(wait);
        if headers.contains_key(header::RETRY_AFTER) {
            refusal.retry_after = None;
        }
        if let Some(message) = &self.message {
            refusal.message.clone_from(message);
        }
        let (html, class) = (self.html.clone(), self.class.clone());
        let encoding = self.encoding.clone();
        let besides = Some(Box::new(Besides { headers, html, class, encoding }));
        Refusal { close: self.close, besides, ..refusal }
    }

    /// The scripted headers. `wait` is the time to come back, if the fault names one.
    pub fn answer_headers(&self, wait: Option<Duration>) -> HeaderMap {
        let mut headers = self.headers().unwrap_or_default();
        if let Some(wait) =
            wait.filter(|_| self.retry_after_date && !headers.contains_key(header::RETRY_AFTER))
        {
            let now = Duration::from_millis(now_millis());
            // The time is rounded up, because a client that comes back early is refused again.
            let then = (now + wait).as_millis().div_ceil(1000) as u64;
            headers.extend(
                HeaderValue::try_from(http_text(then)).map(|date| (header::RETRY_AFTER, date)),
            );
        }
        headers
    }

    fn headers(&self) -> Result<HeaderMap, String> {
        let own = self.headers.iter().map(|(name, value)| (name.as_str(), value));
        let text = self.retry_after_text.iter().map(|text| (header::RETRY_AFTER.as_str(), text));
        own.chain(text)
            .map(|(name, value)| match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                (Ok(name), Ok(value)) => Ok((name, value)),
                _ => Err(format!("{name}: {value:?} cannot be a header")),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &str) -> Refusal {
        let text = |text: &str| text.to_owned();
        let key = Key {
            id: text("a"),
            organization: text("org"),
            project: text("p"),
            region: text("us"),
            masked: text("*"),
            ..Key::default()
        };
        let fault: Fault =
            serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"));
        let status = StatusCode::from_u16(fault.status.expect("a status")).expect("a status");
        fault.refusal(status, &key, "gpt-5.4")
    }

    /// Returns `retry-after`, `retry-after-ms`, and whether the message names the time, too.
    fn stated(json: &str) -> (Option<String>, Option<String>, bool) {
        let refusal = refusal(json);
        let response = refusal.response();
        let text = |name: &str| {
            response.headers().get(name).map(|value| value.to_str().expect("text").to_owned())
        };
        (text("retry-after"), text("retry-after-ms"), refusal.message.contains("try again in"))
    }

    #[test]
    fn limit_says_when_to_come_back_unless_scripted_silent() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(stated(r#"{"status":429}"#), (some("1"), some("1000"), true));
        assert_eq!(stated(r#"{"status":429,"retry_after":2}"#), (some("2"), some("2000"), true));
        assert_eq!(
            stated(r#"{"status":429,"retry_after":"1500ms"}"#),
            (some("2"), some("1500"), true)
        );
        assert_eq!(stated(r#"{"status":429,"retry_after":false}"#), (None, None, false));
        assert_eq!(
            stated(r#"{"status":429,"code":"credit_balance_exhausted"}"#),
            (None, None, false)
        );
        assert_eq!(stated(r#"{"status":503,"retry_after":3}"#), (some("3"), some("3000"), false));
        for verbatim in ["soon", "-5", "1.5", "", "99999999999999999999"] {
            let fault = format!(r#"{{"status":429,"retry_after_text":"{verbatim}"}}"#);
            assert_eq!(stated(&fault), (some(verbatim), None, false));
        }
        let (date, millis, _) =
            stated(r#"{"status":429,"retry_after":30,"retry_after_date":true}"#);
        assert!(date.is_some_and(|date| date.ends_with(" GMT")) && millis.is_none());
    }

    #[test]
    fn headers_message_and_page_are_sent_as_they_stand() {
        let refusal = refusal(
            r#"{"status":502,"message":"no","html":"<html>","headers":{"x-ratelimit-remaining-requests":"0","content-type":"text/plain"}}"#,
        );
        let response = refusal.response();
        assert_eq!(
            (
                &response.headers()["x-ratelimit-remaining-requests"],
                &response.headers()["content-type"]
            ),
            (&"0".parse().unwrap(), &"text/plain".parse().unwrap())
        );
        let page = refusal.besides.and_then(|besides| besides.html);
        assert_eq!((refusal.message.as_str(), page.as_deref()), ("no", Some("<html>")));
    }

    #[test]
    fn fault_that_cannot_be_played_is_refused() {
        let check = |json: &str| {
            serde_json::from_str::<Fault>(json)
                .map_err(|error| error.to_string())
                .and_then(|fault| fault.check())
        };
        assert_eq!(check(r#"{"status":429,"retry_after":2}"#), Ok(()));
        for wrong in [
            r#"{"retry_after":-1}"#,
            r#"{"retry_after":true}"#,
            r#"{"statsu":1}"#,
            r#"{"status":99}"#,
            r#"{"close":1006}"#,
            r#"{"headers":{"a b":"c"}}"#,
            r#"{"retry_after_text":"a\nb"}"#,
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }
}
