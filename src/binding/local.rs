//! This replica's memory of bindings: those that the store holds, and those made while the store
//! was away.
//!
//! The memory answers while the store is away, and restores bindings that the store has lost. It
//! never replaces an entry by one with a lower epoch (B4). An entry expires some time after the
//! store last confirmed it, and the number of entries is limited.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::binding::record::BindingRecord;
use crate::key::Tag;
use crate::session::{SessionId, ThreadId};
use crate::store::expiring::Expiring;

/// Time for which this replica does not ask an organization again that could not open a session's
/// history. It is longer than a client takes to connect to each organization.
const RULED_OUT: Duration = Duration::from_secs(300);

/// A remembered binding of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub record: BindingRecord,
    /// The gateway chose the key while the store was away. A stored binding of any epoch wins.
    pub is_provisional: bool,
}

impl Known {
    /// Whether this is the same binding as `record`, sealed or not.
    pub fn is_of(&self, record: &BindingRecord) -> bool {
        (self.record.key, self.record.epoch) == (record.key, record.epoch)
    }
}

/// A stored binding, compared with this replica's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belief {
    /// The stored binding is the newest.
    Stored,
    /// The store does not know yet that this binding has served a turn.
    Unsealed,
    /// The store has lost a higher epoch, or does not know it yet.
    Outdated,
}

pub struct Local {
    entries: Mutex<Entries>,
    belief: Duration,
}

struct Entries {
    known: Expiring<Known>,
    /// The sessions that the store does not know yet. `order` is their order and may also hold
    /// sessions that are merged by now.
    unmerged: HashSet<SessionId>,
    order: VecDeque<SessionId>,
    /// The sessions of threads that are not root threads, as far as this replica has stored them.
    threads: Expiring<SessionId>,
    /// The organizations that could not open a session's history.
    ruled_out: Expiring<Vec<Tag>>,
}

impl Local {
    /// Holds at most `capacity` sessions, each for `belief` after the store last confirmed it.
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

    /// Notes that the store holds `record`.
    pub fn confirm(&self, session: &SessionId, record: &BindingRecord) -> Belief {
        self.lock().confirm(session, record, self.belief)
    }

    /// Notes that the store holds `record`, by another replica's announcement. The entry lives half
    /// as long, so that sessions which this replica serves keep their place.
    pub fn note_announced(&self, session: &SessionId, record: &BindingRecord) {
        self.lock().confirm(session, record, self.belief / 2);
    }

    /// Notes a `record` that a scan found, with its remaining life `left`. It never displaces
    /// another entry.
    pub fn note_scanned(&self, session: &SessionId, record: &BindingRecord, left: Duration) {
        let mut entries = self.lock();
        if entries.known.has_room(session.as_str()) {
            entries.confirm(session, record, left.min(self.belief / 2));
        }
    }

    /// Notes that `record` was bound without the store. The expiry of a known entry stays.
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

    /// Forgets the session, so that the store's binding applies again.
    pub fn forget(&self, session: &SessionId) {
        self.lock().known.remove(session.as_str());
    }

    /// The most bindings that the store does not know yet.
    pub fn count_unmerged(&self) -> usize {
        self.lock().order.len()
    }

    /// Returns up to `count` bindings that the store does not know yet. Each comes round again
    /// until it is confirmed.
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
                // An evicted or expired entry is not merged.
                _ => drop(unmerged.remove(&session)),
            }
        }
        next
    }

    /// Notes `session` as the session of `thread`. Returns whether it was noted already.
    pub fn note_thread(&self, thread: &ThreadId, session: &SessionId) -> bool {
        let mut entries = self.lock();
        let is_noted =
            entries.threads.get(thread.as_str()).is_some_and(|(known, _)| known == session);
        if !is_noted {
            entries.threads.put(thread.as_str(), session.clone(), self.belief / 2);
        }
        is_noted
    }

    /// Removes the note about `thread`, because the store could not be reached.
    pub fn forget_thread(&self, thread: &ThreadId) {
        self.lock().threads.remove(thread.as_str());
    }

    /// Returns the session that `thread` belongs to.
    pub fn session_of(&self, thread: &ThreadId) -> Option<SessionId> {
        self.lock().threads.get(thread.as_str()).map(|(session, _)| session.clone())
    }

    /// Notes that `organization` could not open the session's history. Returns all organizations
    /// noted so within `RULED_OUT`.
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
        // Every write completes before the lock is released.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    /// Notes that the store holds `record`. The entry expires `belief` from now, or keeps a later
    /// expiry.
    fn confirm(&mut self, session: &SessionId, record: &BindingRecord, belief: Duration) -> Belief {
        if let Some((known, expiry)) = self.known.get(session.as_str()) {
            if known.record.epoch > record.epoch {
                return Belief::Outdated;
            }
            if known.record.is_sealed_form_of(record) {
                return Belief::Unsealed;
            }
            // Most turns confirm an entry that was confirmed a moment ago. A provisional entry is
            // unmerged.
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
