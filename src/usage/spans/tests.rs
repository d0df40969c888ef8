//! Tests of a turn's spans.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::*;
use crate::key::table::Table;
use crate::metrics::{Ending, Reason};
use crate::outcome::{Answer, Outcome};
use crate::telemetry::TurnId;
use crate::usage::record::Warmth;

const MILLISECOND: Duration = Duration::from_millis(1);
const PARENT: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The usage of a warm turn.
pub fn warm() -> Usage {
    Usage {
        id: Some("resp_1".into()),
        input: 9_000,
        cached: 8_832,
        written: 100,
        output: 7,
        reasoning: 1,
        tier: Some("default".into()),
        model: Some("gpt-5.4-2026-03-05".into()),
        ..Usage::default()
    }
}

fn answer() -> Outcome {
    let (headers, head) = (http::HeaderMap::new(), bytes::Bytes::new());
    let status = StatusCode::OK;
    Outcome::Answered(Answer { status, headers, head, rest: None, upgrade: None })
}

/// A turn that was served over HTTP by one attempt, in a second.
pub fn record(ending: Ending, usage: Option<Usage>) -> Record {
    let table = Table::sketch("a org-a 1 sk-a");
    let key = Arc::clone(&table.keys()[0]);
    let began = Instant::now();
    let mut timeline = Timeline::from(began);
    timeline.authenticated = Some(began + MILLISECOND);
    timeline.identified = Some(began + 4 * MILLISECOND);
    timeline.received = Some(began + 3 * MILLISECOND);
    timeline.bound = Some(began + 5 * MILLISECOND);
    timeline.sends(Arc::clone(&key), began + 5 * MILLISECOND);
    timeline.end_attempt(&answer());
    timeline.answered = Some(began + 100 * MILLISECOND);
    timeline.first_byte = Some(began + 105 * MILLISECOND);
    timeline.is_stream = true;
    Record {
        ending,
        terminal: Some(Terminal::Completed),
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        duration: 1_000 * MILLISECOND,
        timeline,
        ..Record::sketch(&key, usage)
    }
}

fn drawn(record: &Record) -> Vec<SpanData> {
    spans(record)
}

fn names(spans: &[SpanData]) -> Vec<&str> {
    spans.iter().map(|span| &*span.name).collect()
}

fn named<'s>(spans: &'s [SpanData], name: &str) -> &'s SpanData {
    spans.iter().find(|span| span.name == name).expect(name)
}

/// Returns an attribute as text, or "" if the span lacks it.
fn said(span: &SpanData, name: &str) -> String {
    let found: Vec<_> =
        span.attributes.iter().filter(|attribute| attribute.key.as_str() == name).collect();
    assert!(found.len() <= 1, "{name} is there once");
    found.first().map(|attribute| attribute.value.to_string()).unwrap_or_default()
}

/// Returns the milliseconds from the turn's begin to the span's begin and end.
fn times(record: &Record, span: &SpanData) -> (u128, u128) {
    let since = |at: SystemTime| at.duration_since(record.at).expect("later").as_millis();
    (since(span.start_time), since(span.end_time))
}

#[test]
fn served_turn_has_exactly_its_five_children() {
    let record = record(Ending::Completed, Some(warm()));
    let spans = drawn(&record);
    let expected = ["authenticate", "identify", "bind", "chat gpt-5.4", "relay", "turn"];
    assert_eq!(names(&spans), expected);
    let turn = named(&spans, "turn");
    assert_eq!((turn.span_kind.clone(), turn.parent_span_id), (SpanKind::Server, SpanId::INVALID));
    assert_eq!(turn.span_context.trace_id(), TraceId::from(record.id.trace));
    for child in &spans[..5] {
        assert_eq!(child.parent_span_id, turn.span_context.span_id(), "{}", child.name);
        assert_eq!(child.span_context.trace_id(), turn.span_context.trace_id());
        assert_eq!(child.status, Status::Unset, "{}", child.name);
    }
    let ids: std::collections::BTreeSet<_> =
        spans.iter().map(|span| span.span_context.span_id().to_string()).collect();
    assert_eq!(ids.len(), spans.len());
    let when: Vec<_> = spans.iter().map(|span| times(&record, span)).collect();
    assert_eq!(when, [(0, 1), (1, 4), (4, 5), (5, 1_000), (100, 1_000), (0, 1_000)]);
    assert_eq!(turn.events.len(), 1, "the request's last byte");
}

#[test]
fn turn_is_a_child_of_its_clients_span() {
    let inbound =
        Record { id: TurnId::within(Some(PARENT)), ..record(Ending::Completed, Some(warm())) };
    let spans = drawn(&inbound);
    let turn = named(&spans, "turn");
    assert_eq!(turn.span_context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(turn.parent_span_id.to_string(), "00f067aa0ba902b7");
    assert!(turn.parent_span_is_remote);
    assert!(inbound.id.to_string().ends_with(&turn.span_context.span_id().to_string()));
}

#[test]
fn spans_say_who_asked_what_and_what_it_cost() {
    let spans = drawn(&record(Ending::Completed, Some(warm())));
    let (turn, attempt) = (named(&spans, "turn"), named(&spans, "chat gpt-5.4"));
    for (span, name, expected) in [
        (turn, "warmkey.client", "alice"),
        (turn, "warmkey.session", "FVm43fzVIvXqRQ8foYWp-_"),
        (turn, "warmkey.key", "a"),
        (turn, "warmkey.organization", "org-a"),
        (turn, "warmkey.binding", "existing"),
        (turn, "warmkey.cold_reason", ""),
        (turn, "warmkey.transport", "http"),
        (turn, "warmkey.outcome", "completed"),
        (turn, "warmkey.attempts", "1"),
        (turn, "warmkey.overhead", "0.002"),
        (turn, "gen_ai.request.model", "gpt-5.4"),
        (turn, "gen_ai.usage.cache_read.input_tokens", "8832"),
        (turn, "http.response.status_code", "200"),
        (turn, "gen_ai.operation.name", ""),
        (attempt, "gen_ai.operation.name", "chat"),
        (attempt, "gen_ai.provider.name", "openai"),
        (attempt, "openai.api.type", "responses"),
        (attempt, "gen_ai.request.model", "gpt-5.4"),
        (attempt, "gen_ai.request.stream", "true"),
        (attempt, "gen_ai.response.id", "resp_1"),
        (attempt, "gen_ai.response.finish_reasons", "[\"completed\"]"),
        (attempt, "gen_ai.response.time_to_first_chunk", "0.1"),
        (attempt, "gen_ai.usage.input_tokens", "9000"),
        (attempt, "gen_ai.usage.cache_read.input_tokens", "8832"),
        (attempt, "gen_ai.usage.cache_write.input_tokens", "100"),
        (attempt, "gen_ai.usage.output_tokens", "7"),
        (attempt, "gen_ai.usage.reasoning.output_tokens", "1"),
        (attempt, "openai.response.service_tier", "default"),
        (attempt, "gen_ai.response.model", "gpt-5.4-2026-03-05"),
        (attempt, "warmkey.key", "a"),
        (attempt, "http.response.status_code", "200"),
        (attempt, "error.type", ""),
    ] {
        assert_eq!(said(span, name), expected, "{name} of {}", span.name);
    }
    assert_eq!(attempt.span_kind, SpanKind::Client);
    let warmth = Warmth { expected: Some(8_000), cold: Some(ColdReason::Upstream) };
    let cold = Record { warmth, ..record(Ending::Completed, Some(warm())) };
    let spans = drawn(&cold);
    assert_eq!(said(named(&spans, "turn"), "warmkey.cold_reason"), "upstream");
    let spans = drawn(&record(Ending::Cut, None));
    for span in &spans {
        assert_eq!(said(span, "gen_ai.usage.input_tokens"), "", "unknown is not 0");
    }
}

#[test]
fn attempt_says_how_it_ended_and_why_the_next_came() {
    let mut turn = record(Ending::Completed, Some(warm()));
    let table = Table::sketch("a org-a 1 sk-a,b org-a 1 sk-b");
    let began = turn.timeline.began;
    let mut timeline = Timeline::from(began);
    timeline.bound = Some(began);
    let outcomes = [
        (Outcome::Silent, Some(Reason::Failed)),
        (Outcome::Unreachable("a text".into()), Some(Reason::Unreachable)),
        (answer(), None),
    ];
    for (number, (outcome, reason)) in outcomes.into_iter().enumerate() {
        timeline.sends(Arc::clone(&table.keys()[number % 2]), began);
        timeline.end_attempt(&outcome);
        timeline.note_leave_reason(reason);
    }
    timeline.answered = Some(began);
    turn.timeline = timeline;
    let spans = drawn(&turn);
    let attempts: Vec<_> = spans.iter().filter(|span| span.span_kind == SpanKind::Client).collect();
    let told = |name: &str| attempts.iter().map(|span| said(span, name)).collect::<Vec<_>>();
    assert_eq!(told("warmkey.key"), ["a", "b", "a"]);
    assert_eq!(told("error.type"), ["silent", "unreachable", ""]);
    assert_eq!(told("warmkey.reason"), ["failed", "unreachable", ""]);
    assert_eq!(told("gen_ai.usage.output_tokens"), ["", "", "7"]);
    assert_eq!(attempts[0].status, Status::error("silent"));
    assert_eq!(attempts[2].status, Status::Unset);
    assert_eq!(said(named(&spans, "turn"), "warmkey.attempts"), "3");
    // The upstream was told the same span that the collector receives.
    let parent = turn.id.traceparent(2, true).expect("a header");
    let id = attempts[2].span_context.span_id().to_string();
    assert!(parent.to_str().expect("text").contains(&id));
}

#[test]
fn turn_that_failed_has_a_status_and_the_stage_that_it_reached() {
    for (reached, expected) in [
        (0, &["authenticate", "turn"][..]),
        (1, &["authenticate", "identify", "turn"]),
        (2, &["authenticate", "identify", "bind", "turn"]),
    ] {
        let mut turn = record(Ending::Refused, None);
        let mut timeline = Timeline::from(turn.timeline.began);
        timeline.authenticated = turn.timeline.authenticated.filter(|_| reached > 0);
        timeline.identified = turn.timeline.identified.filter(|_| reached > 1);
        turn.timeline = timeline;
        let spans = drawn(&turn);
        assert_eq!(names(&spans), expected);
        let last = &spans[expected.len() - 2];
        assert_eq!(times(&turn, last).1, 1_000, "the stage lasted to the turn's end");
        for span in [last, named(&spans, "turn")] {
            assert_eq!(span.status, Status::error("refused"), "{}", span.name);
            assert_eq!(said(span, "error.type"), "refused", "{}", span.name);
        }
    }
    let spans = drawn(&record(Ending::Cut, None));
    for name in ["relay", "chat gpt-5.4", "turn"] {
        assert_eq!(named(&spans, name).status, Status::error("cut"), "{name}");
    }
}

#[test]
fn message_on_a_websocket_is_read_before_its_client_is_asked_for() {
    let mut turn = record(Ending::Completed, Some(warm()));
    turn.transport = Transport::Websocket;
    let began = turn.timeline.began;
    turn.timeline.identified = Some(began + MILLISECOND);
    turn.timeline.authenticated = Some(began + 3 * MILLISECOND);
    let spans = drawn(&turn);
    assert_eq!(names(&spans)[..3], ["identify", "authenticate", "bind"]);
    let when: Vec<_> = spans[..3].iter().map(|span| times(&turn, span)).collect();
    assert_eq!(when, [(0, 1), (1, 3), (3, 5)]);
}

#[test]
fn wait_is_an_event_of_the_turn() {
    let mut turn = record(Ending::Completed, Some(warm()));
    let key = Arc::clone(&turn.service.as_ref().expect("a key").key);
    let (began, pause) = (turn.timeline.began + MILLISECOND, 500 * MILLISECOND);
    turn.timeline.waits.push(crate::usage::timeline::Waited { key, began, pause });
    let spans = drawn(&turn);
    let event = named(&spans, "turn").events.last().expect("an event");
    assert_eq!((&*event.name, event.attributes[1].value.to_string()), ("wait", "0.5".into()));
}

#[test]
fn long_name_of_a_model_is_cut() {
    let turn = Record { model: "\u{e9}".repeat(400), ..record(Ending::Completed, None) };
    let spans = drawn(&turn);
    assert_eq!(said(&spans[3], "gen_ai.request.model").len(), LONGEST);
    let nameless = Record { model: String::new(), ..record(Ending::Completed, None) };
    assert_eq!(drawn(&nameless)[3].name, "chat");
}

/// The names of all attributes: the literals with a dot in `telemetry::name`.
fn attributes() -> std::collections::BTreeSet<&'static str> {
    let source = include_str!("../../telemetry/name.rs");
    source.split('"').skip(1).step_by(2).filter(|name| name.contains('.')).collect()
}

/// docs/traces.md lists exactly these attributes.
#[test]
fn attribute_is_documented() {
    const FAMILIES: [&str; 6] = ["warmkey.", "gen_ai.", "openai.", "server.", "http.", "error."];
    let page = include_str!("../../../docs/traces.md");
    let words = page.split('`').skip(1).step_by(2);
    let told: std::collections::BTreeSet<_> =
        words.filter(|word| FAMILIES.iter().any(|family| word.starts_with(family))).collect();
    assert_eq!(told, attributes());
}

/// Each attribute is on some span of a turn that waited, failed over and was served.
#[test]
fn attribute_is_told() {
    let mut record = Record {
        asked_tier: Some("flex".into()),
        warmth: Warmth { expected: Some(9_000), cold: Some(crate::metrics::ColdReason::Expired) },
        ..record(Ending::Failed, Some(warm()))
    };
    let key = Arc::clone(&record.timeline.sendings().next().expect("one").key);
    record.timeline.note_leave_reason(Some(Reason::Limited));
    let began = record.timeline.began;
    let pause = MILLISECOND;
    record.timeline.waits.push(crate::usage::timeline::Waited { key: key.clone(), began, pause });
    record.timeline.sends(key, began + 6 * MILLISECOND);
    let spans = drawn(&record);
    let own = spans.iter().flat_map(|span| &span.attributes);
    let of_events = spans.iter().flat_map(|span| &span.events.events);
    let all = own.chain(of_events.flat_map(|event| &event.attributes));
    let told: std::collections::BTreeSet<_> = all.map(|attribute| attribute.key.as_str()).collect();
    assert_eq!(told, attributes());
    assert_eq!(said(named(&spans, "chat gpt-5.4"), name::API_TYPE), "responses");
    let by_chat = drawn(&Record { by_chat: true, ..record });
    assert_eq!(said(named(&by_chat, "chat gpt-5.4"), name::API_TYPE), "chat_completions");
}
