//! Tests of sessions whose binding is forgotten: the search for the organization that can open
//! their history, and its result.

use super::*;
use crate::binding::local::Known;
use crate::binding::record::state_tag;
use crate::key::Tag;

const KEYS: &str = "a-1 org-a one 1, b-1 org-b one 1, c-1 org-c one 0, d-1 org-d one 1";

fn organization(name: &str) -> Tag {
    Tag::of_organization(name)
}

/// A provisional binding of this replica to this key.
fn provisional(replica: &Replica, id: &str, written: Written) -> Binding {
    let key = replica.key(id);
    let is_provisional = true;
    Binding {
        is_provisional,
        ..Binding::new(&key, Some(&session(1)), written, BindingResult::Created)
    }
}

#[tokio::test(start_paused = true)]
async fn search_tries_each_organization_that_may_be_asked_once() {
    let [replica] = replicas(KEYS);
    let record = replica.record("a-1", 1);
    let first = provisional(&replica, "a-1", Written::Stored(record.clone()));
    let turn = replica.turn();
    let mut tried = vec![organization("org-a")];
    let mut path = Vec::new();
    while let Some(next) = replica.bindings.next_untried(turn.placing(), &first, &tried) {
        assert_eq!(
            (next.written.clone(), next.has_moved, next.result),
            (first.written.clone(), true, BindingResult::Rebound)
        );
        path.push(next.key.id.clone());
        tried.push(next.key.organization_tag);
    }
    // A weightless key may have the session's history, and is tried last.
    assert_eq!(path.pop().as_deref(), Some("c-1"));
    path.sort_unstable();
    assert_eq!(path, ["b-1", "d-1"]);
    assert!(replica.bindings.give_up(turn.placing(), &tried).is_ok(), "the error is final");
    // An organization that is out of use is not tried and may be the right one, so the error is not
    // final.
    replica.rejects("b-1");
    tried.retain(|tag| *tag != organization("org-b"));
    assert!(replica.bindings.next_untried(turn.placing(), &first, &tried).is_none());
    assert_eq!(
        replica.bindings.give_up(turn.placing(), &tried).unwrap_err().kind,
        ErrorKind::NoKeyAvailable
    );
    // The search leaves out organizations that the client may not use.
    let restricted = Client::of_organizations("alice", &["org-a", "org-d"]);
    let turn = Turn::of(&restricted).with(|turn| {
        turn.demand.session = Some(session(1));
        turn.demand.model = MODEL;
    });
    let next = replica.bindings.next_untried(turn.placing(), &first, &[organization("org-a")]);
    assert_eq!(next.map(|next| next.key.id.clone()).as_deref(), Some("d-1"));
    let both = [organization("org-a"), organization("org-d")];
    assert!(
        replica.bindings.next_untried(turn.placing(), &first, &both).is_none()
            && replica.bindings.give_up(turn.placing(), &both).is_ok()
    );
    let nobody = Binding { session: None, ..first };
    assert!(replica.bindings.next_untried(turn.placing(), &nobody, &[]).is_none());
}

/// The organization that opened the history is bound and sealed.
#[tokio::test(start_paused = true)]
async fn organization_that_is_found_is_bound_and_sealed() {
    let [replica] = replicas(KEYS);
    let record = replica.record("a-1", 1);
    replica.put(&record).await;
    let mut turn = replica.turn().with(|turn| turn.demand.turn_state = Some(b"state"));
    let first = provisional(&replica, "a-1", Written::Stored(record));
    let found = replica
        .bindings
        .next_untried(turn.placing(), &first, &[organization("org-a"), organization("org-d")])
        .unwrap();
    let mut budget = replica.bindings.budget();
    let bound = replica.bindings.correct(turn.placing(), found, &mut budget).await;
    let next = BindingRecord {
        stale_state: Some(state_tag(b"state")),
        ..replica.record("b-1", 2).sealed()
    };
    assert_eq!(
        (bound.written.clone(), bound.is_provisional),
        (Written::Stored(next.clone()), false)
    );
    replica.is_stored(&next).await;
    assert_eq!(replica.decided("move", "forgotten"), 1);
    turn.demand.turn_state = None;
    let later = replica.bind(&mut turn).await.unwrap();
    assert_eq!(
        (seen(&later), later.is_provisional),
        (("b-1", false, BindingResult::Existing), false)
    );
}

/// Another turn wrote first, or the store is away.
#[tokio::test(start_paused = true)]
async fn organization_that_is_found_gives_way_to_a_stored_move_and_outlives_an_outage() {
    for weather in [Weather::Fair, Weather::Away] {
        let [replica] = replicas(KEYS);
        let record = replica.record("a-1", 1);
        let first = provisional(&replica, "a-1", Written::Stored(record.clone()));
        let turn = replica.turn();
        let found = replica
            .bindings
            .next_untried(turn.placing(), &first, &[organization("org-a"), organization("org-d")])
            .unwrap();
        let other = replica.record("d-1", 2).sealed();
        replica.put(&other).await;
        replica.weather(weather);
        let bound =
            replica.bindings.correct(turn.placing(), found, &mut replica.bindings.budget()).await;
        assert!(!bound.is_provisional && bound.key.id == "b-1");
        let here = replica.record("b-1", 2).sealed();
        match weather {
            Weather::Fair => assert_eq!(
                (bound.written, replica.local.recall(&session(1))),
                (Written::Nowhere, None)
            ),
            _ => {
                assert_eq!(bound.written, Written::Here(here.clone()));
                assert_eq!(
                    replica.local.recall(&session(1)),
                    Some(Known { record: here, is_provisional: false })
                );
            }
        }
        replica.weather(Weather::Fair);
        replica.is_stored(&other).await;
    }
}

/// A binding that a search finds without the store is not provisional. It keeps its epoch, so that
/// a stored binding of the same epoch stands.
#[tokio::test(start_paused = true)]
async fn organization_that_is_found_without_the_store_keeps_the_epoch() {
    let [replica] = replicas(KEYS);
    replica.weather(Weather::Away);
    let record = replica.record("a-1", 1);
    replica.local.note(&session(1), &record, true);
    let turn = replica.turn();
    let first = provisional(&replica, "a-1", Written::Here(record));
    let found = replica
        .bindings
        .next_untried(turn.placing(), &first, &[organization("org-a"), organization("org-d")])
        .unwrap();
    let bound =
        replica.bindings.correct(turn.placing(), found, &mut replica.bindings.budget()).await;
    let here = replica.record("b-1", 1).sealed();
    assert_eq!((bound.written, bound.is_provisional), (Written::Here(here.clone()), false));
    assert_eq!(
        replica.local.recall(&session(1)),
        Some(Known { record: here, is_provisional: false })
    );
}

/// A connection has one key for life, so only the next connection uses the next organization.
#[tokio::test(start_paused = true)]
async fn provisional_binding_is_followed_by_the_next_until_all_organizations_are_tried() {
    for weather in [Weather::Fair, Weather::Away] {
        let [replica] = replicas(KEYS);
        replica.weather(weather);
        let turn = replica.turn();
        let mut path = Vec::new();
        let mut binding = replica.bind(&mut replica.turn()).await.unwrap();
        for _ in 0..8 {
            path.push(binding.key.id.clone());
            if !replica
                .bindings
                .rebind_provisionally(turn.placing(), &binding, &mut replica.bindings.budget())
                .await
                .unwrap()
            {
                break;
            }
            binding = replica.bind(&mut replica.turn()).await.unwrap();
            assert!(binding.is_provisional, "until an organization has answered");
            let epoch = if weather == Weather::Fair { path.len() as u32 + 1 } else { 1 };
            let record = replica.record(&binding.key.id, epoch);
            // A provisional binding that was made without the store must not win over a stored one.
            let is_provisional = weather == Weather::Away;
            assert_eq!(replica.local.recall(&session(1)), Some(Known { record, is_provisional }));
        }
        assert_eq!(path.last().map(String::as_str), Some("c-1"), "the weightless key is the last");
        path.sort_unstable();
        assert_eq!(path, ["a-1", "b-1", "c-1", "d-1"], "{weather:?}");
        assert_eq!(replica.decided("move", "forgotten"), 3);
        // Some time after the last try, the organizations are tried again.
        for (seconds, expected) in [(299, false), (301, true)] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            let again = replica
                .bindings
                .rebind_provisionally(turn.placing(), &binding, &mut replica.bindings.budget())
                .await;
            assert_eq!(again.unwrap(), expected, "after {seconds} s");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn search_is_final_only_if_all_organizations_could_be_asked() {
    let [replica] = replicas("a-1 org-a one 1, b-1 org-b one 1, c-1 org-c one 1");
    let record = replica.record("a-1", 1);
    replica.put(&record).await;
    let first = provisional(&replica, "a-1", Written::Stored(record.clone()));
    let again = async |binding: &Binding| {
        let turn = replica.turn();
        let mut budget = replica.bindings.budget();
        replica
            .bindings
            .rebind_provisionally(turn.placing(), binding, &mut budget)
            .await
            .map_err(|error| error.kind)
    };
    replica.rejects("b-1");
    replica.exhausts("c-1", Scope::Organization);
    assert_eq!(again(&first).await, Err(ErrorKind::NoKeyAvailable));
    replica.is_stored(&record).await;
    // Another turn has moved the session. The next connection uses that binding, and nothing is
    // overwritten.
    replica.recovers("b-1");
    let other = replica.record("b-1", 2).sealed();
    replica.put(&other).await;
    assert_eq!(again(&first).await, Ok(true));
    replica.is_stored(&other).await;
    // A turn without a stored binding has none to move.
    assert_eq!(again(&provisional(&replica, "a-1", Written::Nowhere)).await, Ok(false));
}
