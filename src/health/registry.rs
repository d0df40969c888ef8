//! Decides which of its loaded keys this replica uses, and what each can do for a turn.
//!
//! A reload replaces the set of keys as a whole. While the store is away, the set in use at the
//! moment of loss still decides where sessions go. Replicas that reload at different moments, or
//! not at all, therefore agree.
//!
//! `conditions` holds the conditions that all replicas share. The registry derives from them what a
//! key can do for a turn.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::current::Current;
use crate::health::condition::{Class, Condition, Subject};
use crate::health::conditions::{Conditions, Fitness, RAMP, Why};
use crate::health::diagnose::{Ailment, ModelUse, Scope};
use crate::health::headroom::Headrooms;
use crate::health::herd::Herd;
use crate::health::load::Loads;
use crate::key::Key;
use crate::key::generation::Loaded;
use crate::key::table::Table;
use crate::metrics::{KeyState, Metrics};
use crate::peers::heartbeat::{Topic, TopicReport};
use crate::peers::replicas::Replicas;
use crate::store::MembershipReply;
use crate::store::board::{Board, Note};

const SCOPES: [Scope; 3] = [Scope::Key, Scope::Project, Scope::Organization];

/// Maximum time that a turn waits for the probe of a suspected key.
const SETTLED: Duration = Duration::from_secs(2);

pub struct Registry {
    loaded: Current<Loaded>,
    /// The set in use when the store last answered.
    frozen: Current<Loaded>,
    reload_requested: Notify,
    /// Notified when a key is suspected.
    probe_requested: Notify,
    /// Counts the changes of conditions.
    changes: watch::Sender<u64>,
    metrics: Arc<Metrics>,
    pub conditions: Conditions,
    pub loads: Loads,
    pub headrooms: Headrooms,
    pub herd: Herd,
    /// How many replicas share the keys.
    pub replicas: Arc<Replicas>,
}

impl Registry {
    pub fn new(table: Table, metrics: Arc<Metrics>) -> Self {
        let (loads, replicas) = (Loads::default(), Arc::<Replicas>::default());
        loads.follow(table.keys());
        let loaded = Arc::new(Loaded::new(table));
        let registry = Self {
            loaded: Current::new(Arc::clone(&loaded)),
            frozen: Current::new(loaded),
            reload_requested: Notify::new(),
            probe_requested: Notify::new(),
            changes: watch::Sender::new(0),
            metrics,
            conditions: Conditions::default(),
            loads,
            headrooms: Headrooms::default(),
            herd: Herd::new(Arc::clone(&replicas)),
            replicas,
        };
        registry.show_states();
        registry
    }

    /// The set of keys in use. A turn asks once for each decision, so that a reload comes before or
    /// after the decision.
    pub fn loaded(&self) -> Arc<Loaded> {
        self.loaded.get()
    }

    /// The set of keys that decides for sessions whose binding the store cannot tell. It is the set
    /// in use, unless that was loaded while the store was away. Some of its keys may be gone.
    pub fn frozen(&self) -> Arc<Loaded> {
        self.frozen.get()
    }

    /// Makes `table` the successor of the set in use. Unchanged keys stay the same objects. `None`:
    /// all keys are unchanged.
    pub fn prepare(&self, table: Table) -> Option<Arc<Loaded>> {
        let loaded = self.loaded();
        let table = table.keeping(&loaded.table);
        (!table.is_same(&loaded.table)).then(|| Arc::new(loaded.followed_by(table)))
    }

    /// Takes `next` into use, with the store's `reply` if the store answered. Turns in flight end
    /// with the keys that they have.
    pub fn adopt(&self, next: Arc<Loaded>, reply: Option<&MembershipReply>) {
        let before = self.loaded();
        let frozen = match reply {
            Some(reply) => {
                next.take_reply(reply);
                Arc::clone(&next)
            }
            None => Arc::new(self.frozen().frozen_under(&next.table)),
        };
        // A frozen set without any key left cannot decide anything.
        let is_left = frozen.table.keys().iter().any(|key| !frozen.is_removed(key));
        self.frozen.set(if is_left { frozen } else { Arc::clone(&next) });
        self.loaded.set(Arc::clone(&next));
        self.count(&next);
        for removed in before.table.keys().iter().filter(|old| next.table.by_tag(old.tag).is_none())
        {
            self.metrics.key_removed(&removed.id);
        }
        self.has_changed();
    }

    /// Takes the store's reply about `loaded` and about the sets of the other replicas.
    pub fn take_reply(&self, loaded: &Arc<Loaded>, reply: &MembershipReply) {
        loaded.take_reply(reply);
        self.frozen.set(Arc::clone(loaded));
        self.count(loaded);
    }

    /// Asks for an early look at the configuration: a stored binding names a key that this replica
    /// may not have loaded yet.
    pub fn wants_reload(&self) {
        self.reload_requested.notify_one();
    }

    /// Waits until a reload is asked for. Several requests count as one.
    pub async fn reload_requested(&self) {
        self.reload_requested.notified().await;
    }

    /// Waits until a key is suspected.
    pub async fn probe_requested(&self) {
        self.probe_requested.notified().await;
    }

    /// The key that has replaced `key` under the same id, with another secret or upstream.
    pub fn successor(&self, key: &Key) -> Option<Arc<Key>> {
        let is_successor = |now: &&Arc<Key>| {
            now.organization_tag == key.organization_tag && !now.is_shown_like(key)
        };
        self.loaded().table.by_tag(key.tag).filter(is_successor).cloned()
    }

    fn count(&self, loaded: &Loaded) {
        self.loads.follow(loaded.table.keys());
        let waiting = loaded.table.keys().iter().filter(|key| !loaded.is_common(key)).count();
        self.metrics.keys_waiting(waiting);
    }

    /// What `key` can do for a turn that asks for this model.
    pub fn fitness<'a>(&self, key: &Key, asked: impl Into<ModelUse<'a>>) -> Fitness {
        self.conditions.fitness(key, asked)
    }

    /// Whether the quota of `key`'s project or organization is used up.
    pub fn is_exhausted(&self, key: &Key) -> bool {
        [Scope::Project, Scope::Organization]
            .into_iter()
            .any(|scope| self.conditions.is(Subject::of(key, scope), Condition::Exhausted))
    }

    pub fn is_ready<'a>(&self, key: &Key, asked: impl Into<ModelUse<'a>>) -> bool {
        self.fitness(key, asked) == Fitness::Ready
    }

    /// Takes an ailment of `key` or its place. A refused key whose probe is still undecided is
    /// suspected, and probed again.
    pub fn observe(&self, key: &Key, ailment: Ailment) {
        self.note(key, ailment, Condition::from(ailment));
        if matches!(ailment, Ailment::Rejected(_)) {
            self.probe_requested.notify_one();
        }
    }

    /// Takes the scope of `ailment` out of use without a probe.
    pub fn condemn(&self, key: &Key, ailment: Ailment) {
        self.note(
            key,
            ailment,
            match ailment {
                Ailment::Rejected(_) => Condition::Rejected,
                Ailment::Exhausted(_) => Condition::Exhausted,
            },
        );
    }

    fn note(&self, key: &Key, ailment: Ailment, condition: Condition) {
        let subject = Subject::of(key, ailment.scope());
        // A suspicion does not weaken a rejection.
        let is_known =
            condition == Condition::Suspected && self.conditions.is(subject, Condition::Rejected);
        if !is_known && self.conditions.note(subject, condition, condition.life()) {
            tracing::warn!(
                key = %key.id,
                organization = %key.organization,
                scope = ?ailment.scope(),
                "out of use: {}",
                condition.name()
            );
            self.has_changed();
        }
    }

    /// Notes that `key` has served a turn that began at `began`, so that earlier illnesses end.
    pub fn has_served(&self, key: &Key, began: Instant) {
        if self.conditions.is_empty() {
            return;
        }
        for scope in SCOPES {
            let subject = Subject::of(key, scope);
            if self.conditions.is_older(subject, began) {
                self.end_illness(subject, &key.id);
            }
        }
    }

    /// Notes that `key` has begun to answer on a connection that was accepted earlier. This shows
    /// that its quota is back, but not that its secret is still accepted.
    pub fn has_answered(&self, key: &Key) {
        for scope in [Scope::Project, Scope::Organization] {
            let subject = Subject::of(key, scope);
            if self.conditions.is(subject, Condition::Exhausted) {
                self.end_illness(subject, &key.id);
            }
        }
    }

    /// Waits briefly until a probe has decided whether a suspected `key` is refused.
    pub async fn wait_for_probe(&self, key: &Key) {
        let mut changes = self.follow();
        let is_settled = || {
            [Scope::Key, Scope::Organization]
                .into_iter()
                .all(|scope| !self.conditions.is(Subject::of(key, scope), Condition::Suspected))
        };
        let settling = async { while !is_settled() && changes.changed().await.is_ok() {} };
        // After the timeout, the key stays bypassed.
        let _ = tokio::time::timeout(SETTLED, settling).await;
    }

    /// Subscribes to changes of the keys and of their conditions.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether an operator has disabled, drained or removed `key`.
    pub fn is_closed(&self, key: &Key) -> bool {
        let loaded = self.loaded();
        let is_there = loaded
            .table
            .by_tag(key.tag)
            .is_some_and(|now| now.organization_tag == key.organization_tag);
        !is_there
            || matches!(
                self.fitness(key, ""),
                Fitness::Bypassed(Why::Disabled) | Fitness::Dead(Why::Drained)
            )
    }

    /// Ends an illness of `subject`. New sessions return to it gradually.
    pub fn end_illness(&self, subject: Subject, name: &str) {
        if self.conditions.end(subject, Class::Illness).is_some() {
            tracing::info!(key = name, "in use again");
            self.conditions.note(subject, Condition::Recovering, Some(RAMP));
            self.has_changed();
        }
    }

    /// Takes a change of the conditions into account and announces it.
    pub fn has_changed(&self) {
        let loaded = self.loaded();
        self.conditions.consider(loaded.table.keys());
        self.show_states();
        self.changes.send_modify(|count| *count += 1);
    }

    /// Shows the state of each key in the metric.
    pub fn show_states(&self) {
        let loaded = self.loaded();
        let keys = loaded.table.keys();
        for (key, state) in keys.iter().zip(self.conditions.states(keys)) {
            self.metrics.key_state(&key.id, state);
        }
    }

    pub fn state(&self, key: &Key) -> KeyState {
        self.conditions.state_of(key)
    }
}

/// What replicas report to each other about keys: the conditions, and the turns in flight.
impl Topic for Registry {
    fn wait_for_notes(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.conditions.reportable())
    }

    fn report(&self) -> TopicReport {
        let (seen, notes) = self.conditions.report();
        TopicReport { seen, notes, load: self.loads.report() }
    }

    fn take_board(&self, reported: &[Note], board: &Board) {
        self.loads.replace_others(&board.loads);
        if self.conditions.learn(reported, board) {
            self.has_changed();
        }
    }

    fn drop_loads(&self) {
        self.loads.replace_others(&[]);
    }

    fn sweep(&self) {
        if self.conditions.is_empty() {
            return;
        }
        self.conditions.sweep();
        // The end of a condition may change the state of its key.
        self.show_states();
    }
}

mod limits;
#[cfg(test)]
mod heartbeat;
#[cfg(test)]
mod tests;
