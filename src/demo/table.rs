//! The demo's result as a table. Pure.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use crate::simulator::judge::{Outcome, Turn};

/// Price of an input token, in parts of the uncached price, by what the cache did with the token.
const READ_PRICE: f64 = 0.1;
/// Only models of the newer cache regime report tokens as written.
const WRITE_PRICE: f64 = 1.25;
/// The promise: at least this part of the single key's cached share.
const PROMISED: f64 = 0.99;

/// The result of one way of routing, by the upstream's record.
///
/// Over a WebSocket, Codex prewarms: the upstream reads a turn's beginning into the cache before
/// Codex asks for the turn. The record holds a prewarm as a turn of its own, which would flatter
/// the result twice. Its input asks for no answer, and the first turn then finds that input cached.
/// So a prewarm and its turn count as one: the input is the turn's, and computed tokens are those
/// that either of them computed. That equals the same turn over HTTP, which prepares nothing. The
/// price includes both.
///
/// A chat conversation names no session. Each derived key is a session, and a change of the model
/// begins a new one. That costs nothing, because a model reads nothing of another model's cache.
pub struct Row {
    name: &'static str,
    /// Cached part of the input tokens.
    cached: f64,
    /// Cached part of what an ideal upstream would have cached.
    ideal: f64,
    /// The mean, and the worst session's value.
    keys_per_session: (f64, usize),
    cost: f64,
    first_token: Duration,
    refused: usize,
    busiest_key: f64,
}

impl Row {
    pub fn new(name: &'static str, turns: &[Turn], first_token: Duration) -> Self {
        let served: Vec<&Turn> =
            turns.iter().filter(|turn| turn.outcome != Outcome::Refused).collect();
        let sum =
            |count: fn(&Turn) -> u64| served.iter().map(|turn| count(turn)).sum::<u64>() as f64;
        let (read, cached, written) = (
            sum(|turn| turn.input_tokens),
            sum(|turn| turn.cached_tokens),
            sum(|turn| turn.cache_write_tokens),
        );
        let input = sum(|turn| if turn.prewarm { 0 } else { turn.input_tokens });
        // All tokens that neither the turn nor its prewarm had to compute.
        let (saved, ideal) =
            (input - (read - cached), input - (read - sum(|turn| turn.ideal_cached_tokens)));
        let mut keys: HashMap<&str, HashSet<&str>> = HashMap::new();
        let mut load: HashMap<&str, usize> = HashMap::new();
        for turn in turns {
            let key = turn.key.as_deref().unwrap_or_default();
            keys.entry(turn.session.as_deref().unwrap_or_default()).or_default().insert(key);
            *load.entry(key).or_default() += 1;
        }
        let counts = || keys.values().map(HashSet::len);
        Self {
            name,
            cached: saved / input,
            ideal: saved / ideal,
            keys_per_session: (
                counts().sum::<usize>() as f64 / keys.len() as f64,
                counts().max().unwrap_or(0),
            ),
            cost: (read - cached - written) + cached * READ_PRICE + written * WRITE_PRICE,
            first_token,
            refused: turns.len() - served.len(),
            busiest_key: load.values().copied().max().unwrap_or(0) as f64 / turns.len() as f64,
        }
    }
}

/// The rows so far. The first row is the baseline of the others.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Whether each Warmkey row kept the promise.
    pub fn is_pass(&self) -> bool {
        let single = self.rows.first().map_or(f64::NAN, |row| row.cached);
        let mut warmkey = self.rows.iter().filter(|row| row.name.starts_with("warmkey")).peekable();
        warmkey.peek().is_some()
            && warmkey.all(|row| {
                row.cached >= PROMISED * single && row.keys_per_session.1 == 1 && row.refused == 0
            })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "                          cached   of the   keys a    cost of    first    turns    busiest"
        )?;
        writeln!(
            f,
            "way of routing             share    ideal   session     input    token  refused        key"
        )?;
        let single = self.rows.first();
        for row in &self.rows {
            let first_token = single.map_or(f64::NAN, |single| {
                row.first_token.as_secs_f64() / single.first_token.as_secs_f64()
            });
            writeln!(
                f,
                "{:<23} {:>6.1} % {:>6.1} % {:>9.2} {:>8.2} x {:>6.2} x {:>8} {:>8.0} %",
                row.name,
                row.cached * 100.0,
                row.ideal * 100.0,
                row.keys_per_session.0,
                single.map_or(f64::NAN, |single| row.cost / single.cost),
                first_token,
                row.refused,
                row.busiest_key * 100.0,
            )?;
        }
        writeln!(
            f,
            "\n\
             cached share   input tokens that the upstream read from its prompt cache, of all input tokens; what a WebSocket\n\
             \x20              has it compute before a turn counts as computed for that turn\n\
             of the ideal   the same, of what an upstream that never forgets would have read\n\
             cost, token    against the single key: what the input costs, how long the first token takes\n\
             refused        400s for reasoning that another organization sealed: each one ends a Codex session\n\
             busiest key    its part of all turns: what a single key's limits have to bear\n"
        )?;
        f.write_str(if self.is_pass() { "PASS" } else { "FAIL" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(session: &str, key: &str, cached: u64) -> Turn {
        Turn {
            session: Some(session.into()),
            key: Some(key.into()),
            input_tokens: 1_000,
            cached_tokens: cached,
            ideal_cached_tokens: 900,
            outcome: Outcome::Completed,
            ..Turn::default()
        }
    }

    fn table(warmkey: &[Turn]) -> Table {
        let single = [turn("s", "a", 800), turn("t", "a", 800)];
        let mut table = Table::default();
        table.add(Row::new("single key", &single, Duration::from_millis(10)));
        table.add(Row::new("warmkey http", warmkey, Duration::from_millis(10)));
        table
    }

    #[test]
    fn promise_is_the_single_keys_share_and_one_key_a_session() {
        assert!(table(&[turn("s", "a", 795), turn("t", "b", 800)]).is_pass());
        assert!(!table(&[turn("s", "a", 700), turn("t", "b", 800)]).is_pass(), "too little cached");
        assert!(
            !table(&[turn("s", "a", 800), turn("s", "b", 800)]).is_pass(),
            "two keys for one session"
        );
        assert!(!Table::default().is_pass(), "nothing shown");
        // The single key read 800 of 1,000: one percent less still keeps the promise.
        assert!(table(&[turn("s", "a", 793)]).is_pass());
        assert!(!table(&[turn("s", "a", 791)]).is_pass());
        let lost = Turn { outcome: Outcome::Refused, ..turn("t", "b", 800) };
        assert!(!table(&[turn("s", "a", 800), lost]).is_pass(), "a session was lost");
        let mut unmeasured = Table::default();
        unmeasured.add(Row::new("single key", &[turn("s", "a", 800)], Duration::ZERO));
        assert!(!unmeasured.is_pass(), "nothing of the gateway's own");
    }

    #[test]
    fn row_of_warmkey_has_to_keep_the_promise() {
        let mut table = table(&[turn("s", "a", 800)]);
        table.add(Row::new("warmkey websocket", &[turn("s", "a", 700)], Duration::from_millis(10)));
        assert!(!table.is_pass());
    }

    /// A first turn that finds nothing cached, and a second turn that finds the first, over HTTP
    /// and over a WebSocket.
    #[test]
    fn prewarm_counts_with_the_turn_that_it_prepares() {
        let turn = |input, cached, ideal| Turn {
            input_tokens: input,
            ideal_cached_tokens: ideal,
            ..turn("s", "a", cached)
        };
        let prewarm = |cached| Turn { prewarm: true, ..turn(900, cached, 0) };
        let row = |turns: &[Turn]| Row::new("warmkey", turns, Duration::ZERO);
        let http = row(&[turn(1_000, 0, 0), turn(2_000, 1_000, 1_000)]);
        let socket = row(&[prewarm(0), turn(1_000, 900, 900), turn(2_000, 1_000, 1_000)]);
        assert_eq!((socket.cached, socket.ideal), (http.cached, http.ideal));
        assert!(socket.cost > http.cost, "what was prepared was paid for");
        let wasted = row(&[prewarm(0), turn(1_000, 0, 900), turn(2_000, 1_000, 1_000)]);
        assert!(
            wasted.cached < http.cached && wasted.ideal < 1.0,
            "prepared on one key, asked for on another"
        );
        let shared = row(&[prewarm(900), turn(1_000, 900, 900), turn(2_000, 1_000, 1_000)]);
        assert!(shared.cached > http.cached, "another thread of the session had prewarmed");
    }

    #[test]
    fn last_line_is_the_verdict() {
        let shown = table(&[turn("s", "a", 800)]).to_string();
        assert!(shown.ends_with("PASS") && shown.contains("single key"), "{shown}");
    }
}
