//! Binds each session to one upstream key. The invariants B1 to B20 specify this directory.
//!
//! `demand` is a turn as binding sees it. `select` ranks the keys for a session, and `place`
//! chooses a key for one turn. `record` is the stored form of a binding. `local` is this replica's
//! memory of bindings, and `gossip` brings the bindings that other replicas make.
//!
//! `bind` binds sessions, and `moving` moves them. `beside` serves a turn without changing its
//! session's binding, and `outage` binds without the store. `seal` ties a session to its
//! organization. `fork` gives a fork its parent's binding, `project` keeps a turn in a project, and
//! `forgotten` finds a lost organization again.
//!
//! `ownership` knows the owner of each stored response. `trail` records decisions, and `view` shows
//! a session to operators.

use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::Mutex;

use crate::health::registry::Registry;
use crate::key::Key;
use crate::metrics::{BindingResult, Metrics};
use crate::session::SessionId;
use crate::setting::{self, Span};
use crate::store::Store;
use crate::task::Tasks;

pub mod record;
pub mod select;
pub mod demand;
pub mod place;
pub mod trail;
pub mod local;
pub mod bind;
mod moving;
mod beside;
pub mod seal;
pub mod outage;
pub mod gossip;
pub mod fork;
pub mod project;
pub mod forgotten;
pub mod ownership;
pub mod view;
#[cfg(test)]
mod tests;

use bind::Bindings;
use gossip::Gossip;
use local::Local;
use outage::keep_merging;
use ownership::Owners;
use place::Places;
use record::BindingRecord;
use trail::{Trail, keep_writing};

/// The options under `[binding]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindingSettings {
    /// Time after which the gateway forgets an unused session.
    pub ttl: Span,
    /// Longest time that a turn waits in place for a limited key.
    pub wait: Span,
    /// Most bindings that a replica remembers. The `memory:` store holds no other bindings. With
    /// Redis, the replica uses these bindings while the store is away.
    #[serde(deserialize_with = "setting::count")]
    pub memory: usize,
}

/// Starts the bindings of sessions and the owners of stored responses. Background writes to the
/// store run until `tasks` end.
pub fn start(
    store: &Arc<Store>,
    registry: &Arc<Registry>,
    settings: &BindingSettings,
    metrics: &Arc<Metrics>,
    tasks: &Tasks,
) -> (Bindings, Arc<Owners>) {
    let (ttl, memory) = (settings.ttl.0, settings.memory);
    let local = Arc::new(Local::new(memory, ttl / 2));
    let (trail, unwritten) = Trail::new(Arc::clone(metrics));
    let owners = Arc::new(Owners::new(Arc::clone(store), ttl, memory));
    let (kept, memory, keys) = (Arc::clone(store), Arc::clone(&local), Arc::clone(registry));
    tasks.spawn_kept("merging", move || {
        keep_merging(Arc::clone(&kept), Arc::clone(&memory), Arc::clone(&keys), ttl)
    });
    let (kept, memory) = (Arc::clone(store), Arc::clone(&local));
    tasks.spawn_kept("gossip", move || Gossip::new(&kept, &memory).keep());
    let (kept, unwritten) = (Arc::clone(store), Arc::new(Mutex::new(unwritten)));
    tasks.spawn_kept("trail", move || {
        let (store, unwritten) = (Arc::clone(&kept), Arc::clone(&unwritten));
        async move { keep_writing(store, ttl, &mut *unwritten.lock().await).await }
    });
    let kept = Arc::clone(&owners);
    tasks.spawn_kept("owners", move || Arc::clone(&kept).keep_storing());
    let places = Places::new(Arc::clone(registry));
    let store = Arc::clone(store);
    (Bindings::new(store, places, local, ttl, tasks.clone(), trail), owners)
}

/// The key that serves a turn, and the reason.
#[derive(Clone, Debug)]
pub struct Binding {
    pub key: Arc<Key>,
    pub result: BindingResult,
    /// The turn's session. `None`: nothing is bound.
    pub session: Option<SessionId>,
    pub written: Written,
    /// The gateway does not know whether another key served the session before. The session's
    /// history may therefore belong to another organization.
    pub is_provisional: bool,
    /// The stored binding is old enough for its lifetime to be renewed.
    pub refresh: bool,
    /// The turn found its session on another key and left that key.
    pub has_moved: bool,
}

/// Where a binding is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// Nowhere: the binding is for this turn alone.
    Nowhere,
    /// Nowhere: a key beside the stored binding serves this turn alone.
    Beside(BindingRecord),
    /// On this replica, because the store is away. The replica merges the binding later.
    Here(BindingRecord),
    Stored(BindingRecord),
}

impl Binding {
    fn new(
        key: &Arc<Key>,
        session: Option<&SessionId>,
        written: Written,
        result: BindingResult,
    ) -> Self {
        Self {
            key: Arc::clone(key),
            result,
            session: session.cloned(),
            written,
            is_provisional: false,
            refresh: false,
            has_moved: false,
        }
    }

    /// Marks the turn as served by another key than the one to which it was bound first.
    fn moved(self) -> Self {
        Self { has_moved: true, ..self }
    }

    /// Makes a binding from a stored record. An unsealed record is provisional, because it has
    /// served no turn.
    fn stored(
        key: &Arc<Key>,
        session: &SessionId,
        record: BindingRecord,
        result: BindingResult,
    ) -> Self {
        let is_provisional = !record.sealed;
        Self { is_provisional, ..Self::new(key, Some(session), Written::Stored(record), result) }
    }

    /// Makes a binding that only this replica knows.
    fn here(
        key: &Arc<Key>,
        session: &SessionId,
        record: BindingRecord,
        is_provisional: bool,
    ) -> Self {
        let is_provisional = is_provisional || !record.sealed;
        Self {
            is_provisional,
            ..Self::new(key, Some(session), Written::Here(record), BindingResult::Degraded)
        }
    }

    /// Makes a binding for this turn alone. Nothing is written.
    fn passing(key: &Arc<Key>, session: Option<&SessionId>, result: BindingResult) -> Self {
        Self::new(key, session, Written::Nowhere, result)
    }

    fn record(&self) -> Option<&BindingRecord> {
        match &self.written {
            Written::Nowhere => None,
            Written::Beside(record) | Written::Here(record) | Written::Stored(record) => {
                Some(record)
            }
        }
    }

    /// Whether another key than this binding's issued the upstream token `state`
    /// (`x-codex-turn-state`).
    pub fn is_foreign_state(&self, state: &[u8]) -> bool {
        self.has_moved
            || self
                .record()
                .and_then(|record| record.stale_state)
                .is_some_and(|stale| stale == record::state_tag(state))
    }
}
