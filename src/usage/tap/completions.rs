//! Reads chat completions: a stream of chunks, or a document.
//!
//! Each line of a stream is kept until it ends, and looked at once. Of a long line or document,
//! only what states its end and its cost is kept. Only a client that asks for
//! `stream_options.include_usage` gets a chunk with the usage, and so does the gateway.

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
    /// `[DONE]` or an error has come.
    is_over: bool,
    reading: Reading,
}

impl Completions {
    pub fn new(headers: &HeaderMap) -> Self {
        Self { is_stream: is_stream(headers), kept: Kept::with_arrays(), ..Self::default() }
    }

    pub const fn is_over(&self) -> bool {
        self.is_over
    }

    /// The memory that the line or the document takes up.
    pub fn held(&self) -> usize {
        self.kept.capacity()
    }

    pub fn finish(&mut self, ended: bool) -> Reading {
        if !self.is_stream {
            if !ended {
                return Reading::default();
            }
            let ChatEnd { terminal, usage } = ChatEnd::of(self.kept.text());
            let terminal = Some(terminal.unwrap_or(Terminal::Completed));
            return Reading { terminal, usage, failure: None };
        }
        let reading = std::mem::take(&mut self.reading);
        // Some services end a stream without `[DONE]`.
        let is_whole = self.is_over || ended;
        Reading { terminal: reading.terminal.filter(|_| is_whole), ..reading }
    }

    fn read_stream(&mut self, mut bytes: &[u8]) {
        // A line may end with `\r\n`: the empty line between the two bytes means nothing here.
        while let Some(end) = line_length(bytes) {
            if self.kept.is_empty() && end <= WHOLE {
                self.read_line(&bytes[..end]);
            } else {
                self.kept.keep(&bytes[..end]);
                let line = self.kept.take();
                self.read_line(&line);
            }
            bytes = &bytes[end + 1..];
        }
        self.kept.keep(bytes);
    }

    fn read_line(&mut self, line: &[u8]) {
        let Some(data) = field(line, b"data:") else { return };
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
            let ChatEnd { terminal, usage } = ChatEnd::of(data);
            self.reading.terminal = terminal.or(self.reading.terminal);
            self.reading.usage = usage.or_else(|| self.reading.usage.take());
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
