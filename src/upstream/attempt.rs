//! One attempt: sends the client's bytes, or its wish for a WebSocket, with a key's identity and reports what the upstream did.
//!
//! Retries nothing but a connection that did not come about, of which the upstream has seen nothing.

use std::borrow::Cow;
use std::io::Read;
use std::time::Duration;

use axum::body::Bytes;
use flate2::bufread::MultiGzDecoder;
use http::header::{
    CONTENT_ENCODING, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{Method, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::key::Key;
use crate::outcome::{Answer, Outcome, Refusal};
use crate::upstream::headers::{outgoing, upgrading};
use crate::wire::error_body::ErrorBody;

/// What is read of an error answer to learn its meaning. Real ones are a few hundred bytes.
const ERROR_BODY: usize = 64 * 1024;
/// How long an error answer's body may take.
const ERROR_BODY_TIME: Duration = Duration::from_secs(5);

/// How long a WebSocket may take to be accepted. Codex itself waits for 15 seconds.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The turn as it is sent: the client's own bytes and headers.
pub struct Sent<'t> {
    pub headers: &'t HeaderMap,
    pub query: Option<&'t str>,
    pub ask: Ask<'t>,
}

/// What is asked for.
#[derive(Clone, Copy)]
pub enum Ask<'t> {
    /// The answer to this body.
    Turn(&'t Bytes),
    /// A WebSocket, for turns to come, with this `sec-websocket-key`.
    WebSocket(&'t str),
}

/// Sends the turn with `key`. `foreign_state`: its `x-codex-turn-state` belongs to another key and stays here.
pub async fn send(turn: &Sent<'_>, key: &Key, foreign_state: bool) -> Outcome {
    let (pool, patience) = match turn.ask {
        Ask::WebSocket(_) if !key.upstream.speaks_websocket => return Outcome::NotSpoken,
        Ask::WebSocket(_) => (&key.upgrades, key.upstream.first_byte_timeout.min(HANDSHAKE)),
        Ask::Turn(_) => (&key.connections, key.upstream.first_byte_timeout),
    };
    let mut again = true;
    loop {
        let attempt = tokio::time::timeout(patience, pool.execute(request(turn, key, foreign_state)));
        match attempt.await {
            Err(_) => return Outcome::Silent,
            Ok(Ok(response)) => match turn.ask {
                Ask::WebSocket(nonce) => return read_handshake(response, nonce).await,
                Ask::Turn(_) => return read(response).await,
            },
            Ok(Err(error)) if error.is_connect() && again => again = false,
            Ok(Err(error)) if error.is_connect() => return Outcome::Unreachable(causes(&error)),
            Ok(Err(error)) => return Outcome::Interrupted(causes(&error)),
        }
    }
}

fn request(turn: &Sent<'_>, key: &Key, foreign_state: bool) -> reqwest::Request {
    let mut url = key.upstream.responses.clone();
    if turn.query.is_some() {
        url.set_query(turn.query);
    }
    let headers = outgoing(turn.headers, &key.secret, foreign_state);
    match turn.ask {
        Ask::Turn(body) => {
            let mut request = reqwest::Request::new(Method::POST, url);
            *request.headers_mut() = headers;
            // A body of known length: it is sent with an exact content-length, and shared, not copied, with another attempt.
            *request.body_mut() = Some(body.clone().into());
            request
        }
        Ask::WebSocket(nonce) => {
            let mut request = reqwest::Request::new(Method::GET, url);
            *request.headers_mut() = upgrading(headers, nonce);
            request
        }
    }
}

/// What an upstream makes of the wish for a WebSocket.
async fn read_handshake(response: reqwest::Response, nonce: &str) -> Outcome {
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS if is_accepted(response.headers(), nonce) => {
            let mut response = http::Response::<reqwest::Body>::from(response);
            let upgrade = Some(hyper::upgrade::on(&mut response));
            let (parts, _) = response.into_parts();
            Outcome::Answered(Answer { status: parts.status, headers: parts.headers, head: Bytes::new(), rest: None, upgrade })
        }
        StatusCode::SWITCHING_PROTOCOLS => Outcome::Unreachable("its handshake is not that of a WebSocket".into()),
        // Whatever it serves there, it is no WebSocket.
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::UPGRADE_REQUIRED => Outcome::NotSpoken,
        status if status.is_success() || status.is_redirection() => Outcome::NotSpoken,
        _ => read(response).await,
    }
}

/// RFC 6455, section 4.1: the answer is to our own key, and takes on nothing that was not offered.
fn is_accepted(headers: &HeaderMap, nonce: &str) -> bool {
    let is_websocket = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    headers.get(UPGRADE).is_some_and(is_websocket)
        && headers.get(SEC_WEBSOCKET_ACCEPT).is_some_and(|value| *value == derive_accept_key(nonce.as_bytes()))
        && !headers.contains_key(SEC_WEBSOCKET_EXTENSIONS)
        && !headers.contains_key(SEC_WEBSOCKET_PROTOCOL)
}

/// Reads as much of an answer as is needed to know what it is.
pub async fn read(mut rest: reqwest::Response) -> Outcome {
    let (status, headers) = (rest.status(), std::mem::take(rest.headers_mut()));
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
                Ok(None) | Err(_) => return true,
            }
        }
        false
    };
    let is_whole = tokio::time::timeout(ERROR_BODY_TIME, whole).await.unwrap_or(false);
    let error = ErrorBody::parse(&decoded(&answer.headers, &head));
    answer.head = head.into();
    answer.rest = (!is_whole).then_some(rest);
    Outcome::Refused(Refusal { answer, error })
}

/// Whether what the answer means for the key, the session or the next attempt is known from its body alone.
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

/// An error body as text. Decoding is for reading only, and as bounded as the body: what comes out beyond that says nothing.
fn decoded<'b>(headers: &HeaderMap, body: &'b [u8]) -> Cow<'b, [u8]> {
    let mut text = Vec::new();
    let read = match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        Some(b"gzip") => MultiGzDecoder::new(body).take(ERROR_BODY as u64).read_to_end(&mut text),
        Some(b"zstd") => zstd::stream::read::Decoder::with_buffer(body)
            .and_then(|decoder| decoder.take(ERROR_BODY as u64).read_to_end(&mut text)),
        _ => return Cow::Borrowed(body),
    };
    // What was read before an error may be all there is.
    let _ = read;
    Cow::Owned(text)
}

/// An error with its causes, without the address it happened at: it may hold what is nobody's business.
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
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn an_encoded_error_is_understood() {
        let body = br#"{"error":{"message":"m","type":"insufficient_quota","code":"credit_balance_exhausted"}}"#;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(body).unwrap();
        let zstd = zstd::encode_all(&body[..], 1).unwrap();
        for (encoding, bytes) in [("gzip", gzip.finish().unwrap()), ("zstd", zstd), ("identity", body.to_vec())] {
            let headers = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(encoding))]);
            let error = ErrorBody::parse(&decoded(&headers, &bytes));
            assert_eq!(error.code.as_deref(), Some("credit_balance_exhausted"), "{encoding}");
        }
    }
}
