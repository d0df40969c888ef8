//! Tests of messages that clients and frameworks send back with more fields than the API asks for.

use super::*;

#[test]
fn name_of_a_tool_message_is_left_out() {
    let found = translated(
        r#""messages":[{"role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"c","name":"f","content":"b"}]"#,
    );
    let items = r#"{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"b"}"#;
    assert_eq!(found, format!(r#"{{"input":[{items}]}}"#));
}

#[test]
fn assistant_with_an_empty_list_of_calls_is_still_a_message() {
    let item = |said: &str, more: &str| {
        translated(&format!(
            r#""messages":[{{"role":"assistant","content":{said},"tool_calls":[]{more}}}]"#
        ))
    };
    let message = |parts: &str| {
        format!(r#"{{"input":[{{"type":"message","role":"assistant","content":[{parts}]}}]}}"#)
    };
    assert_eq!(item(r#""""#, ""), message(r#"{"type":"output_text","text":""}"#));
    assert_eq!(item(r#""a""#, ""), message(r#"{"type":"output_text","text":"a"}"#));
    assert_eq!(item("null", ""), message(""));
    let refusal = message(r#"{"type":"refusal","refusal":"no"}"#);
    assert_eq!(item("null", r#","refusal":"no""#), refusal);
}
