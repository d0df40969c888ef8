//! Reads chat completions: a stream of chunks, or a document.
//!
//! Each line of a stream is kept until it ends, and then read once. An event with several lines of
//! data is read once more as a whole. Of a long line, event or document, only the parts that state
//! its end and its cost are kept. A stream states its usage only if the client asks for
//! `stream_options.include_usage`, so the gateway learns it only then.

use std::io::Write;

use http::HeaderMap;

use crate::usage::sieve::{Kept, WHOLE};
use crate::usage::tap::Reading;
use crate::wire::completion::{ChatEnd, DONE, failure, may_end};
use crate::wire::error_body::ErrorBody;
use crate::wire::event::{field, is_stream, line_length};
use crate::wire::terminal::Terminal;

/// Reads a stream of chunks line by line, or keeps a document.
#[derive(Default)]
pub struct Completions {
    is_stream: bool,
    /// The line that has not ended yet, or the document so far.
    kept: Kept,
    /// The data of the current event, and the number of its lines so far.
    event: Kept,
    lines: usize,
    /// Whether the last byte was `\r`, so that a `\n` after it belongs to the same line end.
    after_return: bool,
    /// Whether `[DONE]` or an error has come.
    is_over: bool,
    reading: Reading,
}

impl Completions {
    pub fn new(headers: &HeaderMap) -> Self {
        let (kept, event) = (Kept::with_arrays(), Kept::with_arrays());
        Self { is_stream: is_stream(headers), kept, event, ..Self::default() }
    }

    pub const fn is_over(&self) -> bool {
        self.is_over
    }

    /// The memory that the line or the document takes up.
    pub fn held(&self) -> usize {
        self.kept.capacity() + self.event.capacity()
    }

    pub fn finish(&mut self, ended: bool) -> Reading {
        if !self.is_stream {
            if !ended {
                return Reading::default();
            }
            let ChatEnd { terminal, usage, .. } = ChatEnd::of(self.kept.text());
            let terminal = Some(terminal.unwrap_or(Terminal::Completed));
            return Reading { terminal, usage, failure: None };
        }
        self.end_event();
        let reading = std::mem::take(&mut self.reading);
        // Some upstreams end a stream without `[DONE]`.
        let is_whole = self.is_over || ended;
        Reading { terminal: reading.terminal.filter(|_| is_whole), ..reading }
    }

    fn read_stream(&mut self, mut bytes: &[u8]) {
        if std::mem::take(&mut self.after_return) && bytes.first() == Some(&b'\n') {
            bytes = &bytes[1..];
        }
        while let Some(end) = line_length(bytes) {
            if self.kept.is_empty() && end <= WHOLE {
                self.read_line(&bytes[..end]);
            } else {
                self.kept.keep(&bytes[..end]);
                let line = self.kept.take();
                self.read_line(&line);
            }
            let width = if bytes[end..].starts_with(b"\r\n") { 2 } else { 1 };
            self.after_return = bytes[end..] == *b"\r";
            bytes = &bytes[end + width..];
        }
        self.kept.keep(bytes);
    }

    fn read_line(&mut self, line: &[u8]) {
        if line.is_empty() {
            return self.end_event();
        }
        let Some(data) = field(line, b"data:") else { return };
        if self.lines == 0 {
            // Nearly all events have one line of data, and a client may leave right after that
            // line, so it is read at once.
            self.read_data(data);
        } else {
            self.event.keep(b"\n");
        }
        self.event.keep(data);
        self.lines += 1;
    }

    /// Reads the data of an event that has several lines of data.
    fn end_event(&mut self) {
        if std::mem::take(&mut self.lines) > 1 {
            let data = self.event.take();
            self.read_data(&data);
        }
        self.event.clear();
    }

    fn read_data(&mut self, data: &[u8]) {
        if self.is_over {
            return;
        }
        if data.trim_ascii() == DONE {
            self.is_over = true;
            self.reading.terminal.get_or_insert(Terminal::Completed);
        } else if let Some(error) = failure(data) {
            self.is_over = true;
            self.reading.terminal = Some(Terminal::Failed);
            self.reading.failure = ErrorBody::of_event(error);
        } else if may_end(data) {
            let end = ChatEnd::of(data);
            self.reading.terminal = end.terminal.or(self.reading.terminal);
            if end.states_usage {
                // The last usage counts. If it cannot be read, an earlier one may no longer hold.
                self.reading.usage = end.usage;
            }
        }
    }
}

impl Write for Completions {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.is_stream {
            self.read_stream(bytes);
        } else {
            self.kept.keep(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
