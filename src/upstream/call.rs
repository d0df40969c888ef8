//! One attempt: sends the client's bytes with a key's identity and reports what the upstream did.
//!
//! Retries nothing but a connection that did not come about, of which the upstream has seen nothing.

use std::borrow::Cow;
use std::io::Read;
use std::time::Duration;

use axum::body::Bytes;
use flate2::bufread::MultiGzDecoder;
use http::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::BodyExt;

use super::headers::outgoing;
use crate::key::Key;
use crate::outcome::{Answer, ErrorBody, Outcome, Refusal};

/// What is read of an error answer to learn its meaning. Real ones are a few hundred bytes.
const ERROR_BODY: usize = 64 * 1024;
/// How long an error answer's body may take.
const ERROR_BODY_TIME: Duration = Duration::from_secs(5);

/// The turn as it is sent: the client's own bytes and headers.
pub struct Sent<'t> {
    pub headers: &'t HeaderMap,
    pub query: Option<&'t str>,
    pub body: &'t Bytes,
}

/// Sends the turn with `key`. `foreign_state`: its `x-codex-turn-state` belongs to another key and stays here.
pub async fn send(turn: &Sent<'_>, key: &Key, foreign_state: bool) -> Outcome {
    let mut again = true;
    loop {
        let attempt =
            tokio::time::timeout(key.upstream.first_byte_timeout, key.connections.execute(request(turn, key, foreign_state)));
        match attempt.await {
            Err(_) => return Outcome::Silent,
            Ok(Ok(response)) => return read(response).await,
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
    let mut request = reqwest::Request::new(Method::POST, url);
    *request.headers_mut() = outgoing(turn.headers, &key.secret, foreign_state);
    // A body of known length: it is sent with an exact content-length, and shared, not copied, with another attempt.
    *request.body_mut() = Some(turn.body.clone().into());
    request
}

/// Reads as much of an answer as is needed to know what it is.
async fn read(response: reqwest::Response) -> Outcome {
    let (parts, mut rest) = http::Response::<reqwest::Body>::from(response).into_parts();
    let mut answer = Answer { status: parts.status, headers: parts.headers, head: Bytes::new(), rest: None };
    // The only statuses whose meaning for the key or the session depends on the body.
    if !matches!(answer.status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS) {
        answer.rest = Some(rest);
        return Outcome::Answered(answer);
    }
    let mut head = Vec::new();
    let whole = async {
        while head.len() < ERROR_BODY {
            match rest.frame().await {
                Some(Ok(frame)) => head.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                Some(Err(_)) | None => return true,
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
