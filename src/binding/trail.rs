//! Records each decision about a turn that its key could not simply serve. A decision is a log
//! line, a metric, and a line in the session's trail.
//!
//! A session that its key has always served has no trail. Lines are written in the background.
//! While the store is away, a bounded queue keeps them; lines that do not fit are only in the log.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use futures_util::future::join_all;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::clock::time_of_day;
use crate::key::Key;
use crate::metrics::{Decision, Metrics, Reason};
use crate::session::SessionId;
use crate::store::Store;

/// Most lines in the queue.
const UNWRITTEN: usize = 8_192;
/// Most lines that are written together.
const AT_ONCE: usize = 256;
/// How often a line is sent to a store that is up but does not take it.
const ATTEMPTS: usize = 3;

pub struct Trail {
    metrics: Arc<Metrics>,
    written: mpsc::Sender<(SessionId, String)>,
}

/// The lines that are not written yet.
pub struct Unwritten(mpsc::Receiver<(SessionId, String)>);

/// A decision about a turn.
pub struct Step<'s> {
    pub session: Option<&'s SessionId>,
    pub decision: Decision,
    pub reason: Reason,
    /// The turn's key before the decision, if it had one.
    pub from: Option<&'s Key>,
    /// The turn's key after the decision.
    pub to: Option<&'s Key>,
}

impl Step<'_> {
    /// Returns the trail's line for this decision, which was made `at` milliseconds after the start
    /// of 1970.
    fn line(&self, at: u128) -> String {
        let id = |key: Option<&Key>| key.map_or("", |key| &key.id).to_owned();
        let (decision, reason) = (self.decision.name(), self.reason.name());
        format!("{at} {decision} {reason} {} {}", id(self.from), id(self.to))
    }
}

impl Trail {
    pub fn new(metrics: Arc<Metrics>) -> (Self, Unwritten) {
        let (written, unwritten) = mpsc::channel(UNWRITTEN);
        (Self { metrics, written }, Unwritten(unwritten))
    }

    pub fn record(&self, step: &Step<'_>) {
        let Step { session, decision, reason, from, to } = step;
        self.metrics.decided(*decision, *reason);
        let id = |key: &Option<&Key>| key.map(|key| key.id.clone());
        tracing::info!(
            session = session.map(SessionId::as_str),
            decision = decision.name(),
            reason = reason.name(),
            from = id(from),
            key = id(to),
            "decision"
        );
        if let Some(session) = session {
            let at = time_of_day().duration_since(UNIX_EPOCH).map_or(0, |span| span.as_millis());
            let line = step.line(at);
            // The queue is full: the store has been away for long, or never accepts the lines.
            let _ = self.written.try_send(((*session).clone(), line));
        }
    }
}

/// A line of a trail, as operators see it. The stored form is `<milliseconds since 1970> <decision>
/// <reason> <from> <to>`; ids hold no space.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Mark {
    pub at: u64,
    pub decision: String,
    pub reason: String,
    pub from: Option<String>,
    pub to: Option<String>,
}

impl Mark {
    /// Returns `None` for a line that this version does not understand.
    pub fn parse(line: &str) -> Option<Self> {
        let parts: Vec<&str> = line.split(' ').collect();
        // A newer version may write more parts.
        let [at, decision, reason, from, to, ..] = parts[..] else { return None };
        let id = |part: &str| Some(part.to_owned()).filter(|part| !part.is_empty());
        Some(Self {
            at: at.parse().ok()?,
            decision: decision.into(),
            reason: reason.into(),
            from: id(from),
            to: id(to),
        })
    }
}

/// Writes queued lines until the replica stops.
pub async fn keep_writing(store: Arc<Store>, ttl: Duration, Unwritten(unwritten): &mut Unwritten) {
    let mut some = Vec::new();
    while unwritten.recv_many(&mut some, AT_ONCE).await > 0 {
        let mut trails: HashMap<SessionId, Vec<String>> = HashMap::new();
        for (session, line) in some.drain(..) {
            trails.entry(session).or_default().push(line);
        }
        join_all(trails.iter().map(|(session, lines)| write(&store, ttl, session, lines))).await;
    }
}

/// Writes lines to a session's trail. A write without an answer may have succeeded; a line that is
/// written twice is shown once.
async fn write(store: &Store, ttl: Duration, session: &SessionId, lines: &[String]) {
    let mut health = store.health();
    for _ in 0..ATTEMPTS {
        // Waits while the store is away.
        let _ = health.wait_for(|is_up| *is_up).await;
        if store.append(session.as_str(), lines, ttl, &mut store.background_budget()).await.is_ok()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::table::Table;
    use crate::store::memory::Memory;

    /// Pins the format that other versions and replicas read.
    #[test]
    fn line_is_written_as_it_always_was() {
        let table = Table::sketch("a o 1 sk-a, b o 1 sk-b");
        let (a, b) = (Some(&*table.keys()[0]), Some(&*table.keys()[1]));
        let at = 1_764_511_200_123;
        for (decision, reason, from, to, text) in [
            (Decision::Spill, Reason::NoAccess, a, b, "1764511200123 spill no_access a b"),
            (Decision::Refuse, Reason::Exhausted, a, None, "1764511200123 refuse exhausted a "),
            (Decision::Refuse, Reason::NoneInUse, None, None, "1764511200123 refuse none_in_use  "),
        ] {
            let line = Step { session: None, decision, reason, from, to }.line(at);
            assert_eq!(line, text);
            let id = |key: Option<&Key>| key.map(|key| key.id.clone());
            let expected = Mark {
                at: 1_764_511_200_123,
                decision: decision.name().into(),
                reason: reason.name().into(),
                from: id(from),
                to: id(to),
            };
            assert_eq!(Mark::parse(text), Some(expected));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn decisions_about_a_session_are_written_to_its_trail() {
        let metrics = Arc::new(Metrics::new());
        let store = Arc::new(Store::in_memory(Arc::new(Memory::new(8)), Arc::clone(&metrics)));
        let (trail, mut unwritten) = Trail::new(metrics);
        let table = Table::sketch("a o 1 sk-a, b o 1 sk-b");
        let (a, b) = (&*table.keys()[0], &*table.keys()[1]);
        let session = SessionId::parse("0123456789abcdefghijkl").unwrap();
        let step = |decision, reason, to| Step {
            session: Some(&session),
            decision,
            reason,
            from: Some(a),
            to,
        };
        trail.record(&step(Decision::Spill, Reason::NoAccess, Some(b)));
        trail.record(&step(Decision::Refuse, Reason::Exhausted, None));
        trail.record(&Step { session: None, ..step(Decision::Refuse, Reason::Failed, None) });
        drop(trail);
        keep_writing(Arc::clone(&store), Duration::from_secs(60), &mut unwritten).await;
        let lines = store.list(session.as_str(), &mut store.budget()).await.unwrap();
        let marks: Vec<_> = lines.iter().map(|line| Mark::parse(line).unwrap()).collect();
        let [spilled, refused] = &marks[..] else { panic!("{lines:?}") };
        assert_eq!((spilled.decision.as_str(), spilled.reason.as_str()), ("spill", "no_access"));
        assert_eq!((spilled.from.as_deref(), spilled.to.as_deref()), (Some("a"), Some("b")));
        assert_eq!((refused.decision.as_str(), refused.to.as_deref()), ("refuse", None));
        assert!(spilled.at > 0 && lines[0].len() < 64, "{lines:?}");
        let newer = Mark::parse("1 move removed a b c").unwrap();
        assert_eq!((newer.at, newer.to.as_deref()), (1, Some("b")), "a newer version's line");
        for other in ["", "1 move removed a", "x move removed a b"] {
            assert_eq!(Mark::parse(other), None, "{other}");
        }
    }
}
