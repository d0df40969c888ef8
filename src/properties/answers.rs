//! Properties of the readers of an answer: its encoding, its error, its end and its usage.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::de::IgnoredAny;

use crate::limit;
use crate::properties::chunks;
use crate::properties::plain::Json;
use crate::wire::decoder::Decoder;
use crate::wire::error_body::{ErrorBody, frame_headers, frame_status};
use crate::wire::terminal::{self, Terminal};

/// An error is read as serde_json's tree shows it, alone and inside an event. The readers tolerate
/// repeated fields, and arrays in place of objects: there they only must not panic.
pub fn error_body(text: &[u8]) {
    let found = ErrorBody::parse(text);
    let _ = (ErrorBody::of_event(text), frame_headers(text));
    let status = frame_status(text);
    let Some(plain) = Json::read(text) else { return };
    assert_eq!(status, expected_status(&plain), "{}", text.escape_ascii());
    let own = plain.last("error").filter(|_| plain.is_plain(&["error"]));
    if let Some(error) =
        own.filter(|error| error.is_plain(&["code", "type", "message", "param", "error"]))
    {
        let of = |name: &str| error.last(name).and_then(Json::text);
        let message = of("message").unwrap_or_default();
        let expected = ErrorBody {
            code: of("code").map(str::to_owned),
            class: of("type").map(str::to_owned),
            is_beyond_limit: limit::is_beyond_limit(message),
            wait: limit::wait_in(message),
            lacks_right: found.lacks_right,
            param: of("param").map(str::to_owned),
            limit: limit::NamedLimit::read(message),
            model: limit::named_model(message),
            is_page: false,
        };
        // Some upstreams nest the error once more. Then the inner error wins.
        let is_nested = error.last("error").is_some_and(Json::is_object);
        assert!(is_nested || found == expected, "{}", text.escape_ascii());
        let event = [b"{\"response\":", text, b"}"].concat();
        if Json::read(&event).is_some() {
            assert_eq!(ErrorBody::of_event(&event), Some(found), "{}", event.escape_ascii());
        }
    }
}

fn expected_status(frame: &Json) -> StatusCode {
    let number = ["status", "status_code"].into_iter().find_map(|name| match frame.last(name) {
        Some(Json::Count(number)) => u16::try_from(*number).ok(),
        _ => None,
    });
    number.and_then(|number| StatusCode::from_u16(number).ok()).unwrap_or(StatusCode::BAD_REQUEST)
}

/// An answer's end and usage are read as serde_json's tree shows them, alone and inside an event.
/// Repeated fields, and arrays in place of objects, may make an answer unreadable, but cause no
/// panic.
pub fn terminal(text: &[u8]) {
    terminal::of_event(text);
    let (end, usage) = terminal::of_document(text);
    if serde_json::from_slice::<IgnoredAny>(text).is_ok() {
        let event = [b"{\"response\":", text, b"}"].concat();
        assert_eq!(terminal::of_event(&event), usage, "{}", event.escape_ascii());
    }
    let Some(plain) = Json::read(text) else { return };
    assert_eq!(end, expected_end(&plain), "{}", text.escape_ascii());
    let stated = plain.last("usage").filter(|usage| usage.is_object());
    let (input, output) =
        (usage.as_ref().map(|usage| usage.input), usage.as_ref().map(|usage| usage.output));
    let count = |name: &str| match stated.and_then(|usage| usage.last(name)) {
        Some(Json::Count(count)) => Some(*count),
        _ => None,
    };
    // A count that cannot be read is missing, and never another number.
    for (found, stated) in [(input, count("input_tokens")), (output, count("output_tokens"))] {
        if let (Some(found), Some(stated)) = (found, stated) {
            assert_eq!(found, stated, "{}", text.escape_ascii());
        }
    }
    assert!(usage.is_none() || stated.is_some(), "{}", text.escape_ascii());
}

fn expected_end(response: &Json) -> Terminal {
    match response.last("status").and_then(Json::text) {
        Some("incomplete") => Terminal::Incomplete,
        Some("failed" | "cancelled") => Terminal::Failed,
        _ => Terminal::Completed,
    }
}

/// A decoder returns what was encoded, however the bytes arrive. Broken bytes make the decoder
/// blind and never make it panic. Its output does not depend on the cuts, unless it is blind in one
/// of the runs.
pub fn decoder(bytes: &[u8], cuts: &[u8]) {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).expect("memory takes all");
    let gzip = gzip.finish().expect("memory takes all");
    let zstd = zstd::encode_all(bytes, 1).expect("memory takes all");
    let mut original = Digest::default();
    original.write_all(bytes).expect("a digest takes all");
    for (encoding, encoded) in
        [(None, bytes), (Some("identity"), bytes), (Some("gzip"), &gzip), (Some("zstd"), &zstd)]
    {
        assert_eq!(
            decoded(encoding, chunks(encoded, cuts)),
            Some(original),
            "{encoding:?}, {cuts:?}"
        );
    }
    assert_eq!(decoded(Some("br"), chunks(bytes, cuts)), None);
    for encoding in ["gzip", "zstd"] {
        let whole = decoded(Some(encoding), vec![bytes]);
        let cut = decoded(Some(encoding), chunks(bytes, cuts));
        assert!(
            cut == whole || cut.is_none() || whole.is_none(),
            "{encoding}, {cuts:?}: {cut:?}, {whole:?}"
        );
    }
}

/// A digest of a decoder's output, because a few bytes may unpack to gigabytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Digest {
    length: usize,
    sum: u64,
}

impl Write for Digest {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.length += bytes.len();
        self.sum = bytes
            .iter()
            .fold(self.sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte) + 1));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn decoded(encoding: Option<&'static str>, chunks: Vec<&[u8]>) -> Option<Digest> {
    let headers = encoding.map(|name| (CONTENT_ENCODING, HeaderValue::from_static(name)));
    let mut decoder = Decoder::new(&HeaderMap::from_iter(headers), Digest::default());
    chunks.into_iter().for_each(|chunk| decoder.observe(chunk));
    decoder.reader().copied()
}
