//! One attempt: sends the client's body, or its request for a WebSocket, with a key's identity, and
//! reports what the upstream did.
//!
//! Only a failed connection is retried, because the upstream has seen nothing of the turn.

use std::io::{self, Write};
use std::time::Duration;

use axum::body::Bytes;
use h2::Reason;
use http::StatusCode;
use http::header::{
    HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL,
    UPGRADE,
};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::key::Key;
use crate::outcome::body::{AnswerBody, CutAnswer};
use crate::outcome::{Answer, Outcome, Refusal};
use crate::process::lacks_descriptors;
use crate::upstream::framing::is_framed_once;
use crate::upstream::request::{Content, Request};
use crate::wire::decoder::{Coding, Decoder};
use crate::wire::error_body::ErrorBody;
use crate::wire::event::is_stream;

/// Maximum bytes of an error answer that are read for its meaning. Real error answers have a few
/// hundred bytes.
const ERROR_BODY: usize = 64 * 1024;
/// Maximum time to read an error answer's body.
const ERROR_BODY_TIME: Duration = Duration::from_secs(5);
/// A refusal of the stream that comes later than this is not answered by sending it again at once.
const AT_ONCE: Duration = Duration::from_secs(2);
/// The causes of an answer that cannot be decoded.
const UNKNOWN_CODING: &str = "its content-encoding is none that the gateway can read";
const UNDECODABLE: &str = "it cannot be decoded by its content-encoding";

/// Sends the turn with `key` once. If another key issued the turn's `x-codex-turn-state`
/// (`has_foreign_state`), the header is left out.
pub async fn send(request: &Request<'_>, key: &Key, has_foreign_state: bool) -> Outcome {
    let pool = match request.content {
        Content::WebSocket(_) if !key.upstream.speaks_websocket => return Outcome::NotSpoken,
        Content::WebSocket(_) => &key.upgrades,
        Content::Body(_) | Content::Chat(_) | Content::Nothing => &key.connections,
    };
    let wait = request.timeout(key.upstream.first_byte_timeout);
    let traceparent = request.begin_attempt();
    let (mut again, began) = (true, Instant::now());
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
                Failure::Connect if again => again = false,
                Failure::Unprocessed if again && began.elapsed() < AT_ONCE => again = false,
                Failure::Connect => return Outcome::Unreachable(causes(&error)),
                Failure::Unprocessed => return Outcome::Unprocessed(causes(&error)),
                Failure::Broken => return Outcome::Broken(causes(&error)),
                Failure::Lost => return Outcome::Interrupted(causes(&error)),
            },
        }
    }
}

/// How an attempt failed before the head of an answer came.
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
            // A stream with a higher id than the last one in a GOAWAY fails with that GOAWAY. A
            // stream with a lower id fails in the same way as its connection.
            if let Some(error) = cause.downcast_ref::<h2::Error>() {
                let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
                return match error.is_remote() {
                    true if is_refused || error.is_go_away() => Self::Unprocessed,
                    // The library resets a stream whose head is malformed.
                    false if error.is_library() && error.is_reset() => Self::Broken,
                    _ => Self::Lost,
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

/// Reads the answer to a request with this `content`.
async fn read_answer(response: reqwest::Response, content: &Content<'_>) -> Outcome {
    if !is_framed_once(response.headers()) {
        return Outcome::Broken("its length is stated twice, or in another way".into());
    }
    match content {
        Content::WebSocket(nonce) => read_handshake(response, nonce).await,
        // No request over HTTP asks for another protocol, so a 101 breaks the protocol.
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
        // The upstream may serve other requests at this path, but no WebSocket.
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::UPGRADE_REQUIRED => {
            Outcome::NotSpoken
        }
        status if status.is_success() || status.is_redirection() => Outcome::NotSpoken,
        _ => read(response).await,
    }
}

/// Whether the upstream has accepted the handshake (RFC 6455, section 4.1). Its answer must be
/// about our own `nonce`, and must not accept anything that was not offered.
fn is_accepted(headers: &HeaderMap, nonce: &str) -> bool {
    let is_websocket = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    headers.get(UPGRADE).is_some_and(is_websocket)
        && headers
            .get(SEC_WEBSOCKET_ACCEPT)
            .is_some_and(|value| *value == derive_accept_key(nonce.as_bytes()))
        && !headers.contains_key(SEC_WEBSOCKET_EXTENSIONS)
        && !headers.contains_key(SEC_WEBSOCKET_PROTOCOL)
}

/// Reads as much of an answer as its meaning needs. An answer that the gateway cannot decode is
/// broken. Its client could not decode it either, because upstreams are asked only for codings that
/// the gateway reads. No such answer passes unread.
pub async fn read(mut response: reqwest::Response) -> Outcome {
    let coding = Coding::of(response.headers());
    if coding == Coding::Unknown {
        return unreadable(response.status(), UNKNOWN_CODING);
    }
    let is_encoded = coding != Coding::Plain;
    let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
    let rest = AnswerBody::from(response);
    let rest = if is_encoded { rest.in_pieces() } else { rest };
    let answer = Answer { status, headers, head: Bytes::new(), rest: None, upgrade: None };
    let is_error = status.is_client_error() || status.is_server_error();
    match () {
        () if has_meaning(status) || is_encoded && is_error => read_error(answer, rest).await,
        // The first bytes show whether the answer can be decoded at all. The head of a stream does
        // not wait for them.
        () if is_encoded && !is_stream(&answer.headers) => read_first(answer, rest).await,
        () => Outcome::Answered(Answer { rest: Some(rest), ..answer }),
    }
}

/// Reads an error answer as far as its meaning needs.
async fn read_error(mut answer: Answer, mut rest: AnswerBody) -> Outcome {
    let mut head = Vec::new();
    let whole = async {
        while head.len() < ERROR_BODY {
            match rest.chunk().await {
                Ok(Some(data)) => head.extend_from_slice(&data),
                Ok(None) => return Ok(true),
                Err(cut) => return Err(why_cut(cut)),
            }
        }
        Ok(false)
    };
    let is_whole = match tokio::time::timeout(ERROR_BODY_TIME, whole).await {
        Ok(Ok(is_whole)) => is_whole,
        // The part that was read must not look like the whole answer.
        Ok(Err(cause)) => return Outcome::Broken(cause),
        Err(_) => false,
    };
    let Some(text) = decoded(&answer.headers, &head, is_whole).await else {
        return unreadable(answer.status, UNDECODABLE);
    };
    answer.head = head.into();
    answer.rest = (!is_whole).then_some(rest);
    if !has_meaning(answer.status) {
        return Outcome::Answered(answer);
    }
    Outcome::Refused(Refusal { error: ErrorBody::parse(&text), answer })
}

/// Reads the first bytes of an encoded document. If they come late, they are checked as they pass.
async fn read_first(answer: Answer, mut rest: AnswerBody) -> Outcome {
    match tokio::time::timeout(ERROR_BODY_TIME, rest.chunk()).await {
        Ok(Ok(Some(first))) => {
            let is_whole = rest.has_all();
            if decoded(&answer.headers, &first, is_whole).await.is_none() {
                return unreadable(answer.status, UNDECODABLE);
            }
            rest.take_back(first);
        }
        Ok(Err(cut)) => return Outcome::Broken(why_cut(cut)),
        Ok(Ok(None)) | Err(_) => {}
    }
    Outcome::Answered(Answer { rest: Some(rest), ..answer })
}

/// An answer of this status that cannot be decoded for this `cause`.
fn unreadable(status: StatusCode, cause: &str) -> Outcome {
    match status.is_success() {
        true => Outcome::Unreadable(cause.into()),
        false => Outcome::Broken(cause.into()),
    }
}

fn why_cut(cut: CutAnswer) -> String {
    match cut {
        CutAnswer::Failed(error) => causes(&error),
        cut => cut.to_string(),
    }
}

/// Whether an answer's body decides what it means for the key, the session or the next attempt.
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

/// Returns the beginning of a body as text, decoded only for reading. `None`: the bytes are not in
/// their coding, decode to too much, or end before their coding does (`is_whole`). Other turns run
/// between the steps.
async fn decoded(headers: &HeaderMap, body: &[u8], is_whole: bool) -> Option<Vec<u8>> {
    let mut decoder = Decoder::new(headers, Beginning::default());
    while !decoder.step(body) {
        tokio::task::yield_now().await;
    }
    if is_whole {
        decoder.end();
    }
    decoder.reader_mut().map(|beginning| std::mem::take(&mut beginning.0))
}

/// Keeps the first [`ERROR_BODY`] bytes of a text.
#[derive(Default)]
struct Beginning(Vec<u8>);

impl Write for Beginning {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = ERROR_BODY - self.0.len();
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a connection could not be opened for lack of descriptors, which is not the upstream's
/// fault.
fn lacked_descriptors(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref())
        .any(lacks_descriptors)
}

/// Returns the causes of an error, without the URL, which may hold private data.
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
