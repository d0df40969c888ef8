//! Reads what an upstream states about its limits, and counts the gateway's own limits. Pure except
//! for [`chance`]: the time is an argument.
//!
//! Reads with tolerance, because a misread limit costs a key its turns. Nonsense counts as absent,
//! and no wait is longer than [`LONGEST_WAIT`].

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};

mod named;

pub use named::{NamedLimit, is_of_model, is_same_model, named_model};

/// Longest back-off that one statement of an upstream can cause. Most limits are per minute, the
/// longest per day.
pub const LONGEST_WAIT: Duration = Duration::from_secs(3_600);
/// Shortest back-off: an upstream that states "now" has just refused.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
/// Back-off if the upstream states none. Limits refill within a minute.
const USUAL_WAIT: Duration = Duration::from_secs(20);

/// The wait before a refused turn may retry. Reads `retry-after-ms`, then `retry-after` (seconds or
/// an HTTP date), then the reset of an exhausted limit. `None` if no header states a wait. A date
/// is measured by the answer's own `Date`, because the upstream's clock may differ from `now`.
pub fn wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let now = date(headers).unwrap_or(now);
    let millis = text("retry-after-ms").and_then(|text| span(text.parse::<f64>().ok()? / 1_000.0));
    let stated =
        millis.or_else(|| text(RETRY_AFTER.as_str()).and_then(|text| retry_after(text, now)));
    let reset = || {
        let used_up = ["requests", "tokens", "project-tokens"].into_iter().filter(|limit| {
            text(&format!("x-ratelimit-remaining-{limit}")).and_then(count) == Some(0)
        });
        used_up
            .filter_map(|limit| text(&format!("x-ratelimit-reset-{limit}")).and_then(go_span))
            .max()
    };
    stated.or_else(reset).map(|wait| wait.min(LONGEST_WAIT))
}

/// The time of day that an answer states.
pub fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?.trim()).ok()
}

/// The stated wait, at least 100 ms, or the usual wait if none is stated.
pub fn wait_or_usual(stated: Option<Duration>) -> Duration {
    stated.map_or(USUAL_WAIT, |stated| stated.max(SHORTEST_WAIT))
}

fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    match text.parse::<f64>() {
        Ok(seconds) => span(seconds),
        // A past date means now.
        Err(_) => httpdate::parse_http_date(text)
            .ok()
            .map(|at| at.duration_since(now).unwrap_or_default()),
    }
}

/// Seconds as a span. `None` for a negative number or NaN.
fn span(seconds: f64) -> Option<Duration> {
    (seconds >= 0.0).then(|| Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_WAIT))
}

/// A number as the service writes it: `30000`, sometimes `30,000`.
fn count(text: &str) -> Option<u64> {
    text.replace(',', "").parse().ok()
}

/// A span in Go's format: `20ms`, `1s`, `6m0s`, `5h50m30ms`.
pub fn go_span(text: &str) -> Option<Duration> {
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        seconds += number.parse::<f64>().ok()?
            * match unit {
                "h" => 3_600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = next;
    }
    if text.is_empty() { None } else { span(seconds) }
}

/// The wait that a message states: `Please try again in 11.054s.` Used only if no header states
/// one.
pub fn wait_in(message: &str) -> Option<Duration> {
    let (_, rest) = message.split_once("try again in ")?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(rest.len());
    go_span(rest[..end].trim_end_matches('.')).map(|wait| wait.min(LONGEST_WAIT))
}

/// The remaining share of a project's limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Headroom {
    /// The remaining share of the scarcest limit, 0 to 1.
    pub left: f64,
    /// Time until that limit is full again.
    pub reset: Duration,
}

/// The headroom of the scarcest limit in an answer's headers. `None` if the headers state no limit.
pub fn headroom(headers: &HeaderMap) -> Option<Headroom> {
    let text =
        |name: String| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let number =
        |what: &str, limit: &str| text(format!("x-ratelimit-{what}-{limit}")).and_then(count);
    let of = |limit: &str| {
        let (whole, left) = (number("limit", limit)?, number("remaining", limit)?);
        let reset = text(format!("x-ratelimit-reset-{limit}"))
            .and_then(go_span)
            .unwrap_or(USUAL_WAIT)
            .min(LONGEST_WAIT);
        (whole > 0).then(|| Headroom { left: (left as f64 / whole as f64).min(1.0), reset })
    };
    ["requests", "tokens", "project-tokens"]
        .into_iter()
        .filter_map(of)
        .min_by(|a, b| a.left.total_cmp(&b.left))
}

/// Whether a request is larger than the limit that refused it, so that no wait helps: `Limit 30000,
/// Used 0, Requested 40000.` or `Limit 30000, Requested 40000.` The headers do not state this, so
/// the message is parsed.
pub fn is_beyond_limit(message: &str) -> bool {
    let after = |word: &str| {
        let text = message.split_once(word)?.1.trim_start();
        let end = text.find(|c: char| !c.is_ascii_digit() && c != ',').unwrap_or(text.len());
        count(text[..end].trim_end_matches(','))
    };
    after("Limit ").zip(after("Requested ")).is_some_and(|(limit, requested)| requested > limit)
}

/// `span` plus up to a quarter, by `chance` (0 to 1), so that waiting turns do not all retry at one
/// moment.
pub fn jittered(span: Duration, chance: f64) -> Duration {
    span + (span / 4).mul_f64(chance)
}

/// A random number, uniform in 0 to 1.
pub fn chance() -> f64 {
    let mut random = [0; 4];
    // If the system has no randomness, all turns wait equally long.
    let _ = getrandom::fill(&mut random);
    f64::from(u32::from_be_bytes(random)) / f64::from(u32::MAX)
}

/// A generic cell rate algorithm: `burst` at once, then one each `interval`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// The time, from an origin of the caller's, at which the next one is exactly on time.
    due: Duration,
}

impl Rate {
    /// Takes one at `now`, or returns the time until one can be taken.
    pub fn take(&mut self, now: Duration, interval: Duration, burst: u32) -> Result<(), Duration> {
        let due = self.due.max(now);
        let ahead = due - now;
        let allowed = interval * burst.saturating_sub(1);
        if ahead > allowed {
            return Err(ahead - allowed);
        }
        self.due = due + interval;
        Ok(())
    }
}

/// The retry budget: a share of all turns, and a reserve for quiet times.
#[derive(Clone, Copy, Debug)]
pub struct Retries {
    /// The budget in hundredths of an attempt.
    left: u32,
}

/// Budget that each turn adds. With [`RESERVE`], retries stay below 20 in any 100 turns.
const SHARE: u32 = 18;
const RESERVE: u32 = 200;
/// The largest budget that turns can save up.
const SAVED: u32 = 1_000;

impl Default for Retries {
    fn default() -> Self {
        Self { left: RESERVE }
    }
}

impl Retries {
    pub fn turn(&mut self) {
        self.left = (self.left + SHARE).min(SAVED);
    }

    /// Spends one attempt, if the budget has one.
    pub fn take(&mut self) -> bool {
        let may = self.left >= 100;
        if may {
            self.left -= 100;
        }
        may
    }
}

#[cfg(test)]
mod tests;
