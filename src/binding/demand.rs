//! A turn as binding sees it: whose it is, what it shows, and how far it may go.

use std::time::Duration;

use crate::binding::record::BindingRecord;
use crate::binding::select::Reach;
use crate::client::Client;
use crate::key::Tag;
use crate::session::SessionId;
use crate::session::lineage::Lineage;

/// A turn as binding sees it.
pub struct Wanted<'t> {
    pub session: Option<SessionId>,
    pub lineage: Lineage,
    pub client: &'t Client,
    /// Whether the turn itself shows content that only its organization can open.
    pub carries_sealed: Sealed<'t>,
    /// The turn's `x-codex-turn-state`: it belongs to the key that issued it, and is remembered as
    /// stale where the turn moves.
    pub turn_state: Option<&'t [u8]>,
    /// It comes by WebSocket: a new session begins where that is spoken.
    pub by_websocket: bool,
    /// What it asks for. Nothing: it does not say.
    pub model: &'t str,
    /// How long it may yet wait for a key that is short.
    pub patience: Duration,
    /// The keys that have refused it.
    pub refused: Vec<Tag>,
    /// The keys at which the upstream has failed with it.
    pub failed: Vec<Tag>,
    /// It refers to what only the project of its session can find.
    pub is_held: bool,
    /// What it may not leave, whatever its session is bound to: the project that stores what it
    /// goes on from or refers to.
    pub within: Reach,
}

/// Where to look for content that only its organization can open.
#[derive(Clone, Copy)]
pub enum Sealed<'t> {
    Known(bool),
    /// In this JSON text, which is only looked at when the answer matters.
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

impl<'t> Wanted<'t> {
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
            patience: Duration::ZERO,
            refused: Vec::new(),
            failed: Vec::new(),
            is_held: false,
            within: Reach::Anywhere,
        }
    }

    /// Whether it has to be held to a project, and nobody has said yet to which.
    pub fn is_unheld(&self) -> bool {
        self.is_held && self.within == Reach::Anywhere
    }

    /// How far from `record`'s organization the turn may go.
    pub fn reach(&self, record: &BindingRecord) -> Reach {
        match self.within {
            Reach::Anywhere if record.sealed || self.carries_sealed.is_sealed() => {
                Reach::Organization(record.organization)
            }
            within => within,
        }
    }

    /// The same once that organization can serve no more: one that was only guessed is given up.
    pub fn last_reach(&self, record: &BindingRecord) -> Reach {
        match self.within {
            Reach::Anywhere if record.sealed => Reach::Organization(record.organization),
            within => within,
        }
    }

    /// Whose order of keys the session goes by: a fork that cannot inherit goes where its parent
    /// would.
    pub fn order<'s>(&'s self, session: &'s SessionId) -> &'s str {
        self.lineage.parent.as_ref().map_or(session, |parent| &parent.root).as_str()
    }
}
