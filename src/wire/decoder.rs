//! Decodes a copy of an answer's bytes for a reader. The answer itself is never decoded.
//!
//! A few bytes may decode to gigabytes. An answer beyond a limit of memory or time is as unreadable
//! as one that is not in its coding, and does not pass on.

use std::io::{self, Write};

use flate2::write::MultiGzDecoder;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use zstd::stream::raw::{self, DParameter};
use zstd::stream::zio;

/// An answer may decode to this many times its size, and to `ANY_RATIO` bytes at least.
const RATIO: usize = 200;
const ANY_RATIO: usize = 1024 * 1024;
/// The largest piece that is decoded at once, and most bytes that it may decode to, because other
/// turns wait meanwhile.
pub const PIECE: usize = 16 * 1024;
const UNFOLDED: usize = 4 * 1024 * 1024;
/// Logarithm of the largest window of a zstd answer: 8 MiB (RFC 9659, section 3).
const WINDOW: u32 = 23;

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
    Gzip(Box<MultiGzDecoder<Bounded<R>>>),
    Zstd(Box<zio::Writer<Bounded<R>, raw::Decoder<'static>>>),
    /// The encoding is unsupported, the bytes are invalid, or they decode to too much.
    Blind,
}

/// A reader that takes a limited number of bytes.
pub struct Bounded<R> {
    reader: R,
    /// Bytes that the whole answer may still decode to.
    left: usize,
    /// Bytes that the current piece may still decode to.
    of_piece: usize,
    has_begun: bool,
}

impl<R> Bounded<R> {
    const fn new(reader: R) -> Self {
        Self { reader, left: ANY_RATIO, of_piece: 0, has_begun: false }
    }

    /// Allows for one more piece of this length.
    const fn begin(&mut self, piece: usize) {
        self.left = self.left.saturating_add(piece.saturating_mul(RATIO));
        (self.of_piece, self.has_begun) = (UNFOLDED, true);
    }
}

impl<R: Write> Write for Bounded<R> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let limits = self.left.checked_sub(bytes.len()).zip(self.of_piece.checked_sub(bytes.len()));
        let (left, of_piece) = limits.ok_or(io::ErrorKind::QuotaExceeded)?;
        (self.left, self.of_piece) = (left, of_piece);
        self.reader.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.reader.flush()
    }
}

impl<R: Write> Decoder<R> {
    pub fn new(headers: &HeaderMap, reader: R) -> Self {
        match Coding::of(headers) {
            Coding::Plain => Self::Plain(reader),
            Coding::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(Bounded::new(reader)))),
            Coding::Zstd => raw::Decoder::new()
                .and_then(|mut decoder| {
                    decoder.set_parameter(DParameter::WindowLogMax(WINDOW))?;
                    Ok(zio::Writer::new(Bounded::new(reader), decoder))
                })
                .map_or(Self::Blind, |writer| Self::Zstd(Box::new(writer))),
            Coding::Unknown => Self::Blind,
        }
    }

    pub fn observe(&mut self, chunk: &[u8]) {
        let result = match self {
            Self::Plain(reader) => reader.write_all(chunk),
            Self::Gzip(decoder) => chunk.chunks(PIECE).try_for_each(|piece| {
                decoder.get_mut().begin(piece.len());
                decoder.write_all(piece).and_then(|()| decoder.flush())
            }),
            Self::Zstd(decoder) => chunk.chunks(PIECE).try_for_each(|piece| {
                decoder.writer_mut().begin(piece.len());
                decoder.write_all(piece).and_then(|()| decoder.flush())
            }),
            Self::Blind => Ok(()),
        };
        if result.is_err() {
            *self = Self::Blind;
        }
    }

    /// Whether the answer cannot be read any further.
    pub const fn is_blind(&self) -> bool {
        matches!(self, Self::Blind)
    }

    /// Notes the end of the answer. An answer whose coding goes on is not whole, and unreadable.
    pub fn end(&mut self) {
        let is_whole = match self {
            Self::Plain(_) | Self::Blind => return,
            Self::Gzip(decoder) => !decoder.get_ref().has_begun || decoder.try_finish().is_ok(),
            Self::Zstd(decoder) => !decoder.writer().has_begun || decoder.finish().is_ok(),
        };
        if !is_whole {
            *self = Self::Blind;
        }
    }

    /// The reader. `None` if the answer's content is unknown.
    pub fn reader(&self) -> Option<&R> {
        match self {
            Self::Plain(reader) => Some(reader),
            Self::Gzip(decoder) => Some(&decoder.get_ref().reader),
            Self::Zstd(decoder) => Some(&decoder.writer().reader),
            Self::Blind => None,
        }
    }

    pub fn reader_mut(&mut self) -> Option<&mut R> {
        match self {
            Self::Plain(reader) => Some(reader),
            Self::Gzip(decoder) => Some(&mut decoder.get_mut().reader),
            Self::Zstd(decoder) => Some(&mut decoder.writer_mut().reader),
            Self::Blind => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    /// Counts what it reads.
    #[derive(Default)]
    struct Count(usize);

    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn encoded(coding: &str, text: &[u8]) -> Vec<u8> {
        if coding == "zstd" {
            return zstd::encode_all(text, 3).unwrap();
        }
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    /// Decodes chunks of this size. Returns how many bytes the reader got, if it got all.
    fn decoded(coding: &'static str, bytes: &[u8], size: usize) -> Option<usize> {
        let headers = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(coding))]);
        let mut decoder = Decoder::new(&headers, Count::default());
        bytes.chunks(size).for_each(|chunk| decoder.observe(chunk));
        decoder.reader().map(|count| count.0)
    }

    #[test]
    fn answer_that_unfolds_too_far_is_not_read() {
        for coding in ["gzip", "zstd"] {
            let small = vec![b' '; ANY_RATIO];
            assert_eq!(decoded(coding, &encoded(coding, &small), 64), Some(ANY_RATIO));
            let bomb = encoded(coding, &vec![b' '; 64 << 20]);
            for size in [1, 100, bomb.len()] {
                assert_eq!(decoded(coding, &bomb, size), None, "{coding} {size}");
            }
            // Within the ratio, and more than one piece may decode to.
            let noise: Vec<u8> =
                (0..UNFOLDED as u32 / 2).flat_map(|n| (n / 8).to_be_bytes()).collect();
            let folded = encoded(coding, &noise);
            assert!(noise.len() / folded.len() < RATIO && noise.len() > UNFOLDED);
            for size in [4 << 10, folded.len()] {
                assert_eq!(decoded(coding, &folded, size), Some(noise.len()), "{coding}");
            }
        }
    }

    #[test]
    fn answer_is_whole_only_if_its_coding_is() {
        let ended = |coding: &'static str, bytes: &[u8]| {
            let headers =
                HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(coding))]);
            let mut decoder = Decoder::new(&headers, Count::default());
            decoder.observe(bytes);
            assert!(!decoder.is_blind(), "{coding}: what has come can be read");
            decoder.end();
            decoder.reader().map(|count| count.0)
        };
        for coding in ["gzip", "zstd"] {
            let whole = encoded(coding, b"a text that is worth it");
            assert_eq!(ended(coding, &whole), Some(23), "{coding}");
            let twice = [&whole[..], &whole].concat();
            assert_eq!(ended(coding, &twice), Some(46), "{coding}: several members or frames");
            assert_eq!(ended(coding, b""), Some(0), "{coding}: nothing has no coding");
            for length in 1..whole.len() {
                assert_eq!(ended(coding, &whole[..length]), None, "{coding}: {length} bytes");
            }
        }
        assert_eq!(ended("identity", b"any"), Some(3));
    }

    #[test]
    fn window_of_an_answer_is_limited() {
        for (log, expected) in [(23, Some(64)), (24, None), (27, None)] {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
            encoder.window_log(log).unwrap();
            encoder.write_all(&[b'x'; 64]).unwrap();
            encoder.flush().unwrap();
            let bytes = encoder.finish().unwrap();
            assert_eq!(decoded("zstd", &bytes, bytes.len()), expected, "{log}");
        }
    }

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
