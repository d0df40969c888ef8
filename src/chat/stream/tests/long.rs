//! Tests of answers that are long or odd: their time and memory stay in proportion to their bytes.

use std::time::{Duration, Instant};

use super::*;

/// An item with a call, which a client sees for the first time.
const CALLED: &str = r#"{"type":"function_call","call_id":"c","name":"f","arguments":"{}"}"#;

/// A search from call to call would take minutes.
#[test]
fn time_of_many_calls_grows_with_their_number_alone() {
    const CALLS: usize = 200_000;
    let (mut stream, began) = (Stream::new(false), Instant::now());
    for index in 0..CALLS {
        let done = format!(
            "data: {{\"type\":\"response.output_item.done\",\"output_index\":{index},\"item\":{CALLED}}}\n\n"
        );
        assert!(stream.push(done.as_bytes()).ends_with(b"}\n\n"));
        assert!(began.elapsed() < Duration::from_secs(30), "{index} calls");
    }
    assert_eq!(stream.calls.len(), CALLS);
}

/// What a stream knows after a last event with these items, whose chunks are too long.
fn after_too_long(items: &str) -> Stream {
    let (mut stream, model) = (Stream::new(false), "m".repeat(400));
    let event = format!(
        "data: {{\"type\":\"response.completed\",\"response\":{{\"model\":\"{model}\",\"output\":[{items}]}}}}\n\n"
    );
    let out = stream.push(event.as_bytes());
    assert!((LONGEST..LONGEST + 2_000).contains(&out.len()), "{}", out.len());
    assert!(out.ends_with(b"}}\n\n"), "it ends in an error");
    stream
}

#[test]
fn items_beyond_the_longest_chunks_are_not_read() {
    let items = vec![CALLED; 200_000].join(",");
    let known = after_too_long(&items).calls.len();
    assert!((1..100_000).contains(&known), "{known} calls");
}

#[test]
fn parts_beyond_the_longest_chunks_are_not_read() {
    let notes = vec![r#"{"type":"url_citation"}"#; 200_000].join(",");
    let part = format!(r#"{{"annotations":[{notes}]}}"#);
    let message = format!(r#"{{"type":"message","content":[{part},{part}]}}"#);
    assert_eq!(after_too_long(&message).noted.len(), 1);
}

/// Each part is looked up by the number of its item, and each chunk repeats id and model.
#[test]
fn odd_number_of_an_item_and_a_long_model_are_not_kept() {
    let (long, mut stream) = ("7".repeat(1 << 20), Stream::new(false));
    let mut push = |data: String| stream.push(format!("data: {data}\n\n").as_bytes());
    for index in [long.clone(), format!("\"{long}\""), "-1".to_owned()] {
        push(format!(
            r#"{{"type":"response.output_item.done","output_index":{index},"item":{CALLED}}}"#
        ));
        push(format!(
            r#"{{"type":"response.output_text.delta","content_index":{index},"delta":"a"}}"#
        ));
    }
    push(format!(
        r#"{{"type":"response.created","response":{{"id":"{long}","model":"{long}","service_tier":"{long}","created_at":{long}}}}}"#
    ));
    let chunk = push(r#"{"type":"response.output_text.delta","delta":"a"}"#.to_owned());
    assert!(chunk.len() < 1_000, "{}", chunk.len());
    assert!(stream.calls.keys().chain(&stream.told).all(|place| place.len() < 2));
    assert!((1..1_000).contains(&stream.memory()), "{}", stream.memory());
}
