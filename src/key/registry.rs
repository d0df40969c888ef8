//! Which keys this replica has, and which of them it still uses.
//!
//! What the upstream rejected or exhausted is remembered by its scope and not used again by this replica. Other replicas
//! find out by one failed attempt of their own: nothing here is shared yet. A key comes back when it has served a turn that
//! another replica bound to it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use super::generation::Loaded;
use super::health::{Ailment, Scope};
use super::table::Table;
use super::{Key, Tag};
use crate::metrics::{KeyState, Metrics};
use crate::store::Roll;

const SCOPES: [Scope; 3] = [Scope::Key, Scope::Project, Scope::Organization];

/// What is out of use, by name of the thing that its scope means.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Key(String),
    Project(String, String),
    Organization(String),
}

impl Subject {
    fn of(key: &Key, scope: Scope) -> Self {
        match scope {
            Scope::Key => Self::Key(key.id.clone()),
            Scope::Project => Self::Project(key.organization.clone(), key.project.clone()),
            Scope::Organization => Self::Organization(key.organization.clone()),
        }
    }
}

/// What is known of something that is out of use.
struct Illness {
    ailment: Ailment,
    /// When a turn last tried it all the same.
    tried: Option<Instant>,
}

/// At most so often a key that is out of use here is tried because another replica binds sessions to it.
const TRY_AGAIN: Duration = Duration::from_secs(10);

pub struct Registry {
    loaded: RwLock<Arc<Loaded>>,
    metrics: Arc<Metrics>,
    disabled: RwLock<HashMap<Subject, Illness>>,
    /// Turns in flight on this replica, by key.
    in_flight: RwLock<HashMap<Tag, Arc<AtomicUsize>>>,
}

/// One turn's place in its key's count, given back when dropped.
pub struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Registry {
    pub fn new(table: Table, metrics: Arc<Metrics>) -> Self {
        for key in table.keys() {
            metrics.key_state(&key.id, KeyState::Ready);
        }
        let in_flight = table.keys().iter().map(|key| (key.tag, Arc::default())).collect();
        let loaded = RwLock::new(Arc::new(Loaded::new(table)));
        Self { loaded, metrics, disabled: RwLock::default(), in_flight: RwLock::new(in_flight) }
    }

    /// The set of keys in use. A turn asks once for each decision, so that a reload comes before or after it.
    pub fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes another set of keys into use. Turns in flight end with the keys that they have.
    pub fn reload(&self, table: Table) {
        let mut in_flight = self.in_flight.write().unwrap_or_else(PoisonError::into_inner);
        for key in table.keys() {
            in_flight.entry(key.tag).or_default();
        }
        drop(in_flight);
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Loaded::new(table));
        self.show_states();
    }

    /// Takes note of what the store said of `loaded`, and of the other replicas' sets.
    pub fn heard(&self, loaded: &Loaded, roll: &Roll) {
        loaded.heard(roll);
        let waiting = loaded.table.keys().iter().filter(|key| !loaded.is_common(key)).count();
        self.metrics.keys_waiting(waiting);
    }

    /// Counts a turn on `key` until the place is dropped.
    pub fn enter(&self, key: &Key) -> InFlight {
        let in_flight = self.in_flight.read().unwrap_or_else(PoisonError::into_inner);
        let count = in_flight.get(&key.tag).cloned().unwrap_or_default();
        count.fetch_add(1, Ordering::Relaxed);
        InFlight(count)
    }

    /// The candidate with the fewest turns in flight for its weight.
    pub fn least_loaded<'k>(&self, candidates: impl Iterator<Item = &'k Arc<Key>>) -> Option<&'k Arc<Key>> {
        let in_flight = self.in_flight.read().unwrap_or_else(PoisonError::into_inner);
        let load = |key: &Key| in_flight.get(&key.tag).map_or(0, |count| count.load(Ordering::Relaxed));
        // Compared crosswise, so that nothing is divided.
        candidates.min_by(|a, b| (load(a) as u64 * u64::from(b.weight)).cmp(&(load(b) as u64 * u64::from(a.weight))))
    }

    /// What keeps `key` from being used, if anything does.
    pub fn ailment(&self, key: &Key) -> Option<Ailment> {
        let disabled = self.disabled.read().unwrap_or_else(PoisonError::into_inner);
        if disabled.is_empty() {
            return None;
        }
        SCOPES.into_iter().find_map(|scope| disabled.get(&Subject::of(key, scope)).map(|illness| illness.ailment))
    }

    pub fn is_usable(&self, key: &Key) -> bool {
        self.ailment(key).is_none()
    }

    /// Whether a turn may try `key`, which is out of use here, because another replica has moved its session there since: what
    /// was met here may have passed. Two replicas that each keep out another key would move a session to and fro for ever.
    pub fn may_try(&self, key: &Key) -> bool {
        let mut disabled = self.disabled.write().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        for scope in SCOPES {
            if let Some(illness) = disabled.get_mut(&Subject::of(key, scope)) {
                if illness.tried.is_some_and(|tried| now - tried < TRY_AGAIN) {
                    return false;
                }
                illness.tried = Some(now);
            }
        }
        true
    }

    /// `key` has served a turn: whatever kept it out of use has passed.
    pub fn has_served(&self, key: &Key) {
        if self.is_usable(key) {
            return;
        }
        let mut disabled = self.disabled.write().unwrap_or_else(PoisonError::into_inner);
        for scope in SCOPES {
            disabled.remove(&Subject::of(key, scope));
        }
        drop(disabled);
        tracing::info!(key = %key.id, "in use again");
        self.show_states();
    }

    /// Takes what `ailment` reaches out of use.
    pub fn disable(&self, key: &Key, ailment: Ailment) {
        let subject = Subject::of(key, ailment.scope());
        let mut disabled = self.disabled.write().unwrap_or_else(PoisonError::into_inner);
        let tried = disabled.get(&subject).map(|illness| illness.tried);
        disabled.insert(subject, Illness { ailment, tried: tried.flatten() });
        drop(disabled);
        let news = tried.is_none();
        if news {
            tracing::warn!(key = %key.id, organization = %key.organization, scope = ?ailment.scope(), "out of use: {}", ailment.name());
        }
        self.show_states();
    }

    fn show_states(&self) {
        for key in self.loaded().table.keys() {
            self.metrics.key_state(&key.id, if self.is_usable(key) { KeyState::Ready } else { KeyState::Disabled });
        }
    }
}
