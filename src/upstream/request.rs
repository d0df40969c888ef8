//! Keeps a client's request as it came, and renders it for each key that the turn is tried with.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};

use crate::chat::body::ChatBody;
use crate::chat::request::Translated;
use crate::error::Error;
use crate::key::Key;
use crate::session::SessionId;
use crate::session::identify::Hop;
use crate::telemetry::turn_id::TRACEPARENT;
use crate::telemetry::{Share, TurnId};
use crate::upstream::headers::{name_session, outgoing, show, tell_hop, upgrading};
use crate::upstream::splice::with_value;
use crate::wire::endpoint::Endpoint;

/// Longest time for an upstream to accept a WebSocket. Codex itself waits for 15 seconds.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Headers that hold a digest of the body's bytes.
const DIGESTS: [&str; 4] = ["content-digest", "content-md5", "digest", "repr-digest"];

/// A turn as its client sent it.
pub struct Request<'t> {
    method: &'t Method,
    headers: &'t HeaderMap,
    query: Option<&'t str>,
    session: Option<&'t SessionId>,
    endpoint: Endpoint<'t>,
    pub content: Content<'t>,
    /// The facts about the turn that another Warmkey learns.
    hop: Option<Hop<'t>>,
    asked: AskedModel<'t>,
    trace: Option<Propagated>,
}

/// The trace context that upstreams receive.
struct Propagated {
    turn: TurnId,
    is_sampled: bool,
    /// The number of attempts that have begun.
    attempts: AtomicU64,
}

/// What the request asks for.
#[derive(Clone, Copy)]
pub enum Content<'t> {
    /// An answer to this body.
    Body(&'t Bytes),
    /// An answer to this chat body, in the dialect that the upstream speaks.
    Chat(&'t ChatBody),
    /// A WebSocket for later turns, with this `sec-websocket-key`.
    WebSocket(&'t str),
    /// An answer to a request without a body.
    Nothing,
}

/// The model that a body asks for.
#[derive(Clone, Copy, Default)]
pub struct AskedModel<'t> {
    /// The model's name. Empty: the body names none.
    pub model: &'t str,
    /// The body's text, if the body itself is encoded.
    pub decoded: Option<&'t Bytes>,
    /// Where the model begins and ends in the text.
    pub place: Option<(usize, usize)>,
}

impl<'t> Request<'t> {
    pub fn new(head: &'t Parts, endpoint: Endpoint<'t>, content: Content<'t>) -> Self {
        Self {
            method: &head.method,
            headers: &head.headers,
            query: head.uri.query(),
            session: None,
            endpoint,
            content,
            hop: None,
            asked: AskedModel::default(),
            trace: None,
        }
    }

    /// Names the session for upstreams that know sessions by a header.
    pub fn of_session(self, session: Option<&'t SessionId>) -> Self {
        Self { session, ..self }
    }

    /// Adds the facts about the turn that another Warmkey learns.
    pub fn with_hop(self, hop: Option<Hop<'t>>) -> Self {
        Self { hop, ..self }
    }

    /// Adds the model that the body asks for. An upstream may have another name for it.
    pub fn asking(self, asked: AskedModel<'t>) -> Self {
        Self { asked, ..self }
    }

    /// Makes upstreams see each attempt as a span of the turn's trace. `share`: the share of all
    /// traces that are marked as sampled. `None`: upstreams receive what the client sent.
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

    /// Returns the request for `key`'s upstream. If another key issued the turn's
    /// `x-codex-turn-state` (`has_foreign_state`), the header is left out. `traceparent` replaces
    /// the client's. The error is for the client: its turn cannot be written in the upstream's
    /// dialect.
    pub fn for_key(
        &self,
        key: &Key,
        has_foreign_state: bool,
        traceparent: Option<&HeaderValue>,
    ) -> Result<reqwest::Request, Error> {
        let (upstream, host) = (&*key.upstream, &key.upstream.host);
        let mut headers = outgoing(self.headers, has_foreign_state);
        if let Some(value) = traceparent {
            headers.insert(TRACEPARENT, value.clone());
        }
        if let (Some(name), Some(session)) = (&upstream.session_header, self.session) {
            name_session(&mut headers, name, session);
        }
        show(&mut headers, key);
        if let Some(hop) = self.hop.as_ref().filter(|_| host.is_gateway()) {
            tell_hop(&mut headers, hop);
        }
        let (mut endpoint, mut body) = (self.endpoint, None);
        match self.content {
            Content::Body(own) => body = Some(self.plain(key, own, &mut headers)),
            Content::Chat(chat) if upstream.speaks_chat => {
                body = Some(self.native(key, chat, &mut headers));
            }
            Content::Chat(chat) => {
                endpoint = Endpoint::CreateResponse;
                body = Some(self.translate_body(key, chat, &mut headers)?);
            }
            Content::WebSocket(nonce) => headers = upgrading(headers, nonce),
            Content::Nothing => {}
        }
        let url = host.url(endpoint, self.query);
        let mut request = reqwest::Request::new(self.method.clone(), url);
        *request.headers_mut() = headers;
        // A body of known length is sent with an exact `content-length`. All attempts share its
        // bytes.
        *request.body_mut() = body;
        Ok(request)
    }

    /// Returns the client's body, with the upstream's own name of the model.
    fn plain(&self, key: &Key, own: &Bytes, headers: &mut HeaderMap) -> reqwest::Body {
        if let Some(renamed) =
            self.rename_model(key, self.asked.decoded.unwrap_or(own), self.asked.place)
        {
            changed(headers);
            return renamed;
        }
        if own.is_empty() {
            // hyper itself states no length of an empty body.
            headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
        }
        own.clone().into()
    }

    /// Returns a chat body for an upstream that speaks chat. An encoded body is decoded if the
    /// upstream has another name for the model.
    fn native(&self, key: &Key, chat: &ChatBody, headers: &mut HeaderMap) -> reqwest::Body {
        let native = chat.native(key.upstream.derives_cache_key);
        let text = if chat.is_encoded() { chat.text() } else { native };
        // A derived cache key is spliced in before the model, so the model's place moves.
        let added = text.len() - chat.text().len();
        let place = self.asked.place.map(|(start, end)| (start + added, end + added));
        match self.rename_model(key, text, place) {
            Some(renamed) => {
                changed(headers);
                renamed
            }
            None => {
                if !chat.is_own(native) {
                    changed(headers);
                }
                native.clone().into()
            }
        }
    }

    /// Returns a chat body for an upstream that speaks only Responses. The translation is not
    /// encoded, and the gateway has to read its answer.
    fn translate_body(
        &self,
        key: &Key,
        chat: &ChatBody,
        headers: &mut HeaderMap,
    ) -> Result<reqwest::Body, Error> {
        changed(headers);
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let Translated { body, model_place, .. } =
            chat.translated(key.upstream.derives_cache_key)?;
        let renamed = self.rename_model(key, body, *model_place);
        Ok(renamed.unwrap_or_else(|| body.clone().into()))
    }

    /// Returns `text` with the upstream's own name of the model, if an operator has mapped the
    /// name. `place`: where the text names the model.
    fn rename_model(
        &self,
        key: &Key,
        text: &Bytes,
        place: Option<(usize, usize)>,
    ) -> Option<reqwest::Body> {
        let name = key.upstream.host.name_of(self.asked.model)?;
        Some(with_value(text, place?, name))
    }

    /// Returns how long the upstream may take to begin its answer.
    pub fn timeout(&self, first_byte_timeout: Duration) -> Duration {
        match self.content {
            Content::WebSocket(_) => first_byte_timeout.min(HANDSHAKE),
            Content::Body(_) | Content::Chat(_) | Content::Nothing => first_byte_timeout,
        }
    }
}

/// Removes the client's headers about the bytes of its body, if another body is sent. A changed
/// body is never encoded.
fn changed(headers: &mut HeaderMap) {
    headers.remove(CONTENT_ENCODING);
    for name in DIGESTS {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests;
