//! What this replica remembers of the store, and what it bound while the store was away.
//!
//! Answers only when the store does not, and stands up for what the store has lost. It never takes a lower epoch for a
//! session than one it believes (B4). An entry is believed for a time after the store last confirmed it, and the map is
//! bounded.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::binding::record::BindingRecord;
use crate::key::Tag;
use crate::session::SessionId;
use crate::store::expiring::Expiring;

/// So long an organization that could not open a session's history is not asked again on this replica: longer than a client takes
/// to connect to each of them.
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
    /// What the store has yet to hear of, and in which order: some may be in the order that are merged since.
    unmerged: HashSet<SessionId>,
    order: VecDeque<SessionId>,
    /// The sessions of threads that are not root threads, as far as this replica has written them down.
    threads: Expiring<SessionId>,
    /// The organizations that could not open a session's history.
    ruled_out: Expiring<Vec<Tag>>,
}

impl Local {
    /// At most `capacity` sessions, each believed for `belief` after the store last confirmed it.
    pub fn new(capacity: usize, belief: Duration) -> Self {
        let (known, threads, ruled_out) = (Expiring::new(capacity), Expiring::new(capacity), Expiring::new(capacity));
        let entries = Entries { known, unmerged: HashSet::new(), order: VecDeque::new(), threads, ruled_out };
        Self { entries: Mutex::new(entries), belief }
    }

    pub fn recall(&self, session: &SessionId) -> Option<Known> {
        self.lock().known.get(session.as_str()).map(|(known, _)| known.clone())
    }

    /// The store holds `record`.
    pub fn confirm(&self, session: &SessionId, record: &BindingRecord) -> Belief {
        self.lock().confirm(session, record, self.belief)
    }

    /// Another replica tells that the store holds `record`. It is believed for half as long, so that what this replica serves
    /// itself keeps its place.
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

    /// `record` was bound without the store's word. Belief in what the store did say is not renewed by it.
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

    /// The next `count` of what the store has yet to hear of, or fewer. They come round again until they are confirmed.
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
                // What was given up for want of room, or is believed no longer, is nobody's to merge.
                _ => drop(unmerged.remove(&session)),
            }
        }
        next
    }

    /// Whether the store has been told of `thread` lately; from now on it has.
    pub fn has_told(&self, thread: &SessionId, session: &SessionId) -> bool {
        let mut entries = self.lock();
        let is_told = entries.threads.get(thread.as_str()).is_some_and(|(known, _)| known == session);
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
        let mut all = entries.ruled_out.get(session.as_str()).map(|(all, _)| all.clone()).unwrap_or_default();
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
    /// The store holds `record`, which is believed for `belief` from now on, or for as long as it was.
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
        self.known.put(session.as_str(), Known { record: record.clone(), is_provisional: false }, belief);
        Belief::Stored
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Tag;

    const HOUR: Duration = Duration::from_secs(3600);

    fn record(epoch: u32) -> BindingRecord {
        let tag = Tag::of("key", b"a-1");
        BindingRecord { key: tag, organization: tag, epoch, generation: 1, sealed: false, stale_state: None }
    }

    fn session(n: u32) -> SessionId {
        SessionId::parse(&format!("{n:022}")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn no_epoch_falls_while_it_is_believed() {
        let local = Local::new(8, HOUR);
        assert_eq!(local.confirm(&session(1), &record(2)), Belief::Stored);
        assert_eq!(local.confirm(&session(1), &record(1)), Belief::Outdated);
        assert_eq!(local.recall(&session(1)).unwrap().record.epoch, 2);
        tokio::time::advance(HOUR).await;
        assert_eq!(local.recall(&session(1)), None);
        assert_eq!(local.confirm(&session(1), &record(1)), Belief::Stored);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_noted_is_unmerged_until_the_store_confirms_the_session() {
        let local = Local::new(8, HOUR);
        local.note(&session(1), &record(1), true);
        assert_eq!(local.next_unmerged(9), [(session(1), record(1))]);
        assert_eq!(local.confirm(&session(1), &record(1)), Belief::Stored);
        assert!(local.next_unmerged(9).is_empty() && !local.recall(&session(1)).unwrap().is_provisional);
    }

    #[tokio::test(start_paused = true)]
    async fn a_seal_that_the_store_has_not_heard_of_is_not_forgotten() {
        let local = Local::new(8, HOUR);
        local.confirm(&session(1), &record(1));
        local.note(&session(1), &record(1).sealed(), false);
        assert_eq!(local.confirm(&session(1), &record(1)), Belief::Unsealed);
        assert_eq!(local.next_unmerged(9), [(session(1), record(1).sealed())]);
        assert_eq!(local.confirm(&session(1), &record(1).sealed()), Belief::Stored);
        assert!(local.next_unmerged(9).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_merged_keeps_nobody_waiting() {
        let local = Local::new(8, HOUR);
        (0..5).for_each(|n| local.note(&session(n), &record(1), true));
        let round: Vec<_> = (0..5).flat_map(|_| local.next_unmerged(2)).map(|(session, _)| session).collect();
        assert_eq!(round, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4].map(session));
    }

    #[tokio::test(start_paused = true)]
    async fn a_note_renews_no_belief() {
        let local = Local::new(8, HOUR);
        local.confirm(&session(1), &record(1));
        tokio::time::advance(HOUR / 2).await;
        local.note(&session(1), &record(2), false);
        tokio::time::advance(HOUR / 2).await;
        assert_eq!(local.recall(&session(1)), None);
        assert!(local.next_unmerged(9).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_made_room_is_not_merged() {
        let local = Local::new(2, HOUR);
        for n in 0..5 {
            local.note(&session(n), &record(1), true);
        }
        assert_eq!(local.next_unmerged(9).len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_costs_nobody_a_place_lowers_no_epoch_and_is_believed_while_it_is_stored() {
        let local = Local::new(3, HOUR);
        (0..2).for_each(|n| local.note(&session(n), &record(2), true));
        local.read(&session(0), &record(1), HOUR);
        local.read(&session(1), &record(3), HOUR / 4);
        local.read(&session(2), &record(1), HOUR);
        local.read(&session(3), &record(1), HOUR);
        let epochs = || (0..4).map(|n| local.recall(&session(n)).map(|known| known.record.epoch)).collect::<Vec<_>>();
        assert_eq!(epochs(), [Some(2), Some(3), Some(1), None]);
        tokio::time::advance(HOUR / 4).await;
        assert_eq!(epochs(), [Some(2), None, Some(1), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_served_keeps_its_place_before_what_is_heard() {
        let local = Local::new(2, HOUR);
        local.confirm(&session(0), &record(1));
        local.hear(&session(0), &record(1));
        for n in 1..9 {
            local.hear(&session(n), &record(1));
        }
        assert!(local.recall(&session(0)).is_some() && local.recall(&session(8)).is_some());
        tokio::time::advance(HOUR / 2).await;
        assert!(local.recall(&session(0)).is_some() && local.recall(&session(8)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_thread_is_told_once_in_a_while() {
        let local = Local::new(8, HOUR);
        assert!(!local.has_told(&session(9), &session(1)));
        assert!(local.has_told(&session(9), &session(1)));
        assert_eq!(local.session_of(&session(9)), Some(session(1)));
        assert!(!local.has_told(&session(9), &session(2)));
        tokio::time::advance(HOUR).await;
        assert!(!local.has_told(&session(9), &session(2)));
    }

    /// A turn that confirms what was confirmed a moment ago renews nothing; a later one does.
    #[tokio::test(start_paused = true)]
    async fn belief_is_renewed_by_the_stores_word() {
        let local = Local::new(8, HOUR);
        local.confirm(&session(1), &record(1));
        for _ in 0..5 {
            tokio::time::advance(HOUR / 2).await;
            assert_eq!(local.confirm(&session(1), &record(1)), Belief::Stored);
        }
        tokio::time::advance(HOUR - Duration::from_secs(1)).await;
        assert!(local.recall(&session(1)).is_some());
        // What is heard of it takes nothing away.
        local.confirm(&session(1), &record(1));
        local.hear(&session(1), &record(1));
        tokio::time::advance(HOUR / 4 * 3).await;
        assert!(local.recall(&session(1)).is_some());
        local.hear(&session(2), &record(1));
        tokio::time::advance(HOUR / 2).await;
        assert!(local.recall(&session(2)).is_none(), "it is believed for half as long");
    }

    /// A guess is no more than that, whatever the store has said of it: the store's word makes it known.
    #[tokio::test(start_paused = true)]
    async fn guess_becomes_known_by_the_stores_word() {
        let local = Local::new(8, HOUR);
        local.note(&session(1), &record(1), true);
        local.hear(&session(1), &record(1));
        assert!(!local.recall(&session(1)).unwrap().is_provisional && local.next_unmerged(9).is_empty());
        // Another one of the same epoch gives way, and a higher one does not.
        let other = BindingRecord { key: Tag::of("key", b"b-1"), ..record(1) };
        local.note(&session(2), &record(1), true);
        assert_eq!(local.confirm(&session(2), &other), Belief::Stored);
        assert_eq!(local.recall(&session(2)).unwrap().record, other);
        local.note(&session(2), &record(3), false);
        assert_eq!(local.confirm(&session(2), &record(2)), Belief::Outdated);
        local.note(&session(2), &record(2), false);
        assert_eq!(local.recall(&session(2)).unwrap().record, record(3), "no note lowers an epoch");
        assert!(local.next_unmerged(9).iter().all(|next| *next == (session(2), record(3))));
        local.note(&session(2), &record(3).sealed(), false);
        assert_eq!(local.recall(&session(2)).unwrap().record, record(3).sealed());
    }

    #[tokio::test(start_paused = true)]
    async fn session_that_is_forgotten_is_not_merged() {
        let local = Local::new(8, HOUR);
        local.note(&session(1), &record(1), false);
        local.note(&session(2), &record(1), false);
        assert_eq!(local.count_unmerged(), 2);
        local.forget(&session(1));
        assert_eq!(local.recall(&session(1)), None);
        assert_eq!(local.next_unmerged(9), [(session(2), record(1))]);
        assert_eq!(local.count_unmerged(), 1);
        // It may be bound anew, and is merged once then.
        local.note(&session(1), &record(1), false);
        assert_eq!(local.next_unmerged(9).len(), 2);
        local.forget(&session(1));
        local.note(&session(1), &record(1), false);
        assert_eq!((local.next_unmerged(9).len(), local.count_unmerged()), (2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn organization_that_is_ruled_out_is_so_for_its_session_and_for_a_time() {
        let local = Local::new(8, HOUR);
        let [a, b] = ["a", "b"].map(|name| Tag::of("organization", name.as_bytes()));
        assert_eq!(local.rule_out(&session(1), a), [a]);
        assert_eq!(local.rule_out(&session(1), b), [a, b]);
        assert_eq!(local.rule_out(&session(1), a), [a, b], "each once");
        assert_eq!(local.rule_out(&session(2), b), [b]);
        tokio::time::advance(RULED_OUT - Duration::from_secs(1)).await;
        assert_eq!(local.rule_out(&session(2), a), [b, a]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(local.rule_out(&session(1), b), [b]);
    }

    /// The store could not be told of a thread: the next turn tells it.
    #[tokio::test(start_paused = true)]
    async fn thread_that_was_not_told_is_told_again() {
        let local = Local::new(8, HOUR);
        assert!(!local.has_told(&session(9), &session(1)));
        local.has_not_told(&session(9));
        assert!(!local.has_told(&session(9), &session(1)) && local.has_told(&session(9), &session(1)));
        tokio::time::advance(HOUR / 2).await;
        assert!(!local.has_told(&session(9), &session(1)), "its life in the store starts anew");
    }
}
