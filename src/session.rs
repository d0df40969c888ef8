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

/// `[hop]`: the secret that makes an edge Warmkey trusted.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HopSettings {
    pub secret: Option<SecretSource>,
}

/// What a session signal names. Signals that carry one identity in different places share a kind: a
/// session stays one session when a turn carries it in another place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionKind {
    /// `YAI-Sticky-Session`: an edge's stored id.
    Hop,
    /// `session-id` and its spellings, `prompt_cache_key`, `client_metadata.session_id`: Codex
    /// sends one value in all three.
    Session,
    Conversation,
    /// A thread of a session, such as a sub-agent's. Forks name their parent by its thread.
    Thread,
    /// A response that its upstream stores.
    Response,
    /// The hash of the body's stable prefix.
    Derived,
}

/// A stored session id: 128 bits of HMAC-SHA256, base64url, 22 characters.
///
/// The hash covers the client and is keyed with `server.secret`. No raw id is stored, logged or
/// traced, and no client can reach another client's session.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionId(String);

impl SessionId {
    pub const LENGTH: usize = 22;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses an id as it is stored.
    pub fn parse(text: &str) -> Option<Self> {
        let is_one = text.len() == Self::LENGTH
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        is_one.then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A stored response id, hashed like a session id: no client can find, reuse or tell apart another
/// client's responses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ResponseId(SessionId);

impl ResponseId {
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// Turns signals into stored ids.
#[derive(Clone)]
pub struct Hasher {
    keyed: Hmac<Sha256>,
}

impl Hasher {
    /// `secret` is `server.secret`, the same on all replicas.
    pub fn new(secret: &Secret) -> Self {
        Self {
            keyed: Hmac::new_from_slice(secret.expose().as_bytes())
                .expect("HMAC takes a key of any length"),
        }
    }

    /// Prefixes every part with its length, so that no two different lists of parts hash alike.
    pub fn id<'a>(
        &self,
        client: &'a ClientId,
        kind: SessionKind,
        parts: impl IntoIterator<Item = &'a [u8]>,
    ) -> SessionId {
        let mut mac = self.keyed.clone();
        let kind: &[u8] = match kind {
            SessionKind::Hop => b"hop",
            SessionKind::Session => b"session",
            SessionKind::Conversation => b"conversation",
            SessionKind::Thread => b"thread",
            SessionKind::Response => b"response",
            SessionKind::Derived => b"derived",
        };
        for part in [client.as_str().as_bytes(), kind].into_iter().chain(parts) {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        SessionId(URL_SAFE_NO_PAD.encode(&mac.finalize().into_bytes()[..16]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(client: &str, kind: SessionKind, parts: &[&str]) -> String {
        let hasher = Hasher::new(&Secret::new("0123456789abcdef0123456789abcdef"));
        hasher
            .id(&ClientId::new(client), kind, parts.iter().map(|part| part.as_bytes()))
            .to_string()
    }

    /// The next version must find stored ids again. Another program computed the expected ids once.
    #[test]
    fn stored_id_is_the_same_in_every_version() {
        for (kind, parts, expected) in [
            (SessionKind::Hop, &["s"][..], "Z1Wk5TxRjG3wASFGDE6auw"),
            (SessionKind::Session, &["s"], "FVm43fzVIvXqRQ8foYWpvg"),
            (SessionKind::Conversation, &["s"], "wYsctSuA3_leLHT3rZBc_Q"),
            (SessionKind::Thread, &["s"], "GfTqcVSQB01POE104UhG-g"),
            (SessionKind::Response, &["s"], "1Me4-Oae4L6HLjLtezCjWQ"),
            (SessionKind::Derived, &["a", "bc"], "02bMG73IUnAJm4ML6FesLw"),
        ] {
            assert_eq!(id("alice", kind, parts), expected, "{kind:?}");
        }
    }

    /// Without the length before each part, each pair would hash the same text.
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
                .id(&ClientId::new("alice"), SessionKind::Session, [&b"s"[..]])
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
