//! The health of keys as this replica knows it: its own observations, those of other replicas, and
//! those that it has yet to report.
//!
//! No condition is believed longer than its life, and nothing here waits for the store. Clients
//! name models freely, so the conditions of one project's models are bounded.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::health::condition::{Class, Condition, Place, Subject};
use crate::health::diagnose::{ModelUse, Scope};
use crate::key::Key;
use crate::store::board::Note;

mod asking;
mod bound;
mod exchange;
mod states;

/// Keys refused within this time of each other share one reason, which lies with the upstream.
const AT_ONCE: Duration = Duration::from_secs(10);
/// Time over which new sessions return to a recovered key.
pub const RAMP: Duration = Duration::from_secs(60);

/// What a key can do for a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fitness {
    Ready,
    /// The key is rate-limited for the model for this long.
    Limited(Duration),
    /// Other keys serve the key's sessions meanwhile; their bindings stay.
    Bypassed(Why),
    /// The key's sessions move to other keys.
    Dead(Why),
}

/// Why a key does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    Disabled,
    Drained,
    Suspected,
    Rejected,
    /// The upstream refuses most of all keys, which is not the keys' fault.
    Incident,
    ExhaustedProject,
    ExhaustedOrganization,
    NoAccess,
}

#[derive(Default)]
pub struct Conditions {
    known: RwLock<Known>,
    /// Notified when there is something to report.
    reportable: Notify,
}

#[derive(Default)]
struct Known {
    entries: HashMap<Place, Entry>,
    /// Notes that the other replicas have yet to receive, each with the time as of which it is
    /// true.
    unreported: HashMap<Place, (Note, Instant)>,
    /// The version of the board that was last received.
    seen: u64,
    /// See [`Why::Incident`].
    is_incident: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    condition: Condition,
    since: Instant,
    until: Option<Instant>,
    /// The condition's stamp on the board. 0: it is not there.
    stamp: u64,
    /// When a probe last asked whether the condition holds, or a turn tried the key all the same.
    asked: Option<Instant>,
    /// One turn of this replica may find out whether the condition still holds.
    has_ticket: bool,
}

impl Entry {
    /// Whether the condition already holds for about as long: to report it again would only make it
    /// look new.
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

    /// The illness of `key`, whatever the model.
    fn illness(&self, key: &Key, now: Instant) -> Option<(Scope, Condition)> {
        let scopes = [Scope::Key, Scope::Organization, Scope::Project];
        scopes.into_iter().find_map(|scope| {
            self.find(Subject::of(key, scope), Class::Illness, now)
                .map(|entry| (scope, entry.condition))
        })
    }

    fn by_operator(&self, key: &Key, now: Instant) -> Option<Condition> {
        let command =
            |subject| self.find(subject, Class::Operator, now).map(|entry| entry.condition);
        let commands = [
            command(Subject::Organization(key.organization_tag)),
            command(Subject::of_key_id(key)),
        ];
        let is_given = |condition| commands.contains(&Some(condition));
        [Condition::Drained, Condition::Disabled].into_iter().find(|condition| is_given(*condition))
    }
}

impl Conditions {
    /// What `key` can do for a turn that asks for `model`.
    pub fn fitness<'a>(&self, key: &Key, asked: impl Into<ModelUse<'a>>) -> Fitness {
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
        match known.illness(key, now) {
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
        let asked = asked.into();
        let (model, tier) = (Subject::model(key, asked.model), Subject::tier(key, asked));
        let uses = [Some(model), Subject::shared_model(key, asked.model), tier];
        let found = uses.into_iter().flatten().filter_map(|of| known.find(of, Class::Illness, now));
        let fitness = |entry: &Entry| match (entry.condition, entry.until) {
            (Condition::NoAccess, _) => Fitness::Bypassed(Why::NoAccess),
            (_, Some(until)) => Fitness::Limited(until - now),
            _ => Fitness::Ready,
        };
        found.map(fitness).fold(Fitness::Ready, |worst, next| match (worst, next) {
            (Fitness::Limited(one), Fitness::Limited(other)) => Fitness::Limited(one.max(other)),
            (Fitness::Bypassed(_), _) | (_, Fitness::Ready) => worst,
            _ => next,
        })
    }

    /// Notes that `condition` holds for `subject` for `life`. Returns true if that is new here.
    pub fn note(&self, subject: Subject, condition: Condition, life: Option<Duration>) -> bool {
        let place = Place(subject, condition.class());
        let now = Instant::now();
        let mut known = self.write();
        let until = life.map(|life| now + life);
        let old = known
            .entries
            .get(&place)
            .filter(|entry| entry.condition == condition && !entry.is_over(now));
        let is_new = old.is_none();
        if old.is_some_and(|old| old.is_as_long(until, now)) {
            return false;
        }
        let (since, asked) = old.map_or((now, None), |old| (old.since, old.asked));
        known.make_room(place, now);
        known
            .entries
            .insert(place, Entry { condition, since, until, stamp: 0, asked, has_ticket: false });
        known.unreported.insert(
            place,
            (Note { name: place.to_string(), value: condition.name().into(), life, stamp: 0 }, now),
        );
        drop(known);
        self.reportable.notify_one();
        is_new
    }

    /// Whether `condition` holds for `subject`.
    pub fn is(&self, subject: Subject, condition: Condition) -> bool {
        self.read()
            .find(subject, condition.class(), Instant::now())
            .is_some_and(|entry| entry.condition == condition)
    }

    /// Whether an illness of `subject` has held since before `began`.
    pub fn is_older(&self, subject: Subject, began: Instant) -> bool {
        self.read()
            .find(subject, Class::Illness, Instant::now())
            .is_some_and(|entry| entry.since <= began)
    }

    /// Ends the condition of `class` for `subject`. Returns the condition if it held until now.
    pub fn end(&self, subject: Subject, class: Class) -> Option<Condition> {
        let place = Place(subject, class);
        let mut known = self.write();
        let ended = known.entries.remove(&place)?;
        known.unreported.insert(place, (Note::over(place.to_string()), Instant::now()));
        drop(known);
        self.reportable.notify_one();
        Some(ended.condition).filter(|_| !ended.is_over(Instant::now()))
    }

    /// The share of new sessions that `key` takes, 0 to 1.
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

    /// The conditions of `key` and of everything that `key` belongs to, each with the rest of its
    /// life.
    pub fn of(&self, key: &Key) -> Vec<(Subject, Condition, Option<Duration>)> {
        let now = Instant::now();
        let known = self.read();
        let concerning = known
            .entries
            .iter()
            .filter(|(place, entry)| place.0.concerns(key) && !entry.is_over(now));
        let view = |(place, entry): (&Place, &Entry)| {
            (place.0, entry.condition, entry.until.map(|until| until - now))
        };
        let mut all: Vec<_> = concerning.map(view).collect();
        all.sort_by_cached_key(|(subject, condition, _)| (condition.name(), subject.name()));
        all
    }

    /// Forgets the observations about all subjects that `is_selected` selects, on all replicas at
    /// once: their keys are tried again. Returns the forgotten conditions.
    pub fn forget(&self, is_selected: impl Fn(Subject) -> bool) -> Vec<Condition> {
        let is_met = |place: &&Place| place.1 != Class::Operator && is_selected(place.0);
        let met: Vec<Place> = self.read().entries.keys().filter(is_met).copied().collect();
        let mut forgotten: Vec<_> =
            met.into_iter().filter_map(|Place(subject, class)| self.end(subject, class)).collect();
        forgotten.sort_by_key(|condition| condition.name());
        forgotten
    }

    /// Finds out, after a change, whether more than half of `keys` were refused at once.
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
        // An incident may lie in the past: it lasts until most keys are accepted again, however
        // late the other keys are tried.
        let until = |last: &Instant| {
            refused.iter().filter(|onset| **onset <= *last && *last - **onset <= AT_ONCE).count()
        };
        known.is_incident = refused.iter().any(|last| until(last) * 2 > keys.len());
    }

    /// Drops conditions that are over.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.write().entries.retain(|_, entry| !entry.is_over(now));
    }

    pub fn is_empty(&self) -> bool {
        self.read().entries.is_empty()
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        // A panic leaves no change half made, so a poisoned lock is fit for use.
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
