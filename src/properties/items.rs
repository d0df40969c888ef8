//! Properties of the stored items that a request refers to, and of those that an answer makes.

use std::collections::BTreeSet;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};

use crate::properties::chunks;
use crate::properties::plain::Json;
use crate::turn::http::item_ids::ItemFinder;
use crate::wire::items::{listed, referred};
use crate::wire::peek::{Peek, each};

/// The single scan of a body finds whether it refers to stored items, in any spelling.
pub fn referred_to(text: &[u8]) {
    let Ok(peek) = Peek::at(text) else { return };
    let names_some = referred(each(text, "input")).iter().any(|id| !id.is_empty());
    assert!(!names_some || peek.references.name_items, "{}", text.escape_ascii());
}

/// The ids of an answer's items are found however its bytes arrive. In a whole document, all are
/// found. `cuts`: the lengths of the first chunks.
pub fn made(text: &[u8], cuts: &[u8]) {
    for kind in ["text/event-stream", "application/json"] {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
        let (whole, cut) = (found(&headers, [text]), found(&headers, chunks(text, cuts)));
        assert_eq!(cut, whole, "{kind} {cuts:?} of {}", text.escape_ascii());
    }
    let Some(plain) = Json::read(text).filter(Json::is_object) else { return };
    let items = plain.last("output").map(Json::items).unwrap_or_default();
    let id = |item: &Json| item.last("id").and_then(Json::text).map(str::to_owned);
    let expected: Vec<String> = items.iter().filter_map(id).collect();
    assert_eq!(listed(text), Some(expected), "{}", text.escape_ascii());
}

fn found<'t>(headers: &HeaderMap, chunks: impl IntoIterator<Item = &'t [u8]>) -> BTreeSet<String> {
    let mut finder = ItemFinder::new(headers);
    chunks.into_iter().flat_map(|chunk| finder.search(chunk)).collect()
}
