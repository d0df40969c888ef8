//! Decides which session a turn belongs to: the strongest signal that is present, well formed and allowed.

use http::HeaderMap;
use subtle::ConstantTimeEq;

use crate::client::ClientId;
use crate::session::lineage::{Lineage, Parent, forked_from, parent_of_hop, thread};
use crate::session::{Hasher, Kind, ResponseId, SESSION_HEADERS, SessionId, is_well_formed};
use crate::setting::Secret;
use crate::wire::peek::{Field, Peek, stable_prefix};

/// Where an edge Warmkey puts its stored id, and the secret it is believed by.
pub const STICKY: &str = "yai-sticky-session";
pub const HOP: &str = "x-warmkey-hop";

const CONVERSATION_HEADERS: [&str; 2] = ["conversation-id", "conversation_id"];

/// A turn's session, or that it has none, and how many malformed signals were skipped on the way.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub session: Option<SessionId>,
    pub skipped: u64,
}

/// What identifying needs beside the turn itself.
#[derive(Clone)]
pub struct Identifier {
    hasher: Hasher,
    hop: Option<Secret>,
}

impl Identifier {
    pub fn new(secret: &Secret, hop: Option<Secret>) -> Self {
        Self { hasher: Hasher::new(secret), hop }
    }

    /// By the headers alone: signals 1 to 3.
    pub fn by_headers(&self, client: &ClientId, headers: &HeaderMap) -> Identity {
        let mut search = Search::default();
        if self.is_hop(headers) {
            search.header(headers, STICKY, Kind::Hop);
        }
        for name in SESSION_HEADERS {
            search.header(headers, name, Kind::Session);
        }
        for name in CONVERSATION_HEADERS {
            search.header(headers, name, Kind::Conversation);
        }
        self.name(client, search)
    }

    /// By the body, where the headers said nothing: signals 4 and 5.
    pub fn by_body(&self, client: &ClientId, peek: &Peek) -> Identity {
        let mut search = Search::default();
        search.field(&peek.prompt_cache_key, Kind::Session);
        search.field(&peek.session_id, Kind::Session);
        search.field(&peek.conversation, Kind::Conversation);
        self.name(client, search)
    }

    /// By what stays the same of the body, where nothing names a session: signal 7.
    pub fn derived(&self, client: &ClientId, body: &[u8]) -> Option<SessionId> {
        stable_prefix(body).map(|parts| self.hasher.id(client, Kind::Derived, parts))
    }

    /// The response that this client calls `id`.
    pub fn response(&self, client: &ClientId, id: &str) -> ResponseId {
        ResponseId(self.hasher.id(client, Kind::Response, [id.as_bytes()]))
    }

    /// Where the turn's session comes from, and which thread of it this is.
    pub fn lineage(&self, client: &ClientId, headers: &HeaderMap) -> Lineage {
        let stored = |kind, value: &[u8]| self.hasher.id(client, kind, [value]);
        let hop = || headers.get(STICKY).filter(|_| self.is_hop(headers)).and_then(|value| parent_of_hop(value.as_bytes()));
        let parent = match hop() {
            Some(parent) => Some(Parent { root: stored(Kind::Hop, parent), thread: stored(Kind::Thread, parent) }),
            None => forked_from(headers)
                .map(|id| Parent { root: stored(Kind::Session, id.as_bytes()), thread: stored(Kind::Thread, id.as_bytes()) }),
        };
        Lineage { parent, thread: thread(headers).map(|id| stored(Kind::Thread, id)) }
    }

    fn is_hop(&self, headers: &HeaderMap) -> bool {
        let Some(secret) = &self.hop else { return false };
        headers.get(HOP).is_some_and(|shown| bool::from(shown.as_bytes().ct_eq(secret.expose().as_bytes())))
    }

    fn name(&self, client: &ClientId, search: Search<'_>) -> Identity {
        let session = search.found.map(|(kind, value)| self.hasher.id(client, kind, [value]));
        Identity { session, skipped: search.skipped }
    }
}

#[derive(Default)]
struct Search<'a> {
    found: Option<(Kind, &'a [u8])>,
    skipped: u64,
}

impl<'a> Search<'a> {
    fn header(&mut self, headers: &'a HeaderMap, name: &str, kind: Kind) {
        for value in headers.get_all(name) {
            // `;parent=` behind a hop's id names the parent of a fork.
            let value = value.as_bytes().split(|byte| *byte == b';' && kind == Kind::Hop).next().unwrap_or_default();
            self.consider(value, kind);
        }
    }

    fn field(&mut self, field: &'a Field, kind: Kind) {
        match field {
            Field::Absent => {}
            Field::Malformed => self.consider(b"", kind),
            Field::Text(text) => self.consider(text.as_bytes(), kind),
        }
    }

    fn consider(&mut self, value: &'a [u8], kind: Kind) {
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
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn identify(client: &str, headers: &[(&'static str, &str)], body: &str) -> Identity {
        let identifier = Identifier::new(&Secret::new(SECRET), Some(Secret::new("hop-secret")));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let client = ClientId::new(client);
        let by_headers = identifier.by_headers(&client, &map);
        if by_headers.session.is_some() {
            return by_headers;
        }
        let by_body = identifier.by_body(&client, &Peek::at(body.as_bytes()).unwrap());
        let session = by_body.session.or_else(|| identifier.derived(&client, body.as_bytes()));
        Identity { session, skipped: by_headers.skipped + by_body.skipped }
    }

    fn id(client: &str, headers: &[(&'static str, &str)], body: &str) -> String {
        identify(client, headers, body).session.unwrap().to_string()
    }

    #[test]
    fn the_strongest_signal_wins() {
        let body = r#"{"prompt_cache_key":"k","client_metadata":{"session_id":"m"},"conversation":"c","input":"hi"}"#;
        let all = [("x-warmkey-hop", "hop-secret"), ("yai-sticky-session", "h"), ("session-id", "s"), ("conversation-id", "v")];
        let ids: Vec<_> = (0..=4).map(|weaker| id("a", all.get(weaker..).unwrap_or(&[]), body)).collect();
        assert_eq!(ids[1], ids[2], "a sticky id without the hop secret counts for nothing");
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 4);
        assert!(ids.iter().all(|id| id.len() == 22));
    }

    #[test]
    fn one_identity_in_three_places_is_one_session() {
        let header = id("a", &[("session-id", "s")], "{}");
        assert_eq!(header, id("a", &[("session_id", "s")], "{}"));
        assert_eq!(header, id("a", &[], r#"{"prompt_cache_key":"s"}"#));
        assert_eq!(header, id("a", &[], r#"{"client_metadata":{"session_id":"s"}}"#));
        assert_ne!(header, id("a", &[("conversation-id", "s")], "{}"));
    }

    #[test]
    fn equal_ids_of_two_clients_are_two_sessions() {
        assert_ne!(id("a", &[("session-id", "s")], "{}"), id("b", &[("session-id", "s")], "{}"));
        assert_ne!(id("a", &[], r#"{"input":"hi"}"#), id("b", &[], r#"{"input":"hi"}"#));
    }

    #[test]
    fn a_response_is_its_clients_own_and_no_session() {
        let identifier = Identifier::new(&Secret::new(SECRET), None);
        let response = |client: &str, id: &str| identifier.response(&ClientId::new(client), id).as_str().to_owned();
        assert_eq!(response("a", "resp_1"), response("a", "resp_1"));
        assert_ne!(response("a", "resp_1"), response("b", "resp_1"));
        assert_ne!(response("a", "resp_1"), response("a", "resp_2"));
        assert_ne!(response("a", "resp_1"), id("a", &[("session-id", "resp_1")], "{}"));
        assert_eq!(response("a", "").len(), SessionId::LENGTH);
    }

    #[test]
    fn malformed_signals_are_skipped_and_counted() {
        let long = "x".repeat(257);
        for wrong in ["", "two words", &long] {
            let identity = identify("a", &[("session-id", wrong), ("session_id", "s")], "{}");
            assert_eq!(
                (identity.session.map(|id| id.to_string()), identity.skipped),
                (Some(id("a", &[("session-id", "s")], "{}")), 1)
            );
        }
        assert_eq!(
            identify("a", &[], r#"{"prompt_cache_key":[],"conversation":"\u0000"}"#),
            Identity { session: None, skipped: 2 }
        );
    }

    #[test]
    fn a_forged_hop_is_not_believed() {
        let plain = id("a", &[], r#"{"prompt_cache_key":"k"}"#);
        assert_eq!(plain, id("a", &[("x-warmkey-hop", "guess"), ("yai-sticky-session", "h")], r#"{"prompt_cache_key":"k"}"#));
    }
}
