//! Tests of many sessions that move to one key: how many the key takes, how long the others wait,
//! and which keys they use.

use crate::store::name::Name;
use std::ops::Range;

use futures_util::future::join_all;

use super::*;

/// Most turns that wait at a time.
const MOVERS: usize = 256;
/// Tolerance of the measured waits; the clock of the tests counts in milliseconds.
const TICKS: Duration = Duration::from_millis(10);

/// Moves sessions that are bound to the dead key `a-1`, each with this `wait_left`. Returns each
/// session's key or error, and the time that it took.
async fn moved(
    replica: &Replica,
    sessions: Range<u32>,
    wait_left: Duration,
) -> Vec<(Result<String, Error>, Duration)> {
    let began = tokio::time::Instant::now();
    let each = sessions.map(|number| async move {
        let text = BindingRecord::first(&replica.key("a-1"), 1).sealed().to_string();
        replica
            .store
            .claim(Name::Binding(session(number).as_str()), &text, TTL, &mut replica.store.budget())
            .await
            .unwrap();
        let mut turn = replica.turn().with(|turn| {
            turn.demand.session = Some(session(number));
            turn.tried.wait_left = wait_left;
        });
        let binding = replica.bind(&mut turn).await;
        (binding.map(|binding| binding.key.id.clone()), began.elapsed())
    });
    join_all(each).await
}

/// A quiet key takes ten moved sessions a second, thirty of them at once.
#[tokio::test(start_paused = true)]
async fn herd_that_may_not_wait_is_told_when_to_retry() {
    let [replica] = replicas("a-1 org-a one 1, a-2 org-a two 1, b-1 org-b one 1, b-2 org-b two 1");
    replica.rejects("a-1");
    let all = moved(&replica, 0..40, Duration::ZERO).await;
    let came = all.iter().filter(|(went, _)| went.as_deref().is_ok_and(|key| key == "a-2")).count();
    assert_eq!(came, 30);
    for (went, took) in &all {
        let Err(error) = went else { continue };
        let wait = error.retry_after.unwrap();
        assert_eq!((error.kind, *took), (ErrorKind::RateLimitExceeded, Duration::ZERO));
        assert!(
            (Duration::from_millis(100)..Duration::from_millis(126)).contains(&wait),
            "{wait:?}"
        );
    }
    assert_eq!((replica.decided("move", "rejected"), replica.decided("wait", "crowded")), (30, 0));
}

/// No turn waits longer than it may, however often another session takes its place.
#[tokio::test(start_paused = true)]
async fn herd_waits_in_place_no_longer_than_it_may() {
    let [replica] = replicas("a-1 org-a one 1, a-2 org-a two 1, b-1 org-b one 1, b-2 org-b two 1");
    replica.rejects("a-1");
    let wait_left = Duration::from_millis(300);
    let all = moved(&replica, 0..60, wait_left).await;
    let (came, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(|(went, _)| went.is_ok());
    assert!((31..=34).contains(&came.len()), "a few are admitted meanwhile: {}", came.len());
    assert!(
        came.iter().chain(&refused).all(|(_, took)| *took <= wait_left + TICKS),
        "no turn waits longer"
    );
    assert!(
        refused.iter().any(|(_, took)| *took > Duration::ZERO)
            && came.iter().any(|(_, took)| *took > Duration::ZERO)
    );
    assert_eq!(
        replica.decided("wait", "crowded"),
        30,
        "each turn is counted once, however often it waits"
    );
}

/// Memory is limited: a fixed number of turns wait, and the others are told to retry.
#[tokio::test(start_paused = true)]
async fn herd_is_limited_and_its_permits_are_released() {
    let [replica] = replicas("a-1 org-a one 1, a-2 org-a two 1, b-1 org-b one 1, b-2 org-b two 1");
    replica.rejects("a-1");
    for round in 0..2 {
        let sessions = round * 300..round * 300 + 300;
        let all = moved(&replica, sessions, Duration::from_secs(3_000)).await;
        let refused: Vec<_> = all.iter().filter(|(went, _)| went.is_err()).collect();
        assert_eq!(refused.len(), 300 - 30 - MOVERS, "round {round}");
        assert!(refused.iter().all(|(_, took)| took.is_zero()), "at once");
        tokio::time::advance(LONG).await;
    }
}

/// If another key of the organization takes the session, the session moves there.
#[tokio::test(start_paused = true)]
async fn herd_continues_in_its_order_of_keys() {
    let [replica] = replicas(
        "a-1 org-a one 1, a-2 org-a two 1000000, a-3 org-a three 1, b-1 org-b one 1, b-2 org-b two 1",
    );
    replica.rejects("a-1");
    let all = moved(&replica, 0..70, Duration::ZERO).await;
    let count = |id: &str| {
        all.iter().filter(|(went, _)| went.as_deref().is_ok_and(|key| key == id)).count()
    };
    assert_eq!((count("a-2"), count("a-3")), (30, 30));
    assert_eq!(all.iter().filter(|(went, _)| went.is_err()).count(), 10);
}

/// Ten new sessions a second have begun on a key for a minute. The key takes twice as many moved
/// sessions, three seconds' worth at once.
#[tokio::test(start_paused = true)]
async fn herd_limit_follows_a_keys_rate_of_new_sessions() {
    let [replica] = replicas("a-1 org-a one 0, a-2 org-a two 1, b-1 org-b one 0, b-2 org-b two 0");
    for number in 1_000..1_600 {
        let begun =
            replica.bindings.places.place_new(replica.turn().placing(), &session(number)).unwrap();
        assert_eq!(begun.id, "a-2");
    }
    replica.rejects("a-1");
    let all = moved(&replica, 0..90, Duration::ZERO).await;
    assert_eq!(all.iter().filter(|(went, _)| went.is_ok()).count(), 60);
}
