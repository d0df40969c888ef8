//! Decodes a copy of an answer's bytes for a reader. The answer itself is never decoded.

use std::io::Write;

use flate2::write::MultiGzDecoder;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

/// The content coding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Plain,
    Gzip,
    Zstd,
    /// A coding that the gateway cannot read, or several at once.
    Unknown,
}

impl Coding {
    /// Reads `content-encoding`. Codings are case-insensitive, and `x-gzip` is `gzip` (RFC 9110,
    /// section 8.4.1).
    pub fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::Plain;
        for value in headers.get_all(CONTENT_ENCODING) {
            let Ok(text) = value.to_str() else { return Self::Unknown };
            for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                let is = |coding: &str| name.eq_ignore_ascii_case(coding);
                found = match found {
                    _ if is("identity") => found,
                    Self::Plain if is("gzip") || is("x-gzip") => Self::Gzip,
                    Self::Plain if is("zstd") => Self::Zstd,
                    _ => return Self::Unknown,
                };
            }
        }
        found
    }
}

/// A decoder for a reader of type `R`, in the encoding of the answer.
pub enum Decoder<R: Write> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(Box<zstd::stream::write::Decoder<'static, R>>),
    /// The encoding is unsupported or the bytes are invalid. The answer passes, but its content
    /// stays unknown.
    Blind,
}

impl<R: Write> Decoder<R> {
    pub fn new(headers: &HeaderMap, reader: R) -> Self {
        match Coding::of(headers) {
            Coding::Plain => Self::Plain(reader),
            Coding::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(reader))),
            Coding::Zstd => zstd::stream::write::Decoder::new(reader)
                .map_or(Self::Blind, |decoder| Self::Zstd(Box::new(decoder))),
            Coding::Unknown => Self::Blind,
        }
    }

    pub fn observe(&mut self, chunk: &[u8]) {
        let result = match self {
            Self::Plain(reader) => reader.write_all(chunk),
            Self::Gzip(decoder) => decoder.write_all(chunk).and_then(|()| decoder.flush()),
            Self::Zstd(decoder) => decoder.write_all(chunk).and_then(|()| decoder.flush()),
            Self::Blind => Ok(()),
        };
        if result.is_err() {
            *self = Self::Blind;
        }
    }

    /// The reader. `None` if the answer's content is unknown.
    pub fn reader(&self) -> Option<&R> {
        match self {
            Self::Plain(reader) => Some(reader),
            Self::Gzip(decoder) => Some(decoder.get_ref()),
            Self::Zstd(decoder) => Some(decoder.get_ref()),
            Self::Blind => None,
        }
    }

    pub fn reader_mut(&mut self) -> Option<&mut R> {
        match self {
            Self::Plain(reader) => Some(reader),
            Self::Gzip(decoder) => Some(decoder.get_mut()),
            Self::Zstd(decoder) => Some(decoder.get_mut()),
            Self::Blind => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn coding_is_read_in_every_spelling() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            Coding::of(&headers)
        };
        for (values, expected) in [
            (&[][..], Coding::Plain),
            (&[""], Coding::Plain),
            (&["Identity"], Coding::Plain),
            (&["GZIP"], Coding::Gzip),
            (&["x-GZip"], Coding::Gzip),
            (&["identity, gzip"], Coding::Gzip),
            (&[" Zstd "], Coding::Zstd),
            (&["identity", "zstd"], Coding::Zstd),
            (&["br"], Coding::Unknown),
            (&["deflate"], Coding::Unknown),
            (&["gzip, zstd"], Coding::Unknown),
            (&["gzip", "gzip"], Coding::Unknown),
        ] {
            assert_eq!(of(values), expected, "{values:?}");
        }
    }
}
