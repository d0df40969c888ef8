//! Decides the purpose of a turn: to answer, or only to warm the cache, to compact the history, or
//! to title the conversation. Pure.
//!
//! Codex states the purpose in its turn metadata: in a header over HTTP, in `client_metadata` of
//! each message on a WebSocket.

use std::borrow::Cow;

use http::HeaderMap;
use serde::Deserialize;

/// The header, and the field of `client_metadata`, with Codex's turn metadata.
pub const METADATA: &str = "x-codex-turn-metadata";

/// The purpose of a turn. Only a [`TurnKind::Turn`] can be cold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TurnKind {
    #[default]
    Turn,
    /// The client asks for no output, only for a warm cache.
    Prewarm,
    /// The turn replaces the history by a shorter one.
    Compaction,
    /// Codex asks for the title of a conversation, in a session of its own.
    Title,
}

impl TurnKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Turn => "turn",
            Self::Prewarm => "prewarm",
            Self::Compaction => "compaction",
            Self::Title => "title",
        }
    }

    /// Returns the kind that the turn metadata in `headers` states.
    pub fn stated(headers: &HeaderMap) -> Self {
        headers.get(METADATA).map_or(Self::Turn, |metadata| Self::of_metadata(metadata.as_bytes()))
    }

    /// Returns the kind that the raw `client_metadata` of a message states.
    pub fn stated_within(client_metadata: Option<&[u8]>) -> Self {
        #[derive(Deserialize)]
        struct ClientMetadata<'m> {
            #[serde(borrow, rename = "x-codex-turn-metadata")]
            turn: Option<Cow<'m, str>>,
        }
        let metadata =
            client_metadata.and_then(|raw| serde_json::from_slice::<ClientMetadata<'_>>(raw).ok());
        metadata
            .and_then(|metadata| metadata.turn)
            .map_or(Self::Turn, |turn| Self::of_metadata(turn.as_bytes()))
    }

    fn of_metadata(metadata: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Metadata<'m> {
            #[serde(borrow)]
            request_kind: Option<Cow<'m, str>>,
            #[serde(borrow)]
            thread_source: Option<Cow<'m, str>>,
        }
        let Ok(metadata) = serde_json::from_slice::<Metadata<'_>>(metadata) else {
            return Self::Turn;
        };
        match (metadata.request_kind.as_deref(), metadata.thread_source.as_deref()) {
            (Some("prewarm"), _) => Self::Prewarm,
            (Some("compaction"), _) => Self::Compaction,
            (_, Some("thread_title")) => Self::Title,
            _ => Self::Turn,
        }
    }

    /// Returns the purpose of a turn whose metadata states `self`, corrected by what the body asks
    /// for.
    pub const fn with_body(self, is_warm_up: bool, asks_compaction: bool) -> Self {
        match self {
            Self::Turn | Self::Title if is_warm_up => Self::Prewarm,
            Self::Turn if asks_compaction => Self::Compaction,
            // A client may repeat the metadata of its handshake with every turn on the WebSocket.
            stated => stated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_is_stated_in_the_metadata() {
        for (metadata, expected) in [
            (r#"{"request_kind":"turn","thread_source":"user"}"#, TurnKind::Turn),
            (r#"{"request_kind":"prewarm"}"#, TurnKind::Prewarm),
            (r#"{"turn_id":"t","request_kind":"compaction"}"#, TurnKind::Compaction),
            (r#"{"request_kind":"turn","thread_source":"thread_title"}"#, TurnKind::Title),
            (r#"{"request_kind":"prewarm","thread_source":"thread_title"}"#, TurnKind::Prewarm),
            (r#"{"request_kind":"later"}"#, TurnKind::Turn),
            (r#"{"request_kind":7}"#, TurnKind::Turn),
            ("{}", TurnKind::Turn),
            ("no JSON", TurnKind::Turn),
        ] {
            let headers = HeaderMap::from_iter([(
                http::HeaderName::from_static(METADATA),
                metadata.parse().expect("a header"),
            )]);
            assert_eq!(TurnKind::stated(&headers), expected, "{metadata}");
            let quoted = serde_json::to_string(metadata).expect("a text");
            let within = format!(r#"{{"turn_id":"t","x-codex-turn-metadata":{quoted}}}"#);
            assert_eq!(TurnKind::stated_within(Some(within.as_bytes())), expected, "{within}");
        }
        assert_eq!(TurnKind::stated(&HeaderMap::new()), TurnKind::Turn);
        for none in [None, Some(&b"{}"[..]), Some(b"[]"), Some(b"7")] {
            assert_eq!(TurnKind::stated_within(none), TurnKind::Turn);
        }
    }

    #[test]
    fn body_says_what_the_metadata_leaves_out() {
        use TurnKind::{Compaction, Prewarm, Title, Turn};
        for (stated, warm_up, compacts, expected) in [
            (Turn, false, false, Turn),
            (Turn, true, false, Prewarm),
            (Turn, true, true, Prewarm),
            (Turn, false, true, Compaction),
            (Title, false, true, Title),
            (Title, true, false, Prewarm),
            (Compaction, false, false, Compaction),
            (Prewarm, false, false, Prewarm),
        ] {
            assert_eq!(stated.with_body(warm_up, compacts), expected, "{stated:?}");
        }
    }

    #[test]
    fn kind_has_the_name_of_the_ledger() {
        let all = [TurnKind::Turn, TurnKind::Prewarm, TurnKind::Compaction, TurnKind::Title];
        assert_eq!(all.map(TurnKind::name), ["turn", "prewarm", "compaction", "title"]);
    }
}
