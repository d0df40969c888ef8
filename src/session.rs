//! Decides which session a turn belongs to: signals in, a stored id out. Pure.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::Sha256;

use crate::client::ClientId;
use crate::setting::{Secret, SecretSource};

pub mod purpose;
pub mod lineage;
pub mod identify;

/// Headers in which clients name their session, the strongest first.
const SESSION_HEADERS: [&str; 3] = ["session-id", "session_id", "x-session-id"];

/// Whether a signal's value is usable: 1 to 256 visible ASCII characters.
fn is_well_formed(value: &[u8]) -> bool {
    (1..=256).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic)
}

/// The options under `[hop]`: the secret by which an edge Warmkey is trusted.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HopSettings {
    pub secret: Option<SecretSource>,
}

/// The kind of a session signal. Signals that carry the same identity in different places share a
/// kind. A session thus stays one session when a turn carries its id in another place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionKind {
    /// `YAI-Sticky-Session`: an edge's stored id.
    Hop,
    /// `session-id` and its spellings, `prompt_cache_key`, `client_metadata.session_id`: Codex
    /// sends one value in all three.
    Session,
    Conversation,
    /// The hash of the body's stable prefix.
    Derived,
}

/// A hashed id: 128 bits of HMAC-SHA256, base64url, 22 characters.
///
/// The hash covers the client and what the id names, and its key is `server.secret`. No raw id is
/// stored, logged or traced. A client's id never names what another client's id names.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Hashed(String);

impl Hashed {
    const LENGTH: usize = 22;

    fn parse(text: &str) -> Option<Self> {
        let is_one = text.len() == Self::LENGTH
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        is_one.then(|| Self(text.to_owned()))
    }
}

impl fmt::Debug for Hashed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The stored id of a session.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionId(Hashed);

impl SessionId {
    pub const LENGTH: usize = Hashed::LENGTH;

    pub fn as_str(&self) -> &str {
        &self.0.0
    }

    /// Parses an id as it is stored.
    pub fn parse(text: &str) -> Option<Self> {
        Hashed::parse(text).map(Self)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The stored id of a thread of a session, such as a sub-agent's. Forks name their parent by its
/// thread.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ThreadId(Hashed);

impl ThreadId {
    pub fn as_str(&self) -> &str {
        &self.0.0
    }

    #[cfg(test)]
    pub fn parse(text: &str) -> Option<Self> {
        Hashed::parse(text).map(Self)
    }
}

/// The stored id of a response that its upstream stores, or of an item of such a response.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ResponseId {
    hashed: Hashed,
    is_item: bool,
}

impl ResponseId {
    pub fn as_str(&self) -> &str {
        &self.hashed.0
    }

    pub const fn is_item(&self) -> bool {
        self.is_item
    }
}

/// Turns signals into stored ids.
#[derive(Clone)]
pub struct Hasher {
    keyed: Hmac<Sha256>,
}

impl Hasher {
    /// Makes the hasher. `secret` is `server.secret`, the same on all replicas.
    pub fn new(secret: &Secret) -> Self {
        Self {
            keyed: Hmac::new_from_slice(secret.expose().as_bytes())
                .expect("HMAC takes a key of any length"),
        }
    }

    /// Returns the id of the session that `client` names by `parts`, in a signal of this `kind`.
    pub fn session<'a>(
        &self,
        client: &ClientId,
        kind: SessionKind,
        parts: impl IntoIterator<Item = &'a [u8]>,
    ) -> SessionId {
        let kind: &[u8] = match kind {
            SessionKind::Hop => b"hop",
            SessionKind::Session => b"session",
            SessionKind::Conversation => b"conversation",
            SessionKind::Derived => b"derived",
        };
        SessionId(self.hash(client, kind, parts))
    }

    /// Returns the id of the thread that `client` calls `id`.
    pub fn thread(&self, client: &ClientId, id: &[u8]) -> ThreadId {
        ThreadId(self.hash(client, b"thread", [id]))
    }

    /// Returns the id of the response that `client` calls `id`.
    pub fn response(&self, client: &ClientId, id: &[u8]) -> ResponseId {
        ResponseId { hashed: self.hash(client, b"response", [id]), is_item: false }
    }

    /// Returns the id of the item of a response that `client` calls `id`.
    pub fn item(&self, client: &ClientId, id: &[u8]) -> ResponseId {
        ResponseId { hashed: self.hash(client, b"item", [id]), is_item: true }
    }

    /// Hashes the parts, each with its length before it, so that no two different lists of parts
    /// hash alike.
    fn hash<'a>(
        &self,
        client: &ClientId,
        kind: &[u8],
        parts: impl IntoIterator<Item = &'a [u8]>,
    ) -> Hashed {
        let mut mac = self.keyed.clone();
        let mut update = |part: &[u8]| {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        };
        update(client.as_str().as_bytes());
        update(kind);
        parts.into_iter().for_each(update);
        Hashed(URL_SAFE_NO_PAD.encode(&mac.finalize().into_bytes()[..16]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hasher() -> Hasher {
        Hasher::new(&Secret::new("0123456789abcdef0123456789abcdef"))
    }

    fn id(client: &str, kind: SessionKind, parts: &[&str]) -> String {
        hasher()
            .session(&ClientId::new(client), kind, parts.iter().map(|part| part.as_bytes()))
            .to_string()
    }

    /// Each later version must find the stored ids. Another program computed the expected ids once.
    #[test]
    fn stored_id_is_the_same_in_every_version() {
        for (kind, parts, expected) in [
            (SessionKind::Hop, &["s"][..], "Z1Wk5TxRjG3wASFGDE6auw"),
            (SessionKind::Session, &["s"], "FVm43fzVIvXqRQ8foYWpvg"),
            (SessionKind::Conversation, &["s"], "wYsctSuA3_leLHT3rZBc_Q"),
            (SessionKind::Derived, &["a", "bc"], "02bMG73IUnAJm4ML6FesLw"),
        ] {
            assert_eq!(id("alice", kind, parts), expected, "{kind:?}");
        }
        let (hasher, alice) = (hasher(), ClientId::new("alice"));
        assert_eq!(hasher.thread(&alice, b"s").as_str(), "GfTqcVSQB01POE104UhG-g");
        assert_eq!(hasher.response(&alice, b"s").as_str(), "1Me4-Oae4L6HLjLtezCjWQ");
    }

    /// Without the length before each part, both lists of each pair would hash the same text.
    #[test]
    fn stored_id_tells_where_a_part_ends() {
        assert_ne!(
            id("a", SessionKind::Session, &["sessionb"]),
            id("asession", SessionKind::Session, &["b"])
        );
        assert_ne!(
            id("alice", SessionKind::Derived, &["ab", "c"]),
            id("alice", SessionKind::Derived, &["a", "bc"])
        );
        assert_ne!(
            id("alice", SessionKind::Derived, &["", "ab"]),
            id("alice", SessionKind::Derived, &["ab", ""])
        );
        assert_ne!(
            id("alice", SessionKind::Derived, &["ab"]),
            id("alice", SessionKind::Derived, &["ab", ""])
        );
    }

    #[test]
    fn stored_id_follows_from_the_secret() {
        let of = |secret: &str| {
            Hasher::new(&Secret::new(secret))
                .session(&ClientId::new("alice"), SessionKind::Session, [&b"s"[..]])
                .to_string()
        };
        assert_ne!(of("0123456789abcdef0123456789abcdef"), of("0123456789abcdef0123456789abcdeg"));
    }

    #[test]
    fn signal_is_1_to_256_visible_characters() {
        for (value, is) in [
            (&b""[..], false),
            (b"x", true),
            (b"!~", true),
            (&[b'x'; 256], true),
            (&[b'x'; 257], false),
            (b" x", false),
            (b"a\tb", false),
            (b"a\x7f", false),
            (b"a\x00", false),
            ("\u{e9}".as_bytes(), false),
        ] {
            assert_eq!(is_well_formed(value), is, "{:?}", String::from_utf8_lossy(value));
        }
    }

    #[test]
    fn stored_id_is_read_back_only_as_it_was_written() {
        let id = "FVm43fzVIvXqRQ8foYWp-_";
        assert_eq!(SessionId::parse(id).map(|id| id.to_string()).as_deref(), Some(id));
        for wrong in [
            &id[1..],
            &format!("{id}x"),
            &id.replace('-', "+"),
            &id.replace('-', ":"),
            &id.replace("p-", "\u{e9}"),
            "",
        ] {
            assert_eq!(SessionId::parse(wrong), None, "{wrong}");
        }
    }
}
