//! One attempt: sends the client's body, or its request for a WebSocket, with a key's identity, and
//! reports what the upstream did.
//!
//! Only a failed connection is retried, because the upstream has seen nothing of the turn.

use std::borrow::Cow;
use std::io::Read;
use std::time::Duration;

use axum::body::Bytes;
use flate2::bufread::MultiGzDecoder;
use h2::Reason;
use http::StatusCode;
use http::header::{
    HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL,
    UPGRADE,
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::key::Key;
use crate::outcome::body::{AnswerBody, CutAnswer};
use crate::outcome::{Answer, Outcome, Refusal};
use crate::process::lacks_descriptors;
use crate::upstream::framing::is_framed_once;
use crate::upstream::request::{Content, Request};
use crate::wire::decoder::{Coding, unfold_zstd};
use crate::wire::error_body::ErrorBody;

/// Maximum bytes of an error answer that are read for its meaning. Real ones are a few hundred
/// bytes.
const ERROR_BODY: usize = 64 * 1024;
/// Maximum time for an error answer's body.
const ERROR_BODY_TIME: Duration = Duration::from_secs(5);

/// Sends the turn with `key` once. The turn's `x-codex-turn-state` is left out if another key has
/// issued it (`has_foreign_state`).
pub async fn send(request: &Request<'_>, key: &Key, has_foreign_state: bool) -> Outcome {
    let pool = match request.content {
        Content::WebSocket(_) if !key.upstream.speaks_websocket => return Outcome::NotSpoken,
        Content::WebSocket(_) => &key.upgrades,
        Content::Body(_) | Content::Chat(_) | Content::Nothing => &key.connections,
    };
    let wait = request.timeout(key.upstream.first_byte_timeout);
    let traceparent = request.begin_attempt();
    let mut again = true;
    loop {
        let rendered = match request.for_key(key, has_foreign_state, traceparent.as_ref()) {
            Ok(rendered) => rendered,
            Err(error) => return Outcome::Inexpressible(error),
        };
        let sending = pool.execute(rendered);
        match tokio::time::timeout(wait, sending).await {
            Err(_) => return Outcome::Silent,
            Ok(Ok(response)) => return read_answer(response, &request.content).await,
            Ok(Err(error)) if lacked_descriptors(&error) => {
                return Outcome::NoDescriptor(causes(&error));
            }
            Ok(Err(error)) => match Failure::of(&error) {
                Failure::Connect | Failure::Unprocessed if again => again = false,
                Failure::Connect => return Outcome::Unreachable(causes(&error)),
                Failure::Unprocessed => return Outcome::Unprocessed(causes(&error)),
                Failure::Broken => return Outcome::Broken(causes(&error)),
                Failure::Lost => return Outcome::Interrupted(causes(&error)),
            },
        }
    }
}

/// How an attempt failed before the head of an answer.
enum Failure {
    /// No connection: the upstream has seen nothing.
    Connect,
    /// The upstream says that it has not processed the request (RFC 9113, section 8.7).
    Unprocessed,
    /// The answer breaks the protocol.
    Broken,
    /// The connection was lost. The upstream may have served the turn.
    Lost,
}

impl Failure {
    fn of(error: &reqwest::Error) -> Self {
        if error.is_connect() {
            return Self::Connect;
        }
        let mut next = std::error::Error::source(error);
        while let Some(cause) = next {
            // A stream above the last one of a GOAWAY fails with that GOAWAY. A stream below fails
            // as its connection does.
            if let Some(error) = cause.downcast_ref::<h2::Error>() {
                let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
                return match error.is_remote() && (is_refused || error.is_go_away()) {
                    true => Self::Unprocessed,
                    false => Self::Lost,
                };
            }
            if cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
                return Self::Broken;
            }
            next = cause.source();
        }
        Self::Lost
    }
}

/// Reads the answer to a request with this content.
async fn read_answer(response: reqwest::Response, content: &Content<'_>) -> Outcome {
    if !is_framed_once(response.headers()) {
        return Outcome::Broken("its length is stated twice, or in another way".into());
    }
    match content {
        Content::WebSocket(nonce) => read_handshake(response, nonce).await,
        // No request over HTTP asks for another protocol.
        _ if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            Outcome::Broken("it switches to another protocol".into())
        }
        _ => read(response).await,
    }
}

/// Reads the answer to the request for a WebSocket.
async fn read_handshake(response: reqwest::Response, nonce: &str) -> Outcome {
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS if is_accepted(response.headers(), nonce) => {
            let mut response = http::Response::<reqwest::Body>::from(response);
            let upgrade = Some(hyper::upgrade::on(&mut response));
            let (parts, _) = response.into_parts();
            Outcome::Answered(Answer {
                status: parts.status,
                headers: parts.headers,
                head: Bytes::new(),
                rest: None,
                upgrade,
            })
        }
        StatusCode::SWITCHING_PROTOCOLS => {
            Outcome::Unreachable("its handshake is not that of a WebSocket".into())
        }
        // The upstream may serve something here, but not a WebSocket.
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::UPGRADE_REQUIRED => {
            Outcome::NotSpoken
        }
        status if status.is_success() || status.is_redirection() => Outcome::NotSpoken,
        _ => read(response).await,
    }
}

/// RFC 6455, section 4.1: the answer must be to our own key, and must not take on anything that was
/// not offered.
fn is_accepted(headers: &HeaderMap, nonce: &str) -> bool {
    let is_websocket = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    headers.get(UPGRADE).is_some_and(is_websocket)
        && headers
            .get(SEC_WEBSOCKET_ACCEPT)
            .is_some_and(|value| *value == derive_accept_key(nonce.as_bytes()))
        && !headers.contains_key(SEC_WEBSOCKET_EXTENSIONS)
        && !headers.contains_key(SEC_WEBSOCKET_PROTOCOL)
}

/// Reads as much of an answer as its meaning needs. An answer in a coding that the gateway cannot
/// read is broken: upstreams are asked for no such coding, and nothing passes unread.
pub async fn read(mut response: reqwest::Response) -> Outcome {
    if Coding::of(response.headers()) == Coding::Unknown {
        return Outcome::Broken("its content-encoding is none that the gateway can read".into());
    }
    let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
    let mut rest = AnswerBody::from(response);
    let mut answer = Answer { status, headers, head: Bytes::new(), rest: None, upgrade: None };
    if !has_meaning(answer.status) {
        answer.rest = Some(rest);
        return Outcome::Answered(answer);
    }
    let mut head = Vec::new();
    let whole = async {
        while head.len() < ERROR_BODY {
            match rest.chunk().await {
                Ok(Some(data)) => head.extend_from_slice(&data),
                Ok(None) => return Ok(true),
                Err(CutAnswer::Failed(error)) => return Err(causes(&error)),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(false)
    };
    let is_whole = match tokio::time::timeout(ERROR_BODY_TIME, whole).await {
        Ok(Ok(is_whole)) => is_whole,
        // A part must not look like the whole answer.
        Ok(Err(cause)) => return Outcome::Broken(cause),
        Err(_) => false,
    };
    let error = ErrorBody::parse(&decoded(&answer.headers, &head));
    answer.head = head.into();
    answer.rest = (!is_whole).then_some(rest);
    Outcome::Refused(Refusal { answer, error })
}

/// Whether the meaning of an answer for the key, the session or the next attempt is in its body.
fn has_meaning(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// An error body as text, decoded for reading only. Decoding is bounded like the body, and bytes
/// beyond the bound are ignored.
fn decoded<'b>(headers: &HeaderMap, body: &'b [u8]) -> Cow<'b, [u8]> {
    let mut text = Vec::new();
    let read = match Coding::of(headers) {
        Coding::Gzip => MultiGzDecoder::new(body).take(ERROR_BODY as u64).read_to_end(&mut text),
        Coding::Zstd => unfold_zstd(body)
            .and_then(|decoder| decoder.take(ERROR_BODY as u64).read_to_end(&mut text)),
        Coding::Plain | Coding::Unknown => return Cow::Borrowed(body),
    };
    // The part that was read before an error may be complete.
    let _ = read;
    Cow::Owned(text)
}

/// Whether a connection could not be opened for lack of descriptors. The upstream has no part in
/// that.
fn lacked_descriptors(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref())
        .any(lacks_descriptors)
}

/// The causes of an error, without the URL, which may hold private data.
fn causes(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
