//! Decides when a condition is asked about anew: by a probe, by the turn that has a ticket, or by a
//! turn whose session another replica has moved to the key.

use std::time::Duration;

use tokio::time::Instant;

use crate::health::condition::{Class, Condition, Place, Subject};
use crate::health::conditions::{Conditions, Entry};
use crate::health::diagnose::Scope;
use crate::key::Key;

/// Minimum time between tries of a key that is out of use on this replica alone, while another
/// replica binds sessions to it.
pub(super) const TRY_AGAIN: Duration = Duration::from_secs(10);

impl Conditions {
    /// Whether a turn may try `key`, which is out of use on this replica alone. Another replica has
    /// moved the turn's session there since, so the condition may have passed. Two replicas that
    /// each hold out another key would otherwise move a session to and fro.
    pub fn may_try(&self, key: &Key) -> bool {
        let now = Instant::now();
        let mut known = self.write();
        if known.by_operator(key, now).is_some() {
            return false;
        }
        for scope in [Scope::Key, Scope::Project, Scope::Organization] {
            let Some(entry) =
                known.entries.get_mut(&Place(Subject::of(key, scope), Class::Illness))
            else {
                continue;
            };
            if entry.stamp > 0 || entry.asked.is_some_and(|asked| now - asked < TRY_AGAIN) {
                return false;
            }
            entry.asked = Some(now);
        }
        true
    }

    /// The conditions that a probe must ask about now, each with the time until the next probe.
    /// They count as asked.
    pub fn due(&self) -> Vec<(Subject, Condition, Duration)> {
        let now = Instant::now();
        let mut known = self.write();
        let is_incident = known.is_incident;
        let pause = |entry: &Entry| match entry.condition {
            // An incident ends for all keys at once.
            Condition::Rejected if is_incident => Condition::Suspected.asked_again(),
            condition => condition.asked_again(),
        };
        let is_due = |entry: &Entry, pause: Duration| match (entry.condition, entry.asked) {
            (Condition::Suspected, None) => true,
            (_, asked) => asked.map_or(entry.since, |asked| asked.max(entry.since)) + pause <= now,
        };
        // If one key recovered before another was asked, the incident would be over, and the other
        // key would wait for a minute.
        let is_shared = |entry: &Entry| is_incident && entry.condition == Condition::Rejected;
        let is_alone_due = |entry: &Entry| pause(entry).is_some_and(|pause| is_due(entry, pause));
        let is_live = |entry: &Entry| !entry.is_over(now);
        let begins = |entry: &Entry| is_live(entry) && is_shared(entry) && is_alone_due(entry);
        let all_are = known.entries.values().any(begins);
        let live = known.entries.iter_mut().filter(|(_, entry)| is_live(entry));
        let due = live.filter_map(|(place, entry)| {
            let is_now = is_alone_due(entry) || all_are && is_shared(entry);
            let pause = pause(entry).filter(|_| is_now)?;
            entry.asked = Some(now);
            Some((place.0, entry.condition, pause))
        });
        due.collect()
    }

    /// Grants a ticket: one turn may find out whether `subject` is still exhausted.
    pub fn grant(&self, subject: Subject) {
        if let Some(entry) = self.write().entries.get_mut(&Place(subject, Class::Illness)) {
            entry.has_ticket = true;
        }
    }

    /// Takes the ticket of the exhausted `key`. Returns true if there was one: this turn may try
    /// the key.
    pub fn take_ticket(&self, key: &Key) -> bool {
        if !self.has_ticket(key) {
            return false;
        }
        let mut known = self.write();
        let mut took = false;
        for scope in [Scope::Project, Scope::Organization] {
            if let Some(entry) =
                known.entries.get_mut(&Place(Subject::of(key, scope), Class::Illness))
            {
                took |= std::mem::take(&mut entry.has_ticket);
            }
        }
        took
    }

    pub fn has_ticket(&self, key: &Key) -> bool {
        let known = self.read();
        if known.by_operator(key, Instant::now()).is_some() {
            return false;
        }
        let entry = |scope| known.entries.get(&Place(Subject::of(key, scope), Class::Illness));
        [Scope::Project, Scope::Organization]
            .into_iter()
            .any(|scope| entry(scope).is_some_and(|entry| entry.has_ticket))
    }
}
