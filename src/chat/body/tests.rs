//! Tests that an upstream which speaks chat gets the client's bytes, and at most one field more.

use std::fmt;

use proptest::prelude::*;
use serde::Deserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use super::*;
use crate::wire::peek::Peek;

const NAME: &str = "prompt_cache_key";

#[test]
fn null_key_passes_natively_and_is_derived_in_a_translation() {
    let session = SessionId::parse("FVm43fzVIvXqRQ8foYWpvg").unwrap();
    let body = |key: &str| Bytes::from(format!(r#"{{"model":"m","messages":[]{key}}}"#));
    let derived = derive_key(&session);
    for (key, names_key, expected) in [
        (r#","prompt_cache_key":null"#, true, &derived[..]),
        (r#","prompt_cache_key":"own""#, true, "own"),
        ("", false, &derived[..]),
    ] {
        let chat = ChatBody::new(body(key), None, Some(&session), names_key);
        assert_eq!(chat.native(true) == &body(key), names_key, "{key}");
        let translated = &chat.translated(true).unwrap().body;
        let read: serde_json::Value = serde_json::from_slice(translated).unwrap();
        assert_eq!(read["prompt_cache_key"], expected, "{key}");
    }
    let chat = ChatBody::new(body(r#","prompt_cache_key":null"#), None, Some(&session), true);
    let translated = &chat.translated(false).unwrap().body;
    let read: serde_json::Value = serde_json::from_slice(translated).unwrap();
    assert!(read.get("prompt_cache_key").is_none(), "the upstream wants none");
}

/// A translation has up to three times the length of its text.
#[test]
fn form_of_a_body_counts_with_its_length() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const MESSAGE: &str = r#"{"role":"user","content":""}"#;
    let session = SessionId::parse("FVm43fzVIvXqRQ8foYWpvg").unwrap();
    let text = format!(r#"{{"messages":[{}{MESSAGE}]}}"#, format!("{MESSAGE},").repeat(1000));
    let counting = |limit: usize| {
        let counted = Arc::new(AtomicUsize::new(0));
        let sum = Arc::clone(&counted);
        let room: Room = Box::new(move |bytes| {
            let full = || Error::new(crate::error::ErrorKind::NoKeyAvailable, "full");
            let all = sum.fetch_add(bytes, Ordering::Relaxed) + bytes;
            (all <= limit).then_some(()).ok_or_else(full)
        });
        let body = Bytes::from(text.clone());
        (ChatBody::new(body, None, Some(&session), false).counted(room), counted)
    };
    let (chat, counted) = counting(usize::MAX);
    let first = chat.translated(true).unwrap().body.len();
    assert!(first > text.len() * 5 / 2, "{first} of {}", text.len());
    let _ = chat.translated(true);
    let both = first + chat.translated(false).unwrap().body.len();
    let all = both + chat.native(true).len();
    assert_eq!(counted.load(Ordering::Relaxed), all, "each once");
    let (chat, _) = counting(text.len() * 2);
    for _ in 0..2 {
        assert_eq!(chat.translated(true).expect_err("no room").code(), "no_key_available");
    }
    assert!(chat.native(true).len() > text.len(), "it passes natively");
}

/// How often an object's fields have the name of the key, however it is spelled. `None`: the text
/// is no object.
fn named_keys(text: &[u8]) -> Option<usize> {
    struct Names;

    impl<'de> Visitor<'de> for Names {
        type Value = usize;

        fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
            to.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
            let mut count = 0;
            while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                count += usize::from(name == NAME);
            }
            Ok(count)
        }
    }

    serde_json::Deserializer::from_slice(text).deserialize_map(Names).ok()
}

/// The body of a turn whose session is known, as an upstream that speaks chat gets it.
fn native(body: &[u8]) -> (Bytes, String) {
    let session = SessionId::parse("FVm43fzVIvXqRQ8foYWpvg").expect("a stored id");
    let names_key = Peek::at(body).expect("it is JSON").names_cache_key;
    let chat = ChatBody::new(Bytes::copy_from_slice(body), None, Some(&session), names_key);
    (chat.native(true).clone(), derive_key(&session))
}

/// JSON text in any layout, with names that mislead a search for the key.
fn object() -> impl Strategy<Value = String> {
    let space = || "[ \t\r\n]{0,3}";
    let name = prop_oneof![
        3 => prop::sample::select(vec![
            r#""prompt_cache_key""#,
            r#""prompt_cache\u005fkey""#,
            r#""\u0070rompt_cache_key""#,
            r#""Prompt_cache_key""#,
            r#""prompt_cache_key ""#,
            r#""prompt_cache_key\u0000""#,
            r#""\"prompt_cache_key""#,
            r#""prompt_cache_keys""#,
        ]),
        3 => prop::sample::select(vec![r#""model""#, r#""messages""#, r#""metadata""#, r#""""#]),
    ];
    let leaf = prop::sample::select(vec![
        "null",
        "1.0e2",
        r#""""#,
        r#""own""#,
        r#""{\"prompt_cache_key\":1}""#,
        r#""}{,\\\" \u00e9""#,
        "[]",
        "{}",
    ]);
    let object_of = move |value: BoxedStrategy<String>| {
        let field = (space(), name.clone(), space(), value, space());
        (space(), prop::collection::vec(field, 0..5)).prop_map(|(space, fields)| {
            let field = |(a, name, b, value, c)| format!("{a}{name}:{b}{value}{c}");
            let fields: Vec<String> = fields.into_iter().map(field).collect();
            format!("{{{space}{}}}", fields.join(","))
        })
    };
    let value = leaf.prop_map(str::to_owned).prop_recursive(3, 20, 4, {
        let object_of = object_of.clone();
        move |inner| {
            let list = prop::collection::vec(inner.clone(), 0..3)
                .prop_map(|items| format!("[{}]", items.join(" , ")));
            prop_oneof![object_of(inner.boxed()), list]
        }
    });
    (space(), object_of(value.boxed()), space())
        .prop_map(|(a, object, b)| format!("{a}{object}{b}"))
}

proptest! {
    /// A key is never doubled, and without the one field the body is the client's, byte for byte.
    #[test]
    fn cache_key_is_the_only_change_and_never_the_second(body in object()) {
        let (sent, key) = native(body.as_bytes());
        let before = named_keys(body.as_bytes()).expect("an object");
        if before > 0 {
            prop_assert_eq!(sent, body.as_bytes());
            return Ok(());
        }
        prop_assert_eq!(named_keys(&sent), Some(1));
        let open = body.find('{').expect("an object opens") + 1;
        let field = format!(r#""{NAME}":"{key}""#);
        let (head, rest) = sent.split_at(open);
        let rest = rest.strip_prefix(field.as_bytes()).expect("the field comes first");
        let is_empty = body[open..].trim_start().starts_with('}');
        let rest = if is_empty { rest } else { rest.strip_prefix(b",").expect("a comma") };
        prop_assert_eq!([head, rest].concat(), body.as_bytes());
    }
}

#[test]
fn body_that_is_no_object_passes_as_it_is() {
    for body in ["[]", "null", r#""prompt_cache_key""#, r#" [{"prompt_cache_key":"a"}] "#, "7"] {
        assert_eq!(native(body.as_bytes()).0, body);
    }
}
