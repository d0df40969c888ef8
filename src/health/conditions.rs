//! What this replica knows of the health of keys: what it met itself, what others told, and what it
//! has yet to tell them.
//!
//! Nothing here is believed longer than it was told for, and nothing waits for the store.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::health::condition::{Class, Condition, Place, Subject};
use crate::health::diagnose::Scope;
use crate::key::Key;
use crate::store::board::Note;

mod exchange;

/// Keys that are refused within this time of each other are refused for one reason, which is the
/// upstream's.
const AT_ONCE: Duration = Duration::from_secs(10);
/// At most so often a key that is out of use here alone is tried because another replica binds
/// sessions to it.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// So long new sessions come to a key little by little.
pub const RAMP: Duration = Duration::from_secs(60);

/// What a key can do for a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fitness {
    Ready,
    /// The key takes no more of the model for this long.
    Limited(Duration),
    /// Other keys serve its sessions meanwhile; their bindings stay.
    Bypassed(Why),
    /// Its sessions move to other keys.
    Dead(Why),
}

/// Why a key does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    Disabled,
    Drained,
    Suspected,
    Rejected,
    /// Its upstream refuses most of all keys: that is not the keys' fault.
    Incident,
    ExhaustedProject,
    ExhaustedOrganization,
    NoAccess,
}

#[derive(Default)]
pub struct Conditions {
    known: RwLock<Known>,
    /// Told when there is something to tell.
    news: Notify,
}

#[derive(Default)]
struct Known {
    entries: HashMap<Place, Entry>,
    /// What others have yet to hear, and as of when.
    untold: HashMap<Place, (Note, Instant)>,
    /// The version of the board.
    seen: u64,
    /// See [`Why::Incident`].
    is_incident: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    condition: Condition,
    since: Instant,
    until: Option<Instant>,
    /// What the board has it under. 0: it has not.
    stamp: u64,
    /// When it was last asked whether it still holds, or a turn tried all the same.
    asked: Option<Instant>,
    /// This replica may find out, with one turn, whether it still holds.
    has_ticket: bool,
}

impl Entry {
    /// Whether it holds for about as long anyway: to say so again would only make it look new.
    fn is_as_long(&self, until: Option<Instant>, now: Instant) -> bool {
        match (self.until, until, self.condition) {
            (Some(own), Some(until), Condition::Limited) => own >= until,
            (Some(own), Some(until), _) => own - now >= (until - now) / 2,
            (own, until, _) => own == until,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

impl Known {
    fn find(&self, subject: Subject, class: Class, now: Instant) -> Option<&Entry> {
        self.entries.get(&Place(subject, class)).filter(|entry| !entry.is_over(now))
    }

    /// What is the case of `key`, whatever is asked of it.
    fn standing(&self, key: &Key, now: Instant) -> Option<(Scope, Condition)> {
        let scopes = [Scope::Key, Scope::Organization, Scope::Project];
        scopes.into_iter().find_map(|scope| {
            self.find(Subject::of(key, scope), Class::Illness, now)
                .map(|entry| (scope, entry.condition))
        })
    }

    fn by_operator(&self, key: &Key, now: Instant) -> Option<Condition> {
        let word = |subject| self.find(subject, Class::Operator, now).map(|entry| entry.condition);
        let words = [word(Subject::Organization(key.organization_tag)), word(Subject::named(key))];
        let is_said = |condition| words.contains(&Some(condition));
        [Condition::Drained, Condition::Disabled].into_iter().find(|condition| is_said(*condition))
    }
}

impl Conditions {
    /// What `key` can do for a turn that asks for `model`.
    pub fn fitness(&self, key: &Key, model: &str) -> Fitness {
        let known = self.read();
        if known.entries.is_empty() {
            return Fitness::Ready;
        }
        let now = Instant::now();
        match known.by_operator(key, now) {
            Some(Condition::Drained) => return Fitness::Dead(Why::Drained),
            Some(_) => return Fitness::Bypassed(Why::Disabled),
            None => {}
        }
        match known.standing(key, now) {
            Some((_, Condition::Suspected | Condition::Rejected)) if known.is_incident => {
                return Fitness::Bypassed(Why::Incident);
            }
            Some((_, Condition::Suspected)) => return Fitness::Bypassed(Why::Suspected),
            Some((_, Condition::Rejected)) => return Fitness::Dead(Why::Rejected),
            Some((Scope::Project, Condition::Exhausted)) => {
                return Fitness::Dead(Why::ExhaustedProject);
            }
            Some((_, Condition::Exhausted)) => return Fitness::Dead(Why::ExhaustedOrganization),
            _ => {}
        }
        let of_model = known.find(Subject::model(key, model), Class::Illness, now);
        match of_model {
            Some(Entry { condition: Condition::NoAccess, .. }) => Fitness::Bypassed(Why::NoAccess),
            Some(Entry { until: Some(until), .. }) => Fitness::Limited(*until - now),
            _ => Fitness::Ready,
        }
    }

    /// `condition` is the case of `subject`, for `life`. Returns whether that is news here.
    pub fn note(&self, subject: Subject, condition: Condition, life: Option<Duration>) -> bool {
        let place = Place(subject, condition.class());
        let now = Instant::now();
        let mut known = self.write();
        let until = life.map(|life| now + life);
        let old = known
            .entries
            .get(&place)
            .filter(|entry| entry.condition == condition && !entry.is_over(now));
        let is_news = old.is_none();
        if old.is_some_and(|old| old.is_as_long(until, now)) {
            return false;
        }
        let (since, asked) = old.map_or((now, None), |old| (old.since, old.asked));
        known
            .entries
            .insert(place, Entry { condition, since, until, stamp: 0, asked, has_ticket: false });
        known.untold.insert(
            place,
            (Note { name: place.to_string(), value: condition.name().into(), life, stamp: 0 }, now),
        );
        drop(known);
        self.news.notify_one();
        is_news
    }

    /// Whether `condition` is the case of `subject`.
    pub fn is(&self, subject: Subject, condition: Condition) -> bool {
        self.read()
            .find(subject, condition.class(), Instant::now())
            .is_some_and(|entry| entry.condition == condition)
    }

    /// Whether `subject` is ill, and has been since before `began`.
    pub fn is_older(&self, subject: Subject, began: Instant) -> bool {
        self.read()
            .find(subject, Class::Illness, Instant::now())
            .is_some_and(|entry| entry.since <= began)
    }

    /// Nothing of `class` is the case of `subject` any more. Returns what was, until now.
    pub fn end(&self, subject: Subject, class: Class) -> Option<Condition> {
        let place = Place(subject, class);
        let mut known = self.write();
        let ended = known.entries.remove(&place)?;
        let over = Note { name: place.to_string(), value: String::new(), life: None, stamp: 0 };
        known.untold.insert(place, (over, Instant::now()));
        drop(known);
        self.news.notify_one();
        Some(ended.condition).filter(|_| !ended.is_over(Instant::now()))
    }

    /// Whether a turn may try `key`, which is out of use here and not for others, because one of
    /// them has moved its session there since: what was met here may have passed. Two replicas that
    /// each keep out another key would move a session to and fro.
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

    /// What is to be asked again by now, and how long it is until the next time. It counts as
    /// asked.
    pub fn due(&self) -> Vec<(Subject, Condition, Duration)> {
        let now = Instant::now();
        let mut known = self.write();
        let is_incident = known.is_incident;
        let pause = |entry: &Entry| match entry.condition {
            // It will be over for all at once.
            Condition::Rejected if is_incident => Condition::Suspected.asked_again(),
            condition => condition.asked_again(),
        };
        let is_due = |entry: &Entry, pause: Duration| match (entry.condition, entry.asked) {
            (Condition::Suspected, None) => true,
            (_, asked) => asked.map_or(entry.since, |asked| asked.max(entry.since)) + pause <= now,
        };
        let live = known.entries.iter_mut().filter(|(_, entry)| !entry.is_over(now));
        let due = live.filter_map(|(place, entry)| {
            let pause = pause(entry).filter(|pause| is_due(entry, *pause))?;
            entry.asked = Some(now);
            Some((place.0, entry.condition, pause))
        });
        due.collect()
    }

    /// One turn may find out whether `subject` is still exhausted.
    pub fn grant(&self, subject: Subject) {
        if let Some(entry) = self.write().entries.get_mut(&Place(subject, Class::Illness)) {
            entry.has_ticket = true;
        }
    }

    /// Whether a turn may try `key` although it is exhausted; then it is the one that does.
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

    /// The share of new sessions that come to `key`, 0 to 1.
    pub fn ramp(&self, key: &Key) -> f64 {
        let known = self.read();
        if known.entries.is_empty() {
            return 1.0;
        }
        let now = Instant::now();
        let shares =
            [Scope::Key, Scope::Project, Scope::Organization].into_iter().filter_map(|scope| {
                let entry = known.find(Subject::of(key, scope), Class::Recovery, now)?;
                Some((now - entry.since).as_secs_f64() / RAMP.as_secs_f64())
            });
        shares.fold(1.0, f64::min)
    }

    /// What is the case of `key` and of what it belongs to, with what is left of it.
    pub fn of(&self, key: &Key) -> Vec<(Subject, Condition, Option<Duration>)> {
        let now = Instant::now();
        let known = self.read();
        let concerning = known
            .entries
            .iter()
            .filter(|(place, entry)| place.0.concerns(key) && !entry.is_over(now));
        let told = |(place, entry): (&Place, &Entry)| {
            (place.0, entry.condition, entry.until.map(|until| until - now))
        };
        let mut all: Vec<_> = concerning.map(told).collect();
        all.sort_by_key(|(subject, condition, _)| (condition.name(), subject.name()));
        all
    }

    /// Whatever was met of what `is_meant`, it is tried again, by all and at once. Returns what was
    /// held against it.
    pub fn forget(&self, is_meant: impl Fn(Subject) -> bool) -> Vec<Condition> {
        let is_met = |place: &&Place| place.1 != Class::Operator && is_meant(place.0);
        let met: Vec<Place> = self.read().entries.keys().filter(is_met).copied().collect();
        let mut forgotten: Vec<_> =
            met.into_iter().filter_map(|Place(subject, class)| self.end(subject, class)).collect();
        forgotten.sort_by_key(|condition| condition.name());
        forgotten
    }

    /// Whether more than half of `keys` were refused at once, now that something has changed.
    pub fn consider(&self, keys: &[Arc<Key>]) {
        let now = Instant::now();
        let mut known = self.write();
        let refused: Vec<Instant> = keys
            .iter()
            .filter_map(|key| {
                let onset = |scope| {
                    let entry = known.find(Subject::of(key, scope), Class::Illness, now)?;
                    matches!(entry.condition, Condition::Suspected | Condition::Rejected)
                        .then_some(entry.since)
                };
                onset(Scope::Key).or_else(|| onset(Scope::Organization))
            })
            .collect();
        // Whenever that was: it stays one until most are accepted again, however late the others
        // are met.
        let until = |last: &Instant| {
            refused.iter().filter(|onset| **onset <= *last && *last - **onset <= AT_ONCE).count()
        };
        known.is_incident = refused.iter().any(|last| until(last) * 2 > keys.len());
    }

    /// Gives up what is over.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.write().entries.retain(|_, entry| !entry.is_over(now));
    }

    pub fn is_empty(&self) -> bool {
        self.read().entries.is_empty()
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        // Every change is whole before anything can panic.
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
