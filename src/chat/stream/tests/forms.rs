//! Tests that each construct of an answer tells a chat client the same as a document and as a
//! stream, however the stream's bytes arrive.

use super::*;
use crate::chat::answer::translate;

/// An answer: its name, its status, the items of its output, and further fields.
type Case = (&'static str, &'static str, &'static [&'static str], &'static str);

const TEXT: &str = r#"{"type":"message","id":"msg_1","role":"assistant","status":"completed","content":[{"type":"output_text","text":"h\u00e9 \"é\"","annotations":[],"logprobs":[]}]}"#;
const SECOND: &str = r#"{"type":"message","id":"msg_2","role":"assistant","status":"completed","content":[{"type":"output_text","text":"and more","annotations":[]}]}"#;
const JSON: &str = r#"{"type":"message","id":"msg_1","role":"assistant","status":"completed","content":[{"type":"output_text","text":"{\"a\": [1, 2]}","annotations":[]}]}"#;
const REFUSAL: &str = r#"{"type":"message","id":"msg_1","role":"assistant","status":"completed","content":[{"type":"refusal","refusal":"I will not"}]}"#;
const BOTH: &str = r#"{"type":"message","id":"msg_1","role":"assistant","status":"completed","content":[{"type":"output_text","text":"well","annotations":[]},{"type":"refusal","refusal":"no"}]}"#;
const CITED: &str = r#"{"type":"message","id":"msg_1","role":"assistant","status":"completed","content":[{"type":"output_text","text":"see","annotations":[{"type":"url_citation","start_index":0,"end_index":3,"url":"https://x","title":"t"},{"type":"file_citation","file_id":"f"}]}]}"#;
const REASONING: &str = r#"{"type":"reasoning","id":"rs_1","summary":[{"type":"summary_text","text":"hm"}],"encrypted_content":"x"}"#;
const CALL: &str = r#"{"type":"function_call","id":"fc_1","call_id":"call_1","name":"f","arguments":"{\"a\": \"\u00e9\"}","status":"completed"}"#;
const OTHER: &str = r#"{"type":"function_call","id":"fc_2","call_id":"call_2","name":"g","arguments":"{}","status":"completed"}"#;
const BARE: &str = r#"{"type":"function_call","id":"fc_3","call_id":"call_3","name":"h","arguments":"","status":"completed"}"#;
const CUSTOM: &str =
    r#"{"type":"custom_tool_call","id":"ctc_1","call_id":"call_4","name":"k","input":"a\nb"}"#;
const SEARCH: &str = r#"{"type":"web_search_call","id":"ws_1","status":"completed"}"#;
const USAGE: &str = r#","usage":{"input_tokens":9000,"input_tokens_details":{"cached_tokens":8832,"cache_write_tokens":100},"output_tokens":7,"output_tokens_details":{"reasoning_tokens":5},"total_tokens":9007}"#;
const TIER: &str = r#","service_tier":"flex""#;
const TOO_LONG: &str = r#","incomplete_details":{"reason":"max_output_tokens"},"usage":null"#;
const FILTERED: &str = r#","incomplete_details":{"reason":"content_filter"}"#;

const CASES: &[Case] = &[
    ("a text", "completed", &[REASONING, TEXT], USAGE),
    ("two messages", "completed", &[TEXT, REASONING, SECOND], USAGE),
    ("a structured output", "completed", &[JSON], ""),
    ("a refusal", "completed", &[REFUSAL], USAGE),
    ("a text and a refusal", "completed", &[BOTH], ""),
    ("a citation", "completed", &[SEARCH, CITED], ""),
    ("a call", "completed", &[REASONING, CALL], USAGE),
    ("parallel calls behind a text", "completed", &[TEXT, CALL, CUSTOM, BARE, OTHER], USAGE),
    ("nothing", "completed", &[], ""),
    ("a text that is too long", "incomplete", &[TEXT], TOO_LONG),
    ("a call that is too long", "incomplete", &[CALL], TOO_LONG),
    ("a filtered text", "incomplete", &[TEXT], FILTERED),
    ("a service tier", "completed", &[TEXT], TIER),
    ("a failure", "failed", &[], r#","error":{"code":"server_error","message":"m"}"#),
    ("a limit", "failed", &[], r#","error":{"code":"rate_limit_exceeded","message":"m"}"#),
    ("a filtered prompt", "failed", &[TEXT], r#","error":{"code":"invalid_prompt","message":"m"}"#),
];

fn document((_, status, items, more): &Case) -> String {
    let output = items.join(",");
    format!(
        r#"{{"id":"resp_1","object":"response","created_at":5,"status":"{status}","model":"m","output":[{output}]{more}}}"#
    )
}

/// Which events of a stream say what an answer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Telling {
    /// All events of the real service.
    Pieces,
    /// All but the pieces of texts and arguments.
    Whole,
    /// The same, without the end of an item.
    Parts,
    /// Only the beginning and the end of each item.
    Items,
    /// Only the terminal event.
    End,
}

impl Telling {
    const ALL: [Self; 5] = [Self::Pieces, Self::Whole, Self::Parts, Self::Items, Self::End];
}

/// The stream of the same answer.
fn stream(case: &Case, telling: Telling) -> String {
    let tier = if case.3 == TIER { TIER } else { "" };
    let mut list = vec![
        format!(
            r#"{{"type":"response.created","response":{{"id":"resp_1","created_at":5,"model":"m","status":"in_progress","output":[]{tier}}}}}"#
        ),
        r#"{"type":"response.in_progress","response":{}}"#.to_owned(),
    ];
    for (place, item) in case.2.iter().enumerate().filter(|_| telling != Telling::End) {
        tell(&mut list, place, &serde_json::from_str(item).unwrap(), telling);
    }
    list.push(format!(r#"{{"type":"response.{}","response":{}}}"#, case.1, document(case)));
    events(&list.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Adds the events of one item, in the order of the real service.
fn tell(list: &mut Vec<String>, place: usize, item: &Value, telling: Telling) {
    let mut say = |kind: &str, more: String| {
        let is_of_items = kind.starts_with("output_item");
        if telling == Telling::Items && !is_of_items
            || telling == Telling::Parts && kind == "output_item.done"
        {
            return;
        }
        list.push(format!(r#"{{"type":"response.{kind}","output_index":{place},{more}}}"#));
    };
    let pieces = |said: &str| -> Vec<String> {
        said.chars()
            .filter(|_| telling == Telling::Pieces)
            .map(|piece| json!(piece.to_string()).to_string())
            .collect()
    };
    let mut begun = item.clone();
    for field in ["arguments", "input"] {
        if begun[field].is_string() {
            begun[field] = json!("");
        }
    }
    say("output_item.added", format!(r#""item":{begun}"#));
    for (field, event) in
        [("arguments", "function_call_arguments"), ("input", "custom_tool_call_input")]
    {
        let Some(said) = item[field].as_str() else { continue };
        for piece in pieces(said) {
            say(&format!("{event}.delta"), format!(r#""delta":{piece}"#));
        }
        say(&format!("{event}.done"), format!(r#""{field}":{}"#, item[field]));
    }
    for (number, part) in item["content"].as_array().into_iter().flatten().enumerate() {
        let is_refusal = part["type"] == "refusal";
        let (field, event) =
            if is_refusal { ("refusal", "refusal") } else { ("text", "output_text") };
        let place = format!(r#""content_index":{number}"#);
        for piece in pieces(part[field].as_str().unwrap()) {
            say(&format!("{event}.delta"), format!(r#"{place},"delta":{piece},"obfuscation":"x""#));
        }
        for note in part["annotations"].as_array().into_iter().flatten() {
            say("output_text.annotation.added", format!(r#"{place},"annotation":{note}"#));
        }
        say(&format!("{event}.done"), format!(r#"{place},"{field}":{}"#, part[field]));
    }
    if item["type"] == "reasoning" {
        say("reasoning_summary_text.delta", r#""summary_index":0,"delta":"hm""#.to_owned());
    }
    say("output_item.done", format!(r#""item":{item}"#));
}

/// The facts of an answer that a client puts together of a stream's chunks.
fn folded(stream: &str) -> Value {
    let (mut whole, mut calls) = (json!({}), Vec::new());
    let mut message = json!({ "content": null, "refusal": null, "annotations": [] });
    for data in stream.split_terminator("\n\n").map(|line| line.strip_prefix("data: ").unwrap()) {
        let Ok(chunk) = serde_json::from_str::<Value>(data) else { continue };
        if chunk.get("error").is_some() {
            return chunk;
        }
        take(&mut whole, &chunk);
        let choice = &chunk["choices"][0];
        if choice["finish_reason"].is_string() {
            whole["finish_reason"] = choice["finish_reason"].clone();
        }
        let delta = &choice["delta"];
        append(&mut message["content"], &delta["content"]);
        append(&mut message["refusal"], &delta["refusal"]);
        for note in delta["annotations"].as_array().into_iter().flatten() {
            message["annotations"].as_array_mut().unwrap().push(note.clone());
        }
        for piece in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = piece["index"].as_u64().unwrap() as usize;
            if index == calls.len() {
                let mut call = piece.clone();
                call.as_object_mut().unwrap().remove("index");
                calls.push(call);
                continue;
            }
            for (kind, field) in [("function", "arguments"), ("custom", "input")] {
                if piece[kind][field].is_string() {
                    append(&mut calls[index][kind][field], &piece[kind][field]);
                }
            }
        }
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    whole["message"] = message;
    whole
}

fn append(to: &mut Value, piece: &Value) {
    if let Some(piece) = piece.as_str().filter(|piece| !piece.is_empty()) {
        *to = format!("{}{piece}", to.as_str().unwrap_or_default()).into();
    }
}

fn take(whole: &mut Value, part: &Value) {
    for name in ["id", "created", "model", "service_tier", "usage"] {
        if !part[name].is_null() {
            whole[name] = part[name].clone();
        }
    }
}

/// The same facts of a whole completion, or its error.
fn gathered(document: &str) -> Value {
    let whole: Value = match translate(document.as_bytes()) {
        Ok(whole) => serde_json::from_slice(&whole).unwrap(),
        Err(failure) => return serde_json::from_slice(&failure.body).unwrap(),
    };
    let choice = &whole["choices"][0];
    let mut found =
        json!({ "message": choice["message"], "finish_reason": choice["finish_reason"] });
    assert_eq!(found["message"].as_object_mut().unwrap().remove("role"), Some(json!("assistant")));
    take(&mut found, &whole);
    found
}

#[test]
fn stream_tells_what_the_document_tells() {
    for case in CASES {
        let expected = gathered(&document(case));
        let mut without_usage = expected.clone();
        without_usage.as_object_mut().unwrap().remove("usage");
        for telling in Telling::ALL {
            let stream = stream(case, telling);
            let out = translated(&stream, true);
            assert_eq!(folded(&out), expected, "{}, {telling:?}: {out}", case.0);
            assert_eq!(out.ends_with("data: [DONE]\n\n"), case.1 != "failed", "{}", case.0);
            assert_eq!(folded(&translated(&stream, false)), without_usage, "{}", case.0);
        }
    }
}

#[test]
fn stream_is_the_same_wherever_it_is_cut() {
    let flat = events(&[CREATED, r#"{"type":"error","code":"server_error","message":"m"}"#]);
    let streams = CASES.iter().map(|case| stream(case, Telling::Pieces));
    for text in streams.chain([flat, events(&[CREATED])]) {
        let whole = translated(&text, true);
        for ending in ["\n", "\r", "\r\n"] {
            let text = text.replace('\n', ending);
            for at in 0..=text.len() {
                let mut stream = Stream::new(true);
                let mut out = stream.push(&text.as_bytes()[..at]);
                out.extend(stream.push(&text.as_bytes()[at..]));
                out.extend(stream.end());
                assert_eq!(String::from_utf8_lossy(&out), whole, "{ending:?} cut at {at}");
            }
        }
    }
}

#[test]
fn part_that_came_in_pieces_without_its_number_is_not_told_again() {
    let delta = r#"{"type":"response.output_text.delta","delta":"x"}"#;
    let done = r#"{"type":"response.output_item.done","output_index":0,"item":{"type":"message","content":[{"type":"output_text","text":"x"}]}}"#;
    let out = translated(&events(&[CREATED, delta, done, DONE]), false);
    assert_eq!(folded(&out)["message"]["content"], "x", "{out}");
}
