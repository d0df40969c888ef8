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
use crate::wire::terminal::{self, Terminal, Usage};

/// An error is read as serde_json's tree shows it, alone and inside an event. The readers tolerate
/// repeated fields, and arrays in place of objects: there they only must not panic.
pub fn error_body(text: &[u8]) {
    let found = ErrorBody::parse(text);
    let _ = (ErrorBody::of_event(text), frame_headers(text));
    let status = frame_status(text);
    let Some(plain) = Json::read(text) else { return };
    assert_eq!(status, expected_status(&plain), "{}", text.escape_ascii());
    let own = plain.last("error").filter(|_| plain.is_plain(&["error"]));
    if let Some(error) = own.filter(|error| error.is_plain(&["code", "type", "message"])) {
        let of = |name: &str| error.last(name).and_then(Json::text);
        let message = of("message").unwrap_or_default();
        let expected = ErrorBody {
            code: of("code").map(str::to_owned),
            class: of("type").map(str::to_owned),
            is_beyond_limit: limit::is_beyond_limit(message),
            wait: limit::wait_in(message),
        };
        assert_eq!(found, expected, "{}", text.escape_ascii());
        let event = [b"{\"response\":", text, b"}"].concat();
        if Json::read(&event).is_some() {
            assert_eq!(ErrorBody::of_event(&event), Some(expected), "{}", event.escape_ascii());
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
    if plain.is_plain(&["status", "usage", "prompt_cache_diagnostics"])
        && is_plain_or_no_object(
            plain.last("usage"),
            &["input_tokens", "input_tokens_details", "output_tokens"],
        )
        && is_plain_or_no_object(plain.last("prompt_cache_diagnostics"), &["reason"])
        && is_plain_or_no_object(
            plain.last("usage").and_then(|usage| usage.last("input_tokens_details")),
            &["cached_tokens", "cache_write_tokens"],
        )
    {
        assert_eq!((end, usage), expected_end(&plain), "{}", text.escape_ascii());
    }
}

fn is_plain_or_no_object(value: Option<&Json>, names: &[&str]) -> bool {
    value.is_none_or(|value| !value.is_object() || value.is_plain(names))
}

fn expected_end(response: &Json) -> (Terminal, Option<Usage>) {
    let end = match response.last("status").and_then(Json::text) {
        Some("incomplete") => Terminal::Incomplete,
        Some("failed" | "cancelled") => Terminal::Failed,
        _ => Terminal::Completed,
    };
    let count = |value: Option<&Json>| match value {
        Some(Json::Count(count)) => *count,
        _ => 0,
    };
    let diagnostics = response.last("prompt_cache_diagnostics");
    let usage = response.last("usage").filter(|usage| usage.is_object()).map(|usage| {
        let details = usage.last("input_tokens_details");
        let detail = |name| count(details.and_then(|details| details.last(name)));
        let half_day = details
            .and_then(|details| details.last("cache_write_tokens_details")?.last("ttl_12h_tokens"));
        Usage {
            id: response.last("id").and_then(Json::text).map(str::to_owned),
            input: count(usage.last("input_tokens")),
            cached: detail("cached_tokens"),
            written: detail("cache_write_tokens"),
            written_half_day: count(half_day),
            output: count(usage.last("output_tokens")),
            reasoning: count(
                usage
                    .last("output_tokens_details")
                    .and_then(|details| details.last("reasoning_tokens")),
            ),
            tier: response.last("service_tier").and_then(Json::text).map(str::to_owned),
            miss: diagnostics.and_then(|value| value.last("reason")?.text()).map(str::to_owned),
        }
    });
    (end, usage)
}

/// A decoder yields what was encoded, however the bytes arrive. Broken bytes blind the decoder and
/// never make it panic. Its output does not depend on the cuts, unless one run is blind.
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
