//! Watches an answer pass and keeps the part that states its cost.
//!
//! The tap reads every chunk before it is passed on, and changes none. It holds at most `WHOLE`
//! bytes of one event or document. It reads only possible terminal events in full, and steps over
//! most of a stream line by line.

use std::io::Write;

use http::HeaderMap;

use crate::usage::sieve::Kept;
use crate::wire::decoder::Decoder;
use crate::wire::error_body::ErrorBody;
use crate::wire::event::{field, hides_type, is_stream, line_length, unnamed};
use crate::wire::peek::{Field, fields};
use crate::wire::terminal::{self, Terminal, Usage};

pub mod completions;

use completions::Completions;

/// The facts that the tap has learned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub terminal: Option<Terminal>,
    pub usage: Option<Usage>,
    /// The error, if the answer failed.
    pub failure: Option<ErrorBody>,
}

impl Reading {
    /// Reads the event that ends an answer.
    pub fn of_event(terminal: Terminal, data: &[u8]) -> Self {
        Self::with_usage(terminal, data, terminal::of_event(data))
    }

    /// Reads the event `data` that ends an answer, whose field `response` the caller has already
    /// found.
    pub fn of_response(terminal: Terminal, data: &[u8], response: Option<&[u8]>) -> Self {
        Self::with_usage(terminal, data, response.and_then(terminal::usage))
    }

    /// The items of a text that is `kept` in parts are not read.
    fn of_kept(mut self, kept: &Kept) -> Self {
        if let Some(usage) = self.usage.as_mut().filter(|_| kept.is_cut()) {
            usage.has_unread_items = true;
        }
        self
    }

    fn with_usage(terminal: Terminal, data: &[u8], usage: Option<Usage>) -> Self {
        let failure = if terminal == Terminal::Failed { ErrorBody::of_event(data) } else { None };
        Self { terminal: Some(terminal), usage, failure }
    }
}

/// A tap on one answer's body.
pub enum Tap {
    Responses(Decoder<Reader>),
    Chat(Box<Decoder<Completions>>),
    /// The tap found no memory for the rest of the answer, which passes unread.
    GivenUp {
        reading: Box<Reading>,
        is_over: bool,
    },
}

impl Tap {
    /// Returns a tap on an answer in the Responses dialect.
    pub fn new(headers: &HeaderMap) -> Self {
        Self::Responses(Decoder::new(headers, Reader::new(headers)))
    }

    /// Returns a tap on an answer in the chat dialect.
    pub fn on_chat(headers: &HeaderMap) -> Self {
        Self::Chat(Box::new(Decoder::new(headers, Completions::new(headers))))
    }

    /// Reads a whole chunk, however long that takes.
    pub fn observe(&mut self, chunk: &[u8]) {
        while !self.step(chunk) {}
    }

    /// Reads the next part of `chunk`. Returns whether all of the chunk is read. Otherwise the next
    /// call must be about the same chunk.
    pub fn step(&mut self, chunk: &[u8]) -> bool {
        match self {
            Self::Responses(decoder) => decoder.step(chunk),
            Self::Chat(decoder) => decoder.step(chunk),
            Self::GivenUp { .. } => true,
        }
    }

    /// Notes that the body has come to its end.
    pub fn end(&mut self) {
        match self {
            Self::Responses(decoder) => decoder.end(),
            Self::Chat(decoder) => decoder.end(),
            Self::GivenUp { .. } => {}
        }
    }

    /// Whether the answer cannot be decoded, so that nothing more of it may pass.
    pub const fn is_blind(&self) -> bool {
        match self {
            Self::Responses(decoder) => decoder.is_blind(),
            Self::Chat(decoder) => decoder.is_blind(),
            Self::GivenUp { .. } => false,
        }
    }

    /// The bytes that the tap holds.
    pub fn held(&self) -> usize {
        match self {
            Self::Responses(decoder) => decoder.held() + decoder.reader().map_or(0, Reader::held),
            Self::Chat(decoder) => decoder.held() + decoder.reader().map_or(0, Completions::held),
            Self::GivenUp { .. } => 0,
        }
    }

    /// Stops reading, and drops everything held. If the answer's end has not come, its usage will
    /// be missing.
    pub fn give_up(&mut self) {
        let is_over = self.is_over();
        let reading = if is_over { self.finish(false) } else { Reading::default() };
        *self = Self::GivenUp { reading: Box::new(reading), is_over };
    }

    /// Whether the upstream has sent its terminal event.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Responses(decoder) => {
                decoder.reader().is_some_and(|reader| reader.reading.is_some())
            }
            Self::Chat(decoder) => decoder.reader().is_some_and(Completions::is_over),
            Self::GivenUp { is_over, .. } => *is_over,
        }
    }

    /// Returns what the tap has learned. `ended`: whether the body came to its end.
    pub fn finish(&mut self, ended: bool) -> Reading {
        let read = match self {
            Self::Responses(decoder) => decoder.reader_mut().map(|reader| reader.finish(ended)),
            Self::Chat(decoder) => decoder.reader_mut().map(|reader| reader.finish(ended)),
            Self::GivenUp { reading, is_over: true } => Some(std::mem::take(&mut **reading)),
            // If the tap gave up before the answer's end, the status judges the answer.
            Self::GivenUp { .. } => {
                let terminal = ended.then_some(Terminal::Completed);
                Some(Reading { terminal, ..Reading::default() })
            }
        };
        // An answer that cannot be decoded has no known end, and no usage.
        read.unwrap_or_default()
    }
}

impl Reader {
    fn finish(&mut self, ended: bool) -> Reading {
        if ended && !self.is_stream {
            let (terminal, usage) = terminal::of_document(self.kept.text());
            let reading = Reading { terminal: Some(terminal), usage, failure: None };
            return reading.of_kept(&self.kept);
        }
        self.reading.take().map_or_else(Reading::default, |reading| *reading)
    }
}

/// Reads a stream of events line by line, or keeps a document.
#[derive(Default)]
pub struct Reader {
    is_stream: bool,
    line: Line,
    /// The end that the current event's name announces.
    announced: Option<Terminal>,
    /// The bytes that are kept: the current line's beginning until its kind is known, the data of a
    /// terminal event, or a document.
    kept: Kept,
    /// The data so far of an event whose first line of data is no JSON, because further lines
    /// complete it. It is boxed, because few streams have such events.
    open: Option<Box<Kept>>,
    /// Whether an `event:` line has named the current event.
    is_named: bool,
    /// Whether the last byte was `\r`, so that a `\n` after it belongs to the same line end.
    after_return: bool,
    reading: Option<Box<Reading>>,
}

/// The kind of a stream's current line.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Line {
    /// The kind is not known yet. The first bytes are in `kept`.
    #[default]
    Start,
    /// The data of a terminal event, which is in `kept`.
    Data,
    Skipped,
}

/// Bytes of a line that decide its kind. They are enough for `event: response.incomplete`, or for
/// the start of a `data:` line with some white space. Later bytes never decide it, in however many
/// pieces the line arrives.
pub(crate) const START: usize = 64;

impl Reader {
    fn new(headers: &HeaderMap) -> Self {
        Self { is_stream: is_stream(headers), ..Self::default() }
    }

    fn held(&self) -> usize {
        self.kept.capacity() + self.open.as_ref().map_or(0, |open| open.capacity())
    }

    fn read_stream(&mut self, mut bytes: &[u8]) {
        if std::mem::take(&mut self.after_return) && bytes.first() == Some(&b'\n') {
            bytes = &bytes[1..];
        }
        while !bytes.is_empty() {
            let Some(end) = line_length(bytes) else { return self.read_part(bytes, false) };
            self.read_part(&bytes[..end], true);
            self.end_line();
            let width = if bytes[end..].starts_with(b"\r\n") { 2 } else { 1 };
            self.after_return = bytes[end..] == *b"\r";
            bytes = &bytes[end + width..];
        }
    }

    fn read_part(&mut self, part: &[u8], is_whole: bool) {
        match self.line {
            Line::Skipped => {}
            Line::Data => self.data().keep(part),
            Line::Start => self.read_start(part, is_whole),
        }
    }

    /// Decides the kind of a line as soon as enough of it has arrived.
    fn read_start(&mut self, part: &[u8], is_whole: bool) {
        if self.kept.is_empty() && (is_whole || part.len() >= START) {
            self.classify(part, is_whole);
            return;
        }
        let (start, rest) = part.split_at(part.len().min(START - self.kept.text().len()));
        self.kept.keep(start);
        if is_whole || self.kept.text().len() >= START {
            let line = self.kept.take();
            self.classify(&line, is_whole && rest.is_empty());
            if self.line == Line::Data {
                self.data().keep(rest);
            }
        }
    }

    /// Returns where the data of the current line is kept.
    fn data(&mut self) -> &mut Kept {
        self.open.as_deref_mut().unwrap_or(&mut self.kept)
    }

    fn classify(&mut self, line: &[u8], is_whole: bool) {
        self.line = Line::Skipped;
        if is_whole && line.is_empty() {
            self.end_event();
            (self.announced, self.is_named) = (None, false);
        } else if let Some(data) = field(line, b"data:") {
            if let Some(open) = &mut self.open {
                open.keep(b"\n");
                open.keep(data);
                self.line = Line::Data;
                return;
            }
            // The field's name is shorter than `START`, so this cannot be negative.
            let early = START - (line.len() - data.len());
            let start = &data[..data.len().min(early)];
            self.announced = self.announced.or_else(|| unnamed(start));
            // The type of such data is known only at the data's end.
            let is_unsure = !self.is_named && hides_type(start, line.len() < START);
            if self.announced.is_some() || is_unsure {
                self.line = Line::Data;
                self.kept.clear();
                self.kept.keep(data);
            }
        } else if let Some(name) = field(line, b"event:") {
            // The names of all ends are shorter than `START`. A longer name therefore never equals
            // one, even if it is cut.
            (self.announced, self.is_named) = (Terminal::of_event(name), true);
        }
    }

    fn end_line(&mut self) {
        if self.line == Line::Data && self.open.is_none() && !self.read_data() {
            self.open = Some(Box::new(std::mem::take(&mut self.kept)));
        }
        self.kept.clear();
        self.line = Line::Start;
    }

    /// Reads the kept data. Returns false if the data is no JSON yet, because the next line may
    /// complete it.
    fn read_data(&mut self) -> bool {
        let Ok([kind]) = fields(self.kept.text(), ["type"]) else { return false };
        let kind = Field::of(kind);
        let own = || Terminal::of_event(kind.text()?.as_bytes());
        if let Some(terminal) = self.announced.or_else(own) {
            let reading = Reading::of_event(terminal, self.kept.text()).of_kept(&self.kept);
            self.reading = Some(Box::new(reading));
        }
        true
    }

    /// Reads the data of an event that has several lines of data.
    fn end_event(&mut self) {
        let Some(open) = self.open.take() else { return };
        self.kept = *open;
        if !self.read_data()
            && let Some(terminal) = self.announced
        {
            // Only the name says how the answer ended, because the data cannot be read.
            self.reading = Some(Box::new(Reading::of_event(terminal, b"")));
        }
        self.kept.clear();
    }
}

impl Write for Reader {
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
