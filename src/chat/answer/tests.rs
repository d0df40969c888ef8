//! Golden translations of responses.

use serde_json::{Value, json};

use super::*;

fn response(status: &str, output: &str, more: &str) -> String {
    format!(
        r#"{{"id":"resp_1","object":"response","created_at":1741476542.5,"status":"{status}","model":"gpt-5.4","service_tier":"default","output":[{output}]{more}}}"#
    )
}

fn completion(message: &str, reason: &str) -> String {
    format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1741476542,"model":"gpt-5.4","service_tier":"default","choices":[{{"index":0,"message":{{"role":"assistant",{message}}},"logprobs":null,"finish_reason":"{reason}"}}]}}"#
    )
}

fn translated(document: &str) -> String {
    String::from_utf8(translate(document.as_bytes()).expect(document)).unwrap()
}

#[test]
fn output_becomes_one_message() {
    let text = |text: &str| {
        format!(
            r#"{{"type":"message","role":"assistant","content":[{{"type":"output_text","text":"{text}","annotations":[]}}]}}"#
        )
    };
    let reasoning = r#"{"type":"reasoning","id":"rs_1","summary":[],"encrypted_content":"x"}"#;
    let call = r#"{"type":"function_call","id":"fc_1","call_id":"call_1","name":"f","arguments":"{\"a\": 1}","status":"completed"}"#;
    let custom = r#"{"type":"custom_tool_call","call_id":"call_2","name":"g","input":"x"}"#;
    for (output, message, reason) in [
        (
            format!("{reasoning},{}", text(r"hi \u00e9 \ud83d")),
            r#""content":"hi \u00e9 \ud83d","refusal":null,"annotations":[]"#,
            "stop",
        ),
        (
            format!("{},{}", text("a"), text("b")),
            r#""content":"ab","refusal":null,"annotations":[]"#,
            "stop",
        ),
        (
            format!("{},{call},{custom}", text("a")),
            r#""content":"a","refusal":null,"annotations":[],"tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}},{"id":"call_2","type":"custom","custom":{"name":"g","input":"x"}}]"#,
            "tool_calls",
        ),
        (
            r#"{"type":"message","content":[{"type":"refusal","refusal":"no"}]}"#.into(),
            r#""content":null,"refusal":"no","annotations":[]"#,
            "stop",
        ),
        (
            r#"{"type":"message","content":[{"type":"output_text","text":"a","annotations":[{"type":"url_citation","start_index":0,"end_index":1,"url":"https://x","title":"t"},{"type":"file_citation"}]}]}"#.into(),
            r#""content":"a","refusal":null,"annotations":[{"type":"url_citation","url_citation":{"start_index":0,"end_index":1,"url":"https://x","title":"t"}}]"#,
            "stop",
        ),
        (String::new(), r#""content":null,"refusal":null,"annotations":[]"#, "stop"),
    ] {
        assert_eq!(translated(&response("completed", &output, "")), completion(message, reason));
    }
}

#[test]
fn early_end_has_its_reason() {
    for (reason, expected) in
        [("max_output_tokens", "length"), ("content_filter", "content_filter"), ("steered", "stop")]
    {
        let details = format!(r#","incomplete_details":{{"reason":"{reason}"}}"#);
        let found: Value =
            serde_json::from_str(&translated(&response("incomplete", "", &details))).unwrap();
        assert_eq!(found["choices"][0]["finish_reason"], expected);
    }
    let call = r#"{"type":"function_call","call_id":"c","name":"f","arguments":"{"}"#;
    let cut =
        response("incomplete", call, r#","incomplete_details":{"reason":"max_output_tokens"}"#);
    let found: Value = serde_json::from_str(&translated(&cut)).unwrap();
    assert_eq!(found["choices"][0]["finish_reason"], "length", "the call itself may be cut");
}

#[test]
fn usage_keeps_each_count() {
    let usage = r#","usage":{"input_tokens":9000,"input_tokens_details":{"cached_tokens":8832,"cache_write_tokens":100},"output_tokens":7,"output_tokens_details":{"reasoning_tokens":5},"total_tokens":9007}"#;
    let found: Value =
        serde_json::from_str(&translated(&response("completed", "", usage))).unwrap();
    let expected = json!({
        "prompt_tokens": 9000, "completion_tokens": 7, "total_tokens": 9007,
        "prompt_tokens_details": { "cached_tokens": 8832, "cache_write_tokens": 100, "audio_tokens": 0 },
        "completion_tokens_details": { "reasoning_tokens": 5, "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0 },
    });
    assert_eq!(found["usage"], expected);
}

#[test]
fn failed_response_is_an_error() {
    for (code, status) in [
        (r#""rate_limit_exceeded""#, 429),
        (r#""server_error""#, 500),
        (r#""invalid_prompt""#, 400),
        ("null", 500),
    ] {
        let error = format!(r#","error":{{"code":{code},"message":"m"}}"#);
        let failure = translate(response("failed", "", &error).as_bytes()).unwrap_err();
        let found: Value = serde_json::from_slice(&failure.body).unwrap();
        assert_eq!(failure.status.as_u16(), status);
        assert_eq!(
            (&found["error"]["message"], &found["error"]["param"]),
            (&json!("m"), &Value::Null)
        );
    }
    for odd in
        ["", "7", "[]", "{}", r#"{"status":"queued","output":[]}"#, r#"{"status":"completed"}"#]
    {
        assert_eq!(translate(odd.as_bytes()).unwrap_err().status, 500, "{odd}");
    }
}
