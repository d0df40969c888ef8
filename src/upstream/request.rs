//! What a client asked for: kept as it came, and rendered for each key that the turn is tried with.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};

use crate::key::Key;
use crate::session::identify::Hop;
use crate::telemetry::turn_id::TRACEPARENT;
use crate::telemetry::{Share, TurnId};
use crate::upstream::headers::{outgoing, show, tell_hop, upgrading};
use crate::wire::endpoint::Endpoint;
use crate::wire::rename::with_model;

/// How long a WebSocket may take to be accepted. Codex itself waits for 15 seconds.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A turn as its client sent it.
pub struct Request<'t> {
    method: &'t Method,
    headers: &'t HeaderMap,
    query: Option<&'t str>,
    endpoint: Endpoint<'t>,
    pub content: Content<'t>,
    /// What another Warmkey learns about the turn.
    hop: Option<Hop<'t>>,
    asked: AskedModel<'t>,
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
    /// A WebSocket for turns to come, with this `sec-websocket-key`.
    WebSocket(&'t str),
    /// Something that needs no body.
    Nothing,
}

/// The model that a body asks for.
#[derive(Clone, Copy, Default)]
pub struct AskedModel<'t> {
    /// Empty: the body names none.
    pub model: &'t str,
    /// The body's text, if the body itself is encoded.
    pub decoded: Option<&'t [u8]>,
}

impl<'t> Request<'t> {
    pub fn new(head: &'t Parts, endpoint: Endpoint<'t>, content: Content<'t>) -> Self {
        Self {
            method: &head.method,
            headers: &head.headers,
            query: head.uri.query(),
            endpoint,
            content,
            hop: None,
            asked: AskedModel::default(),
            trace: None,
        }
    }

    /// With what another Warmkey learns about the turn.
    pub fn told(self, hop: Option<Hop<'t>>) -> Self {
        Self { hop, ..self }
    }

    /// With the model that the body asks for, which an upstream may call by another name.
    pub fn asking(self, asked: AskedModel<'t>) -> Self {
        Self { asked, ..self }
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
    pub fn for_key(
        &self,
        key: &Key,
        has_foreign_state: bool,
        traceparent: Option<&HeaderValue>,
    ) -> reqwest::Request {
        let host = &key.upstream.host;
        let url = host.url(self.endpoint, self.query);
        let mut headers = outgoing(self.headers, has_foreign_state);
        if let Some(value) = traceparent {
            headers.insert(TRACEPARENT, value.clone());
        }
        show(&mut headers, key);
        if let Some(hop) = self.hop.as_ref().filter(|_| host.is_gateway()) {
            tell_hop(&mut headers, hop);
        }
        let mut request = reqwest::Request::new(self.method.clone(), url);
        match self.content {
            Content::Body(body) => {
                let body = match self.renamed(key, body) {
                    Some(renamed) => {
                        headers.remove(CONTENT_ENCODING);
                        renamed
                    }
                    None => body.clone(),
                };
                if body.is_empty() {
                    // hyper states no length of an empty body by itself.
                    headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
                }
                // A body of known length is sent with an exact content-length. Attempts share its
                // bytes.
                *request.body_mut() = Some(body.into());
            }
            Content::WebSocket(nonce) => headers = upgrading(headers, nonce),
            Content::Nothing => {}
        }
        *request.headers_mut() = headers;
        request
    }

    /// The body with the upstream's own name of the model, where an operator has mapped it.
    fn renamed(&self, key: &Key, body: &Bytes) -> Option<Bytes> {
        let name = key.upstream.host.name_of(self.asked.model)?;
        with_model(self.asked.decoded.unwrap_or(body), name).map(Bytes::from)
    }

    /// How long the upstream may take to begin its answer.
    pub fn timeout(&self, first_byte_timeout: Duration) -> Duration {
        match self.content {
            Content::WebSocket(_) => first_byte_timeout.min(HANDSHAKE),
            Content::Body(_) | Content::Nothing => first_byte_timeout,
        }
    }
}

#[cfg(test)]
mod tests;
