//! Derives a `prompt_cache_key` from the session, for a chat body without one. The key is the same
//! on every turn and replica, and after every restart.
//!
//! An upstream reads the key as the name of a conversation. The key therefore must not change when
//! the conversation grows, and two conversations must not share a key.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::session::SessionId;

/// The name of `session` for upstreams: 30 characters. It shows nothing of the stored id.
pub fn derive_key(session: &SessionId) -> String {
    let digest = Sha256::new().chain_update("told to upstreams\0").chain_update(session.as_str());
    format!("warmkey-{}", URL_SAFE_NO_PAD.encode(&digest.finalize()[..16]))
}

/// `body` with this `prompt_cache_key` as its first field; no other byte changes. `None`: `body` is
/// not an object.
pub fn splice(body: &[u8], key: &str) -> Option<Bytes> {
    let open = body.iter().position(|byte| !b" \t\r\n".contains(byte))?;
    if body[open] != b'{' {
        return None;
    }
    let (head, rest) = body.split_at(open + 1);
    let is_empty = rest.trim_ascii_start().starts_with(b"}");
    let comma = if is_empty { "" } else { "," };
    let field = format!(r#""prompt_cache_key":"{key}"{comma}"#);
    Some([head, field.as_bytes(), rest].concat().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(text: &str) -> SessionId {
        SessionId::parse(text).unwrap()
    }

    /// The next version must give a session the same name. Another program computed the expected
    /// name.
    #[test]
    fn derived_key_is_the_same_in_every_version() {
        let key = derive_key(&session("FVm43fzVIvXqRQ8foYWpvg"));
        assert_eq!(key, EXPECTED);
        assert!(key.len() <= 64);
        assert_ne!(key, derive_key(&session("FVm43fzVIvXqRQ8foYWpvh")));
    }

    const EXPECTED: &str = "warmkey-8zFPHZetfmfvcpVDsArCGg";

    #[test]
    fn key_is_spliced_in_and_every_other_byte_stays() {
        for (body, expected) in [
            (r#"{"model":"m"}"#, r#"{"prompt_cache_key":"k","model":"m"}"#),
            (" {\n \"a\": 1.0e2 } ", " {\"prompt_cache_key\":\"k\",\n \"a\": 1.0e2 } "),
            ("{ }", r#"{"prompt_cache_key":"k" }"#),
        ] {
            assert_eq!(splice(body.as_bytes(), "k").unwrap(), expected, "{body}");
        }
        for body in ["[]", "", "  ", "7"] {
            assert_eq!(splice(body.as_bytes(), "k"), None, "{body}");
        }
    }
}
