//! Checks the cache against the published rules of both regimes.

use proptest::prelude::*;

use super::*;
use crate::simulator::model::{IN_MEMORY, RETAINED_24H};

const SCOPE: Scope = [9; 16];
const STEPS: Caching = Caching::Steps { tokens: 128, life: RETAINED_24H };
const MARKS: Caching = Caching::Breakpoints { implicit: true, ttl: Ttl::HalfHour };

fn digest(number: u64) -> Digest {
    let mut digest = [0; 16];
    digest[..8].copy_from_slice(&number.to_be_bytes());
    digest
}

/// A prefix of the steps regime: `tokens` of the conversation `family`.
fn stepped(family: u64, tokens: u64) -> Prefix {
    let steps = (0..tokens / 128).map(|step| digest(family << 32 | step)).collect();
    Prefix { tokens, steps, ends: Vec::new(), head: digest(family) }
}

fn marked(ends: &[(u64, Stop)]) -> Prefix {
    let ends: Vec<End> = ends
        .iter()
        .map(|(tokens, stop)| End { digest: digest(*tokens), tokens: *tokens, stop: *stop })
        .collect();
    Prefix {
        tokens: ends.last().map_or(1, |end| end.tokens),
        steps: Vec::new(),
        ends,
        head: digest(0),
    }
}

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

#[test]
fn steps_match_to_the_last_whole_one_and_not_below_the_minimum() {
    let mut cache = Cache::default();
    assert_eq!(cache.serve(seconds(0), SCOPE, &stepped(1, 2000), STEPS).cached, 0);
    assert_eq!(cache.serve(seconds(1), SCOPE, &stepped(1, 5000), STEPS).cached, 1920);
    assert_eq!(cache.serve(seconds(2), SCOPE, &stepped(1, 5000), STEPS).cached, 4992);
    assert_eq!(cache.serve(seconds(3), [8; 16], &stepped(1, 5000), STEPS).cached, 0);
    cache.serve(seconds(4), SCOPE, &stepped(2, 1000), STEPS);
    assert_eq!(cache.serve(seconds(5), SCOPE, &stepped(2, 1000), STEPS).cached, 0);
}

#[test]
fn steps_die_of_idleness_and_of_age() {
    let mut cache = Cache::default();
    let memory = Caching::Steps { tokens: 128, life: IN_MEMORY };
    cache.serve(seconds(0), SCOPE, &stepped(1, 2048), memory);
    assert_eq!(cache.serve(seconds(600), SCOPE, &stepped(1, 2048), memory).cached, 2048);
    assert_eq!(cache.serve(seconds(1201), SCOPE, &stepped(1, 2048), memory).cached, 0);
    let times: Vec<_> = (1..9)
        .map(|turn| {
            cache.serve(seconds(1201 + turn * 500), SCOPE, &stepped(1, 2048), memory).cached
        })
        .collect();
    assert_eq!(times, [2048, 2048, 2048, 2048, 2048, 2048, 2048, 0]);
}

#[test]
fn growing_conversation_reads_its_last_end_and_writes_the_rest() {
    let mut cache = Cache::default();
    let first = cache.serve(
        seconds(0),
        SCOPE,
        &marked(&[(5000, Stop::Developer), (5100, Stop::Turn)]),
        MARKS,
    );
    assert_eq!(first, Served { cached: 0, written: 5100, written_half_day: 0 });
    let grown = marked(&[(5000, Stop::Developer), (5100, Stop::Turn), (6000, Stop::Turn)]);
    assert_eq!(
        cache.serve(seconds(60), SCOPE, &grown, MARKS),
        Served { cached: 5100, written: 900, written_half_day: 0 }
    );
    assert_eq!(
        cache.serve(seconds(61), SCOPE, &grown, MARKS),
        Served { cached: 6000, written: 0, written_half_day: 0 }
    );
    assert_eq!(cache.serve(seconds(61 + 1801), SCOPE, &grown, MARKS).cached, 0);
}

#[test]
fn shared_beginning_matches_only_where_it_was_marked() {
    let mut cache = Cache::default();
    let one = marked(&[(5000, Stop::Developer), (5100, Stop::Turn)]);
    let other = marked(&[(5000, Stop::Developer), (5200, Stop::Turn)]);
    cache.serve(seconds(0), SCOPE, &one, MARKS);
    assert_eq!(cache.serve(seconds(1), SCOPE, &other, MARKS).cached, 0);
    let prewarm = marked(&[(5000, Stop::Developer)]);
    cache.serve(seconds(2), SCOPE, &prewarm, MARKS);
    assert_eq!(
        cache
            .serve(
                seconds(3),
                SCOPE,
                &marked(&[(5000, Stop::Developer), (5300, Stop::Turn)]),
                MARKS
            )
            .cached,
        5000
    );
}

#[test]
fn ends_are_looked_up_twenty_back() {
    let mut cache = Cache::default();
    cache.serve(seconds(0), SCOPE, &marked(&[(2000, Stop::Turn)]), MARKS);
    let ends =
        |later: u64| marked(&(0..=later).map(|turn| (2000 + turn, Stop::Turn)).collect::<Vec<_>>());
    assert_eq!(cache.serve(seconds(1), SCOPE, &ends(20), MARKS).cached, 2000);
    let mut cache = Cache::default();
    cache.serve(seconds(0), SCOPE, &marked(&[(2000, Stop::Turn)]), MARKS);
    assert_eq!(cache.serve(seconds(1), SCOPE, &ends(21), MARKS).cached, 0);
}

#[test]
fn explicit_mode_without_marks_caches_nothing() {
    let explicit = Caching::Breakpoints { implicit: false, ttl: Ttl::HalfHour };
    let mut cache = Cache::default();
    let plain = marked(&[(5000, Stop::Turn)]);
    assert_eq!(cache.serve(seconds(0), SCOPE, &plain, explicit), Served::default());
    let mark = marked(&[
        (4000, Stop::Mark(Some(Ttl::HalfDay))),
        (4500, Stop::Mark(None)),
        (5000, Stop::Turn),
    ]);
    let served = cache.serve(seconds(1), SCOPE, &mark, explicit);
    assert_eq!(served, Served { cached: 0, written: 4500, written_half_day: 4000 });
    assert_eq!(cache.serve(seconds(1 + 3 * 3600), SCOPE, &mark, explicit).cached, 4000);
}

proptest! {
    #[test]
    fn token_is_counted_at_most_once_and_never_kindly(
        turns in proptest::collection::vec((1u64..40, 0u64..2_000), 1..40),
    ) {
        let (mut stepped_cache, mut marked_cache) = (Cache::default(), Cache::default());
        let (mut tokens, mut now, mut ends) = (0, 0, Vec::new());
        let mut sent = 0;
        for (growth, gap) in turns {
            tokens += growth * 100;
            now += gap;
            ends.push((tokens, Stop::Turn));
            let steps = stepped_cache.serve(seconds(now), SCOPE, &stepped(1, tokens), STEPS);
            prop_assert!(steps.cached <= sent && steps.cached.is_multiple_of(128));
            prop_assert!(steps.cached == 0 || steps.cached >= MINIMUM);
            let marks = marked_cache.serve(seconds(now), SCOPE, &marked(&ends), MARKS);
            prop_assert!(marks.cached <= sent && marks.cached + marks.written <= tokens);
            prop_assert!(marks.cached == 0 || ends.iter().any(|(end, _)| *end == marks.cached));
            sent = tokens;
        }
    }
}
