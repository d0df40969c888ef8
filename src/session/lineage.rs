//! Where a session comes from: the parent of a fork, and the threads within a session. Pure.
//!
//! Codex gives a fork a new session id, and its parent's thread only in `x-codex-turn-metadata`; a
//! root thread's id equals its session's, a sub-agent's thread shares the session of its root.

use http::HeaderMap;
use serde::Deserialize;

use crate::session::{SESSION_HEADERS, SessionId, is_well_formed};

const METADATA: &str = "x-codex-turn-metadata";
const FORKED_FROM: &[u8] = b"forked_from_thread_id";
const THREAD: &str = "thread-id";
/// Between a hop's stored id and its parent's.
const PARENT: &[u8] = b"parent=";

/// Where a turn's session comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// Whom a fork was forked from.
    pub parent: Option<Parent>,
    /// The turn's thread, where it is not the root thread: forks of it name it.
    pub thread: Option<SessionId>,
}

/// A fork's parent, which is named by its thread: that is its session, or leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The parent's session, if its thread was a root thread.
    pub root: SessionId,
    /// The name under which the parent's session is found otherwise.
    pub thread: SessionId,
}

/// The thread that this turn's session was forked from.
pub fn forked_from(headers: &HeaderMap) -> Option<String> {
    #[derive(Deserialize)]
    struct Metadata {
        forked_from_thread_id: Option<String>,
    }
    let metadata = headers.get(METADATA)?.as_bytes();
    // Only forks pay for parsing.
    memchr::memmem::find(metadata, FORKED_FROM)?;
    let metadata: Metadata = serde_json::from_slice(metadata).ok()?;
    metadata.forked_from_thread_id.filter(|id| is_well_formed(id.as_bytes()))
}

/// The model that a client is about to ask for, where it says so before it asks: in the handshake
/// of a WebSocket.
pub fn announced_model(headers: &HeaderMap) -> Option<String> {
    #[derive(Deserialize)]
    struct Metadata {
        model: Option<String>,
    }
    let metadata: Metadata = serde_json::from_slice(headers.get(METADATA)?.as_bytes()).ok()?;
    metadata.model.filter(|model| is_well_formed(model.as_bytes()))
}

/// The parent behind a hop's id: `<stored id>;parent=<the parent's>`.
pub fn parent_of_hop(sticky: &[u8]) -> Option<&[u8]> {
    let parts = sticky.split(|byte| *byte == b';').skip(1);
    parts
        .filter_map(|part| part.trim_ascii().strip_prefix(PARENT))
        .find(|parent| is_well_formed(parent))
}

/// The thread that a turn names, unless it is its session's root thread.
pub fn thread(headers: &HeaderMap) -> Option<&[u8]> {
    let thread = headers.get(THREAD)?.as_bytes();
    let is_root = SESSION_HEADERS
        .iter()
        .filter_map(|name| headers.get(*name))
        .any(|session| session.as_bytes() == thread);
    (is_well_formed(thread) && !is_root).then_some(thread)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| ((*name).try_into().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn a_fork_names_its_parent_in_its_metadata() {
        let parent = |metadata: &str| forked_from(&headers(&[(METADATA, metadata)]));
        assert_eq!(
            parent(r#"{"turn_id":"t","forked_from_thread_id":"p","window":0}"#).as_deref(),
            Some("p")
        );
        for none in [
            "{}",
            r#"{"forked_from_thread_id":null}"#,
            r#"{"forked_from_thread_id":7}"#,
            r#"{"forked_from_thread_id":"two words"}"#,
            r#"{"forked_from_thread_id":"p""#,
        ] {
            assert_eq!(parent(none), None, "{none}");
        }
        assert_eq!(forked_from(&HeaderMap::new()), None);
    }

    #[test]
    fn a_model_may_be_announced() {
        let model = |metadata: &str| announced_model(&headers(&[(METADATA, metadata)]));
        assert_eq!(model(r#"{"turn_id":"","model":"gpt-5.4"}"#).as_deref(), Some("gpt-5.4"));
        assert_eq!((model("{}"), model(r#"{"model":7}"#), model("[")), (None, None, None));
        assert_eq!(model(r#"{"model":"two words"}"#), None);
    }

    #[test]
    fn a_hop_names_a_parent_behind_its_id() {
        assert_eq!(parent_of_hop(b"abc;parent=def"), Some(&b"def"[..]));
        assert_eq!(parent_of_hop(b"abc; x=1; parent=def"), Some(&b"def"[..]));
        assert_eq!(parent_of_hop(b"parent=def"), None, "the first part is the id");
        assert_eq!(parent_of_hop(b"abc;parent="), None);
        assert_eq!(parent_of_hop(b"abc;parent=two words;parent=def"), Some(&b"def"[..]));
    }

    #[test]
    fn a_root_thread_is_its_session() {
        assert_eq!(thread(&headers(&[("session-id", "s"), (THREAD, "s")])), None);
        assert_eq!(thread(&headers(&[("session-id", "s"), (THREAD, "t")])), Some(&b"t"[..]));
        assert_eq!(thread(&headers(&[("session-id", "s")])), None);
        // Whatever its session is called, and not where it is called something else.
        for name in ["session_id", "x-session-id"] {
            assert_eq!(thread(&headers(&[(name, "s"), (THREAD, "s")])), None, "{name}");
        }
        assert_eq!(thread(&headers(&[("conversation-id", "s"), (THREAD, "s")])), Some(&b"s"[..]));
        assert_eq!(thread(&headers(&[(THREAD, "two words")])), None);
    }
}
