//! Tests of what the tap learns of an answer, however its bytes arrive, and of an answer that it
//! cannot read.

use super::*;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use proptest::prelude::*;

use crate::usage::sieve::WHOLE;

const USAGE: &str =
    r#"{"input_tokens":9000,"input_tokens_details":{"cached_tokens":8832},"output_tokens":7}"#;

fn headers(kind: &str, encoding: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, kind.parse().unwrap());
    if let Some(encoding) = encoding {
        headers.insert(CONTENT_ENCODING, encoding.parse().unwrap());
    }
    headers
}

fn read(headers: &HeaderMap, chunks: &[&[u8]]) -> Reading {
    let mut tap = Tap::new(headers);
    chunks.iter().for_each(|chunk| tap.observe(chunk));
    tap.finish(true)
}

fn stream(newline: &str) -> String {
    let delta = format!("event: response.failed {}", "x".repeat(3_000));
    let response = format!(r#"{{"status":"completed","usage":{USAGE}}}"#);
    [
        "\u{feff}: comment",
        "event: response.created",
        r#"data: {"type":"response.created","response":{"usage":null}}"#,
        "",
        "event: response.output_text.delta",
        &format!(r#"data: {{"type":"response.output_text.delta","delta":"{delta}"}}"#),
        "",
        "event: response.completed",
        &format!(r#"data: {{"type":"response.completed","response":{response}}}"#),
        "",
        "",
    ]
    .join(newline)
}

fn usage() -> Option<Usage> {
    Some(Usage { input: 9_000, cached: 8_832, output: 7, ..Usage::default() })
}

proptest! {
    #[test]
    fn reading_does_not_depend_on_how_bytes_arrive(
        cuts in proptest::collection::vec(0usize..4_000, 0..40),
        newline in 0usize..3,
    ) {
        let text = stream(["\n", "\r\n", "\r"][newline]);
        let cuts = cuts.into_iter().map(|cut| cut.min(text.len()));
        let mut cuts: Vec<_> = cuts.chain([0, text.len()]).collect();
        cuts.sort_unstable();
        let pairs = cuts.windows(2);
        let chunks: Vec<_> = pairs.map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
        let reading = read(&headers("text/event-stream", None), &chunks);
        let terminal = Some(Terminal::Completed);
        prop_assert_eq!(reading, Reading { terminal, usage: usage(), failure: None });
    }
}

#[test]
fn event_without_a_name_is_known_by_its_type() {
    let names = [
        ("response.completed", Some(Terminal::Completed)),
        ("response.incomplete", Some(Terminal::Incomplete)),
        ("response.failed", Some(Terminal::Failed)),
        ("error", Some(Terminal::Failed)),
        ("response.created", None),
        ("response.output_text.delta", None),
        ("response.", None),
    ];
    for start in [r#"{"type":"#, r#"{"type": "#, r#" { "type" : "#, "{\t\"type\":\t"] {
        for (name, terminal) in names {
            let text = format!("data: {start}\"{name}\",\"response\":{{\"usage\":{USAGE}}}}}\n\n");
            for size in [1, text.len()] {
                let chunks: Vec<_> = text.as_bytes().chunks(size).collect();
                let reading = read(&headers("text/event-stream; charset=utf-8", None), &chunks);
                assert_eq!(
                    (reading.terminal, reading.usage),
                    (terminal, terminal.and_then(|_| usage())),
                    "{text}"
                );
            }
        }
    }
}

#[test]
fn middle_of_a_line_is_not_a_line() {
    let line = format!("x{}", "x".repeat(WHOLE + 1));
    let kind = headers("text/event-stream", None);
    let reading =
        read(&kind, &[b"x", line.as_bytes(), b"data: {\"type\":\"response.completed\"}\n\n"]);
    assert_eq!(reading, Reading::default());
}

#[test]
fn stream_without_a_terminal_event_has_not_ended() {
    let whole = stream("\n");
    let cut = &whole[..whole.find("event: response.completed").unwrap()];
    assert_eq!(read(&headers("text/event-stream", None), &[cut.as_bytes()]), Reading::default());
}

#[test]
fn document_and_an_encoded_stream_are_read() {
    let document = format!(r#"{{"status":"completed","usage":{USAGE}}}"#);
    assert_eq!(read(&headers("application/json", None), &[document.as_bytes()]).usage, usage());
    let text = stream("\n");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(text.as_bytes()).unwrap();
    assert_eq!(
        read(&headers("text/event-stream", Some("gzip")), &[&gzip.finish().unwrap()]).usage,
        usage()
    );
    let zstd = zstd::encode_all(text.as_bytes(), 1).unwrap();
    assert_eq!(read(&headers("text/event-stream", Some("zstd")), &[&zstd]).usage, usage());
}

#[test]
fn answer_that_cannot_be_read_passes_unread() {
    let long = format!("event: response.completed\ndata: {}\n\n", "x".repeat(WHOLE * 3));
    let mut tap = Tap::new(&headers("text/event-stream", None));
    long.as_bytes().chunks(10_000).for_each(|chunk| {
        tap.observe(chunk);
        let Tap::Responses(decoder) = &tap else { panic!("a tap on responses") };
        assert!(decoder.reader().unwrap().kept.capacity() <= 2 * WHOLE);
    });
    assert_eq!(
        tap.finish(true),
        Reading { terminal: Some(Terminal::Completed), ..Reading::default() }
    );
    assert_eq!(read(&headers("text/event-stream", Some("br")), &[b"?"]).usage, None);
    assert_eq!(read(&headers("text/event-stream", Some("gzip")), &[b"no gzip"]).usage, None);
}

/// Reads a stream that ends with the terminal event `name` and this `data`.
fn ended(name: &str, data: &str) -> Reading {
    read(
        &headers("text/event-stream", None),
        &[format!("event: {name}\ndata: {data}\n\n").as_bytes()],
    )
}

/// A name counts only for its own event.
#[test]
fn name_of_an_event_ends_with_it() {
    let kind = headers("text/event-stream", None);
    for text in [
        "event: response.completed\n\ndata: {}\n\n",
        "event: response.completed\r\n\r\ndata: {}\r\n\r\n",
        "event: response.completed\nevent: response.created\ndata: {}\n\n",
        "data: {\"type\":\"response.created\"}\n\nevent: response.completed\n\n",
        "event: response.completed \ndata: {}\n\n",
        "event:  response.completed\ndata: {}\n\n",
        "events: response.completed\ndata: {}\n\n",
    ] {
        assert_eq!(read(&kind, &[text.as_bytes()]), Reading::default(), "{text:?}");
    }
    for text in [
        "event:response.completed\ndata:{}\n\n",
        "event: response.completed\nid: 7\ndata: {}\n\n",
        // The empty line may be missing, because Codex leaves as soon as it has the data.
        "event: response.completed\ndata: {}\n",
    ] {
        assert_eq!(read(&kind, &[text.as_bytes()]).terminal, Some(Terminal::Completed), "{text:?}");
    }
}

/// Only the first bytes of a line decide its kind, in however many pieces the line arrives.
#[test]
fn line_is_what_its_first_bytes_say_however_it_arrives() {
    let spaced = |type_ends: usize| {
        let (before, after) = ("data:", r#"{"type":"response.completed""#);
        format!("{before}{:>1$}", after, type_ends - before.len())
    };
    let long = format!("event: {}", "x".repeat(START - 7));
    let completed = r#"data: {"type":"response.completed"}"#;
    for (text, terminal) in [
        (format!("{}}}\n\n", spaced(START)), Some(Terminal::Completed)),
        (format!("{}}}\n\n", spaced(START + 1)), None),
        // A later name replaces an earlier one, even if it is longer than the name of any end.
        (format!("event: response.completed\n{long}\ndata: {{}}\n\n"), None),
        (format!("event: response.completed\n{long}x\ndata: {{}}\n\n"), None),
        (format!("event: response.failed\n{long}\n{completed}\n\n"), Some(Terminal::Completed)),
        (format!("{long}\nevent: response.completed\ndata: {{}}\n\n"), Some(Terminal::Completed)),
    ] {
        let kind = headers("text/event-stream", None);
        for size in [1, 7, START - 1, START, START + 1, text.len()] {
            let chunks: Vec<_> = text.as_bytes().chunks(size).collect();
            assert_eq!(read(&kind, &chunks).terminal, terminal, "{text:?} in pieces of {size}");
        }
    }
}

#[test]
fn failed_answer_yields_its_error() {
    let error = concat!(
        r#"{"response":{"error":{"code":"rate_limit_exceeded","message":"m"},"#,
        r#""usage":{"input_tokens":5}}}"#
    );
    let reading = ended("response.failed", error);
    assert_eq!(
        reading.failure.and_then(|failure| failure.code).as_deref(),
        Some("rate_limit_exceeded")
    );
    assert_eq!(
        (reading.terminal, reading.usage.map(|usage| usage.input)),
        (Some(Terminal::Failed), Some(5))
    );
    let reading = ended("error", r#"{"type":"error","code":"server_error","message":"m"}"#);
    assert_eq!(reading.failure.and_then(|failure| failure.code).as_deref(), Some("server_error"));
    // Only an answer that failed has a failure.
    assert_eq!(ended("response.incomplete", error).failure, None);
    assert_eq!(ended("response.completed", error).failure, None);
}

/// The cost of an event or a document is read, however long it is.
#[test]
fn event_of_any_length_is_read() {
    let start = format!(r#"{{"response":{{"usage":{USAGE}}},"x":""#);
    let data = |length: usize| format!("{start}{}\"}}", "x".repeat(length - start.len() - 2));
    // The items of a text that is kept in parts are not read.
    let of_parts = || usage().map(|usage| Usage { has_unread_items: true, ..usage });
    for (length, expected) in [(WHOLE, usage()), (WHOLE + 1, of_parts()), (5 * WHOLE, of_parts())] {
        let reading = ended("response.completed", &data(length));
        assert_eq!(
            (reading.terminal, reading.usage),
            (Some(Terminal::Completed), expected.clone()),
            "{length}"
        );
        let document =
            data(length).replacen(r#"{"response":"#, "", 1).replacen("},\"x\"", ",\"x\"", 1);
        let padded = format!("{document}{}", " ".repeat(length - document.len()));
        assert_eq!(
            read(&headers("application/json", None), &[padded.as_bytes()]).usage,
            expected,
            "{length}"
        );
    }
    // The type may be the last field, without an `event:` line.
    let hidden = format!(
        "data: {{\"sequence_number\":1,\"response\":{{\"usage\":{USAGE}}},\"type\":\"response\\u002ecompleted\"}}\n\n"
    );
    let reading = read(&headers("Text/Event-Stream; charset=utf-8", None), &[hidden.as_bytes()]);
    assert_eq!((reading.terminal, reading.usage), (Some(Terminal::Completed), usage()));
    // The length of one event does not count against the next.
    let both = format!("event: response.failed\ndata: {}\n\n", "x".repeat(WHOLE + 1));
    let both = format!("{both}event: response.completed\ndata: {}\n\n", data(2_000));
    assert_eq!(read(&headers("text/event-stream", None), &[both.as_bytes()]).usage, usage());
}

/// The tap knows that an answer is over at its terminal event, not only at its last byte: a client
/// may leave then.
#[test]
fn answer_is_over_with_its_terminal_event() {
    let text = stream("\n");
    let (before, after) = text.split_at(text.find("event: response.completed").unwrap());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let mut packed = |part: &str| {
        gzip.write_all(part.as_bytes()).unwrap();
        gzip.flush().unwrap();
        zstd.write_all(part.as_bytes()).unwrap();
        zstd.flush().unwrap();
        [std::mem::take(gzip.get_mut()), std::mem::take(zstd.get_mut())]
    };
    let ([gzip_before, zstd_before], [gzip_after, zstd_after]) = (packed(before), packed(after));
    for (encoding, before, after) in [
        (None, before.as_bytes().to_vec(), after.as_bytes().to_vec()),
        (Some("gzip"), gzip_before, gzip_after),
        (Some("zstd"), zstd_before, zstd_after),
    ] {
        let mut tap = Tap::new(&headers("text/event-stream", encoding));
        tap.observe(&before);
        assert!(!tap.is_over(), "{encoding:?}: more is to come");
        tap.observe(&after);
        assert!(tap.is_over(), "{encoding:?}: the terminal event has come");
        assert_eq!(tap.finish(false).usage, usage(), "{encoding:?}: wherever it was cut");
    }
}

/// A document is complete only at its end. If an unreadable answer came to its end, its status
/// judges it.
#[test]
fn answer_that_did_not_end_yields_nothing() {
    let document = format!(r#"{{"status":"completed","usage":{USAGE}}}"#);
    for (kind, encoding, bytes) in [
        ("application/json", None, document.as_bytes()),
        ("text/event-stream", Some("br"), b"?"),
        ("text/event-stream", Some("gzip"), b"no gzip, and long enough to tell"),
    ] {
        let mut tap = Tap::new(&headers(kind, encoding));
        tap.observe(bytes);
        assert!(!tap.is_over(), "{kind} {encoding:?}");
        assert_eq!(tap.finish(false), Reading::default(), "{kind} {encoding:?}");
        // An answer that cannot be decoded has no known end.
        let expected = encoding.is_none().then_some(Terminal::Completed);
        let whole = read(&headers(kind, encoding), &[bytes]);
        assert_eq!(whole.terminal, expected, "{kind} {encoding:?}");
    }
    // The encoding `identity` changes nothing.
    let text = stream("\n");
    assert_eq!(
        read(&headers("text/event-stream", Some("identity")), &[text.as_bytes()]).usage,
        usage()
    );
    let twice = zstd::encode_all(&b": one frame\n\n"[..], 1).unwrap();
    let twice = [twice, zstd::encode_all(text.as_bytes(), 1).unwrap()].concat();
    assert_eq!(read(&headers("text/event-stream", Some("zstd")), &[&twice]).usage, usage());
}

/// The `data:` lines of an event are joined with line ends.
#[test]
fn event_of_several_data_lines_is_read_as_one() {
    let response = format!(r#"{{"usage":{USAGE}}}"#);
    let own = "event: response.completed\n";
    let parts = [
        vec![r#"{"type":"response.completed","#.to_owned(), format!(r#""response":{response}}}"#)],
        vec![
            "{".into(),
            r#""type":"#.into(),
            r#""response.completed","#.into(),
            format!(r#""response":{response}"#),
            "}".into(),
        ],
        vec![
            r#"{"sequence_number":9,"#.into(),
            format!(r#""response":{response},"#),
            r#""type":"response.completed"}"#.into(),
        ],
        vec![
            String::new(),
            r#"{"type":"response.completed","#.into(),
            format!(r#""response":{response}}}"#),
        ],
    ];
    for (number, lines) in parts.iter().enumerate() {
        for name in ["", own] {
            let data: String = lines.iter().map(|line| format!("data: {line}\n")).collect();
            let text = format!("data: {{\"type\":\"response.created\"}}\n\n{name}{data}\n");
            for text in [text.clone(), text.replace('\n', "\r\n"), text.replace('\n', "\r")] {
                for size in [1, 7, text.len()] {
                    let chunks: Vec<_> = text.as_bytes().chunks(size).collect();
                    let reading = read(&headers("text/event-stream", None), &chunks);
                    let terminal = Some(Terminal::Completed);
                    let expected = Reading { terminal, usage: usage(), failure: None };
                    assert_eq!(reading, expected, "{number} in pieces of {size}: {text}");
                }
            }
        }
    }
    let other = "data: {\"type\":\ndata: \"response.created\"}\n\ndata: {\"type\":\"response.output_text.delta\",\ndata: \"delta\":\"x\"}\n\n";
    assert_eq!(read(&headers("text/event-stream", None), &[other.as_bytes()]), Reading::default());
}

/// The rest passes unread, so its usage is missing. An answer whose end has come is known whole.
#[test]
fn tap_without_memory_keeps_only_an_end_that_it_has_read() {
    let (headers, text) = (headers("text/event-stream", None), stream("\n"));
    for (ended, expected) in [(true, Some(Terminal::Completed)), (false, None)] {
        for (read, is_over) in [(text.len(), true), (text.len() - 40, false)] {
            let (mut tap, (begin, rest)) = (Tap::new(&headers), text.as_bytes().split_at(read));
            tap.observe(begin);
            assert_eq!((tap.is_over(), is_over || tap.held() > 0), (is_over, true));
            tap.give_up();
            tap.observe(rest);
            tap.end();
            assert_eq!((tap.is_over(), tap.held(), tap.is_blind()), (is_over, 0, false));
            let reading = tap.finish(ended);
            assert_eq!(reading.usage, usage().filter(|_| is_over));
            let known = Some(Terminal::Completed).filter(|_| is_over);
            assert_eq!(reading.terminal, known.or(expected), "{ended} {is_over}");
        }
    }
}
