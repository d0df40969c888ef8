//! Which keys this replica has, and which of them it still uses.
//!
//! The set of keys is replaced as a whole. While the store is away the set of the moment of loss goes on to say where sessions
//! go, so that replicas that reload at different moments, or not at all, find the same.
//!
//! What the upstream rejected or exhausted is remembered by its scope and not used again by this replica. Other replicas
//! find out by one failed attempt of their own: nothing here is shared yet. A key comes back when it has served a turn that
//! another replica bound to it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::generation::Loaded;
use super::health::{Ailment, Scope};
use super::table::Table;
use super::{Key, Tag};
use crate::current::Current;
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

type Disabled = HashMap<Subject, Illness>;

pub struct Registry {
    loaded: Current<Loaded>,
    /// The set on which the store had its last word.
    frozen: Current<Loaded>,
    reload_wanted: Notify,
    metrics: Arc<Metrics>,
    disabled: RwLock<Disabled>,
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
        let loaded = Arc::new(Loaded::new(table));
        Self {
            loaded: Current::new(Arc::clone(&loaded)),
            frozen: Current::new(loaded),
            reload_wanted: Notify::new(),
            metrics,
            disabled: RwLock::default(),
            in_flight: RwLock::new(in_flight),
        }
    }

    /// The set of keys in use. A turn asks once for each decision, so that a reload comes before or after it.
    pub fn loaded(&self) -> Arc<Loaded> {
        self.loaded.get()
    }

    /// The set of keys that says where sessions go whose binding the store cannot tell: the one in use, unless it was loaded
    /// while the store was away. Some of its keys may be gone.
    pub fn frozen(&self) -> Arc<Loaded> {
        self.frozen.get()
    }

    /// `table` as the set that follows the one in use: keys that stay as they are stay the same ones. `None`: all do.
    pub fn prepare(&self, table: Table) -> Option<Arc<Loaded>> {
        let loaded = self.loaded();
        let table = table.keeping(&loaded.table);
        (!table.is_same(&loaded.table)).then(|| Arc::new(loaded.followed_by(table)))
    }

    /// Takes `next` into use, with what the store says of it, if it answers. Turns in flight end with the keys that they have.
    pub fn adopt(&self, next: Arc<Loaded>, roll: Option<&Roll>) {
        let before = self.loaded();
        let frozen = match roll {
            Some(roll) => {
                next.heard(roll);
                Arc::clone(&next)
            }
            None => Arc::new(self.frozen().frozen_under(&next.table)),
        };
        // With none of its keys left it says nothing.
        let is_left = frozen.table.keys().iter().any(|key| !frozen.is_gone(key));
        self.frozen.set(if is_left { frozen } else { Arc::clone(&next) });
        self.loaded.set(Arc::clone(&next));
        self.count(&next);

        let mut disabled = self.disabled.write().unwrap_or_else(PoisonError::into_inner);
        for old in before.table.keys() {
            match next.table.by_tag(old.tag) {
                None => self.metrics.key_removed(&old.id),
                // What was learned of another secret, or by another way, says nothing of this one.
                Some(key) if !key.is_shown_like(old) => drop(disabled.remove(&Subject::of(old, Scope::Key))),
                Some(_) => {}
            }
        }
        let is_known = |subject: &Subject| {
            next.table.keys().iter().any(|key| SCOPES.iter().any(|scope| Subject::of(key, *scope) == *subject))
        };
        disabled.retain(|subject, _| is_known(subject));
        self.show_states(&disabled);
    }

    /// Takes note of what the store said of `loaded`, and of the other replicas' sets.
    pub fn heard(&self, loaded: &Arc<Loaded>, roll: &Roll) {
        loaded.heard(roll);
        self.frozen.set(Arc::clone(loaded));
        self.count(loaded);
    }

    /// A stored binding names a key that this replica may not have loaded yet: the configuration is looked at soon.
    pub fn wants_reload(&self) {
        self.reload_wanted.notify_one();
    }

    /// Waits until somebody wants a reload. However many do before, they are one.
    pub async fn reload_wanted(&self) {
        self.reload_wanted.notified().await;
    }

    /// The key that has taken the place of `key`, which was shown to its upstream otherwise.
    pub fn successor(&self, key: &Key) -> Option<Arc<Key>> {
        let is_successor = |now: &&Arc<Key>| now.organization_tag == key.organization_tag && !now.is_shown_like(key);
        self.loaded().table.by_tag(key.tag).filter(is_successor).cloned()
    }

    /// Keeps the books on the keys of `loaded`, and of those that turns in flight still use.
    fn count(&self, loaded: &Loaded) {
        let mut in_flight = self.in_flight.write().unwrap_or_else(PoisonError::into_inner);
        in_flight.retain(|tag, count| loaded.table.by_tag(*tag).is_some() || Arc::strong_count(count) > 1);
        for key in loaded.table.keys() {
            in_flight.entry(key.tag).or_default();
        }
        let waiting = loaded.table.keys().iter().filter(|key| !loaded.is_common(key)).count();
        self.metrics.keys_waiting(waiting);
    }

    /// Counts a turn on `key` until the place is dropped.
    pub fn enter(&self, key: &Key) -> InFlight {
        let known = self.in_flight.read().unwrap_or_else(PoisonError::into_inner).get(&key.tag).cloned();
        // A reload has just come, or has just taken the key away.
        let add = || Arc::clone(self.in_flight.write().unwrap_or_else(PoisonError::into_inner).entry(key.tag).or_default());
        let count = known.unwrap_or_else(add);
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
        ailment(&self.disabled.read().unwrap_or_else(PoisonError::into_inner), key)
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
        tracing::info!(key = %key.id, "in use again");
        self.show_states(&disabled);
    }

    /// Takes what `ailment` reaches out of use.
    pub fn disable(&self, key: &Key, ailment: Ailment) {
        let subject = Subject::of(key, ailment.scope());
        let mut disabled = self.disabled.write().unwrap_or_else(PoisonError::into_inner);
        let is_current = |loaded: &Loaded| loaded.table.by_tag(key.tag).is_some_and(|now| now.is_shown_like(key));
        if ailment.scope() == Scope::Key && !is_current(&self.loaded()) {
            // It was met with a secret that is replaced or removed since.
            return;
        }
        let tried = disabled.get(&subject).map(|illness| illness.tried);
        disabled.insert(subject, Illness { ailment, tried: tried.flatten() });
        let news = tried.is_none();
        if news {
            tracing::warn!(key = %key.id, organization = %key.organization, scope = ?ailment.scope(), "out of use: {}", ailment.name());
        }
        self.show_states(&disabled);
    }

    fn show_states(&self, disabled: &Disabled) {
        for key in self.loaded().table.keys() {
            let state = if ailment(disabled, key).is_none() { KeyState::Ready } else { KeyState::Disabled };
            self.metrics.key_state(&key.id, state);
        }
    }
}

fn ailment(disabled: &Disabled, key: &Key) -> Option<Ailment> {
    if disabled.is_empty() {
        return None;
    }
    SCOPES.into_iter().find_map(|scope| disabled.get(&Subject::of(key, scope)).map(|illness| illness.ailment))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(sketch: &str) -> (Registry, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new());
        (Registry::new(Table::sketch(sketch), Arc::clone(&metrics)), metrics)
    }

    fn reload(registry: &Registry, sketch: &str, ordinal: Option<u32>) {
        let roll = ordinal.map(|ordinal| Roll { ordinal, others: Vec::new() });
        registry.adopt(registry.prepare(Table::sketch(sketch)).unwrap(), roll.as_ref());
    }

    fn key(registry: &Registry, id: &str) -> Arc<Key> {
        registry.loaded().table.keys().iter().find(|key| key.id == id).cloned().unwrap()
    }

    #[test]
    fn the_same_keys_are_no_reload() {
        let (registry, _) = registry("a o 1 sk-a, b o 1 sk-b");
        assert!(registry.prepare(Table::sketch("b o 1 sk-b, a o 1 sk-a")).is_none());
    }

    #[test]
    fn while_the_store_is_away_the_set_of_the_moment_of_loss_says_where_sessions_go() {
        let ids = |loaded: Arc<Loaded>| loaded.table.keys().iter().map(|key| key.id.clone()).collect::<String>();
        let (registry, _) = registry("a o 1 sk-a, b o 1 sk-b");
        reload(&registry, "a o 1 sk-a, c o 1 sk-c", Some(2));
        assert_eq!((ids(registry.loaded()), ids(registry.frozen())), ("ac".into(), "ac".into()));
        reload(&registry, "a o 1 sk-a, d o 1 sk-d", None);
        reload(&registry, "a o 1 sk-a, d o 1 sk-d, e o 1 sk-e", None);
        assert_eq!((ids(registry.loaded()), ids(registry.frozen())), ("ade".into(), "ac".into()));
        let frozen = registry.frozen();
        assert_eq!(frozen.table.keys().iter().map(|key| frozen.is_gone(key)).collect::<Vec<_>>(), [false, true]);
        registry.heard(&registry.loaded(), &Roll { ordinal: 3, others: Vec::new() });
        assert_eq!(ids(registry.frozen()), "ade");
        reload(&registry, "f o 1 sk-f", None);
        assert_eq!(ids(registry.frozen()), "f", "a set of which nothing is left says nothing");
    }

    #[test]
    fn another_secret_deserves_a_try() {
        let (registry, _) = registry("a o 1 sk-old, b o 1 sk-b");
        let old = key(&registry, "a");
        registry.disable(&old, Ailment::Rejected(Scope::Key));
        assert!(registry.successor(&old).is_none() && !registry.is_usable(&old));
        reload(&registry, "a o 2 sk-old, b o 1 sk-b", Some(1));
        assert!(!registry.is_usable(&key(&registry, "a")), "another weight heals nothing");
        reload(&registry, "a o 1 sk-new, b o 1 sk-b", Some(1));
        let new = key(&registry, "a");
        assert!(registry.is_usable(&new));
        assert!(registry.successor(&old).is_some_and(|key| Arc::ptr_eq(&key, &new)));
        // A turn that was sent with the old secret ends late.
        registry.disable(&old, Ailment::Rejected(Scope::Key));
        assert!(registry.is_usable(&new));
        registry.disable(&new, Ailment::Rejected(Scope::Key));
        assert!(!registry.is_usable(&new));
    }

    #[test]
    fn nothing_is_left_of_a_removed_key_once_its_turns_have_ended() {
        let (registry, metrics) = registry("a o 1 sk-a, b o 1 sk-b");
        let b = key(&registry, "b");
        registry.disable(&b, Ailment::Rejected(Scope::Key));
        let turn = registry.enter(&b);
        reload(&registry, "a o 1 sk-a", Some(2));
        assert!(!metrics.render().contains("key=\"b\""), "{}", metrics.render());
        assert!(registry.disabled.read().unwrap().is_empty());
        assert_eq!(registry.in_flight.read().unwrap().len(), 2);
        drop(turn);
        registry.heard(&registry.loaded(), &Roll { ordinal: 2, others: Vec::new() });
        assert_eq!(registry.in_flight.read().unwrap().len(), 1);
    }
}
