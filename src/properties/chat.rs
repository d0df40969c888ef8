//! Properties of the translation between the dialects.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};

use crate::chat::request::translate;
use crate::chat::stream::Stream;
use crate::chat::{answer, cache_key};
use crate::properties::chunks;
use crate::properties::plain::Json;
use crate::usage::tap::{Reading, Tap};
use crate::wire::completion::DONE;
use crate::wire::peek::Peek;

/// A chat body is translated to JSON, or refused with the name of a field. A body with a spliced
/// key is JSON, too. No response, whatever it contains, causes a panic.
pub fn body(text: &[u8]) {
    if Peek::at(text).is_err() {
        return;
    }
    match translate(text, Some("key")) {
        // Invalid Unicode stays as it was.
        Ok(found) => assert!(
            Json::read(&found.body).is_some() || Json::read(text).is_none(),
            "{}",
            text.escape_ascii()
        ),
        Err(error) => assert!(error.param.is_some(), "{}", text.escape_ascii()),
    }
    if let Some(spliced) = cache_key::splice(text, "key") {
        let peek = Peek::at(&spliced).expect("still JSON");
        assert!(peek.names_cache_key, "{}", text.escape_ascii());
    }
    let _ = answer::translate(text);
}

/// A stream is translated and read in the same way however its bytes arrive. `cuts`: the lengths of
/// the first chunks.
pub fn stream(text: &[u8], cuts: &[u8]) {
    let whole = chunked(vec![text]);
    assert_eq!(chunked(chunks(text, cuts)), whole, "{}", text.escape_ascii());
    for line in whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let data = line.strip_prefix(b"data: ").expect("a data line");
        assert!(data == DONE || Peek::at(data).is_ok(), "{}", text.escape_ascii());
    }
    assert_eq!(read(chunks(text, cuts)), read(vec![text]), "{}", text.escape_ascii());
}

fn chunked(chunks: Vec<&[u8]>) -> Vec<u8> {
    let mut stream = Stream::new(true);
    let mut out: Vec<u8> = chunks.into_iter().flat_map(|chunk| stream.push(chunk)).collect();
    out.extend(stream.end());
    out
}

fn read(chunks: Vec<&[u8]>) -> Reading {
    let kind = HeaderValue::from_static("text/event-stream");
    let mut tap = Tap::on_chat(&HeaderMap::from_iter([(CONTENT_TYPE, kind)]));
    chunks.into_iter().for_each(|chunk| tap.observe(chunk));
    tap.finish(true)
}
