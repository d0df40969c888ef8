//! Finds the id of an answer's response in a copy of the bytes. Pure.
//!
//! The id is found with the byte that completes it, never later. An id stands near the beginning of
//! an answer, so the search is limited to that part.

use std::io::Write;

use http::HeaderMap;

use crate::wire::decoder::Decoder;
use crate::wire::event::{field, is_stream, line_length};
use crate::wire::peek::Field;
use crate::wire::scan::Scanner;

/// Bytes of an answer that are searched.
const SEARCHED: usize = 64 * 1024;

/// The result of the search so far.
#[derive(Debug, PartialEq, Eq)]
pub enum FoundId {
    NotYet,
    Id(String),
    /// The answer has no id, or an encoding that the gateway cannot decode.
    Nothing,
}

/// Searches one answer for its id.
pub struct Finder(Decoder<Text>);

impl Finder {
    pub fn new(headers: &HeaderMap) -> Self {
        Self(Decoder::new(
            headers,
            Text { is_stream: is_stream(headers), kept: Vec::new(), length: 0 },
        ))
    }

    /// Searches the whole of the next chunk.
    pub fn search(&mut self, chunk: &[u8]) -> FoundId {
        loop {
            match self.step(chunk) {
                (FoundId::NotYet, false) => {}
                (found, _) => return found,
            }
        }
    }

    /// Searches the next part of `chunk`. Returns whether all of the chunk is searched. Otherwise
    /// the next call must be about the same chunk.
    pub fn step(&mut self, chunk: &[u8]) -> (FoundId, bool) {
        let is_read = self.0.step(chunk);
        let Some(text) = self.0.reader_mut() else { return (FoundId::Nothing, true) };
        match text.id() {
            Some(id) => (FoundId::Id(id), true),
            None if text.length > SEARCHED => (FoundId::Nothing, true),
            None => (FoundId::NotYet, is_read),
        }
    }

    /// The bytes that the search holds.
    pub fn held(&self) -> usize {
        self.0.held() + self.0.reader().map_or(0, |text| text.kept.capacity())
    }
}

/// The text of an answer so far. For a stream, only the line that has not ended yet.
struct Text {
    is_stream: bool,
    kept: Vec<u8>,
    length: usize,
}

impl Text {
    fn id(&mut self) -> Option<String> {
        if !self.is_stream {
            return find(&mut Scanner::new(&self.kept), &["id"]);
        }
        let mut rest = &self.kept[..];
        while let Some(end) = line_length(rest) {
            let (line, more) = rest.split_at(end);
            if let Some(id) = of_line(line) {
                return Some(id);
            }
            rest = &more[1..];
        }
        let id = of_line(rest);
        self.kept.drain(..self.kept.len() - rest.len());
        id
    }
}

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = SEARCHED.saturating_sub(self.length);
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.length += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Returns the id in a line of a stream, which may be incomplete.
fn of_line(line: &[u8]) -> Option<String> {
    let data = field(line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line), b"data:")?;
    find(&mut Scanner::new(data), &["response", "id"])
}

/// Returns the string at `path` in an object that may be cut anywhere after the string.
fn find(scanner: &mut Scanner<'_>, path: &[&str]) -> Option<String> {
    let (name, path) = path.split_first()?;
    scanner.take(b'{').then_some(())?;
    loop {
        let key = scanner.string().ok()?;
        scanner.expect(b':').ok()?;
        if key[1..key.len() - 1] == *name.as_bytes() {
            return match path {
                [] => Field::of(scanner.string().ok()).text().map(str::to_owned),
                path => find(scanner, path),
            };
        }
        scanner.value().ok()?;
        scanner.expect(b',').ok()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
    use proptest::prelude::*;

    const STREAM: &str = "text/event-stream; charset=utf-8";
    const JSON: &str = "application/json";

    fn finder(kind: &'static str, encoding: Option<&'static str>) -> Finder {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, kind.parse().unwrap());
        if let Some(encoding) = encoding {
            headers.insert(CONTENT_ENCODING, encoding.parse().unwrap());
        }
        Finder::new(&headers)
    }

    /// Returns what is found in `text`, and how many bytes that took.
    fn found(kind: &'static str, text: &[u8], size: usize) -> (FoundId, usize) {
        let (mut finder, mut seen) = (finder(kind, None), 0);
        for chunk in text.chunks(size) {
            seen += chunk.len();
            match finder.search(chunk) {
                FoundId::NotYet => {}
                last => return (last, seen),
            }
        }
        (FoundId::NotYet, seen)
    }

    fn is(id: &str) -> FoundId {
        FoundId::Id(id.into())
    }

    proptest! {
        #[test]
        fn id_is_found_with_the_byte_that_completes_it(newline in 0usize..3, size in 1usize..400, space in "[ \t]{0,2}") {
            let newline = ["\n", "\r\n", "\r"][newline];
            let events = [
                "\u{feff}: a comment, data: {\"response\":{\"id\":\"no\"}}",
                "",
                "event: codex.rate_limits",
                r#"data: {"type":"codex.rate_limits","id":"no","response":null}"#,
                "",
                "event: response.created",
                &format!(r#"data: {{"type":{space}"response.created","sequence_number":0,"response":{{"object":{{"id":"no"}},"id" :{space}"resp_\u0031"#),
            ];
            let before = events.join(newline).replace("data: ", if size % 2 == 0 { "data:" } else { "data: " });
            let text = format!("{before}\",\"status\":\"in_progress\"}}}}{newline}{newline}");
            let (found, seen) = found(STREAM, text.as_bytes(), size);
            prop_assert_eq!(found, is("resp_1"));
            let chunks = (before.len() + 1).div_ceil(size);
            prop_assert_eq!(seen, chunks.saturating_mul(size).min(text.len()));
        }

        #[test]
        fn random_bytes_have_no_id_and_are_not_fatal(
            text in proptest::collection::vec(any::<u8>(), 0..400),
            size in 1usize..50,
        ) {
            for kind in [STREAM, JSON] {
                prop_assert_eq!(found(kind, &text, size), (FoundId::NotYet, text.len()));
            }
        }

        #[test]
        fn id_is_the_same_in_pieces_of_any_size(
            pieces in proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..24),
            size in 1usize..12,
        ) {
            let text = pieces.concat();
            for kind in [STREAM, JSON] {
                let whole = found(kind, text.as_bytes(), text.len().max(1)).0;
                prop_assert_eq!(&found(kind, text.as_bytes(), size).0, &whole, "{}", text);
                let told = ["a", "b", "id", "x"].map(is);
                prop_assert!(whole == FoundId::NotYet || told.contains(&whole), "{whole:?} of {text}");
            }
        }
    }

    /// Parts of answers, and parts that look like them.
    const PIECES: [&str; 16] = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\n",
        "data: ",
        "data:{\"response\":{",
        "\"id\":\"a\"",
        "\"id\":",
        "\"b\"",
        "{\"x\":1,",
        "\"x\":[2],",
        "null",
        "\r\n",
    ];

    #[test]
    fn id_of_a_document_is_found_anywhere_in_it() {
        assert_eq!(found(JSON, br#"{"id":"resp_1","object":"response""#, 5), (is("resp_1"), 15));
        assert_eq!(
            found(JSON, br#" {"output":[{"id":"no"}],"n":1.0e2,"id":"resp_1"}"#, 500).0,
            is("resp_1")
        );
        for nothing in [
            &br#"{"output":[{"id":"no"}]}"#[..],
            br#"{"id":7}"#,
            b"[]",
            b"",
            b"<html>",
            br#"{"id":null,"id":"#,
        ] {
            assert_eq!(
                found(JSON, nothing, 3).0,
                FoundId::NotYet,
                "{}",
                String::from_utf8_lossy(nothing)
            );
        }
    }

    #[test]
    fn id_that_comes_too_late_is_not_searched() {
        let late = format!(
            "data: {{\"type\":\"x\"}}\n\n{}\ndata: {{\"response\":{{\"id\":\"r\"}}}}\n\n",
            ":\n".repeat(SEARCHED / 2)
        );
        for size in [1, 7, 1_000, late.len()] {
            assert_eq!(found(STREAM, late.as_bytes(), size).0, FoundId::Nothing, "{size}");
        }
        let mut finder = finder(STREAM, None);
        finder.search(late.as_bytes());
        assert!(finder.0.reader().unwrap().kept.capacity() <= 2 * SEARCHED);
    }

    #[test]
    fn id_in_an_encoded_answer_is_found() {
        let text = b"data: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\"}}\n\n";
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(text).unwrap();
        for (encoding, bytes) in
            [("gzip", gzip.finish().unwrap()), ("zstd", zstd::encode_all(&text[..], 1).unwrap())]
        {
            assert_eq!(finder(STREAM, Some(encoding)).search(&bytes), is("resp_1"), "{encoding}");
        }
        assert_eq!(finder(STREAM, Some("br")).search(text), FoundId::Nothing);
    }
}
