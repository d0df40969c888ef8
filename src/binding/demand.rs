//! Describes a turn for the choice of its key: its properties, its attempts so far, and the keys
//! that it may reach.

use std::time::Duration;

use crate::binding::record::BindingRecord;
use crate::binding::select::Reach;
use crate::client::Client;
use crate::health::diagnose::{Met, ModelUse};
use crate::key::Tag;
use crate::metrics::Reason;
use crate::session::SessionId;
use crate::session::lineage::Lineage;

/// The properties of a turn. They never change while the turn runs.
pub struct Demand<'t> {
    /// `None`: the turn names no session.
    pub session: Option<SessionId>,
    pub lineage: Lineage,
    pub client: &'t Client,
    /// Whether the turn itself carries content that only its organization can open.
    pub carries_sealed: Sealed<'t>,
    /// The turn's `x-codex-turn-state`, which belongs to the key that issued it. A session that
    /// moves records it as stale.
    pub turn_state: Option<&'t [u8]>,
    /// The turn comes by WebSocket. A new session then begins on a key whose upstream speaks
    /// WebSocket.
    pub by_websocket: bool,
    /// The turn speaks chat. A new session then begins on a key whose upstream speaks chat, if
    /// there is one. Its answers seal nothing, because no chat client carries sealed content.
    pub by_chat: bool,
    /// The model that the turn asks for; empty if the turn names none.
    pub model: &'t str,
    /// The service tier that the turn asks for, if it names one.
    pub tier: Option<&'t str>,
    /// The turn refers to something that only the project of its session can find.
    pub needs_project: bool,
    /// The request costs nothing. Its success shows neither quota nor room under a rate limit.
    pub is_free: bool,
}

/// The attempts of a turn so far.
#[derive(Clone, Debug)]
pub struct Tried {
    /// The keys that have refused the turn.
    pub refused: Vec<Tag>,
    /// The keys whose upstream failed with the turn.
    pub failed: Vec<Tag>,
    /// How much longer the turn may wait for limited keys, all waits together.
    pub wait_left: Duration,
    /// A probe has been awaited for the turn. Further probes take from the time that the turn may
    /// wait.
    pub has_doubted: bool,
    /// A key has become suspected by this turn, although no probe decided.
    pub has_suspected: bool,
}

/// A turn whose key is being chosen.
#[derive(Clone, Copy)]
pub struct Placing<'t> {
    pub demand: &'t Demand<'t>,
    pub tried: &'t Tried,
    /// The keys that the turn may use, even if its session is bound to another one. A turn that
    /// continues or refers to stored content must use the project that stores the content.
    pub within: Reach,
}

/// Whether a turn carries content that only its organization can open, or the text that says so.
#[derive(Clone, Copy)]
pub enum Sealed<'t> {
    Known(bool),
    /// In this JSON text. The gateway searches the text only if the answer matters.
    In(&'t [u8]),
}

/// A field that only encrypted content of an organization has. Inside a JSON string, its quotes
/// would be escaped.
const SEALED: &[u8] = br#""encrypted_content""#;

impl Sealed<'_> {
    pub fn is_sealed(self) -> bool {
        match self {
            Self::Known(sealed) => sealed,
            Self::In(text) => memchr::memmem::find(text, SEALED).is_some(),
        }
    }
}

impl<'t> Demand<'t> {
    /// A turn of `client` with no other known property.
    pub fn of(client: &'t Client) -> Self {
        Self {
            session: None,
            lineage: Lineage::default(),
            client,
            carries_sealed: Sealed::Known(false),
            turn_state: None,
            by_websocket: false,
            by_chat: false,
            model: "",
            tier: None,
            needs_project: false,
            is_free: false,
        }
    }

    /// Returns the model and the service tier that the turn asks for.
    pub fn model_use(&self) -> ModelUse<'t> {
        ModelUse::new(self.model, self.tier)
    }

    /// Returns how the turn meets its upstream: on a WebSocket, keys are chosen by a handshake.
    pub fn met(&self) -> Met {
        match (self.by_websocket, self.is_free) {
            (true, _) => Met::Handshake,
            (false, true) => Met::Free,
            (false, false) => Met::Turn,
        }
    }

    /// Whether an answer seals the session. No chat client carries sealed content.
    pub fn seals(&self) -> bool {
        !self.by_chat
    }

    /// Returns the turn together with the attempts so far, restricted to the keys `within`.
    pub fn with_tried(&'t self, tried: &'t Tried, within: Reach) -> Placing<'t> {
        Placing { demand: self, tried, within }
    }

    /// Returns the session whose order of keys the turn's `session` follows. A fork that cannot
    /// inherit a binding follows its parent's order.
    pub fn order<'s>(&'s self, session: &'s SessionId) -> &'s str {
        self.lineage.parent.as_ref().map_or(session, |parent| &parent.root).as_str()
    }
}

impl Tried {
    /// No attempt so far. `wait` limits the total time of all waits for limited keys.
    pub fn nothing(wait: Duration) -> Self {
        let (refused, failed) = (Vec::new(), Vec::new());
        let (has_doubted, has_suspected) = (false, false);
        Self { refused, failed, wait_left: wait, has_doubted, has_suspected }
    }
}

impl Placing<'_> {
    /// Whether the turn must stay in a project that is not known yet.
    pub fn needs_unknown_project(self) -> bool {
        self.demand.needs_project && self.within == Reach::Anywhere
    }

    /// Returns the keys that the turn may reach, given its session's binding `record`.
    pub fn reach(self, record: &BindingRecord) -> Reach {
        match self.within {
            Reach::Anywhere if record.sealed || self.demand.carries_sealed.is_sealed() => {
                Reach::Organization(record.organization)
            }
            within => within,
        }
    }

    /// Returns the keys that the turn may reach once `record`'s organization can serve no more. An
    /// unsealed binding gives up its organization then.
    pub fn last_reach(self, record: &BindingRecord) -> Reach {
        match self.within {
            Reach::Anywhere if record.sealed => Reach::Organization(record.organization),
            within => within,
        }
    }

    /// Whether the session leaves its organization for this `reason`, if no other key of the
    /// organization can serve. A session that may be sealed leaves only for a lasting reason.
    pub fn may_leave(self, record: &BindingRecord, reason: Reason) -> bool {
        match reason {
            Reason::Limited | Reason::Disabled => self.reach(record) == Reach::Anywhere,
            Reason::Exhausted => self.last_reach(record) == Reach::Anywhere,
            _ => false,
        }
    }
}

/// A turn in a test.
#[cfg(test)]
pub struct Turn<'t> {
    pub demand: Demand<'t>,
    pub tried: Tried,
    pub within: Reach,
}

#[cfg(test)]
impl<'t> Turn<'t> {
    /// A turn of `client` that may not wait and has had no attempt.
    pub fn of(client: &'t Client) -> Self {
        let (tried, within) = (Tried::nothing(Duration::ZERO), Reach::Anywhere);
        Self { demand: Demand::of(client), tried, within }
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub fn placing(&self) -> Placing<'_> {
        self.demand.with_tried(&self.tried, self.within)
    }
}
