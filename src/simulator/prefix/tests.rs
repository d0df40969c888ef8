//! Checks which fields change a prefix and which do not.

use super::*;
use crate::simulator::json::Document;

fn prefix(body: &str, step: Option<u64>) -> Prefix {
    let document = Document::read(body.as_bytes()).expect("JSON");
    let ask =
        Ask::read(document.root(), crate::simulator::request::Transport::Http, Default::default())
            .unwrap_or_else(|refusal| panic!("{refusal:?}"));
    let mut history = History::default();
    ask.input.items().for_each(|item| history.take(item));
    Prefix::new(&ask, &history, step)
}

fn body(extra: &str, items: &str) -> String {
    format!(r#"{{"model":"gpt-6-sol"{extra},"input":[{items}]}}"#)
}

const DEVELOPER: &str = r#"{"role":"developer","content":"be good"}"#;
const USER: &str = r#"{"role":"user","content":[{"type":"input_text","text":"hello"}]}"#;
const CALL: &str = r#"{"type":"function_call","call_id":"c","name":"f","arguments":"{}"}"#;
const OUTPUT: &str = r#"{"type":"function_call_output","call_id":"c","output":"x"}"#;

#[test]
fn ends_are_user_messages_last_outputs_and_the_first_developer_run() {
    let items = [DEVELOPER, DEVELOPER, USER, CALL, OUTPUT, OUTPUT, DEVELOPER].join(",");
    let stops: Vec<_> = prefix(&body("", &items), None).ends.iter().map(|end| end.stop).collect();
    assert_eq!(stops, [Stop::Developer, Stop::Turn, Stop::Turn]);
}

#[test]
fn appending_keeps_every_earlier_end_and_step() {
    let long = format!(r#"{{"role":"user","content":"{}"}}"#, "word ".repeat(2000));
    let (short, longer) = (
        body("", &[DEVELOPER, &long].join(",")),
        body("", &[DEVELOPER, &long, CALL, OUTPUT].join(",")),
    );
    let (before, after) = (prefix(&short, None), prefix(&longer, None));
    assert_eq!(before.ends[..], after.ends[..before.ends.len()]);
    let (before, after) = (prefix(&short, Some(128)), prefix(&longer, Some(128)));
    assert_eq!(before.steps.len() as u64, before.tokens / 128);
    assert_eq!(before.steps[..], after.steps[..before.steps.len()]);
    assert_eq!(before.head, after.head);
}

#[test]
fn field_that_a_model_never_sees_changes_nothing() {
    let plain = prefix(&body("", USER), None).ends[0].digest;
    let same = [
        body(
            r#","temperature":0.5,"metadata":{"a":"b"},"stream":true,"store":false,"tool_choice":"none","max_output_tokens":99"#,
            USER,
        ),
        body(
            "",
            r#"{"id":"msg_1","status":"completed","role":"user","content":[{"type":"input_text","text":"hello"}]}"#,
        ),
    ];
    for body in &same {
        assert_eq!(prefix(body, None).ends[0].digest, plain, "{body}");
    }
    let marked = r#"{"role":"user","content":[{"type":"input_text","text":"hello","prompt_cache_breakpoint":{"mode":"explicit"}}]}"#;
    let ends = prefix(&body("", marked), None).ends;
    assert!(ends.iter().any(|end| end.digest == plain && end.stop == Stop::Turn));
}

#[test]
fn field_that_shapes_the_context_changes_the_prefix() {
    let plain = prefix(&body("", USER), None).ends[0].digest;
    let tools = r#","tools":[{"type":"function","name":"a"},{"type":"function","name":"b"}]"#;
    let reversed = r#","tools":[{"type":"function","name":"b"},{"type":"function","name":"a"}]"#;
    let mut seen = vec![plain];
    for extra in [
        tools,
        reversed,
        r#","instructions":"x""#,
        r#","reasoning":{"effort":"high"}"#,
        r#","text":{"verbosity":"low"}"#,
        r#","text":{"format":{"type":"json_object"}}"#,
        r#","parallel_tool_calls":true"#,
        r#","service_tier":"flex""#,
    ] {
        let digest = prefix(&body(extra, USER), None).ends[0].digest;
        assert!(!seen.contains(&digest), "{extra}");
        seen.push(digest);
    }
}

#[test]
fn mark_ends_where_its_part_ends() {
    let marked = r#"{"role":"user","content":[{"type":"input_text","text":"abc","prompt_cache_breakpoint":{"mode":"explicit","ttl":"12h"}},{"type":"input_text","text":"tail"}]}"#;
    let ends = prefix(&body("", marked), None).ends;
    assert_eq!(ends[0].stop, Stop::Mark(Some(Ttl::HalfDay)));
    assert_eq!(ends[1].stop, Stop::Turn);
    assert!(ends[0].tokens < ends[1].tokens);
}
