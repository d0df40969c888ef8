//! Decides which session a turn belongs to: the strongest signal that is present, well formed and
//! allowed.

use http::HeaderMap;
use subtle::ConstantTimeEq;

use crate::client::ClientId;
use crate::session::lineage::{
    Lineage, OWN_THREAD, PARENT, PARENT_THREAD, Parent, forked_from, said_by_hop, thread,
};
use crate::session::{
    Hasher, ResponseId, SESSION_HEADERS, SessionId, SessionKind, ThreadId, is_well_formed,
};
use crate::setting::Secret;
use crate::wire::peek::{Field, Peek, stable_prefix};

/// Headers of an edge Warmkey: its stored id of the session, and the secret by which it is trusted.
pub const STICKY: &str = "yai-sticky-session";
pub const HOP: &str = "x-warmkey-hop";

const CONVERSATION_HEADERS: [&str; 2] = ["conversation-id", "conversation_id"];

/// The facts that an edge tells the Warmkey behind it about a turn: the session, and the secret
/// that proves the edge.
pub struct Hop<'s> {
    pub session: String,
    pub secret: &'s Secret,
}

/// A turn's session, if any, and the number of malformed signals that were skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub session: Option<SessionId>,
    pub skipped: u64,
}

/// Identifies sessions: holds the hasher, and the secret of edges.
#[derive(Clone)]
pub struct Identifier {
    hasher: Hasher,
    hop: Option<Secret>,
}

impl Identifier {
    pub fn new(secret: &Secret, hop: Option<Secret>) -> Self {
        Self { hasher: Hasher::new(secret), hop }
    }

    /// Identifies the session by the headers alone: signals 1 to 3.
    pub fn by_headers(&self, client: &ClientId, headers: &HeaderMap) -> Identity {
        let mut search = Search::default();
        if self.is_hop(headers) {
            search.header(headers, STICKY, SessionKind::Hop);
        }
        for name in SESSION_HEADERS {
            search.header(headers, name, SessionKind::Session);
        }
        for name in CONVERSATION_HEADERS {
            search.header(headers, name, SessionKind::Conversation);
        }
        self.name(client, search)
    }

    /// Identifies the session by the body, if the headers name no session: signals 4 and 5.
    pub fn by_body(&self, client: &ClientId, peek: &Peek) -> Identity {
        let mut search = Search::default();
        search.field(&peek.prompt_cache_key, SessionKind::Session);
        search.field(&peek.session_id, SessionKind::Session);
        search.field(&peek.conversation, SessionKind::Conversation);
        self.name(client, search)
    }

    /// Identifies the session by the stable prefix of the body, if no signal names a session:
    /// signal 7.
    pub fn identify_by_prefix(&self, client: &ClientId, body: &[u8]) -> Option<SessionId> {
        stable_prefix(body).map(|parts| self.hasher.session(client, SessionKind::Derived, parts))
    }

    /// Returns the sessions that `value` may name, for an operator who knows only what the client
    /// sent.
    pub fn find_sessions(&self, client: &ClientId, value: &str) -> Vec<SessionId> {
        let kinds = [SessionKind::Session, SessionKind::Conversation, SessionKind::Hop];
        kinds
            .into_iter()
            .filter(|_| is_well_formed(value.as_bytes()))
            .map(|kind| self.hasher.session(client, kind, [value.as_bytes()]))
            .collect()
    }

    /// The stored id of the response that `client` calls `id`.
    pub fn response(&self, client: &ClientId, id: &str) -> ResponseId {
        self.hasher.response(client, id.as_bytes())
    }

    /// The stored id of the item of a response that `client` calls `id`.
    pub fn item(&self, client: &ClientId, id: &str) -> ResponseId {
        self.hasher.item(client, id.as_bytes())
    }

    /// Returns the turn's thread, and the parent of its session if that is a fork.
    pub fn lineage(&self, client: &ClientId, headers: &HeaderMap) -> Lineage {
        let session = |kind, id: &[u8]| self.hasher.session(client, kind, [id]);
        let stored_thread = |id: &[u8]| self.hasher.thread(client, id);
        if let Some(sticky) = headers.get(STICKY).filter(|_| self.is_hop(headers)) {
            // An edge speaks for many clients, whose threads must not be confused here. So only
            // what the edge itself states counts.
            let said = |name| said_by_hop(sticky.as_bytes(), name);
            let parent = said(PARENT).map(|parent| Parent {
                root: session(SessionKind::Hop, parent),
                thread: stored_thread(said(PARENT_THREAD).unwrap_or(parent)),
            });
            let thread = said(OWN_THREAD).map(stored_thread);
            return Lineage { parent, thread };
        }
        let parent = forked_from(headers).map(|id| Parent {
            root: session(SessionKind::Session, id.as_bytes()),
            thread: stored_thread(id.as_bytes()),
        });
        Lineage { parent, thread: thread(headers).map(stored_thread) }
    }

    /// Returns what this gateway, as an edge, tells the Warmkey behind it about a turn. `None`: the
    /// turn has no session, or no `hop.secret` is set.
    pub fn hop(&self, session: Option<&SessionId>, lineage: &Lineage) -> Option<Hop<'_>> {
        let (session, secret) = (session?, self.hop.as_ref()?);
        let parts = [
            (PARENT, lineage.parent.as_ref().map(|parent| parent.root.as_str())),
            (PARENT_THREAD, lineage.parent.as_ref().map(|parent| parent.thread.as_str())),
            (OWN_THREAD, lineage.thread.as_ref().map(ThreadId::as_str)),
        ];
        let mut session = session.to_string();
        for (name, id) in parts {
            if let Some(id) = id {
                session.push_str(&format!(";{name}{id}"));
            }
        }
        Some(Hop { session, secret })
    }

    fn is_hop(&self, headers: &HeaderMap) -> bool {
        let Some(secret) = &self.hop else { return false };
        headers
            .get(HOP)
            .is_some_and(|shown| bool::from(shown.as_bytes().ct_eq(secret.expose().as_bytes())))
    }

    fn name(&self, client: &ClientId, search: Search<'_>) -> Identity {
        let session = search.found.map(|(kind, value)| self.hasher.session(client, kind, [value]));
        Identity { session, skipped: search.skipped }
    }
}

#[derive(Default)]
struct Search<'a> {
    found: Option<(SessionKind, &'a [u8])>,
    skipped: u64,
}

impl<'a> Search<'a> {
    fn header(&mut self, headers: &'a HeaderMap, name: &str, kind: SessionKind) {
        for value in headers.get_all(name) {
            // After an edge's id, `;parent=` names the parent of a fork.
            let value = value
                .as_bytes()
                .split(|byte| *byte == b';' && kind == SessionKind::Hop)
                .next()
                .unwrap_or_default();
            self.consider(value, kind);
        }
    }

    fn field(&mut self, field: &'a Field, kind: SessionKind) {
        match field {
            Field::Absent => {}
            Field::Malformed => self.consider(b"", kind),
            Field::Text(text) => self.consider(text.as_bytes(), kind),
        }
    }

    fn consider(&mut self, value: &'a [u8], kind: SessionKind) {
        if self.found.is_some() {
            return;
        }
        if is_well_formed(value) {
            self.found = Some((kind, value));
        } else {
            self.skipped += 1;
        }
    }
}

#[cfg(test)]
mod tests;
