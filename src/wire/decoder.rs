//! Decodes a copy of an answer's bytes for a reader. The answer itself is never decoded.
//!
//! A few bytes may decode to gigabytes. An answer that decodes to more than its limit counts as
//! unreadable, like an answer with invalid bytes, and does not pass. A chunk that decodes to many
//! bytes is read in steps, and other turns of its thread run in between.

use std::io::{self, Read, Write};

use flate2::write::MultiGzDecoder;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

/// An answer may decode to this many times its size, and to `ANY_RATIO` bytes at least.
const RATIO: usize = 200;
const ANY_RATIO: usize = 1024 * 1024;
/// Bytes that one step decodes. Other turns wait meanwhile, for some tenths of a millisecond.
const STEP: usize = 128 * 1024;
/// Encoded bytes that are decoded while other turns wait: a block, a frame or a member that decodes
/// to nothing takes up to 2 us, and may have 10 to 20 bytes.
pub const INPUT: usize = 16 * 1024;
/// Bytes that are decoded at once.
pub const PIECE: usize = 16 * 1024;
/// Bytes that a decoder of gzip holds: its window, and the buffers of the library.
const GZIP: usize = 96 * 1024;
/// Logarithm of the largest window of a zstd text: 8 MiB (RFC 9659, section 3).
const WINDOW: u32 = 23;

/// The `content-encoding` of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Plain,
    Gzip,
    Zstd,
    /// A coding that the gateway cannot read, or several codings in one body.
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

/// Returns a reader of a whole zstd text. The text may need no larger window than HTTP allows.
pub fn unfold_zstd(bytes: &[u8]) -> io::Result<impl Read> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes)?;
    decoder.window_log_max(WINDOW)?;
    Ok(decoder)
}

/// A decoder of an answer in its coding, for a reader of type `R`.
pub enum Decoder<R: Write> {
    Plain(R),
    Gzip(Box<Gzip<R>>),
    Zstd(Box<Zstd<R>>),
    /// The coding is unsupported, the bytes are invalid, or they decode to too many bytes.
    Blind,
}

/// A decoder of gzip.
pub struct Gzip<R: Write> {
    decoder: MultiGzDecoder<Bounded<R>>,
    /// Bytes of the current chunk that are decoded already.
    at: usize,
}

/// A decoder of zstd.
pub struct Zstd<R> {
    context: DCtx<'static>,
    reader: Bounded<R>,
    /// Bytes of the current chunk that are decoded already.
    at: usize,
    /// Whether no frame is unfinished.
    is_whole: bool,
}

/// A reader that takes a limited number of bytes, and fails beyond them.
pub struct Bounded<R> {
    reader: R,
    /// Bytes that the whole answer may still decode to.
    left: usize,
    has_begun: bool,
}

impl<R> Bounded<R> {
    const fn new(reader: R) -> Self {
        Self { reader, left: ANY_RATIO, has_begun: false }
    }

    /// Raises the limit for one more chunk of this length.
    const fn begin(&mut self, chunk: usize) {
        self.left = self.left.saturating_add(chunk.saturating_mul(RATIO));
        self.has_begun = true;
    }
}

impl<R: Write> Write for Bounded<R> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left.checked_sub(bytes.len());
        self.left = left.ok_or(io::ErrorKind::QuotaExceeded)?;
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
        if chunk.is_empty() {
            return true;
        }
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

    /// Whether the answer cannot be read any further.
    pub const fn is_blind(&self) -> bool {
        matches!(self, Self::Blind)
    }

    /// Notes the end of the answer. If the coding is not at its end, the answer was cut, and counts
    /// as unreadable.
    pub fn end(&mut self) {
        let is_whole = match self {
            Self::Plain(_) | Self::Blind => return,
            Self::Gzip(gzip) => {
                !gzip.decoder.get_ref().has_begun || gzip.decoder.try_finish().is_ok()
            }
            Self::Zstd(zstd) => zstd.is_whole,
        };
        if !is_whole {
            *self = Self::Blind;
        }
    }

    /// Returns the number of bytes that the decoder holds, without those of its reader.
    pub fn held(&self) -> usize {
        match self {
            Self::Plain(_) | Self::Blind => 0,
            Self::Gzip(_) => GZIP,
            Self::Zstd(zstd) => zstd.context.sizeof(),
        }
    }

    /// Returns the reader. `None`: the answer cannot be read.
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
        let end = chunk.len().min(self.at + INPUT);
        while self.at < end {
            if before - self.decoder.get_ref().left >= STEP {
                return Ok(false);
            }
            match self.decoder.write(&chunk[self.at..end])? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => self.at += count,
            }
        }
        if end < chunk.len() {
            return Ok(false);
        }
        self.at = 0;
        self.decoder.flush().map(|()| true)
    }
}

impl<R: Write> Zstd<R> {
    /// Returns `None` if the zstd library has no memory.
    fn new(reader: R) -> Option<Self> {
        let mut context = DCtx::try_create()?;
        context.set_parameter(DParameter::WindowLogMax(WINDOW)).ok()?;
        Some(Self { context, reader: Bounded::new(reader), at: 0, is_whole: true })
    }

    fn step(&mut self, chunk: &[u8]) -> io::Result<bool> {
        if self.at == 0 {
            self.reader.begin(chunk.len());
        }
        let mut text = [0_u8; PIECE];
        let (end, mut left) = (chunk.len().min(self.at + INPUT), STEP);
        while left > 0 {
            let mut input = InBuffer { src: &chunk[..end], pos: self.at };
            let mut output = OutBuffer::around(&mut text[..]);
            let expected = self
                .context
                .decompress_stream(&mut output, &mut input)
                .map_err(|_| io::ErrorKind::InvalidData)?;
            let come = output.pos();
            (self.at, self.is_whole) = (input.pos, expected == 0);
            self.reader.write_all(&text[..come])?;
            if self.at == end && (come < PIECE || self.is_whole) {
                let is_read = end == chunk.len();
                self.at = if is_read { 0 } else { end };
                return Ok(is_read);
            }
            left = left.saturating_sub(come);
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests;
