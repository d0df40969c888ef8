//! Finds the ids of an answer's items in a copy of the bytes. Pure.
//!
//! In a stream, the id of an item is found at the end of the line that adds the item. In a
//! document, all ids are found at the document's end. A client cannot read an id earlier.

use std::io::Write;

use http::HeaderMap;

use crate::turn::memory::LIGHT;
use crate::wire::decoder::Decoder;
use crate::wire::event::{field, is_stream, line_length};
use crate::wire::items::{MOST, added, listed};

/// The longest line that is searched. An item is added without its content.
const LINE: usize = 64 * 1024;
/// The longest document that is searched. Long strings count only with their beginning.
const DOCUMENT: usize = 4 * 1024 * 1024;
/// Most memory that is kept for the next line of a stream.
const SPARE: usize = 4 * 1024;
/// The longest string of a document that is kept whole.
const STRING: usize = 1024;
/// The bytes of `\uXXXX` after its backslash.
const ESCAPE: u8 = 5;

/// Searches one answer for the ids of its items.
pub struct ItemFinder(Decoder<Text>);

impl ItemFinder {
    pub fn new(headers: &HeaderMap) -> Self {
        let text = if is_stream(headers) { Kind::Stream } else { Kind::Document };
        Self(Decoder::new(
            headers,
            Text {
                kind: text,
                kept: Vec::new(),
                found: 0,
                is_over: false,
                long: None,
                outline: Outline::default(),
            },
        ))
    }

    /// Searches the whole of the next chunk. Returns the ids that it completes.
    pub fn search(&mut self, chunk: &[u8]) -> Vec<String> {
        let mut ids = Vec::new();
        while !self.step(chunk, &mut ids) {}
        ids
    }

    /// Searches the next part of `chunk`, and adds the ids that it completes. Returns whether all
    /// of the chunk is searched. Otherwise the next call must be about the same chunk.
    pub fn step(&mut self, chunk: &[u8], ids: &mut Vec<String>) -> bool {
        let is_read = self.0.step(chunk);
        ids.extend(self.0.reader_mut().map(Text::take).unwrap_or_default());
        is_read
    }

    /// The bytes that the search holds.
    pub fn held(&self) -> usize {
        let held = |text: &Text| {
            text.kept.capacity() + text.long.as_ref().map_or(0, |document| document.capacity())
        };
        self.0.held() + self.0.reader().map_or(0, held)
    }

    /// Takes a whole document that is too long to be read on this thread; [`listed`] reads it. Its
    /// last bytes must not reach the client before that.
    pub fn take_document(&mut self) -> Option<Vec<u8>> {
        self.0.reader_mut()?.long.take()
    }

    /// Whether no more ids will be found.
    pub fn is_over(&self) -> bool {
        self.0.reader().is_none_or(|text| text.is_over)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stream,
    /// The rest of a stream's line that is too long.
    Skipped,
    Document,
}

/// The text of an answer so far. For a stream, only the line that has not ended yet.
struct Text {
    kind: Kind,
    kept: Vec<u8>,
    found: usize,
    is_over: bool,
    /// A whole document that takes long to read.
    long: Option<Vec<u8>>,
    outline: Outline,
}

/// Follows a document's strings and finds its end. Only the beginning of a long string is kept: a
/// picture takes megabytes, and an id is short.
#[derive(Default)]
struct Outline {
    /// The number of open brackets.
    depth: usize,
    /// Whether the last bracket has closed.
    is_whole: bool,
    is_in_string: bool,
    /// The bytes of the string so far.
    length: usize,
    /// The most bytes that the current escape still has: `ESCAPE` right after its backslash.
    escaped: u8,
    is_cut: bool,
}

impl Outline {
    /// Whether the next byte is kept. No escape is cut in two.
    fn keeps(&mut self, byte: u8) -> bool {
        if !self.is_in_string {
            match byte {
                b'"' => (self.is_in_string, self.length, self.is_cut) = (true, 0, false),
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.is_whole |= self.depth == 0;
                }
                _ => {}
            }
            return true;
        }
        self.length += 1;
        match self.escaped {
            0 if byte == b'"' => {
                self.is_in_string = false;
                return true;
            }
            0 => {
                self.is_cut |= self.length > STRING;
                self.escaped = if byte == b'\\' { ESCAPE } else { 0 };
            }
            ESCAPE if byte != b'u' => self.escaped = 0,
            _ => self.escaped -= 1,
        }
        !self.is_cut
    }
}

impl Text {
    fn take(&mut self) -> Vec<String> {
        let mut ids = Vec::new();
        if self.kind == Kind::Document {
            if self.outline.is_whole && !self.is_over {
                let document = std::mem::take(&mut self.kept);
                match document.len() > LIGHT {
                    true => self.long = Some(document),
                    false => ids = listed(&document).unwrap_or_default(),
                }
                self.is_over = true;
            } else if self.kept.len() > DOCUMENT {
                tracing::warn!(
                    "the items of a long answer are not read: no turn can refer to them"
                );
                (self.is_over, self.kept) = (true, Vec::new());
            }
            return ids;
        }
        let mut from = 0;
        while let Some(length) = line_length(&self.kept[from..]) {
            let line = &self.kept[from..from + length];
            if self.kind == Kind::Stream {
                ids.extend(field(line, b"data:").and_then(added));
            }
            self.kind = Kind::Stream;
            from += length + 1;
        }
        self.kept.drain(..from);
        if self.kept.len() > LINE {
            self.kind = Kind::Skipped;
            self.kept.clear();
        }
        if self.kept.is_empty() && self.kept.capacity() > SPARE {
            self.kept = Vec::new();
        }
        self.found += ids.len();
        self.is_over |= self.found > MOST;
        ids
    }
}

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.kind {
            _ if self.is_over => {}
            Kind::Document => {
                let outline = &mut self.outline;
                self.kept.extend(bytes.iter().filter(|byte| outline.keeps(**byte)));
            }
            Kind::Stream | Kind::Skipped => self.kept.extend_from_slice(bytes),
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

    const STREAM: &str = "text/event-stream";
    const JSON: &str = "application/json";
    const EVENTS: &str = ": hello\n\nevent: response.created\r\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\"}}\r\n\r\n\
        data:{\"type\":\"response.output_item.added\",\"item\":{\"id\":\"rs_1\"}}\r\rdata: {\"type\":\"response.output_text.delta\"}\n\n\
        data: {\"type\":\"response.output_item.added\",\"item\":{\"id\":\"msg_1\"}}\n\n";

    fn headers(kind: &'static str, encoding: Option<&'static str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, kind.parse().unwrap());
        if let Some(encoding) = encoding {
            headers.insert(CONTENT_ENCODING, encoding.parse().unwrap());
        }
        headers
    }

    /// The ids, each with the number of bytes that had been read when it was found.
    fn found(headers: &HeaderMap, text: &[u8], size: usize) -> Vec<(String, usize)> {
        let (mut finder, mut seen, mut found) = (ItemFinder::new(headers), 0, Vec::new());
        for chunk in text.chunks(size) {
            seen += chunk.len();
            found.extend(finder.search(chunk).into_iter().map(|id| (id, seen)));
        }
        found
    }

    #[test]
    fn id_in_a_stream_is_found_before_its_event_ends() {
        for size in 1..=EVENTS.len() {
            let found = found(&headers(STREAM, None), EVENTS.as_bytes(), size);
            let ids: Vec<_> = found.iter().map(|(id, _)| id.as_str()).collect();
            assert_eq!(ids, ["rs_1", "msg_1"], "{size}");
            for (id, seen) in found {
                let line = EVENTS.find(&format!("{id}\"")).unwrap();
                let line = line + EVENTS[line..].find(['\r', '\n']).unwrap() + 1;
                assert_eq!(seen, line.next_multiple_of(size).min(EVENTS.len()), "{size} {id}");
            }
        }
    }

    #[test]
    fn ids_in_a_document_are_found_with_its_last_byte() {
        let text = br#"{"output":[{"id":"rs_1"},{"id":"msg_1","content":[{}]}],"usage":{}}"#;
        for size in 1..=text.len() {
            let found = found(&headers(JSON, None), text, size);
            let expected = ["rs_1", "msg_1"].map(|id| (id.to_owned(), text.len()));
            assert_eq!(found, expected, "{size}");
        }
        let mut finder = ItemFinder::new(&headers(JSON, None));
        assert!(!finder.is_over() && finder.search(text).len() == 2 && finder.is_over());
        assert!(finder.search(text).is_empty() && finder.0.reader().unwrap().kept.is_empty());
    }

    #[test]
    fn long_line_is_skipped_and_a_long_document_is_not_read() {
        let text = format!("data: {{\"x\":\"{}\"}}\n\n{EVENTS}", "y".repeat(3 * LINE));
        for size in [1_000, LINE, text.len()] {
            let headers = headers(STREAM, None);
            let (mut finder, mut ids) = (ItemFinder::new(&headers), Vec::new());
            for chunk in text.as_bytes().chunks(size) {
                ids.extend(finder.search(chunk));
                assert!(finder.0.reader().unwrap().kept.len() <= LINE);
            }
            assert_eq!(ids, ["rs_1", "msg_1"], "{size}");
        }
        // Of a picture, only the beginning is kept, whatever it is made of.
        for part in ["y", r"\\", r"\u00e9", r#"\""#, "\u{e9}", r#"a\"b"#] {
            let picture = part.repeat(DOCUMENT / part.len() + 1);
            let long = format!(r#"{{"output":[{{"x":"{picture}","id":"a"}}, {{"id":"b"}}]}}"#);
            for size in [1_000, 4_099, long.len()] {
                let mut finder = ItemFinder::new(&headers(JSON, None));
                let chunks = long.as_bytes().chunks(size);
                let mut most = 0;
                let ids: Vec<_> = chunks
                    .flat_map(|chunk| {
                        let ids = finder.search(chunk);
                        most = most.max(finder.0.reader().unwrap().kept.len());
                        ids
                    })
                    .collect();
                assert!(ids == ["a", "b"] && most < 2 * STRING, "{part} {ids:?} {most}");
            }
        }
        let mut finder = ItemFinder::new(&headers(JSON, None));
        let long = format!(r#"{{"output":[{}{{}}]}}"#, r#"{"id":"a"},"#.repeat(DOCUMENT / 8));
        assert!(long.as_bytes().chunks(LINE).all(|chunk| finder.search(chunk).is_empty()));
        assert!(finder.is_over() && finder.0.reader().unwrap().kept.is_empty());
    }

    #[test]
    fn long_document_is_left_to_another_thread() {
        let items = r#"{"id":"a"},"#.repeat(LIGHT / 8);
        let long = format!(r#"{{"output":[{items}{{"id":"b"}}]}}"#);
        let mut finder = ItemFinder::new(&headers(JSON, None));
        for chunk in long.as_bytes().chunks(10_000) {
            assert!(finder.take_document().is_none() && finder.search(chunk).is_empty());
        }
        let document = finder.take_document().expect("it is whole");
        assert!(finder.is_over() && finder.search(b"{}").is_empty());
        assert!(finder.take_document().is_none(), "once");
        let ids = listed(&document).unwrap();
        assert_eq!((ids.len(), ids[0].as_str()), (MOST, "a"));
    }

    #[test]
    fn ids_in_an_encoded_answer_are_found() {
        let bytes = zstd::encode_all(EVENTS.as_bytes(), 1).unwrap();
        let found = found(&headers(STREAM, Some("zstd")), &bytes, bytes.len());
        assert_eq!(found.len(), 2);
        let mut finder = ItemFinder::new(&headers(STREAM, Some("br")));
        assert!(finder.search(EVENTS.as_bytes()).is_empty() && finder.is_over());
    }
}
