//! Golden translations of chat requests, and properties of all of them.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// The translation of a body with these `fields`, without the fields that every translation has.
fn translated(fields: &str) -> String {
    let body = format!(r#"{{"model":"m",{fields}}}"#);
    let found = translate(body.as_bytes(), None).unwrap_or_else(|error| panic!("{body}: {error}"));
    let text = String::from_utf8(found.body.to_vec()).unwrap();
    text.replace(r#""store":false,"#, "").replace(r#"{"model":"m","#, "{")
}

/// The field that the error about a body with these `fields` names.
fn refused(fields: &str) -> (String, &'static str) {
    let body = format!(r#"{{"model":"m","messages":[]{fields}}}"#);
    let error = translate(body.as_bytes(), None).expect_err(&body);
    let response: http::Response<String> = error.to_response();
    let value: Value = serde_json::from_str(response.body()).unwrap();
    let param = value["error"]["param"].as_str().unwrap().to_owned();
    assert_eq!(response.status(), 400);
    assert!(error.message.contains(&param), "{}", error.message);
    (param, error.code())
}

#[test]
fn message_becomes_its_items_where_it_stands() {
    for (message, items) in [
        (
            r#"{"role":"system","content":"be brief"}"#,
            r#"{"type":"message","role":"system","content":[{"type":"input_text","text":"be brief"}]}"#,
        ),
        (
            r#"{"content":[{"type":"text","text":"a"},{"text":"b","type":"text"}],"role":"developer"}"#,
            r#"{"type":"message","role":"developer","content":[{"type":"input_text","text":"a"},{"type":"input_text","text":"b"}]}"#,
        ),
        (
            r#"{"role":"user","content":"caf\u00e9 \ud83d"}"#,
            r#"{"type":"message","role":"user","content":[{"type":"input_text","text":"caf\u00e9 \ud83d"}]}"#,
        ),
        (
            r#"{"role":"user","content":[{"type":"text","text":"look","prompt_cache_breakpoint":{"mode":"explicit"}},{"type":"image_url","image_url":{"url":"https://x/y.png"}},{"type":"image_url","image_url":{"url":"data:image/png;base64,AA==","detail":"high"}}]}"#,
            r#"{"type":"message","role":"user","content":[{"type":"input_text","text":"look","prompt_cache_breakpoint":{"mode":"explicit"}},{"type":"input_image","image_url":"https://x/y.png","detail":"auto"},{"type":"input_image","image_url":"data:image/png;base64,AA==","detail":"high"}]}"#,
        ),
        (
            r#"{"role":"user","content":[{"type":"file","file":{"filename":"a.pdf","file_data":"data:application/pdf;base64,AA=="}},{"type":"file","file":{"file_id":"file-1"}}]}"#,
            r#"{"type":"message","role":"user","content":[{"type":"input_file","filename":"a.pdf","file_data":"data:application/pdf;base64,AA=="},{"type":"input_file","file_id":"file-1"}]}"#,
        ),
        (
            r#"{"role":"assistant","content":"hello","refusal":null,"annotations":[],"audio":null,"function_call":null}"#,
            r#"{"type":"message","role":"assistant","content":[{"type":"output_text","text":"hello"}]}"#,
        ),
        (
            r#"{"role":"assistant","content":[{"type":"text","text":"a"},{"type":"refusal","refusal":"b"}]}"#,
            r#"{"type":"message","role":"assistant","content":[{"type":"output_text","text":"a"},{"type":"refusal","refusal":"b"}]}"#,
        ),
        (
            r#"{"role":"assistant","content":null,"refusal":"I will not"}"#,
            r#"{"type":"message","role":"assistant","content":[{"type":"refusal","refusal":"I will not"}]}"#,
        ),
        (
            r#"{"role":"assistant","content":"but","refusal":"no"}"#,
            r#"{"type":"message","role":"assistant","content":[{"type":"output_text","text":"but"},{"type":"refusal","refusal":"no"}]}"#,
        ),
        (
            r#"{"role":"assistant","content":""}"#,
            r#"{"type":"message","role":"assistant","content":[{"type":"output_text","text":""}]}"#,
        ),
        (
            r#"{"role":"assistant","content":"I look","tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}},{"index":1,"id":"call_2","type":"function","function":{"arguments":"{}","name":"g"}}]}"#,
            r#"{"type":"message","role":"assistant","content":[{"type":"output_text","text":"I look"}]},{"type":"function_call","call_id":"call_1","name":"f","arguments":"{\"a\": 1}"},{"type":"function_call","call_id":"call_2","name":"g","arguments":"{}"}"#,
        ),
        (
            r#"{"role":"assistant","content":null,"tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"call_1","content":"done"}"#,
            r#"{"type":"function_call","call_id":"call_1","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"call_1","output":"done"}"#,
        ),
        (
            r#"{"role":"assistant","content":"","tool_calls":[{"id":"call_1","type":"custom","custom":{"name":"f","input":"x"}}]},{"role":"tool","tool_call_id":"call_1","content":[{"type":"text","text":"y"}]}"#,
            r#"{"type":"custom_tool_call","call_id":"call_1","name":"f","input":"x"},{"type":"custom_tool_call_output","call_id":"call_1","output":[{"type":"input_text","text":"y"}]}"#,
        ),
        // Parallel calls, and their results in another order.
        (
            r#"{"role":"assistant","tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{}"}},{"id":"call_2","type":"custom","custom":{"name":"g","input":"x"}}]},{"role":"tool","tool_call_id":"call_2","content":"two"},{"role":"tool","tool_call_id":"call_1","content":""}"#,
            r#"{"type":"function_call","call_id":"call_1","name":"f","arguments":"{}"},{"type":"custom_tool_call","call_id":"call_2","name":"g","input":"x"},{"type":"custom_tool_call_output","call_id":"call_2","output":"two"},{"type":"function_call_output","call_id":"call_1","output":""}"#,
        ),
        // Answers as OpenAI's Python SDK sends them back, with what it has read in them.
        (
            r#"{"content":"{\"a\": 1}","refusal":null,"role":"assistant","annotations":[],"audio":null,"function_call":null,"tool_calls":null,"parsed":{"a":1}}"#,
            r#"{"type":"message","role":"assistant","content":[{"type":"output_text","text":"{\"a\": 1}"}]}"#,
        ),
        (
            r#"{"content":null,"refusal":"no","role":"assistant","annotations":null,"audio":null,"function_call":null,"tool_calls":null,"parsed":null}"#,
            r#"{"type":"message","role":"assistant","content":[{"type":"refusal","refusal":"no"}]}"#,
        ),
        (
            r#"{"content":null,"role":"assistant","tool_calls":[{"id":"call_1","function":{"arguments":"{\"a\": 1}","name":"f","parsed_arguments":{"a":1}},"type":"function"},{"id":"call_2","function":{"arguments":"{}","name":"f","parsed_arguments":null},"type":"function"}]}"#,
            r#"{"type":"function_call","call_id":"call_1","name":"f","arguments":"{\"a\": 1}"},{"type":"function_call","call_id":"call_2","name":"f","arguments":"{}"}"#,
        ),
    ] {
        let found = translated(&format!(r#""messages":[{message}]"#));
        assert_eq!(found, format!(r#"{{"input":[{items}]}}"#));
    }
}

#[test]
fn setting_becomes_its_counterpart() {
    for (chat, responses) in [
        (r#""max_completion_tokens":100"#, r#""max_output_tokens":100"#),
        (r#""max_tokens":100,"max_completion_tokens":null"#, r#""max_output_tokens":100"#),
        (r#""max_tokens":16"#, r#""max_output_tokens":16"#),
        (r#""reasoning_effort":"high""#, r#""reasoning":{"effort":"high"}"#),
        (r#""verbosity":"low""#, r#""text":{"verbosity":"low"}"#),
        (r#""response_format":{"type":"text"}"#, r#""text":{"format":{"type":"text"}}"#),
        (
            r#""response_format":{"type":"json_object"},"verbosity":"low""#,
            r#""text":{"format":{"type":"json_object"},"verbosity":"low"}"#,
        ),
        (
            r#""response_format":{"type":"json_schema","json_schema":{"schema":{"z":1,"a":1.0e2},"name":"n","strict":true}}"#,
            r#""text":{"format":{"type":"json_schema","name":"n","schema":{"z":1,"a":1.0e2},"strict":true}}"#,
        ),
        (
            r#""response_format":{"type":"json_schema","json_schema":{"name":"n","description":"d","schema":{},"strict":null}}"#,
            r#""text":{"format":{"type":"json_schema","name":"n","description":"d","schema":{},"strict":false}}"#,
        ),
        (
            r#""tools":[{"type":"function","function":{"description":"d","name":"f","parameters":{"b":[],"a":{}}}}]"#,
            r#""tools":[{"type":"function","name":"f","description":"d","parameters":{"b":[],"a":{}},"strict":false}]"#,
        ),
        (
            r#""tools":[{"function":{"name":"f","strict":true},"type":"function"}]"#,
            r#""tools":[{"type":"function","name":"f","parameters":{"type":"object","properties":{}},"strict":true}]"#,
        ),
        (
            r#""tools":[{"type":"custom","custom":{"name":"f"}},{"type":"custom","custom":{"name":"g","description":"d","format":{"type":"grammar","grammar":{"syntax":"lark","definition":"s"}}}}]"#,
            r#""tools":[{"type":"custom","name":"f"},{"type":"custom","name":"g","description":"d","format":{"type":"grammar","definition":"s","syntax":"lark"}}]"#,
        ),
        (r#""tool_choice":"required""#, r#""tool_choice":"required""#),
        (r#""tool_choice":"auto""#, r#""tool_choice":"auto""#),
        (r#""tool_choice":"none""#, r#""tool_choice":"none""#),
        (
            r#""prompt_cache_options":{"mode":"implicit","ttl":"30m"},"moderation":{"model":"m"}"#,
            r#""moderation":{"model":"m"},"prompt_cache_options":{"mode":"implicit","ttl":"30m"}"#,
        ),
        (
            r#""tool_choice":{"type":"function","function":{"name":"f"}}"#,
            r#""tool_choice":{"type":"function","name":"f"}"#,
        ),
        (
            r#""tool_choice":{"type":"custom","custom":{"name":"f"}}"#,
            r#""tool_choice":{"type":"custom","name":"f"}"#,
        ),
        (
            r#""tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"f"}}]}}"#,
            r#""tool_choice":{"type":"allowed_tools","mode":"auto","tools":[{"type":"function","name":"f"}]}"#,
        ),
        (
            r#""parallel_tool_calls":false,"temperature":0.10,"top_p":1"#,
            r#""temperature":0.10,"top_p":1,"parallel_tool_calls":false"#,
        ),
        (
            r#""user":"u","metadata":{"b":"1"},"safety_identifier":"s","service_tier":"flex""#,
            r#""service_tier":"flex","user":"u","safety_identifier":"s","metadata":{"b":"1"}"#,
        ),
        (r#""prompt_cache_retention":"24h""#, r#""prompt_cache_retention":"24h""#),
        (
            r#""stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false}"#,
            r#""stream":true,"stream_options":{"include_obfuscation":false}"#,
        ),
        // A value that asks for nothing is not refused.
        (
            r#""n":1,"stop":null,"seed":null,"logit_bias":{},"frequency_penalty":0.0,"presence_penalty":0,"modalities":[ "text" ],"logprobs":false,"unknown":null,"user":"u""#,
            r#""user":"u""#,
        ),
    ] {
        let found = translated(&format!(r#"{chat},"messages":[]"#));
        assert_eq!(found, format!(r#"{{{responses},"input":[]}}"#));
    }
}

#[test]
fn field_without_equivalent_is_refused_by_its_name() {
    const UNSUPPORTED: &str = "unsupported_parameter";
    for (fields, param) in [
        (r#","n":2"#, "n"),
        (r#","stop":"x""#, "stop"),
        (r#","stop":["x"]"#, "stop"),
        (r#","seed":7"#, "seed"),
        (r#","logit_bias":{"5":1}"#, "logit_bias"),
        (r#","frequency_penalty":0.5"#, "frequency_penalty"),
        (r#","presence_penalty":-1"#, "presence_penalty"),
        (r#","prediction":{"type":"content","content":"x"}"#, "prediction"),
        (r#","audio":{"voice":"alloy","format":"wav"}"#, "audio"),
        (r#","modalities":["text","audio"]"#, "modalities"),
        (r#","logprobs":true"#, "logprobs"),
        (r#","top_logprobs":2"#, "top_logprobs"),
        (r#","functions":[{"name":"f"}]"#, "functions"),
        (r#","function_call":"auto""#, "function_call"),
        (r#","web_search_options":{}"#, "web_search_options"),
        (r#","store":true"#, "store"),
        // The Responses API would refuse these by a name of its own.
        (r#","max_tokens":15"#, "max_tokens"),
        (r#","max_completion_tokens":1"#, "max_completion_tokens"),
        (r#","input":"hello""#, "input"),
        (r#","st\u006fp":"x""#, "stop"),
        (r#","stream_options":{"x":1}"#, "stream_options.x"),
        (r#","tools":[{"type":"web_search"}]"#, "tools[0].type"),
        (r#","tools":[{"type":"function","function":{"name":"f","x":1}}]"#, "tools[0].function.x"),
        (r#","tool_choice":{"type":"mcp"}"#, "tool_choice.type"),
        (r#","response_format":{"type":"xml"}"#, "response_format.type"),
        (r#","messages":[{"role":"function","name":"f","content":"x"}]"#, "messages[0].role"),
        (r#","messages":[{"role":"user","name":"bob","content":"x"}]"#, "messages[0].name"),
        (
            r#","messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{}}]}]"#,
            "messages[0].content[0].type",
        ),
        (
            r#","messages":[{"role":"system","content":"x"},{"role":"assistant","content":"x","audio":{"id":"a"}}]"#,
            "messages[1].audio",
        ),
        (
            r#","messages":[{"role":"assistant","content":"x","reasoning_content":"y"}]"#,
            "messages[0].reasoning_content",
        ),
        // The SDK's parsed value is left out only beside the text that it repeats.
        (
            r#","messages":[{"role":"assistant","content":null,"parsed":{"a":1}}]"#,
            "messages[0].parsed",
        ),
        (r#","messages":[{"role":"user","content":"x","parsed":{}}]"#, "messages[0].parsed"),
        (
            r#","messages":[{"role":"assistant","tool_calls":[{"id":"c","type":"custom","custom":{"name":"f","input":"x","parsed_arguments":{}}}]}]"#,
            "messages[0].tool_calls[0].custom.parsed_arguments",
        ),
        (
            r#","messages":[{"role":"assistant","content":"x","function_call":{"name":"f","arguments":"{}"}}]"#,
            "messages[0].function_call",
        ),
        (r#","reasoning":{"effort":"low"}"#, "reasoning"),
        (
            r#","messages":[{"role":"system","content":[{"type":"image_url","image_url":{"url":"u"}}]}]"#,
            "messages[0].content[0].type",
        ),
    ] {
        assert_eq!(refused(fields), (param.to_owned(), UNSUPPORTED), "{fields}");
    }
    for (fields, param) in [
        (r#","messages":null"#, "messages"),
        (r#","messages":{}"#, "messages"),
        (r#","messages":[7]"#, "messages[0]"),
        (r#","messages":[{}]"#, "messages[0].role"),
        (r#","messages":[{"role":"user"}]"#, "messages[0].content"),
        (r#","messages":[{"role":"user","content":7}]"#, "messages[0].content"),
        (r#","messages":[{"role":"tool","content":"x"}]"#, "messages[0].tool_call_id"),
        (r#","max_tokens":1,"max_completion_tokens":1"#, "max_tokens"),
        (r#","max_completion_tokens":"20""#, "max_completion_tokens"),
        (r#","tools":{}"#, "tools"),
        (r#","tools":[{"type":"function"}]"#, "tools[0].function"),
    ] {
        assert_eq!(refused(fields), (param.to_owned(), "invalid_request"), "{fields}");
    }
}

#[test]
fn cache_key_is_the_clients_or_else_the_derived_one() {
    let key = |fields: &str, derived| {
        let body = format!(r#"{{"messages":[]{fields}}}"#);
        let found = translate(body.as_bytes(), derived).unwrap();
        let value: Value = serde_json::from_slice(&found.body).unwrap();
        assert_eq!(value["store"], json!(false));
        value["prompt_cache_key"].clone()
    };
    assert_eq!(key(r#","prompt_cache_key":"own""#, Some("derived")), json!("own"));
    assert_eq!(key("", Some("derived")), json!("derived"));
    assert_eq!(key("", None), Value::Null);
}

#[test]
fn wish_is_what_the_client_reads() {
    let wish = |fields: &str| {
        let body = format!(r#"{{"messages":[]{fields}}}"#);
        let Wish { stream, include_usage } = translate(body.as_bytes(), None).unwrap().wish;
        (stream, include_usage)
    };
    assert_eq!(wish(""), (false, false));
    assert_eq!(wish(r#","stream":true,"stream_options":null"#), (true, false));
    assert_eq!(wish(r#","stream":true,"stream_options":{"include_usage":true}"#), (true, true));
}

mod growing;
mod nulls;
mod sent_back;

/// Any JSON value.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~é]{0,8}".prop_map(Value::from),
        prop::sample::select(vec!["user", "assistant", "tool", "text", "function", "custom"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        let name = prop_oneof![
            prop::sample::select(vec![
                "messages",
                "role",
                "content",
                "type",
                "text",
                "tool_calls",
                "id",
                "function",
                "tools",
                "name",
                "arguments",
                "response_format",
                "stream_options",
                "tool_choice",
            ])
            .prop_map(str::to_owned),
            "[a-z]{1,4}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((name, inner), 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn json_is_translated_or_refused(value in value()) {
        let text = value.to_string();
        if let Ok(found) = translate(text.as_bytes(), Some("k")) {
            let read: Value = serde_json::from_slice(&found.body).expect("a translation is JSON");
            prop_assert_eq!(&read["store"], &json!(false));
            prop_assert!(read["input"].is_array());
        }
    }
}

/// The parts of a value take forty times its memory if they are parsed.
#[test]
fn value_that_asks_for_nothing_is_short() {
    for (name, neutral) in
        REFUSED.iter().flat_map(|(name, all)| all.iter().map(move |one| (*name, one)))
    {
        let field = |spaces: usize| format!(r#""{name}":{neutral}{}"#, " ".repeat(spaces));
        assert_eq!(translated(&format!(r#"{},"messages":[]"#, field(100))), r#"{"input":[]}"#);
    }
    let list = |length: usize| format!(r#","stop":[{}]"#, " ".repeat(length - 2));
    let short = format!(r#""messages":[]{}"#, list(LONGEST_NEUTRAL));
    assert_eq!(translated(&short), r#"{"input":[]}"#);
    assert_eq!(refused(&list(LONGEST_NEUTRAL + 1)), ("stop".into(), "unsupported_parameter"));
}
