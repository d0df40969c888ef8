//! Tests of conversations that grow: each turn's body begins with the body of the turn before.

use std::collections::BTreeSet;

use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;

/// Any text, the empty one included, with what JSON has to escape.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![1 => Just(String::new()), 6 => "[ -~\u{e9}\u{1f600}\n\"\\\\\u{1}]{0,40}"]
}

/// `parts` of a content, as a list: none, one or several.
fn list_of(part: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    prop::collection::vec(part, 0..4).prop_map(Value::from)
}

/// A part with a text, with or without a mark for the prompt cache.
fn text_part() -> impl Strategy<Value = Value> {
    (text(), any::<bool>()).prop_map(|(text, is_marked)| {
        let mut part = json!({ "type": "text", "text": text });
        if is_marked {
            part["prompt_cache_breakpoint"] = json!({ "mode": "explicit" });
        }
        part
    })
}

fn image() -> impl Strategy<Value = Value> {
    let detail = prop::option::of(prop::sample::select(vec!["auto", "low", "high", "original"]));
    (text(), detail).prop_map(|(url, detail)| match detail {
        Some(detail) => {
            json!({ "type": "image_url", "image_url": { "detail": detail, "url": url } })
        }
        None => json!({ "type": "image_url", "image_url": { "url": url } }),
    })
}

fn file() -> impl Strategy<Value = Value> {
    let named = |names: &'static [&'static str]| {
        prop::collection::vec(text(), names.len()).prop_map(move |texts| {
            let file: Value =
                names.iter().zip(texts).map(|(name, text)| (*name, Value::from(text))).collect();
            json!({ "file": file, "type": "file" })
        })
    };
    prop_oneof![named(&["file_id"]), named(&["file_data"]), named(&["file_data", "filename"])]
}

/// A content that is a text, or a list of these parts.
fn content(part: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    prop_oneof![text().prop_map(Value::from), list_of(part)]
}

/// One of several calls at once, as clients send it back, and its output.
fn call() -> impl Strategy<Value = (Value, Value)> {
    let kind = prop::sample::select(vec![("function", "arguments"), ("custom", "input")]);
    let output = content(text_part());
    (kind, "call_[a-c]", text(), any::<[bool; 3]>(), output).prop_map(
        |((kind, name), id, said, [has_index, has_parsed, has_name], output)| {
            let mut call = json!({ "id": id, "type": kind, kind: { "name": "f", name: said } });
            if has_index {
                call["index"] = json!(0);
            }
            if has_parsed && kind == "function" {
                call[kind]["parsed_arguments"] = json!({ "a": 1 });
            }
            let mut message = json!({ "role": "tool", "tool_call_id": id, "content": output });
            if has_name {
                message["name"] = json!("f");
            }
            (call, message)
        },
    )
}

/// An assistant's message with calls, and their outputs in any order.
fn calls() -> impl Strategy<Value = Vec<Value>> {
    let said = prop_oneof![Just(Value::Null), assistants_content()];
    let calls = prop::collection::vec(call(), 1..5);
    (said, calls, any::<prop::sample::Index>()).prop_map(|(said, calls, first)| {
        let (calls, mut outputs): (Vec<_>, Vec<_>) = calls.into_iter().unzip();
        let count = outputs.len();
        outputs.rotate_left(first.index(count));
        let message = json!({ "role": "assistant", "content": said, "tool_calls": calls });
        [vec![message], outputs].concat()
    })
}

fn assistants_content() -> impl Strategy<Value = Value> {
    let refusal = text().prop_map(|text| json!({ "type": "refusal", "refusal": text }));
    content(prop_oneof![text_part(), refusal])
}

/// An assistant's message without calls: text, parts, a refusal, or both.
fn answer() -> impl Strategy<Value = Value> {
    let said = prop_oneof![Just(Value::Null), assistants_content()];
    let more = (prop::option::of(text()), any::<[bool; 2]>());
    (said, more).prop_map(|(said, (refusal, [has_annotations, has_none]))| {
        let mut message = json!({ "role": "assistant", "content": said, "refusal": refusal });
        if has_annotations {
            message["annotations"] = json!([]);
        }
        if has_none {
            message["tool_calls"] = json!([]);
        }
        message
    })
}

/// What is added to a conversation at once: a message, or calls with their outputs.
fn added() -> impl Strategy<Value = Vec<Value>> {
    let alone = |role: &'static str, content: BoxedStrategy<Value>| {
        content.prop_map(move |content| vec![json!({ "role": role, "content": content })])
    };
    prop_oneof![
        2 => alone("user", content(prop_oneof![text_part(), image(), file()]).boxed()),
        1 => alone("system", content(text_part()).boxed()),
        1 => alone("developer", content(text_part()).boxed()),
        2 => answer().prop_map(|answer| vec![answer]),
        2 => calls(),
    ]
}

fn conversation() -> impl Strategy<Value = Vec<Value>> {
    prop::collection::vec(added(), 1..10).prop_map(|added| added.concat())
}

fn tools() -> impl Strategy<Value = Option<Value>> {
    prop::option::of(Just(json!([
        { "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } },
        { "type": "custom", "custom": { "name": "f" } },
    ])))
}

/// The body of each turn, translated: the first message alone, then one more at a time.
fn turns(messages: &[Value], tools: Option<&Value>) -> Vec<Vec<u8>> {
    let body = |turn| json!({ "messages": messages[..turn], "model": "m", "tools": tools });
    (1..=messages.len())
        .map(|turn| {
            let text = body(turn).to_string();
            let found = translate(text.as_bytes(), Some("k"));
            found.unwrap_or_else(|error| panic!("{error:?}: {text}")).body.to_vec()
        })
        .collect()
}

proptest! {
    /// Byte for byte: the settings, the tools, and every item so far.
    #[test]
    fn growing_conversation_keeps_its_prefix(messages in conversation(), tools in tools()) {
        let turns = turns(&messages, tools.as_ref());
        for pair in turns.windows(2) {
            let end = pair[0].strip_suffix(b"]}").expect("the input comes last");
            prop_assert!(pair[1].starts_with(end));
            // Nothing is added to the last item: another one follows, or none.
            let next = pair[1][end.len()];
            prop_assert!(end.ends_with(b"[") || next == b',' || next == b']');
        }
        let items = |turn: &[u8]| {
            let body: Value = serde_json::from_slice(turn).expect("a translation is JSON");
            body["input"].as_array().expect("the input is a list").clone()
        };
        for pair in turns.windows(2) {
            let (before, now) = (items(&pair[0]), items(&pair[1]));
            prop_assert!(now.len() > before.len(), "a message is at least one item");
            prop_assert!(now.starts_with(&before));
        }
        prop_assert_eq!(self::turns(&messages, tools.as_ref()), turns, "the same each time");
    }
}

/// Without this, a generator that never makes a file would prove nothing about files.
#[test]
fn conversations_that_are_tried_have_every_kind_of_item_and_part() {
    let mut runner = TestRunner::deterministic();
    let (mut kinds, mut most_calls) = (BTreeSet::new(), 0);
    for _ in 0..200 {
        let messages = conversation().new_tree(&mut runner).expect("a conversation").current();
        let whole = turns(&messages, None).pop().expect("one turn at least");
        let body: Value = serde_json::from_slice(&whole).expect("JSON");
        let mut in_a_row = 0;
        for (place, item) in body["input"].as_array().expect("a list").iter().enumerate() {
            let (kind, role) = (item["type"].as_str(), item["role"].as_str().unwrap_or_default());
            let kind = kind.expect("each item has a type");
            in_a_row = if kind.ends_with("_call") { in_a_row + 1 } else { 0 };
            most_calls = most_calls.max(in_a_row);
            kinds.insert(format!("{kind} {role}{}", if place > 0 { " later" } else { "" }));
            let content =
                if item["content"].is_null() { &item["output"] } else { &item["content"] };
            match content {
                Value::String(text) if text.is_empty() => _ = kinds.insert(format!("{kind} empty")),
                Value::Array(parts) if parts.is_empty() => _ = kinds.insert(format!("{role} []")),
                Value::Array(parts) => {
                    let types = parts.iter().filter_map(|part| part["type"].as_str());
                    kinds.extend(types.map(|own| format!("{own} of {role}{kind}")));
                }
                _ => {}
            }
        }
    }
    for kind in [
        "message user later",
        "message system later",
        "message developer later",
        "message assistant later",
        "function_call  later",
        "custom_tool_call  later",
        "function_call_output  later",
        "custom_tool_call_output  later",
        "function_call_output empty",
        "input_image of usermessage",
        "input_file of usermessage",
        "input_text of usermessage",
        "input_text of developermessage",
        "input_text of function_call_output",
        "input_text of custom_tool_call_output",
        "output_text of assistantmessage",
        "refusal of assistantmessage",
        "user []",
        "assistant []",
    ] {
        assert!(kinds.contains(kind), "{kind:?} among {kinds:?}");
    }
    assert!(most_calls >= 4, "parallel calls: {most_calls}");
}
