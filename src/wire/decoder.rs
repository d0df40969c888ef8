//! Hands a copy of an answer's bytes, decoded, to whoever reads them. The answer itself is never
//! decoded.

use std::io::Write;

use flate2::write::MultiGzDecoder;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

/// What decodes for a reader of type `R`, in the encoding that an answer has.
pub enum Decoder<R: Write> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(Box<zstd::stream::write::Decoder<'static, R>>),
    /// An encoding that is not read, or bytes that are not of it: the answer passes, and nothing is
    /// known of it.
    Blind,
}

impl<R: Write> Decoder<R> {
    pub fn new(headers: &HeaderMap, reader: R) -> Self {
        match headers.get(CONTENT_ENCODING).map(|value| value.as_bytes()) {
            None | Some(b"identity") => Self::Plain(reader),
            Some(b"gzip") => Self::Gzip(Box::new(MultiGzDecoder::new(reader))),
            Some(b"zstd") => zstd::stream::write::Decoder::new(reader)
                .map_or(Self::Blind, |decoder| Self::Zstd(Box::new(decoder))),
            Some(_) => Self::Blind,
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

    /// `None`: it cannot be told what the answer says.
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
