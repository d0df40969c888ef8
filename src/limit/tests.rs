//! Tests of waits, headroom, rates and the retry budget.

use super::*;
use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
    list.iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect()
}

fn stated(list: &[(&'static str, &str)]) -> Option<u128> {
    wait(&headers(list), SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777))
        .map(|wait| wait.as_millis())
}

#[test]
fn wait_is_read_in_every_spelling() {
    assert_eq!(stated(&[("retry-after", "2")]), Some(2_000));
    assert_eq!(stated(&[("retry-after", "1.5")]), Some(1_500));
    assert_eq!(stated(&[("retry-after-ms", "1500"), ("retry-after", "2")]), Some(1_500));
    assert_eq!(stated(&[("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")]), Some(10_000));
    assert_eq!(stated(&[("retry-after", "Sun, 06 Nov 1994 08:49:27 GMT")]), Some(0), "a past date");
    assert_eq!(stated(&[("retry-after", "99999999999")]), Some(LONGEST_WAIT.as_millis()));
    for nothing in ["", "-1", "soon", "NaN", "1h"] {
        assert_eq!(stated(&[("retry-after", nothing)]), None, "{nothing}");
    }
    let used_up = [
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", "1m30.5s"),
        ("x-ratelimit-remaining-tokens", "7"),
        ("x-ratelimit-reset-tokens", "6h0m0s"),
    ];
    assert_eq!(stated(&used_up), Some(90_500), "the reset of the exhausted limit");
}

#[test]
fn wait_is_the_stated_one_or_else_the_longest_reset() {
    let (millis, seconds) = (("retry-after-ms", "soon"), ("retry-after", "2"));
    let requests = [("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "6s")];
    let tokens = [("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "30s")];
    let project =
        [("x-ratelimit-remaining-project-tokens", "0"), ("x-ratelimit-reset-project-tokens", "1m")];
    assert_eq!(stated(&[millis, seconds]), Some(2_000), "nonsense counts as absent");
    assert_eq!(
        stated(&[&[seconds], &requests[..]].concat()),
        Some(2_000),
        "a stated wait wins over a reset"
    );
    assert_eq!(
        stated(&[requests, tokens].concat()),
        Some(30_000),
        "until then the other limit would refuse"
    );
    assert_eq!(stated(&[tokens, requests, project].concat()), Some(60_000));
    assert_eq!(
        stated(&[("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "6h0m0s")]),
        Some(3_600_000)
    );
    let usual = |stated: Option<u64>| wait_or_usual(stated.map(Duration::from_millis)).as_millis();
    assert_eq!(
        [usual(None), usual(Some(0)), usual(Some(99)), usual(Some(101))],
        [20_000, 100, 100, 101]
    );
}

#[test]
fn spans_are_read_in_gos_format() {
    for (text, millis) in [
        ("20ms", 20),
        ("1s", 1_000),
        ("6m0s", 360_000),
        ("2s81ms", 2_081),
        ("5h50m30ms", 21_000_030),
    ]
    .into_iter()
    .chain([("1500us", 1), ("2500\u{b5}s", 2), ("4000000ns", 4), ("1ms500us", 1), ("0s", 0)])
    {
        assert_eq!(go_span(text).map(|span| span.as_millis()), Some(millis), "{text}");
    }
    for nothing in ["", "s", "1", "1x", "1.2.3s", "-1s"] {
        assert_eq!(go_span(nothing), None, "{nothing}");
    }
}

#[test]
fn headroom_is_that_of_the_scarcest_limit() {
    let all = headers(&[
        ("x-ratelimit-limit-requests", "100"),
        ("x-ratelimit-remaining-requests", "90"),
        ("x-ratelimit-limit-tokens", "30,000"),
        ("x-ratelimit-remaining-tokens", "3000"),
        ("x-ratelimit-reset-tokens", "54s"),
    ]);
    assert_eq!(headroom(&all), Some(Headroom { left: 0.1, reset: Duration::from_secs(54) }));
    assert_eq!(headroom(&headers(&[("x-ratelimit-remaining-tokens", "7")])), None);
    let of = |name: &str, whole: &str, left: &str, reset: Option<&str>| {
        let own = |what: &str| HeaderName::try_from(format!("x-ratelimit-{what}-{name}")).unwrap();
        let stated = [("limit", Some(whole)), ("remaining", Some(left)), ("reset", reset)];
        let list = stated
            .into_iter()
            .filter_map(|(what, text)| Some((own(what), HeaderValue::from_str(text?).unwrap())));
        list.collect::<HeaderMap>()
    };
    let found = |list: &[HeaderMap]| {
        headroom(
            &list.iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect(),
        )
    };
    let (scarce, ample) =
        (of("requests", "100", "5", Some("3s")), of("project-tokens", "100", "50", Some("9s")));
    let expected = Some(Headroom { left: 0.05, reset: Duration::from_secs(3) });
    assert_eq!(found(&[scarce.clone(), ample.clone()]), expected, "the scarcest of any kind");
    let (more, none) = (of("tokens", "10", "20", None), of("tokens", "0", "0", Some("1s")));
    assert_eq!(
        found(&[more]),
        Some(Headroom { left: 1.0, reset: USUAL_WAIT }),
        "a share is at most 1"
    );
    assert_eq!(found(std::slice::from_ref(&none)), None, "a limit of 0 has no share");
    assert_eq!(found(&[none, scarce]), expected);
    assert_eq!(
        found(&[of("tokens", "10", "1", Some("2h"))]),
        Some(Headroom { left: 0.1, reset: LONGEST_WAIT })
    );
}

#[test]
fn message_may_state_a_wait() {
    let stated = |message: &str| wait_in(message).map(|wait| wait.as_millis());
    assert_eq!(
        stated("Requested 12528. Please try again in 11.054s. Visit https://x"),
        Some(11_054)
    );
    assert_eq!(stated("Please try again in 120ms."), Some(120));
    assert_eq!(
        (stated("Please try again in 1m30s!"), stated("Please try again in 5h.")),
        (Some(90_000), Some(3_600_000))
    );
    assert_eq!(
        (stated("Please try again in a moment."), stated("Please try again later.")),
        (None, None)
    );
}

#[test]
fn request_may_be_larger_than_its_limit() {
    let message = |limit: &str, requested: &str| {
        format!(
            "Rate limit reached on tokens per min (TPM): Limit {limit}, Used 22999, Requested {requested}. Please try"
        )
    };
    assert!(
        is_beyond_limit(&message("30000", "40000"))
            && is_beyond_limit(&message("30,000", "30,001"))
    );
    assert!(!is_beyond_limit(&message("30000", "12528")) && !is_beyond_limit("Limit reached"));
    assert!(!is_beyond_limit(&message("30000", "30000")), "a request as large as the limit");
    assert!(
        is_beyond_limit("Limit 30000, Requested 40000.")
            && !is_beyond_limit("Limit 30000, Used 40000.")
    );
}

#[test]
fn waits_are_jittered_by_up_to_a_quarter() {
    let second = Duration::from_secs(1);
    assert_eq!(
        [0.0, 0.5, 1.0].map(|chance| jittered(second * 8, chance)),
        [second * 8, second * 9, second * 10]
    );
    let chances: Vec<_> = (0..100).map(|_| chance()).collect();
    assert!(chances.iter().all(|chance| (0.0..=1.0).contains(chance)));
    let is_hit = |part: usize| chances.iter().any(|chance| (chance * 4.0) as usize == part);
    assert!((0..4).all(is_hit), "every quarter is hit: {chances:?}");
}

#[test]
fn burst_is_granted_in_full_and_again_after_a_quiet_time() {
    let (interval, mut rate, mut now) =
        (Duration::from_millis(100), Rate::default(), Duration::from_secs(9));
    for burst in [1, 5] {
        now += interval * 100;
        for _ in 0..burst {
            assert_eq!(rate.take(now, interval, burst), Ok(()));
        }
        assert_eq!(rate.take(now, interval, burst), Err(interval), "no more for an interval");
        assert_eq!(
            rate.take(now + interval / 4, interval, burst),
            Err(interval * 3 / 4),
            "a refused take costs nothing"
        );
        assert_eq!(rate.take(now + interval, interval, burst), Ok(()));
        assert_eq!(rate.take(now + interval, interval, burst), Err(interval));
    }
}

#[test]
fn retries_are_saved_up_to_a_maximum() {
    let granted = |retries: &mut Retries| (0..100).take_while(|_| retries.take()).count();
    let mut retries = Retries::default();
    assert_eq!(granted(&mut retries), 2, "a few for quiet times");
    for (turns, expected) in [(5, 0), (1, 1), (50, 9), (10_000, 10), (5, 0)] {
        (0..turns).for_each(|_| retries.turn());
        assert_eq!(granted(&mut retries), expected, "after {turns} turns more");
    }
}

proptest! {
    #[test]
    fn headers_of_any_text_are_read_within_bounds(text in "[ -~]{0,40}") {
        let value = HeaderValue::from_str(&text).unwrap();
        for name in ["retry-after", "retry-after-ms", "x-ratelimit-reset-tokens"] {
            let mut all = headers(&[("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-limit-tokens", "1")]);
            all.insert(HeaderName::from_static(name), value.clone());
            prop_assert!(wait(&all, SystemTime::UNIX_EPOCH).unwrap_or_default() <= LONGEST_WAIT);
            prop_assert!(headroom(&all).is_some_and(|headroom| headroom.reset <= LONGEST_WAIT));
        }
        is_beyond_limit(&text);
        let wait = wait_in(&format!("try again in {text}"));
        prop_assert!(wait.unwrap_or_default() <= LONGEST_WAIT);
    }

    #[test]
    fn rate_grants_a_burst_then_one_each_interval(
        steps in prop::collection::vec(0..300_u64, 1..200),
    ) {
        let (interval, burst) = (Duration::from_millis(100), 5);
        let (mut rate, mut now, mut granted) = (Rate::default(), Duration::ZERO, 0);
        for step in steps {
            now += Duration::from_millis(step);
            match rate.take(now, interval, burst) {
                Ok(()) => granted += 1,
                Err(wait) => {
                    now += wait;
                    granted += 1;
                    prop_assert_eq!(rate.take(now, interval, burst), Ok(()));
                }
            }
            prop_assert!(granted <= u128::from(burst) + now.as_millis() / 100);
        }
    }

    #[test]
    fn retries_stay_within_a_fifth(tries in prop::collection::vec(any::<bool>(), 100..2_000)) {
        let (mut retries, mut again) = (Retries::default(), 0);
        for wanted in &tries {
            retries.turn();
            again += usize::from(*wanted && retries.take());
        }
        prop_assert!(again * 5 <= tries.len());
    }
}
