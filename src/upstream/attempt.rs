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
use crate::outcome::{Answer, Outcome, Refusal};
use crate::upstream::framing::is_framed_once;
use crate::upstream::request::{Content, Request};
use crate::wire::decoder::Coding;
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
            Ok(Err(error)) if lacks_descriptors(&error) => {
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

/// Reads as much of an answer as its meaning needs.
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
                Ok(None) => return Ok(true),
                Err(error) => return Err(causes(&error)),
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
        Coding::Zstd => zstd::stream::read::Decoder::with_buffer(body)
            .and_then(|decoder| decoder.take(ERROR_BODY as u64).read_to_end(&mut text)),
        Coding::Plain | Coding::Unknown => return Cow::Borrowed(body),
    };
    // The part that was read before an error may be complete.
    let _ = read;
    Cow::Owned(text)
}

/// Whether no connection could be opened because this process, or this machine, has no descriptor
/// left. The upstream has no part in that.
fn lacks_descriptors(error: &(dyn std::error::Error + 'static)) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| matches!(error.raw_os_error(), Some(ENFILE | EMFILE)))
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
mod tests {
    use super::*;
    use http::header::CONTENT_ENCODING;
    use std::io::Write;

    #[test]
    fn encoded_error_is_understood() {
        let body = concat!(
            r#"{"error":{"message":"m","type":"insufficient_quota","#,
            r#""code":"credit_balance_exhausted"}}"#
        )
        .as_bytes();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(body).unwrap();
        let zstd = zstd::encode_all(body, 1).unwrap();
        for (encoding, bytes) in
            [("gzip", gzip.finish().unwrap()), ("zstd", zstd), ("identity", body.to_vec())]
        {
            let headers =
                HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(encoding))]);
            let error = ErrorBody::parse(&decoded(&headers, &bytes));
            assert_eq!(error.code.as_deref(), Some("credit_balance_exhausted"), "{encoding}");
        }
    }

    #[test]
    fn encoded_error_is_read_as_far_as_it_goes() {
        let headers = |encoding: &'static str| {
            HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(encoding))])
        };
        let text = [br#"{"error":{"code":"a"}}"#.to_vec(), vec![b' '; 4 * ERROR_BODY]].concat();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&text).unwrap();
        let (gzip, zstd) = (gzip.finish().unwrap(), zstd::encode_all(&text[..], 1).unwrap());
        for (encoding, bytes) in [("gzip", &gzip[..]), ("zstd", &zstd)] {
            assert!(bytes.len() < ERROR_BODY, "a small body that unfolds");
            assert_eq!(decoded(&headers(encoding), bytes), &text[..ERROR_BODY], "{encoding}");
            assert_eq!(&decoded(&headers(encoding), b"none of it")[..], b"", "{encoding}");
        }
        // A truncated body still says what it said.
        assert!(
            decoded(&headers("gzip"), &gzip[..gzip.len() - 8])
                .starts_with(br#"{"error":{"code":"a"}}"#)
        );
        assert_eq!(&decoded(&headers("br"), b"as it came")[..], b"as it came");
    }

    #[test]
    fn handshake_is_accepted_by_its_own_key_alone() {
        let nonce = "dGhlIHNhbXBsZSBub25jZQ==";
        let answer = |lines: &[(&'static str, &'static str)]| {
            let lines = lines
                .iter()
                .map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_static(value)));
            is_accepted(&HeaderMap::from_iter(lines), nonce)
        };
        // RFC 6455, section 1.3.
        let (upgrade, accept) =
            (("upgrade", "WebSocket"), ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(answer(&[upgrade, accept]));
        for wrong in [
            &[upgrade][..],
            &[accept],
            &[("upgrade", "h2c"), accept],
            &[upgrade, ("sec-websocket-accept", "S3pPLMBiTxaQ9kYGzzhZRbK+xOo=")],
            &[upgrade, accept, ("sec-websocket-extensions", "permessage-deflate")],
            &[upgrade, accept, ("sec-websocket-protocol", "x")],
        ] {
            assert!(!answer(wrong), "{wrong:?}");
        }
    }

    fn response(status: u16, body: reqwest::Body) -> reqwest::Response {
        http::Response::builder().status(status).body(body).unwrap().into()
    }

    #[tokio::test]
    async fn answer_with_a_meaning_is_read_before_it_is_passed_on() {
        let body = r#"{"error":{"code":"some_code"}}"#;
        for status in [400, 401, 403, 404, 429, 500, 502, 503, 504] {
            let Outcome::Refused(refusal) = read(response(status, body.into())).await else {
                panic!("{status} has a meaning")
            };
            assert_eq!(refusal.error.code.as_deref(), Some("some_code"), "{status}");
            assert!(refusal.answer.head == body && refusal.answer.rest.is_none(), "{status}");
            assert_eq!(refusal.answer.status.as_u16(), status);
        }
        for status in [200, 204, 307, 402, 405, 408, 409, 413, 415, 422, 501, 505] {
            let Outcome::Answered(answer) = read(response(status, body.into())).await else {
                panic!("{status} passes")
            };
            assert_eq!((answer.status.as_u16(), answer.head.len()), (status, 0));
            assert_eq!(answer.rest.expect("all of it").bytes().await.unwrap(), body, "{status}");
        }
    }

    #[tokio::test]
    async fn answer_is_framed_once_also_at_a_handshake() {
        let answer = |status: u16, is_twice: bool| {
            let mut answer = http::Response::builder().status(status);
            if is_twice {
                answer =
                    answer.header("content-length", "2").header("transfer-encoding", "chunked");
            }
            reqwest::Response::from(answer.body("{}").unwrap())
        };
        for content in [Content::WebSocket("nonce"), Content::Nothing] {
            for status in [403, 404, 101] {
                let outcome = read_answer(answer(status, true), &content).await;
                assert!(matches!(outcome, Outcome::Broken(_)), "{status}");
            }
            let outcome = read_answer(answer(403, false), &content).await;
            assert!(matches!(outcome, Outcome::Refused(_)), "it is framed once");
        }
    }

    /// A body that arrives in these pieces, each after its pause.
    fn pieces(pieces: Vec<(Duration, Bytes)>) -> reqwest::Body {
        let frames = futures_util::stream::unfold(pieces.into_iter(), |mut left| async move {
            let (pause, bytes) = left.next()?;
            tokio::time::sleep(pause).await;
            Some((Ok::<_, std::io::Error>(http_body::Frame::data(bytes)), left))
        });
        reqwest::Body::wrap(http_body_util::StreamBody::new(frames))
    }

    /// The beginning of an error tells its meaning. No byte of the rest is lost, and the turn does
    /// not wait for it.
    #[tokio::test(start_paused = true)]
    async fn error_that_is_long_or_slow_is_passed_on_whole() {
        let error = Bytes::from_static(br#"{"error":{"code":"some_code"}}"#);
        let long = Bytes::from(vec![b' '; ERROR_BODY]);
        let none = Duration::ZERO;
        let almost = ERROR_BODY_TIME - Duration::from_secs(1);
        let late = ERROR_BODY_TIME + Duration::from_secs(1);
        for (what, parts, whole, time) in [
            ("short", vec![(none, error.clone())], true, none),
            ("slow, in time", vec![(none, error.clone()), (almost, error.clone())], true, almost),
            ("slow", vec![(none, error.clone()), (late, error.clone())], false, ERROR_BODY_TIME),
            ("silent", vec![(late, error.clone())], false, ERROR_BODY_TIME),
            ("a byte short of long", vec![(none, long.slice(1..))], true, none),
            ("long", vec![(none, long.clone()), (late, error.clone())], false, none),
            (
                "longer",
                vec![(none, error.clone()), (none, long.clone()), (late, error.clone())],
                false,
                none,
            ),
        ] {
            let expected: Vec<u8> =
                parts.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
            let began = tokio::time::Instant::now();
            let Outcome::Refused(refusal) = read(response(400, pieces(parts))).await else {
                panic!("{what}")
            };
            assert_eq!(
                began.elapsed().as_secs(),
                time.as_secs(),
                "{what}: how long it was waited for"
            );
            assert_eq!(refusal.answer.rest.is_none(), whole, "{what}");
            let mut bytes = refusal.answer.head.to_vec();
            if let Some(rest) = refusal.answer.rest {
                bytes.extend(rest.bytes().await.unwrap());
            }
            assert!(bytes == expected, "{what}: {} of {} bytes", bytes.len(), expected.len());
        }
    }
}
