//! Decodes a copy of an answer's bytes for a reader. The answer itself is never decoded.
//!
//! A few bytes may decode to gigabytes. Beyond a limit of memory or time the rest of an answer is
//! not read: it passes, and its content is unknown. A chunk that decodes to much is read in steps,
//! so that other turns of its thread have their turn.

use std::io::{self, Read, Write};

use flate2::write::MultiGzDecoder;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

/// An answer may decode to this many times its size, and to `ANY_RATIO` bytes at least.
const RATIO: usize = 200;
const ANY_RATIO: usize = 1024 * 1024;
/// Most bytes that one chunk may decode to.
const CHUNK: usize = 4 * 1024 * 1024;
/// Bytes that one step decodes, because other turns wait meanwhile: some tenths of a millisecond.
const STEP: usize = 128 * 1024;
/// Bytes that are decoded at once.
const PIECE: usize = 16 * 1024;
/// Bytes that a decoder of gzip holds: its window, and the buffers of the library.
const GZIP: usize = 96 * 1024;
/// Logarithm of the largest window of a zstd text: 8 MiB (RFC 9659, section 3).
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

/// Reads a whole text in zstd, which may need no larger window than HTTP allows.
pub fn unfold_zstd(bytes: &[u8]) -> io::Result<impl Read> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes)?;
    decoder.window_log_max(WINDOW)?;
    Ok(decoder)
}

/// A decoder for a reader of type `R`, in the encoding of the answer.
pub enum Decoder<R: Write> {
    Plain(R),
    Gzip(Box<Gzip<R>>),
    Zstd(Box<Zstd<R>>),
    /// The encoding is unsupported, the bytes are invalid, or they decode to too much. The answer
    /// passes, but its content stays unknown.
    Blind,
}

/// A decoder of gzip.
pub struct Gzip<R: Write> {
    decoder: MultiGzDecoder<Bounded<R>>,
    /// Bytes of the current chunk that are decoded.
    at: usize,
}

/// A decoder of zstd.
pub struct Zstd<R> {
    context: DCtx<'static>,
    reader: Bounded<R>,
    /// Bytes of the current chunk that are decoded.
    at: usize,
}

/// A reader that takes a limited number of bytes.
pub struct Bounded<R> {
    reader: R,
    /// Bytes that the whole answer may still decode to.
    left: usize,
    /// Bytes that the current chunk may still decode to.
    of_chunk: usize,
}

impl<R> Bounded<R> {
    const fn new(reader: R) -> Self {
        Self { reader, left: ANY_RATIO, of_chunk: 0 }
    }

    /// Allows for one more chunk of this length.
    const fn begin(&mut self, chunk: usize) {
        self.left = self.left.saturating_add(chunk.saturating_mul(RATIO));
        self.of_chunk = CHUNK;
    }
}

impl<R: Write> Write for Bounded<R> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let limits = self.left.checked_sub(bytes.len()).zip(self.of_chunk.checked_sub(bytes.len()));
        let (left, of_chunk) = limits.ok_or(io::ErrorKind::QuotaExceeded)?;
        (self.left, self.of_chunk) = (left, of_chunk);
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
            Coding::Gzip => {
                let decoder = MultiGzDecoder::new(Bounded::new(reader));
                Self::Gzip(Box::new(Gzip { decoder, at: 0 }))
            }
            Coding::Zstd => {
                Zstd::new(reader).map_or(Self::Blind, |zstd| Self::Zstd(Box::new(zstd)))
            }
            Coding::Unknown => Self::Blind,
        }
    }

    /// Reads a whole chunk, however long that takes.
    pub fn observe(&mut self, chunk: &[u8]) {
        while !self.step(chunk) {}
    }

    /// Reads the next part of `chunk`. Returns whether all of the chunk is read. Otherwise the next
    /// call must be about the same chunk.
    pub fn step(&mut self, chunk: &[u8]) -> bool {
        let is_read = match self {
            Self::Plain(reader) => reader.write_all(chunk).map(|()| true),
            Self::Gzip(gzip) => gzip.step(chunk),
            Self::Zstd(zstd) => zstd.step(chunk),
            Self::Blind => Ok(true),
        };
        is_read.unwrap_or_else(|_| {
            *self = Self::Blind;
            true
        })
    }

    /// The bytes that the decoder holds, without those of its reader.
    pub fn held(&self) -> usize {
        match self {
            Self::Plain(_) | Self::Blind => 0,
            Self::Gzip(_) => GZIP,
            Self::Zstd(zstd) => zstd.context.sizeof(),
        }
    }

    /// The reader. `None` if the answer's content is unknown.
    pub fn reader(&self) -> Option<&R> {
        match self {
            Self::Plain(reader) => Some(reader),
            Self::Gzip(gzip) => Some(&gzip.decoder.get_ref().reader),
            Self::Zstd(zstd) => Some(&zstd.reader.reader),
            Self::Blind => None,
        }
    }

    pub fn reader_mut(&mut self) -> Option<&mut R> {
        match self {
            Self::Plain(reader) => Some(reader),
            Self::Gzip(gzip) => Some(&mut gzip.decoder.get_mut().reader),
            Self::Zstd(zstd) => Some(&mut zstd.reader.reader),
            Self::Blind => None,
        }
    }
}

impl<R: Write> Gzip<R> {
    fn step(&mut self, chunk: &[u8]) -> io::Result<bool> {
        if self.at == 0 {
            self.decoder.get_mut().begin(chunk.len());
        }
        let before = self.decoder.get_ref().left;
        while self.at < chunk.len() {
            if before - self.decoder.get_ref().left >= STEP {
                return Ok(false);
            }
            match self.decoder.write(&chunk[self.at..])? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => self.at += count,
            }
        }
        self.at = 0;
        self.decoder.flush().map(|()| true)
    }
}

impl<R: Write> Zstd<R> {
    /// `None`: the library has no memory.
    fn new(reader: R) -> Option<Self> {
        let mut context = DCtx::try_create()?;
        context.set_parameter(DParameter::WindowLogMax(WINDOW)).ok()?;
        Some(Self { context, reader: Bounded::new(reader), at: 0 })
    }

    fn step(&mut self, chunk: &[u8]) -> io::Result<bool> {
        if self.at == 0 {
            self.reader.begin(chunk.len());
        }
        let mut text = [0_u8; PIECE];
        for _ in 0..STEP / PIECE {
            let mut input = InBuffer { src: chunk, pos: self.at };
            let mut output = OutBuffer::around(&mut text[..]);
            self.context
                .decompress_stream(&mut output, &mut input)
                .map_err(|_| io::ErrorKind::InvalidData)?;
            let come = output.pos();
            self.at = input.pos;
            self.reader.write_all(&text[..come])?;
            if self.at == chunk.len() && come < PIECE {
                self.at = 0;
                return Ok(true);
            }
        }
        Ok(false)
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
            // Within the ratio, but all at once.
            let noise: Vec<u8> =
                (0..CHUNK as u32 / 2).flat_map(|n| (n / 8).to_be_bytes()).collect();
            let folded = encoded(coding, &noise);
            assert!(noise.len() / folded.len() < RATIO && noise.len() > CHUNK);
            assert_eq!(decoded(coding, &folded, 4 << 10), Some(noise.len()), "{coding}");
            assert_eq!(decoded(coding, &folded, folded.len()), None, "{coding}");
        }
    }

    #[test]
    fn chunk_that_decodes_to_much_is_read_in_steps() {
        let text: Vec<u8> = (0..1_u32 << 18).flat_map(|n| (n / 8).to_be_bytes()).collect();
        for coding in ["gzip", "zstd"] {
            let folded = encoded(coding, &text);
            let headers =
                HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(coding))]);
            let mut decoder = Decoder::new(&headers, Count::default());
            let (mut steps, mut before) = (0, 0);
            loop {
                let is_read = decoder.step(&folded);
                let now = decoder.reader().unwrap().0;
                assert!(now - before <= STEP + 2 * 32 * 1024, "{coding} {}", now - before);
                (steps, before) = (steps + 1, now);
                if is_read {
                    break;
                }
            }
            assert!(before == text.len() && steps >= text.len() / STEP / 2, "{coding} {steps}");
        }
    }

    #[test]
    fn memory_of_a_decoder_is_known() {
        let held = |coding: &'static str, bytes: &[u8]| {
            let headers =
                HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(coding))]);
            let mut decoder = Decoder::new(&headers, Count::default());
            decoder.observe(bytes);
            decoder.held()
        };
        assert_eq!(held("identity", b"x"), 0);
        assert_eq!(held("gzip", &encoded("gzip", b"x")), GZIP);
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(WINDOW).unwrap();
        encoder.write_all(&[b'x'; 64]).unwrap();
        encoder.flush().unwrap();
        let window = 1 << WINDOW;
        let large = held("zstd", &encoder.finish().unwrap());
        assert!((window..window + (1 << 20)).contains(&large), "{large}");
        let small = held("zstd", &encoded("zstd", b"x"));
        assert!(small < 1 << 20, "{small}");
        assert_eq!(held("zstd", b"no zstd at all"), 0, "nothing is kept of what cannot be read");
    }

    #[test]
    fn window_of_a_text_is_limited() {
        for (log, expected) in [(23, Some(64)), (24, None), (27, None)] {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
            encoder.window_log(log).unwrap();
            encoder.write_all(&[b'x'; 64]).unwrap();
            encoder.flush().unwrap();
            let bytes = encoder.finish().unwrap();
            assert_eq!(decoded("zstd", &bytes, bytes.len()), expected, "{log}");
            let whole = unfold_zstd(&bytes).unwrap().read_to_end(&mut Vec::new());
            assert_eq!(whole.ok(), expected, "{log}");
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
