//! Rate limits of an (organization, project, model): who must wait, and what the `x-ratelimit-*` headers say.
//!
//! Pure: the time is an argument. Requests that are refused count too, as the real ones do; cached tokens count in full.

use std::collections::HashMap;
use std::time::Duration;

/// Places remembered; those that have long been refilled are forgotten first.
const MOST_PLACES: usize = 10_000;

/// What is left of one minute's allowance, refilled steadily.
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

    /// Until `amount` is there.
    fn wait(&self, amount: u64, limit: u64) -> Duration {
        Duration::from_secs_f64((amount as f64 - self.left).max(0.0) * 60.0 / limit as f64)
    }
}

/// Which of the two limits it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    Requests,
    Tokens,
}

/// Where a place stands after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub requests_limit: u64,
    pub tokens_limit: u64,
    pub requests_left: u64,
    pub tokens_left: u64,
    pub requests_reset: Duration,
    pub tokens_reset: Duration,
    /// Which limit refuses it, and for how long.
    pub refused: Option<(Limited, Duration)>,
}

/// All places, and the two limits that each of them has.
#[derive(Debug)]
pub struct Limits {
    requests_per_minute: u64,
    tokens_per_minute: u64,
    places: HashMap<String, (Bucket, Bucket)>,
}

impl Limits {
    pub fn new(requests_per_minute: u64, tokens_per_minute: u64) -> Self {
        Self { requests_per_minute, tokens_per_minute, places: HashMap::new() }
    }

    pub fn clear(&mut self) {
        self.places.clear();
    }

    pub fn take(&mut self, now: Duration, place: &str, tokens: u64) -> Standing {
        let (requests_limit, tokens_limit) = (self.requests_per_minute, self.tokens_per_minute);
        if self.places.len() >= MOST_PLACES {
            self.places.retain(|_, (requests, _)| now.saturating_sub(requests.at) < Duration::from_secs(60));
        }
        let full = |limit: u64| Bucket { left: limit as f64, at: now };
        if !self.places.contains_key(place) {
            self.places.insert(place.to_owned(), (full(requests_limit), full(tokens_limit)));
        }
        let (mut requests, mut used) = self.places[place];
        requests.refill(now, requests_limit);
        used.refill(now, tokens_limit);
        let refused = if requests.left < 1.0 {
            Some((Limited::Requests, requests.wait(1, requests_limit)))
        } else if used.left < tokens as f64 {
            Some((Limited::Tokens, used.wait(tokens, tokens_limit)))
        } else {
            used.left -= tokens as f64;
            None
        };
        requests.left = (requests.left - 1.0).max(0.0);
        self.places.insert(place.to_owned(), (requests, used));
        Standing {
            requests_limit,
            tokens_limit,
            requests_left: requests.left as u64,
            tokens_left: used.left as u64,
            requests_reset: requests.wait(requests_limit, requests_limit),
            tokens_reset: used.wait(tokens_limit, tokens_limit),
            refused,
        }
    }
}

/// A span as Go writes it, which is how the service writes resets: `20ms`, `1s`, `6m0s`, `1m30.5s`.
pub fn go_text(span: Duration) -> String {
    let millis = span.as_millis();
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let seconds = if rest % 1000 == 0 { format!("{}s", rest / 1000) } else { format!("{}s", rest as f64 / 1000.0) };
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

    #[test]
    fn a_place_may_make_so_many_requests_and_use_so_many_tokens_a_minute() {
        let mut limits = Limits::new(2, 1000);
        let zero = Duration::ZERO;
        assert_eq!(limits.take(zero, "a", 900).refused, None);
        assert_eq!(limits.take(zero, "a", 200).refused, Some((Limited::Tokens, Duration::from_secs(6))));
        assert_eq!(limits.take(zero, "a", 1).refused, Some((Limited::Requests, Duration::from_secs(30))));
        assert_eq!(limits.take(zero, "b", 200).refused, None);
        let later = limits.take(Duration::from_secs(60), "a", 200);
        assert_eq!((later.refused, later.requests_left, later.tokens_left), (None, 1, 800));
        assert_eq!(later.tokens_reset, Duration::from_secs(12));
    }

    #[test]
    fn spans_are_written_as_go_writes_them() {
        for (millis, text) in
            [(0, "0ms"), (20, "20ms"), (1000, "1s"), (11_054, "11.054s"), (360_000, "6m0s"), (90_500, "1m30.5s")]
        {
            assert_eq!(go_text(Duration::from_millis(millis)), text);
        }
        assert_eq!(go_text(Duration::from_secs(5 * 3600 + 50 * 60 + 30)), "5h50m30s");
    }
}
