//! Reads where a session comes from: the parent of a fork, and the threads within a session. Pure.
//!
//! Codex gives a fork a new session id, and names its parent's thread only in
//! `x-codex-turn-metadata`. A root thread's id equals its session's. A sub-agent's thread shares
//! its root's session.

use http::HeaderMap;
use serde::Deserialize;

use crate::session::purpose::METADATA;
use crate::session::{SESSION_HEADERS, SessionId, ThreadId, is_well_formed};

const FORKED_FROM: &[u8] = b"forked_from_thread_id";
const THREAD: &str = "thread-id";
/// What an edge states after its stored id: the fork's parent, the parent's thread if that has
/// another id, and the turn's own thread.
pub const PARENT: &str = "parent=";
pub const PARENT_THREAD: &str = "parent-thread=";
pub const OWN_THREAD: &str = "thread=";

/// The origin of a turn's session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// The parent of a fork.
    pub parent: Option<Parent>,
    /// The turn's thread, unless it is the root thread. A fork names its parent by such a thread.
    pub thread: Option<ThreadId>,
}

/// A fork's parent, named by its thread. The thread either is the parent's session or leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The parent's session, if the thread is a root thread.
    pub root: SessionId,
    /// The id under which the parent's session is stored if the thread is not a root thread.
    pub thread: ThreadId,
}

/// Returns the thread that this turn's session was forked from.
pub fn forked_from(headers: &HeaderMap) -> Option<String> {
    #[derive(Deserialize)]
    struct Metadata {
        forked_from_thread_id: Option<String>,
    }
    let metadata = headers.get(METADATA)?.as_bytes();
    // Only forks pay the cost of parsing.
    memchr::memmem::find(metadata, FORKED_FROM)?;
    let metadata: Metadata = serde_json::from_slice(metadata).ok()?;
    metadata.forked_from_thread_id.filter(|id| is_well_formed(id.as_bytes()))
}

/// Returns the model that a client announces in the handshake of a WebSocket, before its first
/// message.
pub fn announced_model(headers: &HeaderMap) -> Option<String> {
    #[derive(Deserialize)]
    struct Metadata {
        model: Option<String>,
    }
    let metadata: Metadata = serde_json::from_slice(headers.get(METADATA)?.as_bytes()).ok()?;
    metadata.model.filter(|model| is_well_formed(model.as_bytes()))
}

/// Returns what an edge's header states under `name`, such as `<stored id>;parent=<the parent's>`.
pub fn said_by_hop<'h>(sticky: &'h [u8], name: &str) -> Option<&'h [u8]> {
    let parts = sticky.split(|byte| *byte == b';').skip(1);
    parts
        .filter_map(|part| part.trim_ascii().strip_prefix(name.as_bytes()))
        .find(|value| is_well_formed(value))
}

/// Returns the thread that a turn names, unless it is its session's root thread.
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
    fn fork_names_its_parent_in_its_metadata() {
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
    fn model_may_be_announced() {
        let model = |metadata: &str| announced_model(&headers(&[(METADATA, metadata)]));
        assert_eq!(model(r#"{"turn_id":"","model":"gpt-5.4"}"#).as_deref(), Some("gpt-5.4"));
        assert_eq!((model("{}"), model(r#"{"model":7}"#), model("[")), (None, None, None));
        assert_eq!(model(r#"{"model":"two words"}"#), None);
    }

    #[test]
    fn hop_names_a_parent_behind_its_id() {
        let said = |sticky: &'static [u8]| said_by_hop(sticky, PARENT);
        let whole = b"abc;parent=def;parent-thread=g;thread=h";
        assert_eq!(
            [PARENT, PARENT_THREAD, OWN_THREAD].map(|name| said_by_hop(whole, name)),
            [Some(&b"def"[..]), Some(b"g"), Some(b"h")]
        );
        assert_eq!(said(b"abc;parent=def"), Some(&b"def"[..]));
        assert_eq!(said(b"abc; x=1; parent=def"), Some(&b"def"[..]));
        assert_eq!(said(b"parent=def"), None, "the first part is the id");
        assert_eq!(said(b"abc;parent="), None);
        assert_eq!(said(b"abc;parent=two words;parent=def"), Some(&b"def"[..]));
    }

    #[test]
    fn root_thread_is_its_session() {
        assert_eq!(thread(&headers(&[("session-id", "s"), (THREAD, "s")])), None);
        assert_eq!(thread(&headers(&[("session-id", "s"), (THREAD, "t")])), Some(&b"t"[..]));
        assert_eq!(thread(&headers(&[("session-id", "s")])), None);
        // The session headers count under each of their names. Other headers do not count.
        for name in ["session_id", "x-session-id"] {
            assert_eq!(thread(&headers(&[(name, "s"), (THREAD, "s")])), None, "{name}");
        }
        assert_eq!(thread(&headers(&[("conversation-id", "s"), (THREAD, "s")])), Some(&b"s"[..]));
        assert_eq!(thread(&headers(&[(THREAD, "two words")])), None);
    }
}
