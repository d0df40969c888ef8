//! Tests of how answers are read.

use super::*;
use http::header::CONTENT_ENCODING;
use std::io::Write;

#[tokio::test]
async fn encoded_error_is_understood() {
    let body = concat!(
        r#"{"error":{"message":"m","type":"insufficient_quota","#,
        r#""code":"credit_balance_exhausted"}}"#
    )
    .as_bytes();
    for coding in ["gzip", "zstd", "identity"] {
        let (headers, bytes) = encoded(coding, body);
        let text = decoded(&headers, &bytes, true).await.expect("it is whole");
        let error = ErrorBody::parse(&text);
        assert_eq!(error.code.as_deref(), Some("credit_balance_exhausted"), "{coding}");
    }
}

/// Returns bytes in this coding, and the headers that state it.
fn encoded(coding: &'static str, bytes: &[u8]) -> (HeaderMap, Vec<u8>) {
    let headers = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(coding))]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(bytes).unwrap();
    let bytes = match coding {
        "gzip" => gzip.finish().unwrap(),
        "zstd" => zstd::encode_all(bytes, 1).unwrap(),
        _ => bytes.to_vec(),
    };
    (headers, bytes)
}

#[tokio::test]
async fn encoded_error_is_read_as_far_as_it_goes() {
    let text = [br#"{"error":{"code":"a"}}"#.to_vec(), vec![b' '; 4 * ERROR_BODY]].concat();
    for coding in ["gzip", "zstd"] {
        let (headers, bytes) = encoded(coding, &text);
        assert!(bytes.len() < ERROR_BODY, "a small body that unfolds");
        let read = async |bytes: &[u8], is_whole| decoded(&headers, bytes, is_whole).await;
        assert_eq!(read(&bytes, true).await.as_deref(), Some(&text[..ERROR_BODY]), "{coding}");
        let part = &bytes[..bytes.len() - 8];
        assert!(read(part, false).await.is_some(), "{coding}: the rest may still come");
        assert_eq!(read(part, true).await, None, "{coding}: it was truncated");
        assert_eq!(read(b"none of it", true).await, None, "{coding}");
        assert_eq!(read(b"", true).await.as_deref(), Some(&b""[..]), "{coding}: nothing to decode");
        let (headers, bomb) = encoded(coding, &vec![b' '; 32 << 20]);
        assert_eq!(decoded(&headers, &bomb, true).await, None, "{coding}: it unfolds too far");
    }
    let (headers, bytes) = encoded("br", b"as it came");
    assert_eq!(decoded(&headers, &bytes, true).await, None);
}

fn coded_response(status: u16, coding: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
    let answer = http::Response::builder().status(status).header("content-encoding", coding);
    answer.body(body.into()).unwrap().into()
}

/// Whether an answer of this status was found unreadable. With a 200, the turn was still served.
fn is_unreadable(status: u16, outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Unreadable(_) => status == 200,
        Outcome::Broken(_) => status != 200,
        _ => false,
    }
}

/// An answer that cannot be decoded becomes a 502, whatever its status. It is not judged as the
/// error that the status suggests.
#[tokio::test]
async fn answer_that_cannot_be_decoded_is_broken() {
    let error = br#"{"error":{"code":"insufficient_quota","type":"insufficient_quota"}}"#;
    for coding in ["gzip", "zstd"] {
        let (_, whole) = encoded(coding, error);
        for status in [200, 302, 400, 401, 402, 413, 422, 429, 500, 501, 503] {
            let outcome = read(coded_response(status, coding, error.to_vec())).await;
            assert!(is_unreadable(status, &outcome), "{coding} {status}: not encoded");
            let part = whole[..whole.len() - 1].to_vec();
            let outcome = read(coded_response(status, coding, part)).await;
            assert!(is_unreadable(status, &outcome), "{coding} {status}: cut");
            let answer = match read(coded_response(status, coding, whole.clone())).await {
                Outcome::Answered(answer) | Outcome::Refused(Refusal { answer, .. }) => answer,
                other => panic!("{coding} {status}: {:?}", other.failure()),
            };
            let rest = match answer.rest {
                Some(rest) => read_whole(rest).await,
                None => Vec::new(),
            };
            assert_eq!([&answer.head[..], &rest].concat(), whole, "{coding} {status}: as it came");
        }
    }
}

/// All bytes of an encoded answer pass unchanged, in pieces that are small enough to be decoded.
#[tokio::test(start_paused = true)]
async fn encoded_document_is_begun_and_not_changed() {
    let noise: Vec<u8> =
        (0..50_000_u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect();
    let (_, bytes) = encoded("gzip", &noise);
    assert!(bytes.len() > 100_000);
    let late = ERROR_BODY_TIME + Duration::from_secs(1);
    for pause in [Duration::ZERO, late] {
        let body = pieces(vec![(pause, bytes.clone().into())]);
        let began = tokio::time::Instant::now();
        let Outcome::Answered(answer) = read(coded_response(200, "gzip", body)).await else {
            panic!("it can be decoded")
        };
        assert_eq!(began.elapsed(), pause.min(ERROR_BODY_TIME), "its first bytes are waited for");
        let (mut rest, mut all) = (answer.rest.expect("all of it"), Vec::new());
        while let Some(piece) = rest.chunk().await.unwrap() {
            assert!(piece.len() <= crate::wire::decoder::PIECE);
            all.extend_from_slice(&piece);
        }
        assert!(all == bytes);
    }
    let stream = http::Response::builder()
        .header("content-encoding", "gzip")
        .header("content-type", "text/event-stream")
        .body(pieces(vec![(late, bytes.into())]))
        .unwrap();
    let began = tokio::time::Instant::now();
    assert!(matches!(read(stream.into()).await, Outcome::Answered(_)));
    assert!(began.elapsed().is_zero(), "the head of a stream does not wait");
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
    // The example in RFC 6455, section 1.3.
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

/// Reads all of a body.
async fn read_whole(mut rest: AnswerBody) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(data) = rest.chunk().await.unwrap() {
        bytes.extend_from_slice(&data);
    }
    bytes
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
        assert_eq!(read_whole(answer.rest.expect("all of it")).await, body.as_bytes(), "{status}");
    }
}

#[tokio::test]
async fn answer_is_framed_once_also_at_a_handshake() {
    let answer = |status: u16, is_twice: bool| {
        let mut answer = http::Response::builder().status(status);
        if is_twice {
            answer = answer.header("content-length", "2").header("transfer-encoding", "chunked");
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

/// The beginning of an error shows its meaning. No byte of the rest is lost, and the turn does not
/// wait for the rest.
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
        let expected: Vec<u8> = parts.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        let began = tokio::time::Instant::now();
        let Outcome::Refused(refusal) = read(response(400, pieces(parts))).await else {
            panic!("{what}")
        };
        assert_eq!(began.elapsed().as_secs(), time.as_secs(), "{what}: how long it was waited for");
        assert_eq!(refusal.answer.rest.is_none(), whole, "{what}");
        let mut bytes = refusal.answer.head.to_vec();
        if let Some(rest) = refusal.answer.rest {
            bytes.extend(read_whole(rest).await);
        }
        assert!(bytes == expected, "{what}: {} of {} bytes", bytes.len(), expected.len());
    }
}
