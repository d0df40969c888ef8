//! Which key a session is bound to: the promise itself.
//!
//! `select` decides where a session would go, `demand` is a turn as binding sees it, and `place`
//! says where a turn may go. `record` is how a binding is written down, `local` what this replica
//! remembers, and `gossip` what it hears of others.
//!
//! `bind` binds and moves, `outage` does so without the store, `fork` finds what a fork inherits,
//! `project` holds a turn to a project, and `forgotten` finds a session's organization again.
//! `ownership` knows whose a stored response is. `trail` tells what was decided, and `view` shows a
//! session to operators. The invariants B1 to B20 are the specification.

use std::sync::Arc;

use serde::Deserialize;

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

/// `[binding]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// A session that is not used for so long is forgotten.
    pub ttl: Span,
    /// The longest wait in place for a key that is short.
    pub wait: Span,
    /// Bindings that a replica remembers at the most: the whole of the `memory:` store, and what
    /// answers when Redis does not.
    #[serde(deserialize_with = "setting::count")]
    pub memory: usize,
}

/// Starts what knows the binding of each session and the owner of each stored response. What they
/// owe to the store is written in the background until `tasks` end.
pub fn start(
    store: &Arc<Store>,
    registry: &Arc<Registry>,
    settings: &Settings,
    metrics: &Arc<Metrics>,
    tasks: &Tasks,
) -> (Bindings, Arc<Owners>) {
    let (ttl, memory) = (settings.ttl.0, settings.memory);
    let local = Arc::new(Local::new(memory, ttl / 2));
    let (trail, unwritten) = Trail::new(Arc::clone(metrics));
    let owners = Arc::new(Owners::new(Arc::clone(store), ttl, memory));
    let merging = keep_merging(Arc::clone(store), Arc::clone(&local), Arc::clone(registry), ttl);
    tasks.spawn_until_stopped(merging);
    tasks.spawn_until_stopped(Gossip::new(store, &local).keep());
    tasks.spawn_until_stopped(keep_writing(Arc::clone(store), ttl, unwritten));
    tasks.spawn_until_stopped(Arc::clone(&owners).keep_telling());
    let places = Places::new(Arc::clone(registry));
    let store = Arc::clone(store);
    (Bindings::new(store, places, local, ttl, tasks.clone(), trail), owners)
}

/// The key that serves a turn, and why.
#[derive(Clone, Debug)]
pub struct Binding {
    pub key: Arc<Key>,
    pub result: BindingResult,
    /// The turn's session. `None`: nothing is bound.
    pub session: Option<SessionId>,
    pub written: Written,
    /// Nobody knows whether the session was elsewhere before: its history may belong to another
    /// organization.
    pub is_provisional: bool,
    /// The stored life is due to start anew.
    pub refresh: bool,
    /// This turn found its session on another key, which it left.
    pub has_moved: bool,
}

/// Where a binding is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is for this turn alone.
    Nowhere,
    /// It is for this turn alone, and leaves what is stored as it is.
    Beside(BindingRecord),
    /// The store is away: on this replica, until it can be merged.
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

    /// The same for a turn that is not served by the key that it was bound to first.
    fn moved(self) -> Self {
        Self { has_moved: true, ..self }
    }

    /// A binding as it is stored. One that has served nothing yet is a guess, whoever made it.
    fn stored(
        key: &Arc<Key>,
        session: &SessionId,
        record: BindingRecord,
        result: BindingResult,
    ) -> Self {
        let is_provisional = !record.sealed;
        Self { is_provisional, ..Self::new(key, Some(session), Written::Stored(record), result) }
    }

    /// A binding that this replica alone knows of.
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

    /// A key for this turn alone: nothing is written.
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

    /// Whether the upstream token `state` (`x-codex-turn-state`) was issued by another key than
    /// this binding's.
    pub fn is_foreign_state(&self, state: &[u8]) -> bool {
        self.has_moved
            || self
                .record()
                .and_then(|record| record.stale_state)
                .is_some_and(|stale| stale == record::state_tag(state))
    }
}
