//! Which key a session is bound to: the promise itself.
//!
//! `select` decides where a session would go, `record` how a binding is written down, `table` binds and moves. The invariants
//! B1 to B20 are its specification.

use std::sync::Arc;

use serde::Deserialize;

use crate::key::Key;
use crate::metrics::BindingResult;
use crate::session::SessionId;
use crate::setting::Span;

pub mod record;
pub mod select;
pub mod table;

use record::Record;

/// `[binding]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// A session that is not used for so long is forgotten.
    pub ttl: Span,
    /// Bindings that the `memory:` store holds at the most.
    pub memory: usize,
}

/// The key that serves a turn, and why.
#[derive(Clone, Debug)]
pub struct Binding {
    pub key: Arc<Key>,
    pub result: BindingResult,
    /// The turn's session. `None`: nothing is bound.
    pub session: Option<SessionId>,
    /// What the store holds. `None`: the turn has no session, or the store is away.
    pub record: Option<Record>,
    /// The stored life is due to start anew.
    pub refresh: bool,
    /// This turn found its session on another key, which it left.
    pub has_moved: bool,
}

impl Binding {
    /// A binding as it is stored.
    fn stored(key: &Arc<Key>, session: &SessionId, record: Record, result: BindingResult) -> Self {
        Self {
            key: Arc::clone(key),
            result,
            session: Some(session.clone()),
            record: Some(record),
            refresh: false,
            has_moved: false,
        }
    }

    /// A key for this turn alone: nothing is stored.
    fn passing(key: &Arc<Key>, session: Option<&SessionId>, result: BindingResult) -> Self {
        Self { key: Arc::clone(key), result, session: session.cloned(), record: None, refresh: false, has_moved: false }
    }

    /// Whether the upstream token `state` (`x-codex-turn-state`) was issued by another key than this binding's.
    pub fn is_foreign_state(&self, state: &[u8]) -> bool {
        self.has_moved
            || self.record.as_ref().and_then(|record| record.stale_state).is_some_and(|stale| stale == record::state_tag(state))
    }
}
