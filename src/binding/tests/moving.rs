//! Tests of sessions whose key can serve no more: which of them move, to which key, and what is
//! stored.

use super::*;
use crate::binding::demand::Sealed;
use crate::binding::record::state_tag;

/// An operator's command moves sessions of every epoch.
#[tokio::test(start_paused = true)]
async fn drained_key_is_left_by_sessions_of_every_epoch() {
    for (epoch, sealed) in [(1, false), (1, true), (2, false), (2, true), (12, true)] {
        for is_of_all in [false, true] {
            let replica = one();
            let bound = BindingRecord { sealed, ..replica.record("a-1", epoch) };
            replica.put(&bound).await;
            match is_of_all {
                false => replica.says("a-1", Condition::Drained),
                true => {
                    let organization = Subject::Organization(bound.organization);
                    replica.registry.conditions.note(organization, Condition::Drained, None);
                }
            }
            let bind = replica.bind(&mut replica.turn()).await;
            if is_of_all && sealed {
                assert_eq!(
                    bind.err().map(|error| error.kind),
                    Some(ErrorKind::NoKeyAvailable),
                    "no other organization has its history"
                );
                replica.is_stored(&bound).await;
                continue;
            }
            let expected = if is_of_all { "b-1" } else { "a-2" };
            let moved = bind.unwrap();
            assert!(
                (moved.key.id.as_str(), moved.has_moved) == (expected, true)
                    || !sealed && moved.key.id == "b-1",
                "{moved:?}"
            );
            let next = BindingRecord { sealed, ..replica.record(&moved.key.id, epoch + 1) };
            replica.is_stored(&next).await;
            assert_eq!(replica.decided("move", "drained"), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn disabled_key_keeps_sessions_of_every_epoch() {
    for (epoch, sealed) in [(1, false), (2, false), (2, true), (12, true)] {
        let replica = one();
        let bound = BindingRecord { sealed, ..replica.record("a-1", epoch) };
        replica.put(&bound).await;
        replica.says("a-1", Condition::Disabled);
        let beside = replica.bind(&mut replica.turn()).await.unwrap();
        assert_eq!(seen(&beside), ("a-2", true, BindingResult::Spilled));
        replica.is_stored(&bound).await;
        replica.says("a-1", Condition::Enabled);
        assert_eq!(
            replica.goes(replica.turn()).await.as_deref(),
            Ok("a-1"),
            "the session uses its own key again"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn turn_without_a_session_avoids_keys_that_an_operator_has_closed() {
    for condition in [Condition::Drained, Condition::Disabled] {
        let [replica] = replicas("a-1 org-a one 5, a-2 org-a two 1");
        let nobody = || replica.turn().with(|turn| turn.demand.session = None);
        assert_eq!(
            replica.goes(nobody()).await.as_deref(),
            Ok("a-1"),
            "the key with the lowest load for its weight"
        );
        replica.says("a-1", condition);
        assert_eq!(replica.goes(nobody()).await.as_deref(), Ok("a-2"), "{condition:?}");
        replica.says("a-2", condition);
        assert_eq!(replica.goes(nobody()).await, Err(ErrorKind::NoKeyAvailable), "{condition:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn turn_without_a_session_binds_nothing_and_moves_by_load() {
    let replica = one();
    let mut turn = replica.turn().with(|turn| turn.demand.session = None);
    let first = replica.bind(&mut turn).await.unwrap();
    assert_eq!(seen(&first), ("a-1", false, BindingResult::None));
    assert!(!replica.bindings.would_leave(turn.placing(), &first));
    replica.refuses("a-1", &mut turn);
    replica.rejects("a-2");
    assert!(replica.bindings.would_leave(turn.placing(), &first));
    let next = replica.rebind(&mut turn, &first).await.unwrap();
    assert_eq!(
        (seen(&next), &next.written),
        (("b-1", true, BindingResult::None), &Written::Nowhere)
    );
    replica.rejects("b-1");
    assert!(replica.rebind(&mut turn, &first).await.is_err());
    assert!(!replica.bindings.would_leave(turn.placing(), &first), "no key is left");
}

/// The turn carries no sealed content, but its session is sealed.
#[tokio::test(start_paused = true)]
async fn sealed_session_that_loses_two_keys_in_one_turn_is_tried_nowhere_else() {
    let [replica] = replicas(
        "a-1 org-a one 1, a-2 org-a two 1, b-1 org-b one 1, b-2 org-b two 1, b-3 org-b three 1",
    );
    let bound = replica.record("a-1", 1).sealed();
    replica.put(&bound).await;
    let mut turn = replica.turn();
    let first = replica.bind(&mut turn).await.unwrap();
    assert_eq!(seen(&first), ("a-1", false, BindingResult::Existing));
    replica.refuses("a-1", &mut turn);
    let second = replica.rebind(&mut turn, &first).await.unwrap();
    assert_eq!(seen(&second), ("a-2", true, BindingResult::Rebound));
    assert!(!second.is_provisional, "its organization is known");
    let moved = replica.record("a-2", 2).sealed();
    replica.is_stored(&moved).await;
    replica.refuses("a-2", &mut turn);
    let error = replica.rebind(&mut turn, &second).await.unwrap_err();
    assert_eq!(
        (error.kind, error.retry_after),
        (ErrorKind::NoKeyAvailable, Some(Duration::from_secs(30)))
    );
    replica.is_stored(&moved).await;
    // The next turn has the same result after both keys refuse it, with or without the store.
    let refused = || replica.turn().with(|turn| turn.tried.refused = vec![bound.key, moved.key]);
    assert_eq!(replica.goes(refused()).await, Err(ErrorKind::NoKeyAvailable));
    replica.weather(Weather::Away);
    assert_eq!(replica.goes(refused()).await, Err(ErrorKind::NoKeyAvailable));
}

/// An event that affects organization `org-a`.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Limited,
    Disabled,
    Rejected,
    Exhausted,
    ExhaustedProjects,
    Denied,
}

impl Fate {
    fn befalls(self, replica: &Replica) {
        for id in ["a-1", "a-2"] {
            match self {
                Self::Limited => replica.limits(id),
                Self::Disabled => replica.says(id, Condition::Disabled),
                Self::Rejected => replica.rejects(id),
                Self::Exhausted => replica.exhausts(id, Scope::Organization),
                Self::ExhaustedProjects => replica.exhausts(id, Scope::Project),
                Self::Denied => replica.registry.deny(&replica.key(id), MODEL),
            }
        }
    }
}

/// The organization has no usable key left. Sessions that may leave it do, and all others receive
/// the reason.
#[tokio::test(start_paused = true)]
async fn session_leaves_its_organization_only_for_allowed_reasons() {
    use Fate::{Denied, Disabled, Exhausted, ExhaustedProjects, Limited, Rejected};
    const KEYS: &str = "a-1 org-a one 1, a-2 org-a two 1, b-1 org-b one 1, b-2 org-b two 1, b-3 org-b three 1, b-4 org-b four 1";
    let (limited, none, quota) =
        (ErrorKind::RateLimitExceeded, ErrorKind::NoKeyAvailable, ErrorKind::InsufficientQuota);
    // The three columns: nothing is sealed, the turn carries sealed content, the session is sealed.
    // `None`: the session moves to the other organization.
    for (fate, free, shown, sealed) in [
        (Limited, None, Some(limited), Some(limited)),
        (Disabled, None, Some(none), Some(none)),
        (Rejected, None, None, Some(none)),
        (Exhausted, None, None, Some(quota)),
        (ExhaustedProjects, None, None, Some(quota)),
    ] {
        for (is_shown, is_sealed, expected) in
            [(false, false, free), (true, false, shown), (false, true, sealed)]
        {
            let [replica] = replicas(KEYS);
            let bound = BindingRecord { sealed: is_sealed, ..replica.record("a-1", 1) };
            replica.put(&bound).await;
            fate.befalls(&replica);
            let mut turn =
                replica.turn().with(|turn| turn.demand.carries_sealed = Sealed::Known(is_shown));
            let case = format!("{fate:?}, shown {is_shown}, sealed {is_sealed}");
            match (replica.bind(&mut turn).await, expected) {
                (Ok(moved), None) => {
                    assert_eq!(
                        (moved.key.organization.as_str(), moved.has_moved, moved.is_provisional),
                        ("org-b", true, true),
                        "{case}"
                    );
                    replica.is_stored(&replica.record(&moved.key.id, 2)).await;
                }
                (Err(error), Some(kind)) => {
                    assert_eq!(error.kind, kind, "{case}");
                    replica.is_stored(&bound).await;
                }
                (bound, _) => panic!("{case}: {bound:?}"),
            }
        }
    }
    // If no key of the organization has access to a model, the own key's answer says so. No other
    // organization is tried.
    let [replica] = replicas(KEYS);
    replica.put(&replica.record("a-1", 1)).await;
    Denied.befalls(&replica);
    let told = replica.bind(&mut replica.turn()).await.unwrap();
    assert_eq!(seen(&told), ("a-1", false, BindingResult::Spilled));
}

#[tokio::test(start_paused = true)]
async fn limited_key_serves_turns_that_may_wait_long_enough() {
    let replica = one();
    let bound = replica.record("a-1", 1);
    replica.put(&bound).await;
    replica.registry.limit(&replica.key("a-1"), MODEL, Duration::from_secs(5));
    let waits = |wait_left| {
        replica.turn().with(|turn| turn.tried.wait_left = Duration::from_millis(wait_left))
    };
    assert_eq!(replica.goes(waits(5_000)).await.as_deref(), Ok("a-1"));
    assert_eq!(replica.goes(waits(4_999)).await.as_deref(), Ok("a-2"));
    assert_eq!(
        replica.goes(waits(0).with(|turn| turn.demand.model = "other")).await.as_deref(),
        Ok("a-1"),
        "the limit is one model's"
    );
    // A sibling that is limited for less time serves turns that can wait that long.
    replica.registry.limit(&replica.key("a-2"), MODEL, Duration::from_secs(3));
    assert_eq!(replica.goes(waits(3_000)).await.as_deref(), Ok("a-2"));
    let (decided, reason) = ("spill", "limited");
    assert_eq!(replica.decided(decided, reason), 2);
    replica.is_stored(&bound).await;
}

#[tokio::test(start_paused = true)]
async fn moved_turn_leaves_its_state_behind() {
    let replica = one();
    replica.put(&replica.record("a-1", 3).sealed()).await;
    let mut turn =
        replica.turn().with(|turn| turn.demand.turn_state = Some(b"issued by the first"));
    replica.refuses("a-1", &mut turn);
    let moved = replica.bind(&mut turn).await.unwrap();
    assert!(moved.is_foreign_state(b"anything"), "this turn carried it to another key");
    let stale_state = Some(state_tag(b"issued by the first"));
    replica.is_stored(&BindingRecord { stale_state, ..replica.record("a-2", 4).sealed() }).await;
    let later = replica.bind(&mut replica.turn()).await.unwrap();
    assert!(
        later.is_foreign_state(b"issued by the first")
            && !later.is_foreign_state(b"issued by the second")
    );
}

/// Another turn moves the session while this turn runs, and this turn's own key recovers meanwhile.
#[tokio::test(start_paused = true)]
async fn turn_continues_from_another_turns_move() {
    for weather in [Weather::Fair, Weather::Away] {
        let replica = one();
        replica.put(&replica.record("a-1", 1).sealed()).await;
        let mut turn = replica.turn();
        let early = replica.bind(&mut turn).await.unwrap();
        replica.rejects("a-1");
        assert_eq!(replica.goes(replica.turn()).await.as_deref(), Ok("a-2"));
        replica.recovers("a-1");
        replica.weather(weather);
        let next = replica.rebind(&mut turn, &early).await.unwrap();
        assert_eq!((next.key.id.as_str(), next.has_moved), ("a-2", true), "{weather:?}");
        replica.weather(Weather::Fair);
        replica.is_stored(&replica.record("a-2", 2).sealed()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn turn_that_stays_keeps_its_binding() {
    let replica = one();
    let mut turn = replica.turn();
    let begun = replica.bind(&mut turn).await.unwrap();
    let again = replica.rebind(&mut turn, &begun).await.unwrap();
    assert_eq!(seen(&again), (begun.key.id.as_str(), false, BindingResult::Created));
    assert!(begun.is_provisional && again.is_provisional && again.written == begun.written);
}

/// Two replicas find a session's key dead, and one of them moves the session first.
#[tokio::test(start_paused = true)]
async fn loser_of_a_move_uses_the_winners_binding() {
    let [first, second] = replicas::<2>("a-1 org-a one 1, a-2 org-a two 1, a-3 org-a three 1");
    first.put(&first.record("a-1", 1).sealed()).await;
    let mut budget = second.bindings.budget();
    let found = second.bindings.look_up(&session(1), &mut budget).await;
    for replica in [&first, &second] {
        replica.rejects("a-1");
    }
    // The second replica alone would choose another key.
    let won = first.bind(&mut first.turn()).await.unwrap();
    let other = if won.key.id == "a-2" { "a-3" } else { "a-2" };
    second.limits(&won.key.id);
    let turn = second.turn().with(|turn| turn.tried.wait_left = LONG);
    let (lost, _) = second.bindings.bind(turn.placing(), found, &mut budget).await.unwrap();
    assert_eq!(seen(&lost), (won.key.id.as_str(), true, BindingResult::Existing));
    second.is_stored(&second.record(&won.key.id, 2).sealed()).await;
    // If the winner's key is limited for the loser, a sibling serves, and the session stays.
    let beside = second.bind(&mut second.turn()).await.unwrap();
    assert_eq!(seen(&beside), (other, true, BindingResult::Spilled));
    second.is_stored(&second.record(&won.key.id, 2).sealed()).await;
}

/// The winner's key is limited for the loser, which has no time to wait.
#[tokio::test(start_paused = true)]
async fn loser_of_a_move_to_a_limited_key_is_served_beside_it() {
    let [first, second] = replicas::<2>("a-1 org-a one 1, a-2 org-a two 1, a-3 org-a three 1");
    first.put(&first.record("a-1", 1).sealed()).await;
    let mut budget = second.bindings.budget();
    let found = second.bindings.look_up(&session(1), &mut budget).await;
    first.rejects("a-1");
    second.rejects("a-1");
    let won = first.bind(&mut first.turn()).await.unwrap();
    let other = if won.key.id == "a-2" { "a-3" } else { "a-2" };
    second.limits(&won.key.id);
    let moved = second.record(&won.key.id, 2).sealed();
    let turn = second.turn();
    let (lost, _) = second.bindings.bind(turn.placing(), found, &mut budget).await.unwrap();
    assert_eq!(seen(&lost), (other, true, BindingResult::Spilled));
    assert_eq!(lost.written, Written::Beside(moved.clone()));
    second.is_stored(&moved).await;
}

#[tokio::test(start_paused = true)]
async fn client_that_loses_an_organization_moves_its_sessions() {
    for (is_sealed, expected) in
        [(false, Ok("b-1".to_owned())), (true, Err(ErrorKind::NoKeyAvailable))]
    {
        let replica = Replica { client: Client::of_organizations("alice", &["org-b"]), ..one() };
        let bound = BindingRecord { sealed: is_sealed, ..replica.record("a-1", 1) };
        replica.put(&bound).await;
        assert_eq!(replica.goes(replica.turn()).await, expected);
        if is_sealed {
            replica.is_stored(&bound).await;
        }
    }
}
