//! Watches an answer go by and keeps the one part of it that says what it cost.
//!
//! Sees every chunk before it is passed on, changes none, and holds at most [`KEPT`] bytes of one event or document. Looks
//! closely only at what can be a terminal event: most of a stream is stepped over line by line.

use std::io::Write;

use http::HeaderMap;

use crate::wire::decoder::Decoder;
use crate::wire::error_body::ErrorBody;
use crate::wire::event::{field, is_stream, line_length, unnamed};
use crate::wire::terminal::{self, Terminal, Usage};

/// A terminal event or a JSON answer longer than this passes unread.
pub(crate) const KEPT: usize = 512 * 1024;

/// What the tap has learned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub terminal: Option<Terminal>,
    pub usage: Option<Usage>,
    /// What a failed one says went wrong.
    pub failure: Option<ErrorBody>,
}

impl Reading {
    /// What an event says that ends an answer.
    pub fn of_event(terminal: Terminal, data: &[u8]) -> Self {
        let failure = if terminal == Terminal::Failed { ErrorBody::of_event(data) } else { None };
        Self { terminal: Some(terminal), usage: terminal::of_event(data), failure }
    }
}

/// A tap on one answer's body.
pub struct Tap(Decoder<Reader>);

impl Tap {
    pub fn new(headers: &HeaderMap) -> Self {
        Self(Decoder::new(headers, Reader::new(headers)))
    }

    pub fn observe(&mut self, chunk: &[u8]) {
        self.0.observe(chunk);
    }

    /// Whether the upstream has said all it has to say.
    pub fn is_over(&self) -> bool {
        self.0.reader().is_some_and(|reader| reader.reading.is_some())
    }

    /// What was learned; `ended`: the body came to its end.
    pub fn finish(&mut self, ended: bool) -> Reading {
        let Some(reader) = self.0.reader_mut() else {
            // What cannot be read is taken at its status.
            return Reading { terminal: ended.then_some(Terminal::Completed), ..Reading::default() };
        };
        if ended && !reader.is_stream {
            let (terminal, usage) = terminal::of_document(&reader.kept);
            return Reading { terminal: Some(terminal), usage, failure: None };
        }
        reader.reading.take().map_or_else(Reading::default, |reading| *reading)
    }
}

/// Reads a stream of events line by line, or keeps a document.
#[derive(Default)]
struct Reader {
    is_stream: bool,
    line: Line,
    /// The end that the current event's name announces.
    announced: Option<Terminal>,
    /// The current line's first bytes while it is not known what it is, the data of a terminal event, or a document.
    kept: Vec<u8>,
    is_too_long: bool,
    /// `\r` was the last byte: a `\n` that follows belongs to it.
    after_return: bool,
    reading: Option<Box<Reading>>,
}

/// What the current line of a stream is.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Line {
    /// Its first bytes are in `kept`.
    #[default]
    Start,
    /// The data of a terminal event, in `kept`.
    Data,
    Skipped,
}

/// `event: response.incomplete`, and the start of a `data:` line with some white space, are told apart within so many bytes.
pub(crate) const START: usize = 64;

impl Reader {
    fn new(headers: &HeaderMap) -> Self {
        Self { is_stream: is_stream(headers), ..Self::default() }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.is_too_long {
            return;
        }
        if self.kept.len() + bytes.len() <= KEPT {
            self.kept.extend_from_slice(bytes);
        } else {
            // Cut short it would be no JSON: it passes unread.
            self.kept = Vec::new();
            self.is_too_long = true;
        }
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
            Line::Data => self.keep(part),
            Line::Start => self.read_start(part, is_whole),
        }
    }

    /// Decides what a line is, as soon as enough of it is there.
    fn read_start(&mut self, part: &[u8], is_whole: bool) {
        if self.kept.is_empty() && (is_whole || part.len() >= START) {
            self.classify(part, is_whole);
            return;
        }
        let (start, rest) = part.split_at(part.len().min(START - self.kept.len()));
        self.keep(start);
        if is_whole || self.kept.len() >= START {
            let line = std::mem::take(&mut self.kept);
            self.classify(&line, is_whole && rest.is_empty());
            if self.line == Line::Data {
                self.keep(rest);
            }
        }
    }

    fn classify(&mut self, line: &[u8], is_whole: bool) {
        self.line = Line::Skipped;
        if is_whole && line.is_empty() {
            self.announced = None;
        } else if let Some(data) = field(line, b"data:") {
            self.announced = self.announced.or_else(|| unnamed(data));
            if self.announced.is_some() {
                self.line = Line::Data;
                self.kept.clear();
                self.keep(data);
            }
        } else if is_whole && let Some(name) = field(line, b"event:") {
            self.announced = Terminal::of_event(name);
        }
    }

    fn end_line(&mut self) {
        if let (Line::Data, Some(terminal)) = (self.line, self.announced) {
            self.reading = Some(Box::new(Reading::of_event(terminal, &self.kept)));
        }
        self.kept.clear();
        self.is_too_long = false;
        self.line = Line::Start;
    }
}

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.is_stream {
            self.read_stream(bytes);
        } else {
            self.keep(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
    use proptest::prelude::*;

    const USAGE: &str = r#"{"input_tokens":9000,"input_tokens_details":{"cached_tokens":8832},"output_tokens":7}"#;

    fn headers(kind: &str, encoding: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, kind.parse().unwrap());
        if let Some(encoding) = encoding {
            headers.insert(CONTENT_ENCODING, encoding.parse().unwrap());
        }
        headers
    }

    fn read(headers: &HeaderMap, chunks: &[&[u8]]) -> Reading {
        let mut tap = Tap::new(headers);
        chunks.iter().for_each(|chunk| tap.observe(chunk));
        tap.finish(true)
    }

    fn stream(newline: &str) -> String {
        let long = "x".repeat(3_000);
        [
            "\u{feff}: comment",
            "event: response.created",
            r#"data: {"type":"response.created","response":{"usage":null}}"#,
            "",
            "event: response.output_text.delta",
            &format!(r#"data: {{"type":"response.output_text.delta","delta":"event: response.failed {long}"}}"#),
            "",
            "event: response.completed",
            &format!(r#"data: {{"type":"response.completed","response":{{"status":"completed","usage":{USAGE}}}}}"#),
            "",
            "",
        ]
        .join(newline)
    }

    fn usage() -> Option<Usage> {
        Some(Usage { input: 9_000, cached: 8_832, output: 7, ..Usage::default() })
    }

    proptest! {
        #[test]
        fn it_reads_the_same_however_the_bytes_arrive(cuts in proptest::collection::vec(0usize..4_000, 0..40), newline in 0usize..3) {
            let text = stream(["\n", "\r\n", "\r"][newline]);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let chunks: Vec<_> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            let reading = read(&headers("text/event-stream", None), &chunks);
            prop_assert_eq!(reading, Reading { terminal: Some(Terminal::Completed), usage: usage(), failure: None });
        }
    }

    #[test]
    fn an_event_without_a_name_is_known_by_its_type() {
        let names = [
            ("response.completed", Some(Terminal::Completed)),
            ("response.incomplete", Some(Terminal::Incomplete)),
            ("response.failed", Some(Terminal::Failed)),
            ("error", Some(Terminal::Failed)),
            ("response.created", None),
            ("response.output_text.delta", None),
            ("response.", None),
        ];
        for start in [r#"{"type":"#, r#"{"type": "#, r#" { "type" : "#, "{\t\"type\":\t"] {
            for (name, terminal) in names {
                let text = format!("data: {start}\"{name}\",\"response\":{{\"usage\":{USAGE}}}}}\n\n");
                for size in [1, text.len()] {
                    let chunks: Vec<_> = text.as_bytes().chunks(size).collect();
                    let reading = read(&headers("text/event-stream; charset=utf-8", None), &chunks);
                    assert_eq!((reading.terminal, reading.usage), (terminal, terminal.and_then(|_| usage())), "{text}");
                }
            }
        }
    }

    #[test]
    fn what_stands_in_the_middle_of_a_line_is_no_line() {
        let line = format!("x{}", "x".repeat(KEPT + 1));
        let kind = headers("text/event-stream", None);
        let reading = read(&kind, &[b"x", line.as_bytes(), b"data: {\"type\":\"response.completed\"}\n\n"]);
        assert_eq!(reading, Reading::default());
    }

    #[test]
    fn a_stream_without_a_terminal_event_has_not_ended() {
        let whole = stream("\n");
        let cut = &whole[..whole.find("event: response.completed").unwrap()];
        assert_eq!(read(&headers("text/event-stream", None), &[cut.as_bytes()]), Reading::default());
    }

    #[test]
    fn a_document_and_an_encoded_stream_are_read() {
        let document = format!(r#"{{"status":"completed","usage":{USAGE}}}"#);
        assert_eq!(read(&headers("application/json", None), &[document.as_bytes()]).usage, usage());
        let text = stream("\n");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(text.as_bytes()).unwrap();
        assert_eq!(read(&headers("text/event-stream", Some("gzip")), &[&gzip.finish().unwrap()]).usage, usage());
        let zstd = zstd::encode_all(text.as_bytes(), 1).unwrap();
        assert_eq!(read(&headers("text/event-stream", Some("zstd")), &[&zstd]).usage, usage());
    }

    #[test]
    fn what_is_too_long_or_unreadable_passes_unread() {
        let long = format!("event: response.completed\ndata: {}\n\n", "x".repeat(KEPT * 3));
        let mut tap = Tap::new(&headers("text/event-stream", None));
        long.as_bytes().chunks(10_000).for_each(|chunk| {
            tap.observe(chunk);
            assert!(tap.0.reader().unwrap().kept.capacity() <= 2 * KEPT);
        });
        assert_eq!(tap.finish(true), Reading { terminal: Some(Terminal::Completed), ..Reading::default() });
        assert_eq!(read(&headers("text/event-stream", Some("br")), &[b"?"]).usage, None);
        assert_eq!(read(&headers("text/event-stream", Some("gzip")), &[b"no gzip"]).usage, None);
    }
}
