//! Golden translations of streams, whole and cut at every byte.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Events as the real service spells them.
fn events(list: &[&str]) -> String {
    list.iter()
        .map(|data| {
            let kind = serde_json::from_str::<Value>(data).unwrap()["type"].clone();
            format!("event: {}\ndata: {data}\n\n", kind.as_str().unwrap())
        })
        .collect()
}

const CREATED: &str = r#"{"type":"response.created","sequence_number":0,"response":{"id":"resp_1","created_at":5,"model":"m","status":"in_progress","output":[]}}"#;
const DONE: &str = r#"{"type":"response.completed","sequence_number":9,"response":{"id":"resp_1","created_at":5,"model":"m","status":"completed","output":[],"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":8},"output_tokens":2,"output_tokens_details":{"reasoning_tokens":1},"total_tokens":11}}}"#;

fn translated(text: &str, include_usage: bool) -> String {
    let mut stream = Stream::new(include_usage);
    let mut out = stream.push(text.as_bytes());
    out.extend(stream.end());
    String::from_utf8(out).unwrap()
}

/// The deltas and the finish reasons of the chunks, and the last line.
fn deltas(text: &str) -> (Vec<Value>, Option<String>, String) {
    let out = translated(text, false);
    let (mut deltas, mut reason) = (Vec::new(), None);
    let mut last = String::new();
    for data in out.split_terminator("\n\n").map(|line| line.strip_prefix("data: ").expect(line)) {
        last = data.to_owned();
        let Ok(chunk) = serde_json::from_str::<Value>(data) else { continue };
        if let Some(choice) = chunk["choices"].get(0) {
            assert_eq!(
                (&chunk["id"], &chunk["object"], &chunk["created"], &chunk["model"]),
                (&json!("chatcmpl-1"), &json!("chat.completion.chunk"), &json!(5), &json!("m"))
            );
            deltas.push(choice["delta"].clone());
            reason = choice["finish_reason"].as_str().map(str::to_owned).or(reason);
        }
    }
    (deltas, reason, last)
}

fn begun() -> Value {
    json!({ "role": "assistant", "content": "", "refusal": null })
}

#[test]
fn chunks_are_spelled_as_the_real_service_does() {
    let text = events(&[
        CREATED,
        r#"{"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"h\u00e9","obfuscation":"xy"}"#,
        DONE,
    ]);
    let head =
        r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"m","#;
    let usage = r#""usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11,"prompt_tokens_details":{"cached_tokens":8,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":1,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}"#;
    let expected = |none: &str, last: &str| {
        format!(
            "{head}\"choices\":[{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null}},\"logprobs\":null,\"finish_reason\":null}}]{none}}}\n\n\
             {head}\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"h\\u00e9\"}},\"logprobs\":null,\"finish_reason\":null}}]{none},\"obfuscation\":\"xy\"}}\n\n\
             {head}\"choices\":[{{\"index\":0,\"delta\":{{}},\"logprobs\":null,\"finish_reason\":\"stop\"}}]{none}}}\n\n\
             {last}data: [DONE]\n\n"
        )
    };
    assert_eq!(translated(&text, false), expected("", ""));
    let last = format!("{head}\"choices\":[],{usage}}}\n\n");
    assert_eq!(translated(&text, true), expected(",\"usage\":null", &last));
}

#[test]
fn calls_are_counted_by_themselves() {
    let added = |place: u32, id: &str| {
        format!(
            r#"{{"type":"response.output_item.added","output_index":{place},"item":{{"type":"function_call","call_id":"{id}","name":"f","arguments":""}}}}"#
        )
    };
    let piece = |place: u32, text: &str| {
        format!(
            r#"{{"type":"response.function_call_arguments.delta","output_index":{place},"delta":"{text}"}}"#
        )
    };
    let done = |place: u32, id: &str, said: &str| {
        format!(
            r#"{{"type":"response.output_item.done","output_index":{place},"item":{{"type":"function_call","call_id":"{id}","name":"f","arguments":"{said}"}}}}"#
        )
    };
    let text = events(&[
        CREATED,
        r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"reasoning"}}"#,
        &added(1, "call_1"),
        &added(2, "call_2"),
        &piece(2, "{"),
        &piece(1, "[1"),
        &piece(2, "}"),
        &piece(1, "]"),
        &done(1, "call_1", "[1]"),
        &done(2, "call_2", "{}"),
        // Neither announced nor in pieces.
        &done(3, "call_3", "{}"),
        r#"{"type":"response.output_item.added","output_index":4,"item":{"type":"custom_tool_call","call_id":"call_4","name":"g","input":""}}"#,
        r#"{"type":"response.custom_tool_call_input.delta","output_index":4,"delta":"x"}"#,
        DONE,
    ]);
    let call = |index: u32, id: &str| json!({ "tool_calls": [{ "index": index, "id": id, "type": "function", "function": { "name": "f", "arguments": "" } }] });
    let said = |index: u32, text: &str| json!({ "tool_calls": [{ "index": index, "function": { "arguments": text } }] });
    let custom = json!({ "tool_calls": [{ "index": 3, "id": "call_4", "type": "custom", "custom": { "name": "g", "input": "" } }] });
    let input = json!({ "tool_calls": [{ "index": 3, "custom": { "input": "x" } }] });
    let (found, reason, last) = deltas(&text);
    assert_eq!(
        found,
        [
            begun(),
            call(0, "call_1"),
            call(1, "call_2"),
            said(1, "{"),
            said(0, "[1"),
            said(1, "}"),
            said(0, "]"),
            call(2, "call_3"),
            said(2, "{}"),
            custom,
            input,
            json!({})
        ]
    );
    assert_eq!((reason.as_deref(), last.as_str()), (Some("tool_calls"), "[DONE]"));
}

#[test]
fn refusal_annotation_and_text_without_pieces_arrive() {
    let (found, ..) = deltas(&events(&[
        CREATED,
        r#"{"type":"response.refusal.delta","output_index":0,"content_index":0,"delta":"n"}"#,
        r#"{"type":"response.refusal.done","output_index":0,"content_index":0,"refusal":"n"}"#,
        r#"{"type":"response.output_text.done","output_index":0,"content_index":1,"text":"whole"}"#,
        r#"{"type":"response.output_text.annotation.added","output_index":0,"content_index":1,"annotation":{"type":"url_citation","url":"u"}}"#,
        r#"{"type":"codex.unknown","delta":"x"}"#,
        DONE,
    ]));
    let note =
        json!({ "annotations": [{ "type": "url_citation", "url_citation": { "url": "u" } }] });
    let expected =
        [begun(), json!({ "refusal": "n" }), json!({ "content": "whole" }), note, json!({})];
    assert_eq!(found, expected);
}

#[test]
fn failure_is_an_error_and_no_end() {
    let failed = r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"server_error","message":"m"}}}"#;
    let flat = r#"{"type":"error","code":"rate_limit_exceeded","message":"m","param":null}"#;
    let nested = r#"{"type":"error","error":{"type":"x","code":"server_error","message":"m"}}"#;
    for (event, code) in
        [(failed, "server_error"), (flat, "rate_limit_exceeded"), (nested, "server_error")]
    {
        let out = translated(&events(&[CREATED, event, DONE]), false);
        let last = out.trim_end().rsplit("data: ").next().unwrap();
        let value: Value = serde_json::from_str(last).unwrap();
        assert_eq!(
            (&value["error"]["code"], &value["error"]["message"]),
            (&json!(code), &json!("m"))
        );
        assert!(!out.contains("[DONE]") && !out.contains("\"finish_reason\":\""), "{out}");
    }
    for cut in ["", &events(&[CREATED])[..], "data: {\"type\":\"response.comp"] {
        let out = translated(cut, false);
        assert!(out.contains("upstream_interrupted") && !out.contains("[DONE]"), "{out}");
    }
}

#[test]
fn event_of_several_lines_is_one_chunk() {
    let text = "data: {\"type\":\"response.output_text.delta\",\ndata: \"delta\":\"x\",\"obfuscation\":[\ndata: 1]}\n\n";
    let out = translated(text, false);
    assert!(out.contains(r#"{"content":"x"}"#) && out.contains("[ 1]"), "{out}");
    assert!(out.split_terminator("\n\n").all(|line| line.starts_with("data: {")), "{out}");
}

#[test]
fn answer_without_a_beginning_is_still_one() {
    let delta = r#"{"type":"response.output_text.delta","delta":"x","output_index":0}"#;
    let out = translated(&events(&[delta, DONE]), false);
    let mut lines = out.split_terminator("\n\n").filter_map(|line| line.strip_prefix("data: "));
    let first: Value = serde_json::from_str(lines.next().unwrap()).expect("JSON");
    assert_eq!((&first["created"], &first["choices"][0]["delta"]), (&json!(0), &begun()));
    assert!(out.ends_with("data: [DONE]\n\n"));
}

mod forms;
mod long;

proptest! {
    #[test]
    fn bytes_become_chunks_whatever_they_are(text in prop::collection::vec("(data: )?[ -~\n]{0,60}\n?", 0..12)) {
        let out = translated(&text.concat(), true);
        for line in out.split_terminator("\n\n") {
            let data = line.strip_prefix("data: ").expect("each is a data line");
            prop_assert!(data == "[DONE]" || serde_json::from_str::<Value>(data).is_ok(), "{}", data);
        }
    }
}
