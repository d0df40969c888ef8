//! Decides which keys a turn may use at all, and which of them suit the turn. Pure.

use std::sync::Arc;

use crate::binding::demand::Placing;
use crate::key::Key;

pub fn speaks(placing: Placing<'_>, key: &Key) -> bool {
    key.upstream.speaks_websocket || !placing.demand.by_websocket
}

/// Returns a filter for keys that suit a session that begins or moves. A chat session prefers an
/// upstream that speaks chat, if one of the `allowed` does. Otherwise its turns are translated.
pub fn suits<'t>(placing: Placing<'t>, allowed: &[&Arc<Key>]) -> impl Fn(&Key) -> bool + use<'t> {
    let is_chatty = |key: &&Arc<Key>| key.upstream.speaks_chat;
    let needs_chat = placing.demand.by_chat && allowed.iter().any(is_chatty);
    move |key| speaks(placing, key) && (key.upstream.speaks_chat || !needs_chat)
}

/// Whether both keys' upstreams get the turn in the same dialect. In another dialect, the turn is
/// another prompt, for which nothing is cached.
pub fn is_alike(placing: Placing<'_>, own: &Key, key: &Key) -> bool {
    !placing.demand.by_chat || own.upstream.speaks_chat == key.upstream.speaks_chat
}

pub fn is_allowed(placing: Placing<'_>, key: &Key) -> bool {
    placing.demand.client.may_use_organization(&key.organization) && placing.within.includes(key)
}
