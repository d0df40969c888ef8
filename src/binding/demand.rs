//! A turn as binding sees it: what the turn is, what has happened to it so far, and how far it may
//! go.

use std::time::Duration;

use crate::binding::record::BindingRecord;
use crate::binding::select::Reach;
use crate::client::Client;
use crate::key::Tag;
use crate::metrics::Reason;
use crate::session::SessionId;
use crate::session::lineage::Lineage;

/// What a turn is. Nothing of it changes while the turn runs.
pub struct Demand<'t> {
    /// `None`: the turn names no session.
    pub session: Option<SessionId>,
    pub lineage: Lineage,
    pub client: &'t Client,
    /// Whether the turn itself shows content that only its organization can open.
    pub carries_sealed: Sealed<'t>,
    /// The turn's `x-codex-turn-state`. It belongs to the key that issued it; a session that moves
    /// records it as stale.
    pub turn_state: Option<&'t [u8]>,
    /// The turn comes by WebSocket: a new session begins on a key whose upstream speaks it.
    pub by_websocket: bool,
    /// The model that the turn asks for; empty if it names none.
    pub model: &'t str,
    /// The turn refers to something that only the project of its session can find.
    pub is_held: bool,
}

/// What has happened to a turn so far.
#[derive(Clone, Debug)]
pub struct Tried {
    /// The keys that have refused the turn.
    pub refused: Vec<Tag>,
    /// The keys at which the upstream has failed with the turn.
    pub failed: Vec<Tag>,
    /// How long the turn may still wait for limited keys, all waits together.
    pub wait_left: Duration,
    /// What the turn may not leave, whatever its session is bound to: the project that stores what
    /// the turn goes on from or refers to.
    pub within: Reach,
}

/// A turn whose key is being chosen.
#[derive(Clone, Copy)]
pub struct Placing<'t> {
    pub demand: &'t Demand<'t>,
    pub tried: &'t Tried,
}

/// Where to look for content that only its organization can open.
#[derive(Clone, Copy)]
pub enum Sealed<'t> {
    Known(bool),
    /// In this JSON text, which is only searched when the answer matters.
    In(&'t [u8]),
}

/// A field that only an organization's own blobs have. Inside a text its quotes would be escaped.
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
    /// A turn of `client` of which nothing else is known.
    pub fn of(client: &'t Client) -> Self {
        Self {
            session: None,
            lineage: Lineage::default(),
            client,
            carries_sealed: Sealed::Known(false),
            turn_state: None,
            by_websocket: false,
            model: "",
            is_held: false,
        }
    }

    /// The turn after what it has `tried`.
    pub fn after(&'t self, tried: &'t Tried) -> Placing<'t> {
        Placing { demand: self, tried }
    }

    /// The session whose order of keys the turn's `session` follows: a fork that cannot inherit
    /// goes where its parent would.
    pub fn order<'s>(&'s self, session: &'s SessionId) -> &'s str {
        self.lineage.parent.as_ref().map_or(session, |parent| &parent.root).as_str()
    }
}

impl Tried {
    /// A turn that was sent nowhere yet. `wait`: how long it may wait for limited keys in all.
    pub fn nothing(wait: Duration) -> Self {
        Self { refused: Vec::new(), failed: Vec::new(), wait_left: wait, within: Reach::Anywhere }
    }
}

impl Placing<'_> {
    /// Whether the turn has to stay in a project that is not known yet.
    pub fn is_unheld(self) -> bool {
        self.demand.is_held && self.tried.within == Reach::Anywhere
    }

    /// How far from `record`'s organization the turn may go.
    pub fn reach(self, record: &BindingRecord) -> Reach {
        match self.tried.within {
            Reach::Anywhere if record.sealed || self.demand.carries_sealed.is_sealed() => {
                Reach::Organization(record.organization)
            }
            within => within,
        }
    }

    /// The same once that organization can serve no more: a provisional binding is given up then.
    pub fn last_reach(self, record: &BindingRecord) -> Reach {
        match self.tried.within {
            Reach::Anywhere if record.sealed => Reach::Organization(record.organization),
            within => within,
        }
    }

    /// Whether the session leaves its organization for this `reason`, if no other key of it can
    /// serve. A session whose history may be sealed elsewhere leaves only for what lasts.
    pub fn may_leave(self, record: &BindingRecord, reason: Reason) -> bool {
        match reason {
            Reason::Limited | Reason::Disabled => self.reach(record) == Reach::Anywhere,
            Reason::Exhausted => self.last_reach(record) == Reach::Anywhere,
            _ => false,
        }
    }
}

/// A turn of a test.
#[cfg(test)]
pub struct Turn<'t> {
    pub demand: Demand<'t>,
    pub tried: Tried,
}

#[cfg(test)]
impl<'t> Turn<'t> {
    /// A turn of `client` that may not wait and was sent nowhere.
    pub fn of(client: &'t Client) -> Self {
        Self { demand: Demand::of(client), tried: Tried::nothing(Duration::ZERO) }
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub fn placing(&self) -> Placing<'_> {
        self.demand.after(&self.tried)
    }
}
