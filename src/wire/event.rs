//! Reads a stream of server-sent events: lines, fields, and the type at the start of an event's
//! data. Pure.
//!
//! Every byte of every streamed answer passes here, so each function reads once and copies nothing.

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use memchr::{memchr, memchr2};

use crate::wire::terminal::Terminal;

/// Whether an answer with these headers is a stream of events.
pub fn is_stream(headers: &HeaderMap) -> bool {
    const STREAM: &[u8] = b"text/event-stream";
    let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    kind.get(..STREAM.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(STREAM))
}

/// Returns the length of the first line of `bytes`, or `None` if the line is incomplete. A line
/// ends with `\n`, `\r` or `\r\n`. The caller skips the second byte of `\r\n`, which may come
/// later.
#[inline]
pub fn line_length(bytes: &[u8]) -> Option<usize> {
    memchr2(b'\n', b'\r', bytes)
}

/// Returns the value of a field line, without the optional space before the value. `name` includes
/// the colon.
#[inline]
pub fn field<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let value = line.strip_prefix(name)?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

/// Returns the type at the start of an event's data or of a WebSocket message, where OpenAI writes
/// it. White space may stand anywhere. Returns `None` also for a type that contains an escape.
pub fn first_type(text: &[u8]) -> Option<&[u8]> {
    written_type(text).filter(|name| !name.contains(&b'\\'))
}

/// Returns the end that a `data:` line announces without an `event:` line before it:
/// `{"type":"response.completed"`.
pub fn unnamed(data: &[u8]) -> Option<Terminal> {
    // The first letter after `response.` shows that most types are no end, such as
    // `response.output_text.delta`.
    if let Some(name) = data.strip_prefix(br#"{"type":"response."#)
        && !matches!(name.first(), Some(b'c' | b'i' | b'f'))
    {
        return None;
    }
    Terminal::of_event(written_type(data)?)
}

/// Whether the start of an event's data leaves its type open. The type may not be the first field,
/// be written with an escape, or stand on a later line. `is_whole`: the line has no more data.
pub fn hides_type(data: &[u8], is_whole: bool) -> bool {
    let Some(mut rest) = data.trim_ascii_start().strip_prefix(b"{") else { return false };
    for token in [&br#""type""#[..], b":", b"\""] {
        match rest.trim_ascii_start().strip_prefix(token) {
            Some(after) => rest = after,
            None => return is_whole || !rest.trim_ascii_start().is_empty(),
        }
    }
    let name = &rest[..memchr(b'"', rest).unwrap_or(rest.len())];
    name.contains(&b'\\')
}

/// Returns the first type as written, up to the first quote. An escaped quote would cut it short.
fn written_type(text: &[u8]) -> Option<&[u8]> {
    let mut rest = text;
    for token in [&b"{"[..], br#""type""#, b":", b"\""] {
        rest = rest.trim_ascii_start().strip_prefix(token)?;
    }
    Some(&rest[..memchr(b'"', rest)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_value_loses_one_space_and_no_more() {
        for (line, value) in [
            ("data:x", Some("x")),
            ("data: x", Some("x")),
            ("data:  x", Some(" x")),
            ("data:", Some("")),
            ("data", None),
            (" data:x", None),
            ("Data:x", None),
        ] {
            assert_eq!(field(line.as_bytes(), b"data:"), value.map(str::as_bytes), "{line}");
        }
    }

    #[test]
    fn first_type_is_the_first_field_or_none() {
        for (text, name) in [
            (r#"{"type":"error"}"#, Some("error")),
            ("\t{ \"type\"\n: \"error\" , \"x", Some("error")),
            (r#"{"type":"""#, Some("")),
            (r#"{"type":"err"#, None),
            (r#"{"type":"err\u006fr"}"#, None),
            (r#"{"sequence_number":0,"type":"error"}"#, None),
            (r#"{"type":7}"#, None),
            ("", None),
        ] {
            assert_eq!(first_type(text.as_bytes()), name.map(str::as_bytes), "{text}");
        }
    }

    #[test]
    fn line_ends_at_either_byte() {
        for (bytes, length) in
            [("a\nb", Some(1)), ("ab\r\n", Some(2)), ("\r", Some(0)), ("ab", None), ("", None)]
        {
            assert_eq!(line_length(bytes.as_bytes()), length, "{bytes:?}");
        }
    }
}
