//! What this replica remembers of the store, and what it bound while the store was away.
//!
//! Answers only when the store does not, and stands up for what the store has lost. It never takes
//! a lower epoch for a session than one it believes (B4). An entry is believed for a time after the
//! store last confirmed it, and the map is bounded.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::binding::record::BindingRecord;
use crate::key::Tag;
use crate::session::SessionId;
use crate::store::expiring::Expiring;

/// So long an organization that could not open a session's history is not asked again on this
/// replica: longer than a client takes to connect to each of them.
const RULED_OUT: Duration = Duration::from_secs(300);

/// What is believed of a session's binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub record: BindingRecord,
    /// Chosen while nobody could be asked: a stored binding of any epoch knows better.
    pub is_provisional: bool,
}

impl Known {
    /// Whether it is the binding that `record` is, sealed or not.
    pub fn is_of(&self, record: &BindingRecord) -> bool {
        (self.record.key, self.record.epoch) == (record.key, record.epoch)
    }
}

/// What the store's word is worth beside what this replica knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belief {
    /// It is the newest there is.
    Stored,
    /// The store has not heard yet that this binding has served a turn.
    Unsealed,
    /// The store has lost, or has not heard of, a higher epoch.
    Outdated,
}

pub struct Local {
    entries: Mutex<Entries>,
    belief: Duration,
}

struct Entries {
    known: Expiring<Known>,
    /// What the store has yet to hear of, and in which order: some may be in the order that are
    /// merged since.
    unmerged: HashSet<SessionId>,
    order: VecDeque<SessionId>,
    /// The sessions of threads that are not root threads, as far as this replica has written them
    /// down.
    threads: Expiring<SessionId>,
    /// The organizations that could not open a session's history.
    ruled_out: Expiring<Vec<Tag>>,
}

impl Local {
    /// At most `capacity` sessions, each believed for `belief` after the store last confirmed it.
    pub fn new(capacity: usize, belief: Duration) -> Self {
        let (known, threads, ruled_out) =
            (Expiring::new(capacity), Expiring::new(capacity), Expiring::new(capacity));
        let entries =
            Entries { known, unmerged: HashSet::new(), order: VecDeque::new(), threads, ruled_out };
        Self { entries: Mutex::new(entries), belief }
    }

    pub fn recall(&self, session: &SessionId) -> Option<Known> {
        self.lock().known.get(session.as_str()).map(|(known, _)| known.clone())
    }

    /// The store holds `record`.
    pub fn confirm(&self, session: &SessionId, record: &BindingRecord) -> Belief {
        self.lock().confirm(session, record, self.belief)
    }

    /// Another replica tells that the store holds `record`. It is believed for half as long, so
    /// that what this replica serves itself keeps its place.
    pub fn hear(&self, session: &SessionId, record: &BindingRecord) {
        self.lock().confirm(session, record, self.belief / 2);
    }

    /// The store has held `record` for a while, and does for `left`. That costs nobody a place.
    pub fn read(&self, session: &SessionId, record: &BindingRecord, left: Duration) {
        let mut entries = self.lock();
        if entries.known.has_room(session.as_str()) {
            entries.confirm(session, record, left.min(self.belief / 2));
        }
    }

    /// `record` was bound without the store's word. Belief in what the store did say is not renewed
    /// by it.
    pub fn note(&self, session: &SessionId, record: &BindingRecord, is_provisional: bool) {
        let mut entries = self.lock();
        let left = match entries.known.get(session.as_str()) {
            Some((known, _)) if known.record.epoch > record.epoch => return,
            Some((_, expiry)) => expiry - Instant::now(),
            None => self.belief,
        };
        entries.known.put(session.as_str(), Known { record: record.clone(), is_provisional }, left);
        if entries.unmerged.insert(session.clone()) {
            entries.order.push_back(session.clone());
        }
    }

    /// The session is the store's to tell about again.
    pub fn forget(&self, session: &SessionId) {
        self.lock().known.remove(session.as_str());
    }

    /// How much the store has yet to hear of, at most.
    pub fn count_unmerged(&self) -> usize {
        self.lock().order.len()
    }

    /// The next `count` of what the store has yet to hear of, or fewer. They come round again until
    /// they are confirmed.
    pub fn next_unmerged(&self, count: usize) -> Vec<(SessionId, BindingRecord)> {
        let mut entries = self.lock();
        let Entries { known, unmerged, order, .. } = &mut *entries;
        let mut next = Vec::new();
        for _ in 0..order.len().min(count) {
            let Some(session) = order.pop_front() else { break };
            match known.get(session.as_str()) {
                Some((known, _)) if unmerged.contains(&session) => {
                    next.push((session.clone(), known.record.clone()));
                    order.push_back(session);
                }
                // What was given up for want of room, or is believed no longer, is nobody's to
                // merge.
                _ => drop(unmerged.remove(&session)),
            }
        }
        next
    }

    /// Whether the store has been told of `thread` lately; from now on it has.
    pub fn has_told(&self, thread: &SessionId, session: &SessionId) -> bool {
        let mut entries = self.lock();
        let is_told =
            entries.threads.get(thread.as_str()).is_some_and(|(known, _)| known == session);
        if !is_told {
            entries.threads.put(thread.as_str(), session.clone(), self.belief / 2);
        }
        is_told
    }

    /// The store could not be told of `thread`.
    pub fn has_not_told(&self, thread: &SessionId) {
        self.lock().threads.remove(thread.as_str());
    }

    /// The session that `thread` belongs to.
    pub fn session_of(&self, thread: &SessionId) -> Option<SessionId> {
        self.lock().threads.get(thread.as_str()).map(|(session, _)| session.clone())
    }

    /// `organization` could not open the session's history. Returns all that could not, lately.
    pub fn rule_out(&self, session: &SessionId, organization: Tag) -> Vec<Tag> {
        let mut entries = self.lock();
        let mut all =
            entries.ruled_out.get(session.as_str()).map(|(all, _)| all.clone()).unwrap_or_default();
        if !all.contains(&organization) {
            all.push(organization);
        }
        entries.ruled_out.put(session.as_str(), all.clone(), RULED_OUT);
        all
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Every write is whole before the lock is given back.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    /// The store holds `record`, which is believed for `belief` from now on, or for as long as it
    /// was.
    fn confirm(&mut self, session: &SessionId, record: &BindingRecord, belief: Duration) -> Belief {
        if let Some((known, expiry)) = self.known.get(session.as_str()) {
            if known.record.epoch > record.epoch {
                return Belief::Outdated;
            }
            if known.record.is_sealed_form_of(record) {
                return Belief::Unsealed;
            }
            // Most turns confirm what was confirmed a moment ago. A guess is unmerged.
            let is_confirmed = known.record == *record && !self.unmerged.contains(session);
            if is_confirmed && expiry - Instant::now() > belief / 4 * 3 {
                return Belief::Stored;
            }
        }
        self.unmerged.remove(session);
        self.known.put(
            session.as_str(),
            Known { record: record.clone(), is_provisional: false },
            belief,
        );
        Belief::Stored
    }
}

#[cfg(test)]
mod tests;
