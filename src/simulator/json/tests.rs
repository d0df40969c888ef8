//! Checks the tolerant reader against what real bodies hold.

use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Document<'_> {
    Document::read(text.as_bytes()).unwrap_or_else(|at| panic!("{text} at {at}"))
}

#[test]
fn last_duplicate_wins_and_null_is_absent() {
    let document = read(r#" {"a":1,"b":{"a":2},"\u0061":"x","c":null} "#);
    let root = document.root();
    assert_eq!(root.get("a").and_then(Value::text).as_deref(), Some("x"));
    assert!(root.get("c").is_none());
    assert_eq!(root.get("b").expect("present").raw(), br#"{"a":2}"#);
    assert_eq!(root.entries().count(), 4);
}

#[test]
fn odd_but_valid_values_are_read() {
    let document = read(
        r#"[1e999, -0.0E-7, "\ud800", "\ud83d\ude00\ud800x", "", [], {}, [[[{"a":[]}]]], 12345678901234567890123]"#,
    );
    let items: Vec<_> = document.root().items().collect();
    assert_eq!(items.len(), 9);
    assert_eq!(items[2].text().as_deref(), Some("\u{FFFD}"));
    assert_eq!(items[3].text().as_deref(), Some("😀\u{FFFD}x"));
    assert_eq!(items[8].raw(), b"12345678901234567890123");
}

#[test]
fn depth_costs_no_stack() {
    let deep = format!("{}{}", "[".repeat(500_000), "]".repeat(500_000));
    assert_eq!(read(&deep).root().items().count(), 1);
}

#[test]
fn body_that_is_no_json_is_refused() {
    for wrong in [
        "",
        " ",
        "{",
        "[1,]",
        "{,}",
        "[1 2]",
        "{\"a\"}",
        "{\"a\":}",
        "{a:1}",
        "[}",
        "{]",
        "]",
        "1 2",
        "01",
        "-",
        "1.",
        "1e",
        ".5",
        "+1",
        "\"\\x\"",
        "\"\\u12g4\"",
        "\"a\nb\"",
        "\"12345678\t\"",
        "nul",
        "tru",
        "\"open",
        "{\"a\":1,}",
        "[,1]",
        "NaN",
    ] {
        assert!(Document::read(wrong.as_bytes()).is_err(), "{wrong}");
    }
    assert!(Document::read(b"\"\xff\"").is_err());
}

proptest! {
    #[test]
    fn reader_agrees_with_serde_json_on_what_is_json(text in r#"[\[\]{},:"\\ua0-9eE.+\- tfn]{0,24}"#) {
        let theirs = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        prop_assert_eq!(Document::read(text.as_bytes()).is_ok(), theirs, "{}", text);
    }

    #[test]
    fn string_comes_back_as_it_was(text in any::<String>()) {
        let spelled = serde_json::to_string(&text).expect("a string can be spelled");
        let document = read(&spelled);
        prop_assert!(document.root().is_text(&text));
        prop_assert_eq!(document.root().text().expect("a string").into_owned(), text);
    }
}
