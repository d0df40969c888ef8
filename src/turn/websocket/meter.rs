//! Measures the bytes that one connection of a WebSocket receives and sends, below the frames.
//!
//! The WebSocket library reports whole messages only. The meter counts an unfinished message in the
//! replica's memory, and sets a deadline for its end. Each byte that arrives shows that the peer is
//! alive.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::turn::memory::{BodyMemory, MemoryPlace};
use crate::turn::pace::{Pace, SLOWEST};

/// Most bytes that operating systems buffer between the gateway and a peer.
const UNDERWAY: u64 = 8 * 1024 * 1024;

/// The sender of a connection's bytes. It decides what happens if the memory is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The message is refused.
    Client,
    /// The message is part of a running answer, which may take more memory than clients may.
    Upstream,
}

/// The measurements of one connection.
#[derive(Clone)]
pub struct Meter(Arc<Mutex<State>>);

struct State {
    outline: Outline,
    source: Source,
    memory: BodyMemory,
    place: MemoryPlace,
    /// The pace of the unfinished message, since it began or since the gateway began to read on.
    pace: Pace,
    has_arrived: bool,
    is_full: bool,
    /// When even the slowest permitted peer has received everything that was written.
    received: Instant,
}

impl Meter {
    pub fn new(source: Source, memory: BodyMemory) -> Self {
        let now = Instant::now();
        Self(Arc::new(Mutex::new(State {
            outline: Outline::default(),
            source,
            memory,
            place: MemoryPlace::default(),
            pace: Pace::begin(),
            has_arrived: false,
            is_full: false,
            received: now,
        })))
    }

    /// Notes that a message of `length` bytes is forwarded. The deadline of the next message, which
    /// may have begun, counts from this call.
    pub fn note_forwarded(&self, length: usize) {
        let state = &mut *self.lock();
        state.outline.held = state.outline.held.saturating_sub(length);
        state.pace = Pace::begin();
        // Less than before always fits.
        let _ = state.memory.follow(&mut state.place, state.outline.held);
    }

    /// Returns when the rest of an unfinished message must have come.
    pub fn deadline(&self) -> Option<Instant> {
        let state = self.lock();
        state.outline.is_unfinished().then(|| state.pace.deadline())
    }

    /// Whether a message has begun to come, or has come and is not forwarded yet.
    pub fn is_holding(&self) -> bool {
        let Outline { is_in_message, held, .. } = self.lock().outline;
        is_in_message || held > 0
    }

    /// Whether a message, or any frame, has begun to come and not ended.
    pub fn is_within_message(&self) -> bool {
        self.lock().outline.is_unfinished()
    }

    /// Whether bytes have arrived since the last call.
    pub fn has_arrived(&self) -> bool {
        std::mem::take(&mut self.lock().has_arrived)
    }

    #[cfg(test)]
    fn is_full(&self) -> bool {
        self.lock().is_full
    }

    /// Returns when the peer has surely received everything that was written so far.
    pub fn received(&self) -> Instant {
        self.lock().received
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count_received(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.has_arrived = true;
        if self.is_full {
            return Ok(());
        }
        if !self.outline.is_unfinished() {
            self.pace = Pace::begin();
        }
        let before = self.outline.held;
        self.outline.read(bytes);
        let (place, held) = (&mut self.place, self.outline.held);
        // Heads and control frames bring no message to its end.
        self.pace.note(held - before);
        let counted = match self.source {
            Source::Client => self.memory.follow(place, held),
            Source::Upstream => self.memory.follow_answer(place, held),
        };
        self.is_full = counted.is_err();
        counted.map_err(|_| io::ErrorKind::OutOfMemory.into())
    }

    fn count_sent(&mut self, bytes: usize) {
        let now = Instant::now();
        let longest = Duration::from_secs(UNDERWAY / SLOWEST);
        let took = Duration::from_secs_f64(bytes as f64 / SLOWEST as f64);
        self.received = (self.received.max(now) + took).min(now + longest);
    }
}

/// A connection with its meter.
pub struct Metered<I> {
    io: I,
    meter: Meter,
}

impl<I> Metered<I> {
    pub const fn new(io: I, meter: Meter) -> Self {
        Self { io, meter }
    }

    /// Ends the measurement. Bytes that come after this call are not counted.
    pub fn discard(&self) {
        let state = &mut *self.meter.lock();
        state.is_full = true;
        state.place = MemoryPlace::default();
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Metered<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        match &buffer.filled()[before..] {
            [] => read,
            bytes => match self.meter.lock().count_received(bytes) {
                Ok(()) => read,
                Err(full) => Poll::Ready(Err(full)),
            },
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Metered<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = written {
            self.meter.lock().count_sent(count);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// The outline of the frames (RFC 6455, section 5.2) that have come. It checks nothing, because the
/// WebSocket library refuses frames that break the protocol.
#[derive(Default)]
struct Outline {
    /// Bytes of the current frame's head so far. At 0, no frame has begun.
    head: usize,
    /// Length of the head, as far as it is known.
    head_length: usize,
    /// Bytes of the head that state the length of a longer frame.
    length_bytes: usize,
    length: u64,
    /// Bytes of the frame's payload that are still to come, once the head is complete.
    left: u64,
    is_data: bool,
    is_last: bool,
    /// Whether a message has begun whose last frame has not ended.
    is_in_message: bool,
    /// Bytes of all messages that are not forwarded yet, the unfinished one included.
    held: usize,
}

impl Outline {
    const fn is_unfinished(&self) -> bool {
        self.is_in_message || self.head > 0
    }

    fn read(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left == 0 {
                self.read_head(*first);
                bytes = rest;
                continue;
            }
            let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            self.left -= count as u64;
            if self.is_data {
                self.held += count;
            }
            bytes = &bytes[count..];
            if self.left == 0 {
                self.end_frame();
            }
        }
    }

    fn read_head(&mut self, byte: u8) {
        match self.head {
            0 => {
                (self.is_last, self.is_data) = (byte & 0x80 != 0, byte & 0x08 == 0);
                self.is_in_message |= self.is_data;
                self.head_length = 2;
            }
            1 => {
                let (mask, length) = (if byte & 0x80 == 0 { 0 } else { 4 }, byte & 0x7f);
                let more = [0, 2, 8][usize::from(length.saturating_sub(125).min(2))];
                self.length = if more == 0 { u64::from(length) } else { 0 };
                self.head_length = 2 + more + mask;
                self.length_bytes = more;
            }
            at if at < 2 + self.length_bytes => self.length = self.length << 8 | u64::from(byte),
            _ => {}
        }
        self.head += 1;
        if self.head == self.head_length {
            self.left = self.length;
            if self.left == 0 {
                self.end_frame();
            }
        }
    }

    fn end_frame(&mut self) {
        self.head = 0;
        if self.is_data && self.is_last {
            self.is_in_message = false;
        }
    }
}

#[cfg(test)]
mod tests;
