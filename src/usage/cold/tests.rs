//! Tests of cold turns: each cause by itself, and which of two causes is named.

use std::sync::Arc;

use super::*;
use crate::key::Key;
use crate::key::table::Table;
use crate::wire::imprint::{InputMarks, Parts};
use crate::wire::peek::Peek;

/// When the last turn ended.
const LAST: u64 = 1_796_126_400;

/// Two keys of one cache and one of another.
fn keys() -> [Arc<Key>; 3] {
    let table = Table::sketch("a-1 org-a 1 sk-1, a-2 org-a 1 sk-2, b-1 org-b 1 sk-3");
    table.keys().to_vec().try_into().expect("three keys")
}

fn imprint(tools: &str, input: &str, is_continued: bool) -> Box<Imprint> {
    let parts = Parts {
        tools: Some(tools.as_bytes()),
        cache_key: Some(b"k"),
        input: Some(input.as_bytes()),
        is_continued,
        ..Parts::default()
    };
    Box::new(Imprint::of(&parts))
}

/// An input of about `bytes` bytes.
fn text(bytes: usize) -> String {
    let words: Vec<_> = (0..bytes / 8).map(|number| format!("{number:7}")).collect();
    format!("\"{}\"", words.join(" "))
}

/// A turn of a long session, which reads `cached` of 210,000 tokens.
fn turn(cached: u64) -> Record {
    let usage = Usage { input: 210_000, cached, ..Usage::default() };
    let imprint = Some(imprint("[1]", &text(840_000), false));
    Record { imprint, ..Record::sketch(&keys()[0], Some(usage)) }
}

/// The promise of the turn before.
fn promise() -> Promise {
    let usage = Usage { input: 200_000, ..Usage::default() };
    let imprint = Some(imprint("[1]", &text(800_000), false));
    let last = Record { imprint, ..Record::sketch(&keys()[0], Some(usage)) };
    Promise::of(&last, LAST).expect("known")
}

/// Returns why a turn is cold that begins a minute after the last one.
fn reason(turn: &Record, promise: &Promise) -> Option<ColdReason> {
    assess(turn, Last::Own(promise), LAST + 60).cold
}

#[test]
fn turn_is_cold_if_it_reads_much_less_than_was_left() {
    let promise = Promise { tokens: 200_000, ..promise() };
    for (cached, is_cold) in
        [(0, true), (128, true), (179_999, true), (180_000, false), (200_000, false)]
    {
        let warmth = assess(&turn(cached), Last::Own(&promise), LAST + 60);
        assert_eq!(warmth.expected, Some(200_000));
        assert_eq!(warmth.cold, is_cold.then_some(ColdReason::Upstream), "{cached}");
    }
    let small = Promise { tokens: 4_000, ..promise };
    for (cached, is_cold) in [(2_977, false), (2_976, true)] {
        assert_eq!(reason(&turn(cached), &small).is_some(), is_cold, "{cached}: 1,024 fewer");
    }
}

#[test]
fn new_input_is_no_loss() {
    let grown = turn(20_000);
    let warmth = assess(&grown, Last::Own(&Promise { tokens: 20_000, ..promise() }), LAST + 60);
    assert_eq!(warmth, Warmth { expected: Some(20_000), cold: None });
    // A turn whose client shortened the history is expected to read that history, and no more.
    let usage = |cached| Some(Usage { input: 50_000, cached, ..Usage::default() });
    let shorter = |cached| Record {
        usage: usage(cached),
        imprint: Some(imprint("[1]", &text(200_000), false)),
        ..turn(0)
    };
    let warmth = assess(&shorter(50_000), Last::Own(&promise()), LAST + 60);
    assert_eq!(warmth, Warmth { expected: Some(50_000), cold: None });
    assert_eq!(reason(&shorter(9_000), &promise()), Some(ColdReason::PrefixChanged));
    // If the last turn left nothing, nothing is expected of the next one.
    let nothing = Promise { tokens: 1_023, ..promise() };
    assert_eq!(assess(&turn(0), Last::Own(&nothing), LAST), Warmth::default());
}

type Changed = Box<dyn Fn(&mut Record, &mut Promise)>;

/// Each cause, with a change that brings it about, in the order in which causes are named.
fn causes() -> Vec<(ColdReason, Changed)> {
    let cause =
        |reason, change: fn(&mut Record, &mut Promise)| (reason, Box::new(change) as Changed);
    vec![
        cause(ColdReason::DomainMoved, |turn, _| {
            turn.service.as_mut().expect("served").key = Arc::clone(&keys()[2]);
        }),
        cause(ColdReason::ModelChanged, |turn, _| turn.model = "gpt-5.2".into()),
        cause(ColdReason::PrefixChanged, |turn, _| {
            turn.imprint = Some(imprint("[2]", &text(840_000), false));
        }),
        cause(ColdReason::Expired, |_, last| last.at -= 1_741),
        cause(ColdReason::KeyMoved, |_, last| last.key = keys()[1].tag),
        cause(ColdReason::Upstream, |_, _| {}),
    ]
}

#[test]
fn cold_turn_has_one_reason() {
    let causes = causes();
    for (number, (expected, change)) in causes.iter().enumerate() {
        let (mut turn, mut last) = (turn(128), promise());
        change(&mut turn, &mut last);
        assert_eq!(reason(&turn, &last), Some(*expected));
        turn.warmth = assess(&turn, Last::Own(&last), LAST + 60);
        assert_eq!(turn.missed_tokens(), last.tokens - 128, "{expected:?}");
        // If there are two causes, the earlier one in this order is named.
        for (_, other) in causes.iter().skip(number).take(1 + usize::from(number != 0) * 9) {
            if *expected == ColdReason::DomainMoved {
                break;
            }
            other(&mut turn, &mut last);
            assert_eq!(reason(&turn, &last), Some(*expected));
        }
    }
    let (mut turn, last) = (turn(0), promise());
    let key = Key { region: "eu".into(), ..(*keys()[0]).clone() };
    turn.service.as_mut().expect("served").key = Arc::new(key);
    assert_eq!(reason(&turn, &last), Some(ColdReason::DomainMoved), "another region");
}

#[test]
fn parts_of_the_prefix_all_count() {
    let with = |imprint: Box<Imprint>| Record { imprint: Some(imprint), ..turn(0) };
    let same = imprint("[1]", &text(840_000), false);
    assert_eq!(reason(&with(same.clone()), &promise()), Some(ColdReason::Upstream));
    let mut edited = text(840_000).into_bytes();
    edited[500_000] ^= 1;
    for changed in [
        Imprint { tools: 0, ..*same.clone() },
        Imprint { settings: 0, ..*same.clone() },
        Imprint { cache_key: 0, ..*same.clone() },
        Imprint { input: InputMarks::of(&edited), ..*same.clone() },
        Imprint { input: InputMarks::of(text(400_000).as_bytes()), ..*same.clone() },
    ] {
        let turn = with(Box::new(changed));
        assert_eq!(reason(&turn, &promise()), Some(ColdReason::PrefixChanged));
    }
    // A continued input does not show its own beginning.
    let continued = with(imprint("[1]", "\"more\"", true));
    assert_eq!(reason(&continued, &promise()), Some(ColdReason::Upstream));
    let unread = Record { imprint: None, ..turn(0) };
    assert_eq!(reason(&unread, &promise()), Some(ColdReason::Upstream));
    let unmarked = Promise { mark: None, ..promise() };
    assert_eq!(reason(&with(same), &unmarked), Some(ColdReason::Upstream));
}

/// All reasons that OpenAI states.
#[test]
fn upstreams_own_diagnosis_is_taken() {
    let diagnosed = |miss: &str, cached| {
        let usage = Usage { input: 210_000, cached, miss: Some(miss.into()), ..Usage::default() };
        assess(&Record { usage: Some(usage), ..turn(0) }, Last::Own(&promise()), LAST + 60).cold
    };
    for (miss, expected) in [
        ("model_changed", Some(ColdReason::ModelChanged)),
        ("prompt_cache_key_changed", Some(ColdReason::PrefixChanged)),
        ("service_tier_changed", Some(ColdReason::PrefixChanged)),
        ("tools_changed", Some(ColdReason::PrefixChanged)),
        ("text_format_changed", Some(ColdReason::PrefixChanged)),
        ("reasoning_effort_changed", Some(ColdReason::PrefixChanged)),
        ("verbosity_changed", Some(ColdReason::PrefixChanged)),
        ("input_changed", Some(ColdReason::PrefixChanged)),
        ("a_later_reason", Some(ColdReason::PrefixChanged)),
        ("context_compacted", None),
    ] {
        assert_eq!(diagnosed(miss, 0), expected, "{miss}");
        assert_eq!(diagnosed(miss, 200_000), None, "{miss}: a warm turn has no reason");
    }
}

#[test]
fn first_turn_and_short_one_are_no_losses() {
    let first = |cached| assess(&turn(cached), Last::Nothing, LAST);
    let cold = |reason| Warmth { expected: None, cold: Some(reason) };
    assert_eq!(first(0), cold(ColdReason::FirstTurn));
    assert_eq!(first(18_000), cold(ColdReason::FirstTurn), "others' beginning was there");
    assert_eq!(first(200_000), Warmth::default());
    let short = |input, cached, last| {
        let usage = Some(Usage { input, cached, ..Usage::default() });
        assess(&Record { usage, ..turn(0) }, last, LAST + 60)
    };
    let promise = promise();
    for last in [Last::Nothing, Last::Own(&promise), Last::Parents(&promise)] {
        assert_eq!(short(1_023, 0, last), cold(ColdReason::BelowMinimum));
        assert_eq!(short(0, 0, last), cold(ColdReason::BelowMinimum));
        assert_eq!(short(1_023, 1, last), Warmth::default());
    }
    assert_eq!(short(1_024, 0, Last::Nothing), cold(ColdReason::FirstTurn));
    assert_eq!(short(1_023, 0, Last::Unknown), Warmth::default());
    assert_eq!(assess(&turn(0), Last::Unknown, LAST), Warmth::default());
    assert_eq!(Record { warmth: first(0), ..turn(0) }.missed_tokens(), 0);
}

#[test]
fn turn_alone_is_cold() {
    for kind in [TurnKind::Prewarm, TurnKind::Compaction, TurnKind::Title] {
        for last in [Last::Nothing, Last::Own(&promise())] {
            let turn = Record { kind, ..turn(0) };
            assert_eq!(assess(&turn, last, LAST + 60), Warmth::default(), "{kind:?}");
        }
    }
    let promise = promise();
    let unserved = Record { service: None, ..turn(0) };
    assert_eq!(assess(&unserved, Last::Own(&promise), LAST), Warmth::default());
    let unknown = Record { usage: None, ..turn(0) };
    assert_eq!(assess(&unknown, Last::Own(&promise), LAST), Warmth::default());
}

/// A fork reads its parent's cache. If only its own cache key kept the fork from that, the reason
/// is that this is its first turn.
#[test]
fn fork_is_compared_with_its_parent() {
    for (expected, change) in causes() {
        let (mut turn, mut last) = (turn(0), promise());
        change(&mut turn, &mut last);
        let warmth = assess(&turn, Last::Parents(&last), LAST + 60);
        let is_first = expected == ColdReason::Upstream;
        let reason = if is_first { ColdReason::FirstTurn } else { expected };
        assert_eq!(warmth.cold, Some(reason));
        assert_eq!(warmth.expected, (!is_first).then_some(last.tokens));
    }
    let mut fork = turn(0);
    fork.imprint.as_mut().expect("read").cache_key = 0;
    fork.usage.as_mut().expect("usage").miss = Some("prompt_cache_key_changed".into());
    let last = Last::Parents(&promise());
    assert_eq!(assess(&fork, last, LAST + 60).cold, Some(ColdReason::FirstTurn));
    fork.usage.as_mut().expect("usage").cached = 200_000;
    assert_eq!(assess(&fork, last, LAST + 60).cold, None);
}

#[test]
fn prefix_expires_by_its_model() {
    const DAY: u64 = 24 * HOUR;
    for (model, is_long, idle, age) in [
        ("gpt-5.4", false, 1_800, DAY),
        ("gpt-5.5", false, 1_800, DAY),
        ("gpt-4.1", false, 1_800, DAY),
        ("gpt-4o", false, 300, HOUR),
        ("o3", false, 300, HOUR),
        ("gpt-5.6-sol", false, 1_800, u64::MAX),
        ("gpt-5.10", false, 1_800, u64::MAX),
        ("gpt-6-sol", false, 1_800, u64::MAX),
        ("gpt-6.1-sol", false, 1_800, u64::MAX),
        ("gpt-10", false, 1_800, u64::MAX),
        ("gpt-6-sol", true, 43_200, u64::MAX),
    ] {
        assert_eq!(Life::of(model, is_long), Life { idle, age }, "{model}");
    }
    let cold = |model: &str, last: Promise, began| {
        let turn = Record { model: model.into(), ..turn(0) };
        let model = crate::key::Tag::of("model", model.as_bytes());
        assess(&turn, Last::Own(&Promise { model, ..last }), began).cold
    };
    let (expired, not) = (Some(ColdReason::Expired), Some(ColdReason::Upstream));
    assert_eq!(cold("gpt-5.4", promise(), LAST + 1_800), not);
    assert_eq!(cold("gpt-5.4", promise(), LAST + 1_801), expired);
    assert_eq!(cold("gpt-5.4", promise(), LAST - 10), not, "clocks differ");
    // The session was active all day, and its prefix was still dropped.
    let old = Promise { since: LAST - DAY, ..promise() };
    assert_eq!(cold("gpt-5.4", old.clone(), LAST), not);
    assert_eq!(cold("gpt-5.4", old.clone(), LAST + 1), expired);
    assert_eq!(cold("gpt-6-sol", old, LAST + 1), not);
    let long = Promise { is_long: true, ..promise() };
    assert_eq!(cold("gpt-6-sol", long.clone(), LAST + 12 * HOUR), not);
    assert_eq!(cold("gpt-6-sol", long, LAST + 12 * HOUR + 1), expired);
}

#[test]
fn imprint_is_that_of_the_whole_body() {
    let body = format!(r#"{{"tools":[1],"prompt_cache_key":k,"input":{}}}"#, text(800_000));
    let body = body.replace(":k,", ":\"k\",");
    let (_, read) = Peek::with_imprint(body.as_bytes()).expect("JSON");
    assert_eq!(read.input, imprint("[1]", &text(800_000), false).input);
}
