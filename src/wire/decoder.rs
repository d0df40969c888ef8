//! Decodes a copy of an answer's bytes for a reader. The answer itself is never decoded.

use std::io::Write;

use flate2::write::MultiGzDecoder;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

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
