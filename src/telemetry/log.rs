//! Writes the log to standard error: a bounded queue, and one thread that writes.
//!
//! No turn waits for the log. A line is queued without waiting, or dropped and counted if the queue
//! is full. A full disk, or a reader that has stopped or gone, therefore costs only lines. The
//! thread belongs to the process and may hang in a write for ever, so every wait for the thread has
//! a limit.

use std::io::{self, ErrorKind, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, SystemTime};

use crate::clock::time_of_day;
use crate::task::{must_panic, note_panic};

/// Most bytes that wait to be written: some ten thousand lines.
const MOST: usize = 4 * 1024 * 1024;
/// Pause after a write that failed. An earlier attempt would find the disk as full as before.
const PAUSE: Duration = Duration::from_millis(100);
/// Least time between two log lines about dropped lines.
const TELL: Duration = Duration::from_secs(10);

/// The name under which panics of the thread that writes are counted.
const NAME: &str = "log_writer";

static LOG: Log = Log::new();

/// Lines on their way to one destination.
struct Log {
    queue: Mutex<Queue>,
    /// Signals that lines wait.
    filled: Condvar,
    /// Signals that each line is written or dropped.
    emptied: Condvar,
    dropped: AtomicU64,
    /// How often the thread that writes has panicked.
    panics: AtomicU64,
}

struct Queue {
    bytes: Vec<u8>,
    /// Whether the writer has taken bytes that are not all written yet.
    is_writing: bool,
}

/// A writer of whole lines, which never waits and never fails.
pub struct LogLine;

impl Write for LogLine {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        LOG.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts the thread that writes to standard error. Later calls change nothing.
#[expect(clippy::disallowed_methods, reason = "a write may hang for ever, so no task may do it")]
pub fn start() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        drop(std::thread::spawn(|| {
            let mut writer = Writer::new(io::stderr());
            writer.must_panic = must_panic(NAME);
            // The writer still has the lines that it was writing, so they are not lost.
            while catch_unwind(AssertUnwindSafe(|| writer.run(&LOG))).is_err() {
                note_panic(NAME, &LOG.panics);
            }
        }));
    });
}

/// Number of lines that were dropped since the start of the process.
pub fn dropped() -> u64 {
    LOG.dropped.load(Ordering::Relaxed)
}

/// Number of times that the thread that writes has panicked and begun again.
pub fn restarts() -> u64 {
    LOG.panics.load(Ordering::Relaxed)
}

/// Waits until all lines are written, at most `timeout`.
pub fn flush(timeout: Duration) {
    let queue = LOG.lock();
    let is_pending = |queue: &mut Queue| queue.is_writing || !queue.bytes.is_empty();
    // If the destination does not take the lines in time, they are lost.
    let _ = LOG.emptied.wait_timeout_while(queue, timeout, is_pending);
}

impl Log {
    const fn new() -> Self {
        Self {
            queue: Mutex::new(Queue { bytes: Vec::new(), is_writing: false }),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            dropped: AtomicU64::new(0),
            panics: AtomicU64::new(0),
        }
    }

    fn push(&self, line: &[u8]) {
        let mut queue = self.lock();
        if queue.bytes.len() + line.len() > MOST {
            drop(queue);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let is_first = queue.bytes.is_empty();
        queue.bytes.extend_from_slice(line);
        drop(queue);
        if is_first {
            self.filled.notify_one();
        }
    }

    /// Takes all bytes that wait. Returns none if no line came for [`TELL`].
    fn take(&self) -> Vec<u8> {
        let queue = self.lock();
        let is_empty = |queue: &mut Queue| queue.bytes.is_empty();
        let (mut queue, _) = self
            .filled
            .wait_timeout_while(queue, TELL, is_empty)
            .unwrap_or_else(PoisonError::into_inner);
        queue.is_writing = !queue.bytes.is_empty();
        std::mem::take(&mut queue.bytes)
    }

    fn written(&self) {
        self.lock().is_writing = false;
        self.emptied.notify_all();
    }

    /// Locks the queue. Each change of the queue is a single step, so a panic leaves the queue
    /// intact.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the lines of a [`Log`] to `destination`.
struct Writer<W> {
    destination: W,
    /// The lines that are being written. The destination has taken the first bytes of them.
    batch: Vec<u8>,
    written: usize,
    /// Whether a test has ordered a panic in the middle of the work.
    must_panic: bool,
    /// Whether the last write broke off within a line.
    is_torn: bool,
    /// The number of dropped lines that the log has reported, and when it did last.
    told: u64,
    told_at: SystemTime,
}

impl<W: Write> Writer<W> {
    const fn new(destination: W) -> Self {
        Self {
            destination,
            batch: Vec::new(),
            written: 0,
            must_panic: false,
            is_torn: false,
            told: 0,
            told_at: SystemTime::UNIX_EPOCH,
        }
    }

    fn run(&mut self, log: &Log) {
        loop {
            self.step(log);
        }
    }

    fn step(&mut self, log: &Log) {
        if self.batch.is_empty() {
            (self.batch, self.written) = (log.take(), 0);
            if self.is_torn && !self.batch.is_empty() {
                self.batch.insert(0, b'\n');
            }
        }
        self.write();
        let (taken, rest) = self.batch.split_at(self.written);
        if rest.is_empty() {
            self.is_torn = false;
            self.tell(log.dropped.load(Ordering::Relaxed));
        } else {
            let lost = rest.iter().filter(|byte| **byte == b'\n').count();
            log.dropped.fetch_add(u64::try_from(lost).unwrap_or(u64::MAX), Ordering::Relaxed);
            self.is_torn |= taken.last().is_some_and(|byte| *byte != b'\n');
            pause(PAUSE);
        }
        self.batch = Vec::new();
        log.written();
    }

    /// Writes as much as the destination takes.
    fn write(&mut self) {
        while self.written < self.batch.len() {
            assert!(!std::mem::take(&mut self.must_panic), "a test ordered this panic");
            match self.destination.write(&self.batch[self.written..]) {
                Ok(0) => break,
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Another process has made standard error non-blocking, so its buffer is full.
                Err(error) if error.kind() == ErrorKind::WouldBlock => pause(PAUSE / 10),
                Err(_) => break,
            }
        }
    }

    /// Logs how many lines were dropped, at most once in `TELL`.
    fn tell(&mut self, dropped: u64) {
        let now = time_of_day();
        let is_due = now.duration_since(self.told_at).map_or(true, |since| since >= TELL);
        if dropped > self.told && is_due {
            let lines = dropped - std::mem::replace(&mut self.told, dropped);
            self.told_at = now;
            tracing::warn!(lines, "log lines were dropped: standard error did not take them");
        }
    }
}

/// Waits without locking the queue.
fn pause(span: Duration) {
    let (never, nothing) = (Condvar::new(), Mutex::new(()));
    let guard = nothing.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = never.wait_timeout_while(guard, span, |()| true);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A destination that takes this many bytes and no more.
    struct Disk {
        room: usize,
        taken: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.room -= count;
            self.taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn line_that_finds_no_room_is_dropped_and_counted() {
        let log = Log::new();
        let line = [b'x'; 1024];
        for _ in 0..MOST / line.len() + 3 {
            log.push(&line);
        }
        assert_eq!(log.dropped.load(Ordering::Relaxed), 3);
        let mut writer = Writer::new(Disk { room: usize::MAX, taken: Vec::new() });
        writer.step(&log);
        log.push(&line);
        writer.step(&log);
        assert_eq!(writer.destination.taken.len(), MOST + line.len());
        assert_eq!((writer.told, log.dropped.load(Ordering::Relaxed)), (3, 3), "told of once");
    }

    #[test]
    fn panic_of_the_writer_costs_no_line() {
        let log = Log::new();
        log.push(b"one\ntwo\n");
        let mut writer = Writer::new(Disk { room: usize::MAX, taken: Vec::new() });
        writer.must_panic = true;
        assert!(catch_unwind(AssertUnwindSafe(|| writer.step(&log))).is_err());
        log.push(b"three\n");
        writer.step(&log);
        writer.step(&log);
        assert_eq!(writer.destination.taken, b"one\ntwo\nthree\n");
        assert_eq!(log.dropped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn disk_that_fills_costs_its_lines_and_no_later_one() {
        let log = Log::new();
        let mut writer = Writer::new(Disk { room: 6, taken: Vec::new() });
        for line in ["one\n", "two\n", "three\n"] {
            log.push(line.as_bytes());
        }
        writer.step(&log);
        assert_eq!(log.dropped.load(Ordering::Relaxed), 2, "a torn line is a lost one");
        log.push(b"four\n");
        writer.step(&log);
        assert_eq!(log.dropped.load(Ordering::Relaxed), 4, "and the end of the torn one");
        writer.destination.room = usize::MAX;
        log.push(b"five\n");
        writer.step(&log);
        assert_eq!(writer.destination.taken, b"one\ntw\nfive\n");
    }
}
