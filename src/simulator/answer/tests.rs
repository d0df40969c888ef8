//! Checks an answer event by event against the order of the real service.

use super::*;

fn answer(items: Vec<Item>) -> Answer {
    Answer {
        id: "resp_0123456789abcdef".into(),
        created_at: 1_790_000_000,
        items,
        usage: Usage { input: 2000, cached: 1024, written: 900, written_half_day: Some(100) },
        echo: r#""model":"gpt-6-sol","store":false"#.into(),
        background: false,
        obfuscate: true,
        lane: None,
    }
}

fn message(events: u64) -> Vec<Item> {
    vec![
        Item::Reasoning { id: "rs_1".into(), sealed: Some("gAAAA".into()) },
        Item::Message { id: "msg_1".into(), text: Text::Words { events, seed: 3 } },
    ]
}

/// The events as a client reads them. Each event's name agrees with its data, which is JSON.
fn read(answer: &Answer) -> Vec<Value> {
    let events = answer.steps().into_iter().enumerate().map(|(number, step)| {
        let bytes = answer.event(step, number as u64).sse();
        let text = std::str::from_utf8(&bytes).expect("text");
        let (name, data) = text
            .strip_prefix("event: ")
            .and_then(|rest| rest.split_once("\ndata: "))
            .expect("two lines");
        let data: Value = serde_json::from_str(data.strip_suffix("\n\n").expect("a blank line"))
            .unwrap_or_else(|e| panic!("{data}: {e}"));
        assert_eq!(
            (data["type"].as_str(), data["sequence_number"].as_u64()),
            (Some(name), Some(number as u64))
        );
        data
    });
    events.collect()
}

#[test]
fn ordinary_answer_has_the_events_of_the_service_in_its_order() {
    let events = read(&answer(message(2)));
    let names: Vec<_> =
        events.iter().map(|event| event["type"].as_str().expect("a name")).collect();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.output_item.done",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let deltas: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(events[8]["text"], deltas.as_str());
    assert_eq!(events[11]["response"]["output"][1]["content"][0]["text"], deltas.as_str());
    assert_eq!(events[3]["item"]["encrypted_content"], "gAAAA");
}

#[test]
fn usage_adds_up() {
    let whole: Value = serde_json::from_str(&answer(message(8)).object()).expect("JSON");
    let usage = &whole["usage"];
    assert_eq!(usage["input_tokens_details"]["cached_tokens"], 1024);
    assert_eq!(usage["input_tokens_details"]["cache_write_tokens_details"]["ttl_30m_tokens"], 800);
    assert_eq!(usage["output_tokens"], 72);
    assert_eq!(usage["total_tokens"], 2072);
    assert_eq!(whole["status"], "completed");
}

#[test]
fn call_and_compaction_are_whole() {
    let call = Item::Call {
        id: "fc_1".into(),
        call_id: "call_1".into(),
        name: "exec_command".into(),
        namespace: None,
        arguments: r#"{"cmd":"echo hi"}"#.into(),
    };
    let events = read(&answer(vec![call]));
    assert_eq!(events[3]["delta"], r#"{"cmd":"echo hi"}"#);
    assert_eq!(events[5]["item"]["call_id"], "call_1");
    let events =
        read(&answer(vec![Item::Compaction { id: "cmp_1".into(), sealed: "gAAAA".into() }]));
    assert_eq!(events.last().expect("an end")["response"]["output"][0]["type"], "compaction");
}

#[test]
fn big_event_has_its_size() {
    let events = read(&answer(vec![Item::Message {
        id: "msg_1".into(),
        text: Text::Big { bytes: 100_001 },
    }]));
    assert_eq!(events[4]["delta"].as_str().map(str::len), Some(100_001));
}

#[test]
fn failure_has_both_forms() {
    let error = serde_json::json!({"code": "rate_limit_exceeded", "message": "Please try again in 2s.", "param": null});
    let (failed, bare) = (answer(vec![]).failed(&error, 3), answer(vec![]).error(&error, 3));
    let data = |event: &Event| -> Value { serde_json::from_str(&event.json).expect("JSON") };
    assert_eq!(data(&failed)["response"]["error"]["code"], "rate_limit_exceeded");
    assert_eq!(data(&bare)["code"], "rate_limit_exceeded");
}

#[test]
fn answer_that_ends_early_says_why_and_repeats_its_lane() {
    let answer = Answer { lane: Some("side".into()), ..answer(message(2)) };
    let data: Value = serde_json::from_str(&answer.incomplete("steered", 1, 4).json).expect("JSON");
    let response = &data["response"];
    assert_eq!(
        (data["stream_id"].as_str(), data["sequence_number"].as_u64()),
        (Some("side"), Some(4))
    );
    assert_eq!(
        (response["status"].as_str(), response["incomplete_details"]["reason"].as_str()),
        (Some("incomplete"), Some("steered"))
    );
    assert_eq!(
        (response["output"].as_array().map(Vec::len), response["usage"]["output_tokens"].as_u64()),
        (Some(1), Some(64))
    );
}
