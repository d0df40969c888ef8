//! What a client asked for: kept as it came, and rendered for each key that the turn is tried with.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};

use crate::chat::body::ChatBody;
use crate::error::Error;
use crate::key::Key;
use crate::session::SessionId;
use crate::telemetry::turn_id::TRACEPARENT;
use crate::telemetry::{Share, TurnId};
use crate::upstream::headers::{name_session, outgoing, upgrading};

/// How long a WebSocket may take to be accepted. Codex itself waits for 15 seconds.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A turn as its client sent it.
pub struct Request<'t> {
    headers: &'t HeaderMap,
    query: Option<&'t str>,
    session: Option<&'t SessionId>,
    pub content: Content<'t>,
    trace: Option<Propagated>,
}

/// The trace context that upstreams get.
struct Propagated {
    turn: TurnId,
    is_sampled: bool,
    /// Attempts that have begun.
    attempts: AtomicU64,
}

/// What the upstream is asked for.
#[derive(Clone, Copy)]
pub enum Content<'t> {
    /// The answer to this body.
    Body(&'t Bytes),
    /// The answer to this chat body, in whichever dialect the upstream speaks.
    Chat(&'t ChatBody),
    /// A WebSocket for turns to come, with this `sec-websocket-key`.
    WebSocket(&'t str),
}

impl<'t> Request<'t> {
    pub fn new(head: &'t Parts, content: Content<'t>) -> Self {
        Self {
            headers: &head.headers,
            query: head.uri.query(),
            session: None,
            content,
            trace: None,
        }
    }

    /// Names the session for upstreams that know sessions by a header.
    pub fn of_session(self, session: Option<&'t SessionId>) -> Self {
        Self { session, ..self }
    }

    /// Names the turn's attempts to upstreams as spans of its trace. `share` of all traces are
    /// marked as sampled; `None`: upstreams get what the client sent.
    pub fn traced(self, share: Option<Share>, turn: TurnId) -> Self {
        let trace = share.map(|share| Propagated {
            turn,
            is_sampled: share.includes(turn),
            attempts: AtomicU64::new(0),
        });
        Self { trace, ..self }
    }

    /// Notes that an attempt begins, and returns its `traceparent`, if upstreams get one.
    pub fn begin_attempt(&self) -> Option<HeaderValue> {
        let Propagated { turn, is_sampled, attempts } = self.trace.as_ref()?;
        turn.traceparent(attempts.fetch_add(1, Ordering::Relaxed), *is_sampled)
    }

    /// The request as `key`'s upstream gets it. The turn's `x-codex-turn-state` is left out if
    /// another key has issued it (`has_foreign_state`). `traceparent` displaces the client's.
    /// The error is the client's: its turn cannot be written in the upstream's dialect.
    pub fn for_key(
        &self,
        key: &Key,
        has_foreign_state: bool,
        traceparent: Option<&HeaderValue>,
    ) -> Result<reqwest::Request, Error> {
        let upstream = &*key.upstream;
        let is_chat = matches!(self.content, Content::Chat(_)) && upstream.speaks_chat;
        let mut url = if is_chat { upstream.chat.clone() } else { upstream.responses.clone() };
        if self.query.is_some() {
            url.set_query(self.query);
        }
        let mut headers = outgoing(self.headers, &key.secret, has_foreign_state);
        if let Some(value) = traceparent {
            headers.insert(TRACEPARENT, value.clone());
        }
        if let (Some(name), Some(session)) = (&upstream.session_header, self.session) {
            name_session(&mut headers, name, session);
        }
        let body = match self.content {
            Content::Body(body) => body.clone(),
            Content::Chat(chat) if is_chat => chat.native(upstream.derives_cache_key).clone(),
            Content::Chat(chat) => {
                // The translation is plain text, and its answer has to be read.
                headers.remove(CONTENT_ENCODING);
                headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
                chat.translated(upstream.derives_cache_key)?.body.clone()
            }
            Content::WebSocket(nonce) => {
                let mut request = reqwest::Request::new(Method::GET, url);
                *request.headers_mut() = upgrading(headers, nonce);
                return Ok(request);
            }
        };
        let mut request = reqwest::Request::new(Method::POST, url);
        *request.headers_mut() = headers;
        // A body of known length is sent with an exact content-length. Attempts share its bytes.
        *request.body_mut() = Some(body.into());
        Ok(request)
    }

    /// How long the upstream may take to begin its answer.
    pub fn timeout(&self, first_byte_timeout: Duration) -> Duration {
        match self.content {
            Content::WebSocket(_) => first_byte_timeout.min(HANDSHAKE),
            Content::Body(_) | Content::Chat(_) => first_byte_timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reasoning may take minutes, and a handshake no longer than its client waits for it.
    #[test]
    fn handshake_is_waited_for_less_than_a_turn() {
        let (head, ()) = http::Request::new(()).into_parts();
        let body = Bytes::new();
        let [turn, socket] = [Content::Body(&body), Content::WebSocket("nonce")]
            .map(|content| Request::new(&head, content));
        for (configured, of_turn, of_socket) in [(600, 600, 10), (10, 10, 10), (3, 3, 3)] {
            let wait =
                |request: &Request<'_>| request.timeout(Duration::from_secs(configured)).as_secs();
            assert_eq!((wait(&turn), wait(&socket)), (of_turn, of_socket), "{configured}");
        }
    }
}
