//! Rate limits of an (organization, project, model): how long a request must wait, and what the
//! `x-ratelimit-*` headers say.
//!
//! Pure: the time is an argument. Refused requests count, too, as in the real service; cached
//! tokens count in full.

use std::collections::HashMap;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::key::place;
use super::settings::Config;

/// Most places in memory. Places whose allowance is full again are forgotten first.
const MOST_PLACES: usize = 10_000;

/// The rest of one minute's allowance, refilled steadily.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Duration,
}

impl Bucket {
    fn refill(&mut self, now: Duration, limit: u64) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.left = (self.left + passed * limit as f64 / 60.0).min(limit as f64);
        self.at = now;
    }

    /// The wait until `amount` is there.
    fn wait(&self, amount: u64, limit: u64) -> Duration {
        Duration::from_secs_f64((amount as f64 - self.left).max(0.0) * 60.0 / limit as f64)
    }
}

/// The allowance of one minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    pub requests: u64,
    pub tokens: u64,
}

/// The limit that refuses a request, and the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    Requests(Duration),
    Tokens(Duration),
    /// The request needs more than a whole minute allows, so no wait would help.
    TooLarge,
}

/// The allowance that a request leaves to a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub limit: Allowance,
    pub requests_left: u64,
    pub tokens_left: u64,
    pub requests_reset: Duration,
    pub tokens_reset: Duration,
    pub refused: Option<Limited>,
}

impl Standing {
    /// Returns the `x-ratelimit-*` headers, which every answer to a counted request has. `real`
    /// turns a span into real time.
    pub fn headers(&self, real: impl Fn(Duration) -> Duration) -> HeaderMap {
        let reset = |span| {
            HeaderValue::try_from(go_text(real(span))).unwrap_or(HeaderValue::from_static("0s"))
        };
        [
            ("x-ratelimit-limit-requests", HeaderValue::from(self.limit.requests)),
            ("x-ratelimit-limit-tokens", HeaderValue::from(self.limit.tokens)),
            ("x-ratelimit-remaining-requests", HeaderValue::from(self.requests_left)),
            ("x-ratelimit-remaining-tokens", HeaderValue::from(self.tokens_left)),
            ("x-ratelimit-reset-requests", reset(self.requests_reset)),
            ("x-ratelimit-reset-tokens", reset(self.tokens_reset)),
        ]
        .into_iter()
        .map(|(name, value)| (HeaderName::from_static(name), value))
        .collect()
    }
}

/// All places, and the allowance of each.
#[derive(Debug)]
pub struct Limits {
    usual: Allowance,
    /// The allowance of each project whose own limit is lower.
    projects: HashMap<String, Allowance>,
    /// By project and model.
    places: HashMap<(String, String), (Bucket, Bucket)>,
}

impl Limits {
    /// The lower of the limits that `[sim]` and the keys of a project set.
    pub fn new(config: &Config) -> Self {
        let usual =
            Allowance { requests: config.requests_per_minute, tokens: config.tokens_per_minute };
        let mut projects = HashMap::new();
        for key in &config.key {
            let project = projects.entry(place(&key.organization, &key.project)).or_insert(usual);
            project.requests = project.requests.min(key.requests_per_minute.unwrap_or(u64::MAX));
            project.tokens = project.tokens.min(key.tokens_per_minute.unwrap_or(u64::MAX));
        }
        Self { usual, projects, places: HashMap::new() }
    }

    pub fn clear(&mut self) {
        self.places.clear();
    }

    /// Takes a request's part of the allowance. `project` is the name of the organization and of
    /// the project together.
    pub fn take(&mut self, now: Duration, project: &str, model: &str, tokens: u64) -> Standing {
        let limit = self.projects.get(project).copied().unwrap_or(self.usual);
        if self.places.len() >= MOST_PLACES {
            self.places.retain(|_, (requests, _)| {
                now.saturating_sub(requests.at) < Duration::from_secs(60)
            });
        }
        let full = |limit: u64| Bucket { left: limit as f64, at: now };
        let place = self.places.entry((project.to_owned(), model.to_owned()));
        let (requests, used) = place.or_insert((full(limit.requests), full(limit.tokens)));
        requests.refill(now, limit.requests);
        used.refill(now, limit.tokens);
        let refused = if requests.left < 1.0 {
            Some(Limited::Requests(requests.wait(1, limit.requests)))
        } else if tokens > limit.tokens {
            Some(Limited::TooLarge)
        } else if used.left < tokens as f64 {
            Some(Limited::Tokens(used.wait(tokens, limit.tokens)))
        } else {
            used.left -= tokens as f64;
            None
        };
        requests.left = (requests.left - 1.0).max(0.0);
        Standing {
            limit,
            requests_left: requests.left as u64,
            tokens_left: used.left as u64,
            requests_reset: requests.wait(limit.requests, limit.requests),
            tokens_reset: used.wait(limit.tokens, limit.tokens),
            refused,
        }
    }
}

/// A span as Go writes it, which the service uses for resets: `20ms`, `1s`, `6m0s`, `1m30.5s`.
pub fn go_text(span: Duration) -> String {
    let millis = span.as_millis();
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let seconds = if rest % 1000 == 0 {
        format!("{}s", rest / 1000)
    } else {
        format!("{}s", rest as f64 / 1000.0)
    };
    match (minutes / 60, minutes % 60) {
        (0, 0) if millis < 1000 => format!("{millis}ms"),
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(json: &str) -> Limits {
        Limits::new(&serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}")))
    }

    #[test]
    fn project_has_a_limit_of_requests_and_tokens_a_minute() {
        let mut limits = limits(r#"{"requests_per_minute":2,"tokens_per_minute":1000}"#);
        let mut take = |seconds, model, tokens| {
            limits.take(Duration::from_secs(seconds), "org/p", model, tokens)
        };
        assert_eq!(take(0, "a", 900).refused, None);
        assert_eq!(take(0, "a", 200).refused, Some(Limited::Tokens(Duration::from_secs(6))));
        assert_eq!(take(0, "a", 1).refused, Some(Limited::Requests(Duration::from_secs(30))));
        assert_eq!(take(0, "b", 200).refused, None);
        assert_eq!(take(0, "b", 1001).refused, Some(Limited::TooLarge), "waiting would not help");
        let later = take(60, "a", 200);
        assert_eq!((later.refused, later.requests_left, later.tokens_left), (None, 1, 800));
        assert_eq!(later.tokens_reset, Duration::from_secs(12));
    }

    #[test]
    fn project_may_have_less_than_its_sibling_and_never_more_than_all() {
        let key = |project: &str, limit: &str| {
            format!(r#"{{"secret":"s","organization":"org","project":"{project}"{limit}}}"#)
        };
        let keys = [
            key("short", r#","requests_per_minute":3"#),
            key("short", r#","requests_per_minute":2,"tokens_per_minute":70"#),
            key("long", r#","requests_per_minute":900"#),
        ];
        let mut limits = limits(&format!(
            r#"{{"requests_per_minute":5,"tokens_per_minute":100,"key":[{}]}}"#,
            keys.join(",")
        ));
        let mut limit = |project| limits.take(Duration::ZERO, project, "m", 1).limit;
        assert_eq!(limit("org/short"), Allowance { requests: 2, tokens: 70 });
        assert_eq!(limit("org/long"), Allowance { requests: 5, tokens: 100 });
        assert_eq!(limit("other/short"), Allowance { requests: 5, tokens: 100 });
    }

    #[test]
    fn remaining_limit_is_sent_in_the_time_of_its_client() {
        let mut limits = limits(r#"{"requests_per_minute":2,"tokens_per_minute":1000}"#);
        let headers = limits.take(Duration::ZERO, "org/p", "m", 500).headers(|span| span / 60);
        for (name, value) in [
            ("limit-requests", "2"),
            ("limit-tokens", "1000"),
            ("remaining-requests", "1"),
            ("remaining-tokens", "500"),
            ("reset-requests", "500ms"),
            ("reset-tokens", "500ms"),
        ] {
            assert_eq!(headers[format!("x-ratelimit-{name}")], value, "{name}");
        }
    }

    #[test]
    fn spans_are_written_as_go_writes_them() {
        for (millis, text) in [
            (0, "0ms"),
            (20, "20ms"),
            (1000, "1s"),
            (11_054, "11.054s"),
            (360_000, "6m0s"),
            (90_500, "1m30.5s"),
        ] {
            assert_eq!(go_text(Duration::from_millis(millis)), text);
        }
        assert_eq!(go_text(Duration::from_secs(5 * 3600 + 50 * 60 + 30)), "5h50m30s");
    }
}
