//! Checks that every reader of an answer sees the same end of the answer. Pure.

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};

/// Whether an answer's length is stated exactly once (RFC 9112, section 6.3). A transfer coding
/// other than `chunked` would reach the client undecoded. A `content-length` beside `chunked` would
/// cut the answer.
pub fn is_framed_once(headers: &HeaderMap) -> bool {
    // Only some readers accept a list of equal lengths as one length.
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let is_number = |value: &HeaderValue| value.as_bytes().iter().all(u8::is_ascii_digit);
    if !lengths.next().is_none_or(is_number) || lengths.next().is_some() {
        return false;
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    codings.next().is_none_or(|coding| {
        coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked")
            && codings.next().is_none()
            && !headers.contains_key(CONTENT_LENGTH)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_stated_once() {
        for (lengths, codings, expected) in [
            (&[][..], &[][..], true),
            (&["5"], &[], true),
            (&[], &["chunked"], true),
            (&[], &[" Chunked "], true),
            (&["5", "5"], &[], false),
            (&["5, 5"], &[], false),
            (&["+5"], &[], false),
            (&["5"], &["chunked"], false),
            (&[], &["gzip, chunked"], false),
            (&[], &["chunked", "chunked"], false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, values) in [(CONTENT_LENGTH, lengths), (TRANSFER_ENCODING, codings)] {
                for value in values {
                    headers.append(&name, HeaderValue::from_static(value));
                }
            }
            assert_eq!(is_framed_once(&headers), expected, "{lengths:?} {codings:?}");
        }
    }
}
