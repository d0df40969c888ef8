//! Checks which bodies the real service takes, and which it refuses.

use super::*;
use crate::simulator::json::Document;

fn refusal(body: &str) -> Refusal {
    let document = Document::read(body.as_bytes()).expect("JSON");
    match Ask::read(document.root(), Transport::Http, Form::Response) {
        Ok(_) => panic!("{body} was accepted"),
        Err(refusal) => refusal,
    }
}

fn accepts(body: &str, check: impl FnOnce(Ask<'_>)) {
    let document = Document::read(body.as_bytes()).expect("JSON");
    match Ask::read(document.root(), Transport::Http, Form::Response) {
        Ok(ask) => check(ask),
        Err(refusal) => panic!("{body}: {refusal:?}"),
    }
}

#[test]
fn defaults_are_those_of_the_service() {
    accepts(r#"{"model":"gpt-5.4","input":"hi"}"#, |ask| {
        assert!(ask.store && !ask.stream && !ask.sealed_reasoning && ask.obfuscate);
        assert_eq!(ask.caching, Caching::Steps { tokens: 128, life: RETAINED_24H });
        assert_eq!(ask.tier, "default");
    });
    accepts(r#"{"model":"gpt-6-sol","input":[],"store":false}"#, |ask| {
        assert!(ask.sealed_reasoning);
        assert_eq!(ask.caching, Caching::Breakpoints { implicit: true, ttl: Ttl::HalfHour });
    });
}

#[test]
fn regime_refuses_the_fields_of_the_other() {
    let named = |body| refusal(body).param;
    assert_eq!(
        named(r#"{"model":"gpt-5.4","input":[],"prompt_cache_options":{}}"#).as_deref(),
        Some("prompt_cache_options")
    );
    assert_eq!(
        named(r#"{"model":"gpt-5.6-sol","input":[],"prompt_cache_retention":"24h"}"#).as_deref(),
        Some("prompt_cache_retention")
    );
    assert_eq!(
        named(r#"{"model":"gpt-5.5","input":[],"prompt_cache_retention":"in_memory"}"#).as_deref(),
        Some("prompt_cache_retention")
    );
    accepts(
        r#"{"model":"gpt-6-sol","input":[],"prompt_cache_options":{"mode":"explicit","ttl":"12h"}}"#,
        |ask| {
            assert_eq!(ask.caching, Caching::Breakpoints { implicit: false, ttl: Ttl::HalfDay });
        },
    );
}

#[test]
fn body_that_the_service_refuses_is_refused() {
    let key = "k".repeat(65);
    for (body, code) in [
        (r#"{"input":[]}"#, "missing_required_parameter"),
        (r#"{"model":"gpt-5.4"}"#, "missing_required_parameter"),
        (r#"{"model":"gpt-5.4","input":[],"frobnicate":1}"#, "unknown_parameter"),
        (r#"{"model":5,"input":[]}"#, "invalid_type"),
        (r#"{"model":"gpt-5.4","input":7}"#, "invalid_type"),
        (r#"{"model":"gpt-5.4","input":["x"]}"#, "invalid_type"),
        (r#"{"model":"gpt-5.4","input":[],"stream":"yes"}"#, "invalid_type"),
        (r#"{"model":"nothing","input":[]}"#, "model_not_found"),
        (
            &format!(r#"{{"model":"gpt-5.4","input":[],"prompt_cache_key":"{key}"}}"#),
            "string_above_max_length",
        ),
    ] {
        assert_eq!(refusal(body).code.as_deref(), Some(code), "{body}");
    }
    assert_eq!(
        refusal(r#"{"model":"gpt-5.4","input":[],"conversation":{"id":"conv_1"}}"#).status.as_u16(),
        404
    );
}

#[test]
fn output_needs_its_call_and_a_call_its_output() {
    let take = |items: &str| {
        let document = Document::read(items.as_bytes()).expect("JSON");
        let mut calls = OpenCalls::default();
        document
            .root()
            .items()
            .try_for_each(|item| calls.take(item))
            .and_then(|()| calls.finish())
            .map_err(|refusal| refusal.message)
    };
    let call = r#"{"type":"function_call","call_id":"c1"}"#;
    let output = r#"{"type":"function_call_output","call_id":"c1"}"#;
    assert_eq!(take(&format!("[{call},{output}]")), Ok(()));
    let message = take(&format!("[{output},{call}]")).expect_err("refused");
    assert_eq!(message, "No tool call found for function call output with call_id c1.");
    assert_eq!(
        take(&format!("[{call}]")).expect_err("refused"),
        "No tool output found for function call c1."
    );
}

#[test]
fn limit_of_output_tokens_is_at_least_sixteen() {
    let body = |limit| format!(r#"{{"model":"gpt-5.4","input":[],"max_output_tokens":{limit}}}"#);
    for limit in ["15", "1", "0", "\"16\""] {
        assert_eq!(refusal(&body(limit)).param.as_deref(), Some("max_output_tokens"), "{limit}");
    }
    for limit in ["16", "4096", "null"] {
        accepts(&body(limit), |_| {});
    }
}
