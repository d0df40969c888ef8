//! Compares each turn with the last one of its thread, and stores what the turn leaves in the cache
//! for the next one. No turn waits for this task.
//!
//! A turn costs the store one read and one write. Turns of a thread that are assessed together
//! share both. Only a fork's first turn reads up to three times. While the store is away, the
//! gateway knows of no earlier turn, and calls no turn cold.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;

use crate::metrics::Metrics;
use crate::session::lineage::Parent;
use crate::session::purpose::TurnKind;
use crate::session::{SessionId, ThreadId};
use crate::store::name::Name;
use crate::store::{Store, Unavailable};
use crate::usage::cold::{Last, assess};
use crate::usage::promise::Promise;
use crate::usage::record::{Record, Warmth};

/// A thread, whose turns share a prefix.
#[derive(PartialEq, Eq, Hash)]
enum Thread {
    /// The root thread of a session, which has the session's id.
    Root(SessionId),
    /// A thread with an id of its own, such as a sub-agent's.
    Own(ThreadId),
}

impl Thread {
    fn as_str(&self) -> &str {
        match self {
            Self::Root(session) => session.as_str(),
            Self::Own(thread) => thread.as_str(),
        }
    }
}

/// The stored promise of a thread.
enum Stored {
    /// The store did not answer.
    Unknown,
    Nothing,
    Own(Promise),
    Parents(Promise),
}

impl Stored {
    const fn as_last(&self) -> Last<'_> {
        match self {
            Self::Unknown => Last::Unknown,
            Self::Nothing => Last::Nothing,
            Self::Own(promise) => Last::Own(promise),
            Self::Parents(promise) => Last::Parents(promise),
        }
    }
}

pub struct Assessor {
    store: Arc<Store>,
    /// How long a promise is kept: for as long as a binding.
    ttl: Duration,
    metrics: Arc<Metrics>,
}

impl Assessor {
    pub const fn new(store: Arc<Store>, ttl: Duration, metrics: Arc<Metrics>) -> Self {
        Self { store, ttl, metrics }
    }

    /// Compares each record with its session's last turn, fills in the record's warmth, and counts
    /// it. The records of a session keep their order.
    pub async fn assess(&self, records: Vec<Record>) -> Vec<Record> {
        let (mut threads, mut assessed) = (HashMap::<Thread, Vec<Record>>::new(), Vec::new());
        for record in records {
            match thread(&record) {
                Some(thread) => threads.entry(thread).or_default().push(record),
                None => assessed.push(record),
            }
        }
        let each = threads.into_iter().map(|(thread, records)| self.assess_thread(thread, records));
        assessed.extend(join_all(each).await.into_iter().flatten());
        assessed
    }

    async fn assess_thread(&self, thread: Thread, mut records: Vec<Record>) -> Vec<Record> {
        let parent = records.first().and_then(|record| record.lineage.parent.as_ref());
        let (mut last, mut unwritten) = (self.stored(&thread, parent).await, None);
        for record in &mut records {
            let (began, ended) = (seconds(record.at), seconds(record.at + record.duration));
            record.warmth = assess(record, last.as_last(), began);
            self.count(record);
            if let Some(next) = next(record, &last, ended) {
                unwritten = Some(next.to_string());
                last = Stored::Own(next);
            }
        }
        if let Some(text) = unwritten {
            let (name, mut budget) = (Name::Promise(thread.as_str()), self.store.budget());
            // If the write fails, an older promise stays, which only claims less.
            let _ = self.store.put(name, &text, self.ttl, &mut budget).await;
        }
        records
    }

    async fn stored(&self, thread: &Thread, parent: Option<&Parent>) -> Stored {
        let found = async {
            if let Some(promise) = self.promise_of(thread.as_str()).await? {
                return Ok(Stored::Own(promise));
            }
            let Some(Parent { root, thread }) = parent else { return Ok(Stored::Nothing) };
            for id in [root.as_str(), thread.as_str()] {
                if let Some(promise) = self.promise_of(id).await? {
                    return Ok(Stored::Parents(promise));
                }
            }
            Ok::<_, Unavailable>(Stored::Nothing)
        };
        found.await.unwrap_or(Stored::Unknown)
    }

    async fn promise_of(&self, id: &str) -> Result<Option<Promise>, Unavailable> {
        let mut budget = self.store.budget();
        let held = self.store.get(Name::Promise(id), &mut budget).await?;
        match held {
            None => Ok(None),
            // This version may be unable to read the promise of a newer version.
            Some(held) => Promise::parse(&held.value)
                .map(Some)
                .ok_or_else(|| Unavailable("a newer version's promise".into())),
        }
    }

    fn count(&self, record: &Record) {
        let Warmth { expected, cold } = record.warmth;
        if let Some(expected) = expected {
            self.metrics.expected(expected);
        }
        if let Some(reason) = cold {
            self.metrics.cold_turn(reason, record.missed_tokens());
        }
    }
}

/// Returns the thread with whose last turn a record is compared. Each thread of a session has a
/// prefix of its own. `None`: the gateway knows nothing of this turn's cache, or the turn leaves
/// nothing for the next one.
fn thread(record: &Record) -> Option<Thread> {
    record.service.as_ref()?;
    record.usage.as_ref()?;
    if record.kind == TurnKind::Title {
        return None;
    }
    let thread = record.lineage.thread.clone().map(Thread::Own);
    thread.or_else(|| record.session.clone().map(Thread::Root))
}

/// Returns the promise that the turn leaves for the next one. `None`: the stored promise stays.
fn next(record: &Record, last: &Stored, ended: u64) -> Option<Promise> {
    let promise = Promise::of(record, ended)?;
    let is_continued = record.imprint.as_ref().is_some_and(|imprint| imprint.is_continued);
    let is_cold = record.warmth.cold.is_some();
    match (record.kind, last) {
        // A prewarm may state only a part of a session's prefix, while the whole prefix is still
        // cached.
        (TurnKind::Prewarm, Stored::Own(_)) => None,
        // The next turn has another history, whose length is not known.
        (TurnKind::Compaction, _) => Some(Promise { tokens: 0, mark: None, ..promise }),
        (_, Stored::Own(last)) if !is_cold => Some(promise.follow(last, is_continued)),
        _ => Some(promise),
    }
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |span| span.as_secs())
}

#[cfg(test)]
mod tests;
