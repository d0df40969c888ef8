//! Properties of all code that reads bytes of a client or of an upstream. They hold for arbitrary
//! bytes.
//!
//! Each function takes arbitrary input and panics if a property is broken. The property tests of
//! this module drive all of them in `make test`. libFuzzer drives the same functions from the crate
//! in `fuzz/`. They are `pub` for that crate alone: nothing in the gateway calls them.

use std::collections::HashMap;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::properties::plain::Json;
use crate::turn::http::response_id::{Finder, FoundId};
use crate::turn::websocket::frame;
use crate::usage::sieve::{Sieve, WHOLE};
use crate::usage::tap::{Reading, START, Tap};
use crate::wire::endpoint::{Endpoint, StoredCall, single_slashes};
use crate::wire::event::{field, first_type, hides_type, unnamed};
use crate::wire::peek::{Field, Peek, fields, stable_prefix};
use crate::wire::quotes::Quotes;
use crate::wire::scan::Scanner;
use crate::wire::terminal::Terminal;

pub mod answers;
pub mod chat;
pub mod items;
pub mod plain;
pub mod rewrites;

#[cfg(test)]
mod tests;

/// Every method and path that the gateway serves, but those that name a response or a model.
const ENDPOINTS: [(&str, &str, Endpoint<'static>); 14] = [
    ("POST", "/responses", Endpoint::CreateResponse),
    ("POST", "/v1/responses", Endpoint::CreateResponse),
    ("POST", "/chat/completions", Endpoint::CreateChatCompletion),
    ("POST", "/v1/chat/completions", Endpoint::CreateChatCompletion),
    ("POST", "/responses/compact", Endpoint::CompactResponse),
    ("POST", "/v1/responses/compact", Endpoint::CompactResponse),
    ("POST", "/responses/input_tokens", Endpoint::CountInputTokens),
    ("POST", "/v1/responses/input_tokens", Endpoint::CountInputTokens),
    ("GET", "/responses", Endpoint::OpenWebSocket),
    ("GET", "/v1/responses", Endpoint::OpenWebSocket),
    ("GET", "/models", Endpoint::ListModels),
    ("GET", "/v1/models", Endpoint::ListModels),
    ("HEAD", "/models", Endpoint::ListModels),
    ("HEAD", "/v1/models", Endpoint::ListModels),
];

/// The parser accepts the listed methods and paths, those with an id, and nothing else. It compares
/// bytes, but ignores trailing and doubled slashes.
pub fn endpoint(method: &str, path: &str) {
    let Ok(parsed) = Method::from_bytes(method.as_bytes()) else { return };
    let mut plain = path.to_owned();
    while plain.contains("//") {
        plain = plain.replace("//", "/");
    }
    if plain.len() > 1 && plain.starts_with('/') {
        plain = plain.trim_end_matches('/').to_owned();
    }
    let plain = plain.as_str();
    let listed = ENDPOINTS.iter().find(|(own, at, _)| (*own, *at) == (method, plain));
    let listed = listed.map(|(_, _, endpoint)| *endpoint);
    let singled = single_slashes(path);
    let found = Endpoint::parse(&parsed, &singled);
    assert_eq!(found, listed.or_else(|| with_an_id(method, plain)), "{method} {path:?}");
}

/// Whether a path may name a model by the text `spelled`. Each `%` must precede two hexadecimal
/// digits. The decoded text must be UTF-8 of a limited length, without control characters.
fn names_a_model(spelled: &str) -> bool {
    let (mut bytes, mut rest) = (Vec::new(), spelled.as_bytes());
    while let Some((first, more)) = rest.split_first() {
        let (byte, more) = match (*first, more) {
            (b'%', [high, low, more @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                let (Some(high), Some(low)) = (digit(high), digit(low)) else { return false };
                ((high * 16 + low) as u8, more)
            }
            (b'%', _) => return false,
            (plain, more) => (plain, more),
        };
        bytes.push(byte);
        rest = more;
    }
    (1..=256).contains(&bytes.len())
        && std::str::from_utf8(&bytes).is_ok_and(|text| !text.chars().any(char::is_control))
}

/// Returns the endpoint of a single response or model.
fn with_an_id<'p>(method: &str, path: &'p str) -> Option<Endpoint<'p>> {
    let mut parts: Vec<&str> = path.split('/').collect();
    if parts.get(1) == Some(&"v1") {
        parts.remove(1);
    }
    let is_plain = |id: &str, more: &[char]| {
        !id.is_empty()
            && id.len() <= 256
            && id.chars().all(|one| one.is_ascii_alphanumeric() || more.contains(&one))
    };
    match (method, parts.as_slice()) {
        ("GET" | "HEAD", ["", "models", _, ..]) => {
            let (_, spelled) = path.split_once("/models/")?;
            names_a_model(spelled).then_some(Endpoint::ShowModel(spelled))
        }
        (_, ["", "responses", "compact" | "input_tokens", ..]) => None,
        (_, ["", "responses", id, behind @ ..]) if is_plain(id, &['_', '-']) => {
            let call = match (method, behind) {
                ("GET", []) => StoredCall::Retrieve,
                ("DELETE", []) => StoredCall::Delete,
                ("POST", ["cancel"]) => StoredCall::Cancel,
                ("GET", ["input_items"]) => StoredCall::ListInputItems,
                _ => return None,
            };
            Some(Endpoint::Stored(call, id))
        }
        _ => None,
    }
}

/// `Quotes` finds the same quotes as a loop that looks at one byte after the other.
pub fn quotes(text: &[u8]) {
    let quotes = Quotes::of(text);
    let mut from = 0;
    let mut is_escaped = false;
    for (at, byte) in text.iter().enumerate() {
        if *byte == b'"' && !is_escaped {
            assert_eq!(quotes.next(from), Some(at), "from {from} of {}", text.escape_ascii());
            from = at + 1;
        }
        is_escaped = *byte == b'\\' && !is_escaped;
    }
    assert_eq!(quotes.next(from), None, "from {from} of {}", text.escape_ascii());
}

/// The scanner accepts the JSON that serde_json accepts. If serde_json can also read all of the
/// text, both find the same fields (the last of duplicates) and the same references.
pub fn json(text: &[u8]) {
    let is_json = serde_json::from_slice::<IgnoredAny>(text).is_ok();
    let mut scanner = Scanner::new(text);
    let scanned = scanner.value().and_then(|_| scanner.end());
    assert_eq!(scanned.is_ok(), is_json, "{scanned:?} of {}", text.escape_ascii());
    assert!(scanned.is_ok() || scanned.is_err_and(|fault| fault.0 <= text.len()), "{scanned:?}");
    let peeked = Peek::at(text);
    assert_eq!(peeked.is_ok(), is_json, "{}", text.escape_ascii());
    stable_prefix(text);
    let (Ok(peek), Some(plain)) = (peeked, Json::read(text)) else { return };
    same_fields(text, &plain);
    same_peek(text, &peek, &plain);
}

fn same_fields(text: &[u8], plain: &Json) {
    if !plain.is_object() {
        assert_eq!(fields(text, ["model"]), Ok([None]));
        return;
    }
    let raw: HashMap<String, &RawValue> = serde_json::from_slice(text).expect("it was read before");
    for (name, value) in raw.iter().take(8) {
        let found = fields(text, [name.as_str()]);
        assert_eq!(found, Ok([Some(value.get().as_bytes())]), "{name} of {}", text.escape_ascii());
    }
}

fn same_peek(text: &[u8], peek: &Peek, plain: &Json) {
    let inner = |name, inside| plain.last(name).and_then(|value| value.last(inside));
    let conversation = match plain.last("conversation") {
        Some(Json::Object(_)) => inner("conversation", "id"),
        other => other,
    };
    for (found, expected) in [
        (&peek.model, plain.last("model")),
        (&peek.prompt_cache_key, plain.last("prompt_cache_key")),
        (&peek.previous_response_id, plain.last("previous_response_id")),
        (&peek.session_id, inner("client_metadata", "session_id")),
        (&peek.conversation, conversation),
    ] {
        assert!(is_same(found, expected), "{found:?}, not {expected:?} in {}", text.escape_ascii());
    }
    assert_eq!(peek.is_unstored, matches!(plain.last("store"), Some(Json::Bool(false))));
    // The scanner looks for references as they are written; it unescapes only names.
    if !text.contains(&b'\\') {
        let found = (peek.references.need_project, peek.references.are_foreign);
        assert_eq!(found, references(plain), "{}", text.escape_ascii());
    }
}

fn is_same(found: &Field, expected: Option<&Json>) -> bool {
    /// The length from which a text may be written with so many escapes that the scanner does not
    /// copy it.
    const LONG: usize = 340;
    match (found, expected) {
        (Field::Absent, None | Some(Json::Null)) => true,
        (Field::Text(found), Some(Json::Text(expected))) => found == expected,
        (Field::Malformed, Some(Json::Text(expected))) => expected.len() > LONG,
        (Field::Malformed, Some(Json::Null) | None) => false,
        (Field::Malformed, Some(_)) => true,
        _ => false,
    }
}

/// Whether a body refers to objects of one project, and whether it refers to objects that no
/// response made.
fn references(body: &Json) -> (bool, bool) {
    let (mut needs_project, mut is_foreign) = (false, false);
    for (name, value) in body.fields() {
        if ["input", "messages", "tools", "prompt"].contains(&name.as_str()) {
            refer(value, &mut needs_project, &mut is_foreign);
        }
        let names_one = |(name, id): &(String, Json)| name == "id" && !matches!(id, Json::Null);
        needs_project |= name == "prompt" && value.fields().iter().any(names_one);
    }
    (needs_project | is_foreign, is_foreign)
}

fn refer(value: &Json, needs_project: &mut bool, is_foreign: &mut bool) {
    if let Json::Array(items) = value {
        items.iter().for_each(|item| refer(item, needs_project, is_foreign));
    }
    for (name, inside) in value.fields() {
        let text = inside.text().unwrap_or_default();
        let any_begins = |prefix: &str| {
            let Json::Array(all) = inside else { return false };
            // What stands deeper is not searched, and could be anything.
            let is_foreign = |one: &Json| match one {
                Json::Array(_) | Json::Object(_) => true,
                one => one.text().is_some_and(|text| text.starts_with(prefix)),
            };
            all.iter().any(is_foreign)
        };
        *needs_project |= match name.as_str() {
            "type" => text == "item_reference",
            "id" => value.fields().len() == 1 && !text.is_empty(),
            "file_id" | "container_id" | "container" | "skill_id" => !text.is_empty(),
            "file_ids" | "vector_store_ids" => inside.first().is_some(),
            _ => false,
        };
        *is_foreign |= match name.as_str() {
            "file_id" => text.starts_with("file"),
            "file_ids" => any_begins("file"),
            "vector_store_ids" => any_begins("vs_"),
            _ => false,
        };
        refer(inside, needs_project, is_foreign);
    }
}

/// A WebSocket message is read as JSON or yields nothing.
pub fn message(text: &[u8]) {
    let is_json = serde_json::from_slice::<IgnoredAny>(text).is_ok();
    assert_eq!(frame::ClientMessage::read(text).is_ok(), is_json, "{}", text.escape_ascii());
    let event = frame::Event::read(text);
    assert!(is_json || event.is_none(), "{event:?} of {}", text.escape_ascii());
    let Some(plain) = Json::read(text).filter(|plain| plain.is_plain(&["type"])) else { return };
    let name = plain.last("type").and_then(Json::text).unwrap_or_default();
    let is_told = name == "response.created" || Terminal::of_event(name.as_bytes()).is_some();
    assert_eq!(event.is_some(), is_told, "{}", text.escape_ascii());
    if let Some((first, Json::Text(name))) = plain.fields().first()
        && first == "type"
        && !text.contains(&b'\\')
    {
        assert_eq!(first_type(text), Some(name.as_bytes()), "{}", text.escape_ascii());
    }
}

/// The readers learn the same from an answer however its bytes arrive, and the same as a plain
/// reader of whole lines. `cuts`: the lengths of the first chunks.
pub fn events(text: &[u8], cuts: &[u8]) {
    for kind in ["text/event-stream", "application/json"] {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
        let (whole, cut) = (reading(&headers, [text]), reading(&headers, chunks(text, cuts)));
        if kind == "text/event-stream" {
            assert_eq!(whole, of_lines(text), "{}", text.escape_ascii());
        }
        assert_eq!(cut, whole, "{cuts:?} of {}", text.escape_ascii());
        let (whole, cut) =
            (response_id(&headers, [text]), response_id(&headers, chunks(text, cuts)));
        assert_eq!(cut, whole, "{cuts:?} of {}", text.escape_ascii());
    }
}

fn reading<'t>(headers: &HeaderMap, chunks: impl IntoIterator<Item = &'t [u8]>) -> Reading {
    let mut tap = Tap::new(headers);
    chunks.into_iter().for_each(|chunk| tap.observe(chunk));
    tap.finish(true)
}

fn response_id<'t>(headers: &HeaderMap, chunks: impl IntoIterator<Item = &'t [u8]>) -> FoundId {
    let mut finder = Finder::new(headers);
    let mut looks = chunks.into_iter().map(|chunk| finder.search(chunk));
    looks.find(|found| *found != FoundId::NotYet).unwrap_or(FoundId::NotYet)
}

/// Returns `text` in chunks, which may be empty: first those whose lengths are `cuts`, then the
/// rest.
pub fn chunks<'t>(text: &'t [u8], cuts: &[u8]) -> Vec<&'t [u8]> {
    let mut rest = text;
    let mut chunks = Vec::new();
    for cut in cuts {
        let (chunk, more) = rest.split_at(rest.len().min(usize::from(*cut)));
        chunks.push(chunk);
        rest = more;
    }
    chunks.push(rest);
    chunks
}

/// The lines of `text` that have ended.
fn lines(text: &[u8]) -> Vec<Vec<u8>> {
    let mut lines = vec![Vec::new()];
    let mut after_return = false;
    for byte in text {
        match byte {
            b'\n' if after_return => {}
            b'\n' | b'\r' => lines.push(Vec::new()),
            byte => lines.last_mut().expect("there is one from the start").push(*byte),
        }
        after_return = *byte == b'\r';
    }
    lines.pop();
    lines
}

/// Returns what the lines of a stream say about its end: the last terminal event counts. Only the
/// first bytes of a line can name a type. Data that is not JSON continues in the event's next line
/// of data.
fn of_lines(text: &[u8]) -> Reading {
    let (mut announced, mut is_named, mut reading) = (None, false, Reading::default());
    let mut open: Option<Vec<u8>> = None;
    for line in lines(text) {
        if line.is_empty() {
            if let Some(data) = open.take()
                && let Some(terminal) = announced.or(end_in(&kept(&data)))
            {
                reading = Reading::of_event(terminal, &kept(&data));
            }
            (announced, is_named) = (None, false);
        } else if let Some(data) = field(&line, b"data:") {
            if let Some(open) = &mut open {
                open.push(b'\n');
                open.extend(data);
                continue;
            }
            let start = field(&line[..line.len().min(START)], b"data:").unwrap_or_default();
            announced = announced.or(unnamed(start));
            let is_hidden = !is_named && hides_type(start, line.len() < START);
            let whole = kept(data);
            if fields(&whole, ["type"]).is_err() {
                open = (announced.is_some() || is_hidden).then(|| data.to_owned());
            } else if let Some(terminal) = announced.or(end_in(&whole).filter(|_| is_hidden)) {
                reading = Reading::of_event(terminal, &whole);
            }
        } else if let Some(name) = field(&line, b"event:") {
            (announced, is_named) = (Terminal::of_event(name), true);
        }
    }
    reading
}

/// The part of an event's data that the tap keeps.
fn kept(data: &[u8]) -> Vec<u8> {
    let mut sieve = Sieve::default();
    sieve.pass(data);
    if data.len() > WHOLE { sieve.kept().to_owned() } else { data.to_owned() }
}

/// The end that the type of an event's data means.
fn end_in(data: &[u8]) -> Option<Terminal> {
    let [kind] = fields(data, ["type"]).ok()?;
    Terminal::of_event(Field::of(kind).text()?.as_bytes())
}
