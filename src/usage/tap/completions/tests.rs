//! Tests of what the tap learns of chat completions, however their bytes arrive.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

use crate::usage::tap::{Reading, Tap};
use crate::wire::terminal::{Terminal, Usage};

const CHUNK: &str = r#"data: {"id":"c","choices":[{"index":0,"delta":{"content":"\"usage\": 5"},"finish_reason":null}],"usage":null}"#;
const LAST: &str =
    r#"data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}"#;
const USAGE: &str = r#"data: {"id":"c","model":"gpt-5.4-2026-03-05","choices":[],"service_tier":"flex","usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":8,"cache_write_tokens":1},"completion_tokens":7,"completion_tokens_details":{"reasoning_tokens":5}}}"#;

fn tap(kind: &'static str) -> Tap {
    Tap::on_chat(&HeaderMap::from_iter([(CONTENT_TYPE, kind.parse().unwrap())]))
}

fn stream(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("{line}\n\n")).collect()
}

fn usage() -> Usage {
    Usage {
        id: Some("c".into()),
        model: Some("gpt-5.4-2026-03-05".into()),
        input: 9,
        cached: 8,
        written: 1,
        output: 7,
        reasoning: 5,
        tier: Some("flex".into()),
        ..Usage::default()
    }
}

#[test]
fn stream_is_read_wherever_it_is_cut() {
    let text = stream(&[CHUNK, LAST, USAGE, "data: [DONE]"]);
    for text in [text.clone(), text.replace('\n', "\r\n")] {
        for at in 0..=text.len() {
            let mut tap = tap("text/event-stream; charset=utf-8");
            tap.observe(&text.as_bytes()[..at]);
            tap.observe(&text.as_bytes()[at..]);
            assert!(tap.is_over());
            let expected = Reading {
                terminal: Some(Terminal::Completed),
                usage: Some(usage()),
                failure: None,
            };
            assert_eq!(tap.finish(false), expected, "cut at {at}");
        }
    }
}

#[test]
fn stream_ends_as_its_chunks_say() {
    let end = |lines: &[&str], ended| {
        let mut tap = tap("text/event-stream");
        tap.observe(stream(lines).as_bytes());
        let reading = tap.finish(ended);
        (reading.terminal, reading.failure.and_then(|error| error.code))
    };
    let short = LAST.replace("stop", "length");
    assert_eq!(end(&[CHUNK, &short, "data: [DONE]"], false), (Some(Terminal::Incomplete), None));
    assert_eq!(end(&[CHUNK, "data: [DONE]"], false), (Some(Terminal::Completed), None));
    // Without `[DONE]`, only the end of the body shows that the stream is complete.
    assert_eq!(end(&[CHUNK, LAST], false), (None, None));
    assert_eq!(end(&[CHUNK, LAST], true), (Some(Terminal::Completed), None));
    assert_eq!(end(&[CHUNK], true), (None, None));
    let error = r#"data: {"error":{"message":"m","type":"server_error","code":"server_error"}}"#;
    assert_eq!(end(&[CHUNK, error], true), (Some(Terminal::Failed), Some("server_error".into())));
}

#[test]
fn document_is_read_whole() {
    let document = USAGE.strip_prefix("data: ").unwrap();
    let mut tap = tap("application/json");
    document.as_bytes().chunks(7).for_each(|chunk| tap.observe(chunk));
    let reading = tap.finish(true);
    assert_eq!((reading.terminal, reading.usage), (Some(Terminal::Completed), Some(usage())));
}

/// All lines of data up to the empty line belong to one event, and are joined by line ends.
#[test]
fn event_with_several_lines_of_data_is_read() {
    let parts = USAGE
        .replace(r#","choices""#, "\ndata: ,\"choices\"")
        .replace(r#"},"completion_tokens""#, "}\ndata: ,\"completion_tokens\"")
        .replace(r#"}}"#, "}\ndata:}");
    assert!(parts.lines().count() > 3 && parts.lines().any(|line| line.ends_with('}')));
    let error = "data: {\"error\":\ndata: {\"code\":\"server_error\"}}";
    for (event, expected, code) in
        [(parts.as_str(), Some(usage()), None), (error, None, Some("server_error"))]
    {
        for newline in ["\n", "\r\n", "\r"] {
            let text = stream(&[CHUNK, LAST, event, "data: [DONE]"]).replace('\n', newline);
            for size in [1, 7, text.len()] {
                let mut tap = tap("text/event-stream");
                text.as_bytes().chunks(size).for_each(|chunk| tap.observe(chunk));
                assert!(tap.is_over());
                let reading = tap.finish(false);
                let found = reading.failure.and_then(|error| error.code);
                assert_eq!((reading.usage, found.as_deref()), (expected.clone(), code), "{text}");
            }
        }
    }
}

/// Only the last usage can be the turn's, because some upstreams state the tokens so far in each
/// chunk.
#[test]
fn usage_is_the_last_one_or_missing() {
    let odd = USAGE.replace(r#""prompt_tokens":9"#, r#""prompt_tokens":"many""#);
    let early = USAGE.replace(":9,", ":4,");
    for (lines, expected) in [
        (vec![USAGE], Some(usage())),
        (vec![&early, USAGE, CHUNK], Some(usage())),
        (vec![USAGE, &odd], None),
        (vec![&odd, USAGE], Some(usage())),
        (vec![USAGE, r#"data: {"choices":[],"usage":[]}"#], None),
        (vec![USAGE, r#"data: {"choices":[],"usage":null}"#], Some(usage())),
    ] {
        let mut tap = tap("text/event-stream");
        tap.observe(stream(&[&lines[..], &["data: [DONE]"]].concat()).as_bytes());
        assert_eq!(tap.finish(true).usage, expected, "{lines:?}");
    }
}
