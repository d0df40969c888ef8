//! What an upstream says of its limits, and the arithmetic of our own. Pure but for [`chance`]: the
//! time is an argument.
//!
//! Reads with tolerance, since what is misread costs a key its turns: what makes no sense says
//! nothing, and no wait is believed beyond [`LONGEST_WAIT`].

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;

/// No key is left alone for longer on one word of its upstream: limits are per minute, the longest
/// of them per day.
pub const LONGEST_WAIT: Duration = Duration::from_secs(3_600);
/// What says "now" has just said no.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
/// When to come back where nothing says when: limits are refilled within a minute.
const USUAL_WAIT: Duration = Duration::from_secs(20);

/// When a refused turn may come again, by `retry-after-ms`, `retry-after` (seconds or an HTTP
/// date), or the reset of the limit that is used up. `None`: nobody says.
pub fn wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let millis = text("retry-after-ms").and_then(|text| span(text.parse::<f64>().ok()? / 1_000.0));
    let told =
        millis.or_else(|| text(RETRY_AFTER.as_str()).and_then(|text| retry_after(text, now)));
    let reset = || {
        let used_up = ["requests", "tokens", "project-tokens"].into_iter().filter(|limit| {
            text(&format!("x-ratelimit-remaining-{limit}")).and_then(count) == Some(0)
        });
        used_up
            .filter_map(|limit| text(&format!("x-ratelimit-reset-{limit}")).and_then(go_span))
            .max()
    };
    told.or_else(reset).map(|wait| wait.min(LONGEST_WAIT))
}

/// The same where a wait is needed.
pub fn wait_or_usual(told: Option<Duration>) -> Duration {
    told.map_or(USUAL_WAIT, |told| told.max(SHORTEST_WAIT))
}

fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    match text.parse::<f64>() {
        Ok(seconds) => span(seconds),
        // A date that has passed is now.
        Err(_) => httpdate::parse_http_date(text)
            .ok()
            .map(|at| at.duration_since(now).unwrap_or_default()),
    }
}

/// Seconds as a span. Negative ones and no numbers say nothing.
fn span(seconds: f64) -> Option<Duration> {
    (seconds >= 0.0).then(|| Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_WAIT))
}

/// A number as the service writes it: `30000`, and now and then `30,000`.
fn count(text: &str) -> Option<u64> {
    text.replace(',', "").parse().ok()
}

/// A span as Go writes it: `20ms`, `1s`, `6m0s`, `5h50m30ms`.
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

/// When to come again, by the words of a message: `Please try again in 11.054s.` Only where no
/// header says it.
pub fn wait_in(message: &str) -> Option<Duration> {
    let (_, rest) = message.split_once("try again in ")?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(rest.len());
    go_span(rest[..end].trim_end_matches('.')).map(|wait| wait.min(LONGEST_WAIT))
}

/// What is left of a project's limits, as shares of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Headroom {
    /// The share that is left of the scarcest limit, 0 to 1.
    pub left: f64,
    /// When that limit is whole again.
    pub reset: Duration,
}

/// The scarcest of the limits that an answer tells of. `None`: it tells of none.
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

/// Whether a request is larger than the limit it was refused by, and would be at any time: `Limit
/// 30000, Used 0, Requested 40000.` or `Limit 30000, Requested 40000.` The headers do not tell it,
/// so this is the one place where a message is read.
pub fn is_beyond_limit(message: &str) -> bool {
    let after = |word: &str| {
        let text = message.split_once(word)?.1.trim_start();
        let end = text.find(|c: char| !c.is_ascii_digit() && c != ',').unwrap_or(text.len());
        count(text[..end].trim_end_matches(','))
    };
    after("Limit ").zip(after("Requested ")).is_some_and(|(limit, requested)| requested > limit)
}

/// `span`, and at most a quarter more by chance (0 to 1): what waits for one moment must not all
/// come at it.
pub fn jittered(span: Duration, chance: f64) -> Duration {
    span + (span / 4).mul_f64(chance)
}

/// Evenly spread over 0 to 1.
pub fn chance() -> f64 {
    let mut random = [0; 4];
    // Without randomness all wait equally long.
    let _ = getrandom::fill(&mut random);
    f64::from(u32::from_be_bytes(random)) / f64::from(u32::MAX)
}

/// A generic cell rate algorithm: `burst` at once, and then one each `interval`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// When, from an origin of the caller's, the next one would be exactly on time.
    due: Duration,
}

impl Rate {
    /// Takes one at `now`, or says how long it is until one can be taken.
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

/// What turns may be sent again with: a share of all turns, and a few for quiet times.
#[derive(Clone, Copy, Debug)]
pub struct Retries {
    /// In hundredths of an attempt.
    left: u32,
}

/// So much each turn adds: with [`RESERVE`] fewer than 20 in 100 turns of any length.
const SHARE: u32 = 18;
const RESERVE: u32 = 200;
/// What a quiet time saves up at the most.
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

    /// Whether one more attempt may be made; then it is.
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
