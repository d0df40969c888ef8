//! Tests of null fields, which OpenAI's SDKs send back in an assistant's messages.

use super::*;

/// Every field that is refused otherwise, at every level, as null.
#[test]
fn null_says_nothing() {
    for name in REFUSED.map(|(name, _)| name).iter().chain(&SHARED).chain(&TRANSLATED) {
        if !["messages", "model"].contains(name) {
            let found = translated(&format!(r#""{name}":null,"messages":[]"#));
            assert_eq!(found, r#"{"input":[]}"#, "{name}");
        }
    }
    for (message, items) in [
        (
            r#"{"role":"system","content":"a","name":null,"x":null}"#,
            r#"{"type":"message","role":"system","content":[{"type":"input_text","text":"a"}]}"#,
        ),
        (
            r#"{"role":"user","name":null,"content":[{"type":"text","text":"a","x":null,"prompt_cache_breakpoint":null},{"type":"image_url","image_url":{"url":"u","detail":null,"x":null},"x":null},{"type":"file","file":{"file_id":"f","filename":null,"file_data":null,"x":null},"x":null}]}"#,
            r#"{"type":"message","role":"user","content":[{"type":"input_text","text":"a"},{"type":"input_image","image_url":"u","detail":"auto"},{"type":"input_file","file_id":"f"}]}"#,
        ),
        (
            r#"{"role":"assistant","content":null,"reasoning_content":null,"tool_calls":[{"id":"c","type":null,"index":null,"x":null,"custom":null,"function":{"name":"f","arguments":"{}","x":null}}]},{"role":"tool","tool_call_id":"c","name":null,"content":"b"}"#,
            r#"{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"b"}"#,
        ),
    ] {
        let found = translated(&format!(r#""messages":[{message}]"#));
        assert_eq!(found, format!(r#"{{"input":[{items}]}}"#));
    }
    for (chat, responses) in [
        (
            r#""tools":[{"type":"function","x":null,"function":{"name":"f","description":null,"parameters":null,"strict":null,"x":null}}]"#,
            r#""tools":[{"type":"function","name":"f","parameters":{"type":"object","properties":{}},"strict":false}]"#,
        ),
        (
            r#""tools":[{"type":"custom","custom":{"name":"f","description":null,"format":null}}]"#,
            r#""tools":[{"type":"custom","name":"f"}]"#,
        ),
        (
            r#""response_format":{"type":"json_schema","json_schema":{"name":"n","description":null,"schema":null,"strict":null},"x":null}"#,
            r#""text":{"format":{"type":"json_schema","name":"n","strict":false}}"#,
        ),
        (
            r#""tool_choice":{"type":"function","function":{"name":"f","x":null},"x":null}"#,
            r#""tool_choice":{"type":"function","name":"f"}"#,
        ),
        (
            r#""stream":true,"stream_options":{"include_usage":null,"include_obfuscation":null,"x":null}"#,
            r#""stream":true"#,
        ),
    ] {
        let found = translated(&format!(r#"{chat},"messages":[]"#));
        assert_eq!(found, format!(r#"{{{responses},"input":[]}}"#));
    }
}
