//! The judge: a record of every turn that reached the upstream, however the turn ended.
//!
//! The judge records and adds up the facts of a test. It knows which key a session met, which bytes
//! arrived, what was cached, and what could have been. It decides nothing about a turn, and keeps
//! no body and no secret.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Most turns on record. Of older turns, only the number is kept.
const MOST_TURNS: usize = 200_000;
/// Most distinct lists of header names that turns share.
const MOST_SHARED: usize = 4096;

/// How a turn ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The turn is being read or answered.
    #[default]
    Open,
    /// The whole answer was sent, with its terminal event.
    Completed,
    /// The turn was answered with an error status.
    Refused,
    /// The stream ended in a scripted `response.failed` or `error` event.
    Failed,
    /// The client canceled or steered the turn on a WebSocket, so that it ended early.
    Incomplete,
    /// A scripted fault, or the end of its WebSocket's time, cut or reset the turn.
    Cut,
    /// The client left before the answer was sent.
    ClientLeft,
}

/// One turn, as the upstream saw it. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Counts from 1, in order of arrival.
    pub turn: u64,
    pub at: u64,
    pub finished_at: Option<u64>,
    pub transport: String,
    /// `POST /v1/responses`.
    pub method_path: String,
    /// The key's id. `None` if the request showed no known key.
    pub key: Option<String>,
    pub organization: Option<String>,
    pub session: Option<String>,
    pub model: Option<String>,
    /// Hexadecimal hash of the bytes on the wire, before any decoding. If the body was incomplete,
    /// of the bytes that came.
    pub body_sha256: String,
    pub content_length: Option<String>,
    pub input_tokens: u64,
    pub cached_tokens: u64,
    pub cache_write_tokens: u64,
    pub ideal_cached_tokens: u64,
    /// Tokens of text, tool calls and reasoning of a whole answer, counted when the answer begins.
    pub output_tokens: u64,
    /// The status of the answer; 0 while there is none.
    pub status: u16,
    /// The code of a refusal.
    pub code: Option<String>,
    pub outcome: Outcome,
    /// Events of the stream that were handed over to be sent.
    pub events: u64,
    /// The `x-codex-turn-state` of the request.
    pub turn_state: Option<String>,
    pub response_id: Option<String>,
    /// The number of the turn's WebSocket in `GET /_sim/sockets`.
    pub connection: Option<u64>,
    /// The WebSocket lane (`stream_id`) of the request.
    pub lane: Option<String>,
    /// The type of the frame that began the turn: `response.create` or `response.steer`. `None` for
    /// a handshake.
    pub frame: Option<String>,
    pub previous_response_id: Option<String>,
    /// The turn only prepared: `generate: false`, or a prewarm.
    pub prewarm: bool,
    /// Every header name once, sorted.
    #[serde(with = "names")]
    pub headers: Arc<[String]>,
}

mod names {
    //! Serializes a shared list as the list itself.
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(
        names: &Arc<[String]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        names.as_ref().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<[String]>, D::Error> {
        Vec::deserialize(deserializer).map(Arc::from)
    }
}

/// Totals over the turns on record. Tokens are those of turns answered with 200.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub turns: u64,
    /// Turns that are no longer on record; no other total counts them.
    pub forgotten: u64,
    pub input_tokens: u64,
    pub cached_tokens: u64,
    pub cache_write_tokens: u64,
    pub ideal_cached_tokens: u64,
    pub output_tokens: u64,
    pub sessions: u64,
    /// Over the sessions: the largest number of keys that served one session, and the mean.
    pub keys_per_session_max: u64,
    pub keys_per_session_mean: f64,
    pub statuses: BTreeMap<u16, u64>,
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Turns of each key.
    pub keys: BTreeMap<String, u64>,
    /// Turns of each key that are being read or answered now, or wait in a lane.
    pub in_flight: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
struct Record {
    turns: VecDeque<Turn>,
    /// The number of the next turn.
    next: u64,
    forgotten: u64,
    /// Thousands of turns carry the same few lists of names.
    shared: HashSet<Arc<[String]>>,
}

impl Record {
    fn turn(&mut self, number: u64) -> Option<&mut Turn> {
        let first = self.turns.front()?.turn;
        self.turns.get_mut(usize::try_from(number.checked_sub(first)?).ok()?)
    }
}

#[derive(Debug, Default)]
pub struct Judge(Mutex<Record>);

impl Judge {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a turn that has just arrived.
    pub fn open(self: &Arc<Self>, mut turn: Turn) -> Entry {
        let mut record = self.record();
        record.next += 1;
        turn.turn = record.next;
        turn.at = now_millis();
        match record.shared.get(&turn.headers) {
            Some(names) => turn.headers = Arc::clone(names),
            None => {
                if record.shared.len() >= MOST_SHARED {
                    record.shared.clear();
                }
                record.shared.insert(Arc::clone(&turn.headers));
            }
        }
        let number = turn.turn;
        if record.turns.len() >= MOST_TURNS {
            record.turns.pop_front();
            record.forgotten += 1;
        }
        record.turns.push_back(turn);
        Entry {
            judge: Arc::clone(self),
            number,
            outcome: Outcome::ClientLeft,
            events: 0,
            hung_up: None,
        }
    }

    pub fn turns(&self) -> Vec<Turn> {
        self.record().turns.iter().cloned().collect()
    }

    pub fn summary(&self) -> Summary {
        let record = self.record();
        let mut summary = Summary {
            turns: record.turns.len() as u64,
            forgotten: record.forgotten,
            ..Summary::default()
        };
        let mut met: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
        for turn in &record.turns {
            *summary.statuses.entry(turn.status).or_default() += 1;
            *summary.outcomes.entry(turn.outcome).or_default() += 1;
            if let Some(key) = &turn.key {
                *summary.keys.entry(key.clone()).or_default() += 1;
                if turn.outcome == Outcome::Open {
                    *summary.in_flight.entry(key.clone()).or_default() += 1;
                }
            }
            if turn.status != 200 {
                continue;
            }
            summary.input_tokens += turn.input_tokens;
            summary.cached_tokens += turn.cached_tokens;
            summary.cache_write_tokens += turn.cache_write_tokens;
            summary.ideal_cached_tokens += turn.ideal_cached_tokens;
            summary.output_tokens += turn.output_tokens;
            if let (Some(session), Some(key)) = (&turn.session, &turn.key) {
                met.entry(session).or_default().insert(key);
            }
        }
        summary.sessions = met.len() as u64;
        summary.keys_per_session_max = met.values().map(HashSet::len).max().unwrap_or(0) as u64;
        let total: usize = met.values().map(HashSet::len).sum();
        summary.keys_per_session_mean =
            if met.is_empty() { 0.0 } else { total as f64 / met.len() as f64 };
        summary
    }

    /// Forgets all turns, those in flight included. Numbers go on, so that a forgotten turn cannot
    /// write into a new one.
    pub fn clear(&self) {
        let mut record = self.record();
        let next = record.next;
        *record = Record { next, ..Record::default() };
    }
}

/// A turn in flight. Its owner records how the turn ended; dropping the entry before that records
/// that the client left.
#[derive(Debug)]
pub struct Entry {
    judge: Arc<Judge>,
    number: u64,
    outcome: Outcome,
    events: u64,
    /// Set once the upstream itself hangs up. From then on, a turn without a recorded end counts as
    /// cut.
    hung_up: Option<Arc<AtomicBool>>,
}

impl Entry {
    pub fn note(&self, write: impl FnOnce(&mut Turn)) {
        if let Some(turn) = self.judge.record().turn(self.number) {
            write(turn);
        }
    }

    /// Sets the outcome that dropping the entry will record.
    pub fn became(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// Sets the flag that tells, when the entry is dropped, whether the upstream hung up.
    pub fn unless(&mut self, hung_up: &Arc<AtomicBool>) {
        self.hung_up = Some(Arc::clone(hung_up));
    }

    pub fn sent_event(&mut self) {
        self.events += 1;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let hung_up = self.hung_up.as_ref().is_some_and(|hung_up| hung_up.load(Ordering::Relaxed));
        let outcome = if self.outcome == Outcome::ClientLeft && hung_up {
            Outcome::Cut
        } else {
            self.outcome
        };
        let events = self.events;
        self.note(|turn| {
            (turn.outcome, turn.events, turn.finished_at) = (outcome, events, Some(now_millis()));
        });
    }
}

/// Milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the one place where the simulator reads the time")]
pub fn now_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |span| span.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(judge: &Arc<Judge>, session: &str, key: &str, status: u16) {
        let turn = Turn {
            session: Some(session.into()),
            key: Some(key.into()),
            status,
            input_tokens: 10,
            ..Turn::default()
        };
        judge.open(turn).became(Outcome::Completed);
    }

    #[test]
    fn turn_without_an_end_was_left_by_its_client() {
        let judge = Arc::new(Judge::default());
        let entry = judge.open(Turn::default());
        assert_eq!((judge.turns()[0].outcome, judge.turns()[0].finished_at), (Outcome::Open, None));
        drop(entry);
        assert_eq!(judge.turns()[0].outcome, Outcome::ClientLeft);
        assert!(judge.turns()[0].finished_at.is_some());
    }

    #[test]
    fn summary_counts_keys_by_session_over_answered_turns() {
        let judge = Arc::new(Judge::default());
        served(&judge, "one", "a", 200);
        served(&judge, "one", "b", 200);
        served(&judge, "two", "a", 200);
        served(&judge, "two", "b", 429);
        let summary = judge.summary();
        assert_eq!(
            (summary.sessions, summary.keys_per_session_max, summary.keys_per_session_mean),
            (2, 2, 1.5)
        );
        assert_eq!((summary.input_tokens, summary.statuses[&429], summary.keys["b"]), (30, 1, 2));
    }

    #[test]
    fn turn_is_in_flight_at_its_key_until_it_has_ended() {
        let judge = Arc::new(Judge::default());
        let turn = |key: &str| judge.open(Turn { key: Some(key.into()), ..Turn::default() });
        let (one, two, _other) = (turn("a"), turn("a"), turn("b"));
        assert_eq!(judge.summary().in_flight, BTreeMap::from([("a".into(), 2), ("b".into(), 1)]));
        drop((one, two));
        assert_eq!(judge.summary().in_flight, BTreeMap::from([("b".into(), 1)]));
    }

    #[test]
    fn cleared_record_stays_clear_of_what_was_in_flight() {
        let judge = Arc::new(Judge::default());
        let entry = judge.open(Turn::default());
        judge.clear();
        served(&judge, "one", "a", 200);
        drop(entry);
        let turns = judge.turns();
        assert_eq!((turns.len(), turns[0].turn, turns[0].outcome), (1, 2, Outcome::Completed));
    }

    #[test]
    fn turn_is_read_back_as_it_was_written() {
        let turn =
            Turn { headers: Arc::from(vec!["accept".to_owned()]), status: 200, ..Turn::default() };
        let text = serde_json::to_string(&turn).expect("written");
        assert!(
            text.contains(r#""headers":["accept"]"#) && text.contains(r#""outcome":"open""#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Turn>(&text).expect("read"), turn);
    }
}
