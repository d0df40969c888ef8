//! Tests without the store: the bindings that a replica uses meanwhile, and those that it merges
//! afterwards.

use super::*;
use crate::binding::local::Known;
use crate::binding::outage::merge_all;

const SIX: &str = "a-1 org-a one 1, a-2 org-a two 1, b-1 org-b one 1, b-2 org-b two 1, c-1 org-c one 1, c-2 org-c two 1";

async fn merges(replica: &Replica) -> usize {
    merge_all(&replica.store, &replica.local, &replica.registry, TTL).await
}

fn known(replica: &Replica) -> Known {
    replica.local.recall(&session(1)).unwrap()
}

/// A binding that was made without the store stays provisional until it is merged.
#[tokio::test(start_paused = true)]
async fn session_that_begins_without_the_store_is_provisional_until_it_is_merged() {
    let replica = one();
    replica.weather(Weather::Away);
    let mut turn = replica.turn();
    let begun = replica.bind(&mut turn).await.unwrap();
    let default = replica.bindings.places.default_of(turn.placing(), &session(1)).unwrap();
    let record = BindingRecord::first(&default, 1);
    assert_eq!(seen(&begun), (default.id.as_str(), false, BindingResult::Degraded));
    assert_eq!(
        (begun.written.clone(), begun.is_provisional),
        (Written::Here(record.clone()), true)
    );
    replica.serves(&begun).await;
    // The session may belong to another organization, although this one has answered.
    assert_eq!(known(&replica), Known { record: record.sealed(), is_provisional: true });
    assert!(replica.bind(&mut turn).await.unwrap().is_provisional);
    assert_eq!(merges(&replica).await, 0, "the store does not answer");
    replica.weather(Weather::Fair);
    assert_eq!(replica.stored().await, None);
    assert_eq!((merges(&replica).await, merges(&replica).await), (1, 0));
    replica.is_stored(&record.sealed()).await;
    assert!(!known(&replica).is_provisional);
}

/// A stored binding replaces a provisional one, however often the provisional one has moved.
#[tokio::test(start_paused = true)]
async fn provisional_binding_gives_way_to_the_stored_one() {
    // A merge or the next turn replaces the provisional binding, whichever comes first.
    for is_merged in [false, true] {
        let [cut_off, other] = replicas::<2>(SIX);
        cut_off.weather(Weather::Away);
        let mut turn = cut_off.turn();
        let mut provisional = cut_off.bind(&mut turn).await.unwrap();
        let foreign = if provisional.key.organization == "org-a" { "b-1" } else { "a-1" };
        cut_off.rejects(&provisional.key.id);
        provisional = cut_off.rebind(&mut turn, &provisional).await.unwrap();
        assert_eq!(
            (provisional.has_moved, provisional.is_provisional, known(&cut_off).record.epoch),
            (true, true, 1)
        );
        cut_off.serves(&provisional).await;
        let stored = other.record(foreign, 1).sealed();
        other.put(&stored).await;
        cut_off.weather(Weather::Fair);
        if is_merged {
            merges(&cut_off).await;
        }
        assert_eq!(cut_off.goes(cut_off.turn()).await.as_deref(), Ok(foreign));
        cut_off.is_stored(&stored).await;
        assert_eq!(known(&cut_off), Known { record: stored, is_provisional: false });
    }
}

/// A session that this replica knows keeps its key, and moves only within its organization.
#[tokio::test(start_paused = true)]
async fn known_session_moves_within_its_organization_without_the_store() {
    for sealed in [false, true] {
        let [replica] = replicas(SIX);
        let bound = BindingRecord { sealed, ..replica.record("b-1", 2) };
        replica.put(&bound).await;
        assert_eq!(replica.goes(replica.turn()).await.as_deref(), Ok("b-1"));
        replica.weather(Weather::Away);
        let mut turn = replica.turn().with(|turn| turn.demand.turn_state = Some(b"state"));
        let here = replica.bind(&mut turn).await.unwrap();
        assert_eq!(
            (seen(&here), here.is_provisional),
            (("b-1", false, BindingResult::Degraded), !sealed)
        );
        replica.refuses("b-1", &mut turn);
        let moved = replica.bind(&mut turn).await.unwrap();
        assert_eq!(seen(&moved), ("b-2", true, BindingResult::Degraded));
        assert!(moved.is_foreign_state(b"state"));
        let stale_state = Some(crate::binding::record::state_tag(b"state"));
        let next = BindingRecord { sealed, stale_state, ..replica.record("b-2", 3) };
        assert_eq!(moved.written, Written::Here(next.clone()));
        assert_eq!(known(&replica), Known { record: next.clone(), is_provisional: false });
        // The other organizations are ready, but the session's history may not be theirs.
        replica.refuses("b-2", &mut turn);
        assert_eq!(
            replica.rebind(&mut turn, &moved).await.unwrap_err().kind,
            ErrorKind::NoKeyAvailable
        );
        replica.weather(Weather::Fair);
        assert_eq!(merges(&replica).await, 1);
        replica.is_stored(&next).await;
    }
}

/// Without the store, no turn leaves its organization for a limit, even if the session is not
/// sealed.
#[tokio::test(start_paused = true)]
async fn limited_session_stays_in_its_organization_without_the_store() {
    let [replica] = replicas(SIX);
    let bound = replica.record("b-1", 2);
    replica.put(&bound).await;
    assert_eq!(replica.goes(replica.turn()).await.as_deref(), Ok("b-1"));
    replica.limits("b-1");
    replica.limits("b-2");
    replica.weather(Weather::Away);
    assert_eq!(replica.goes(replica.turn()).await, Err(ErrorKind::RateLimitExceeded));
    assert_eq!(known(&replica), Known { record: bound, is_provisional: false });
}

/// Another turn of the session moves it, without the store, between this turn's lookup and its own
/// move.
#[tokio::test(start_paused = true)]
async fn move_without_the_store_starts_from_the_newest_binding() {
    for taken in ["a-2", "a-3"] {
        let [replica] = replicas("a-1 org-a one 1, a-2 org-a two 1, a-3 org-a three 1");
        let other = if taken == "a-2" { "a-3" } else { "a-2" };
        let old = Known { record: replica.record("a-1", 1).sealed(), is_provisional: false };
        let newer = Known { record: replica.record(taken, 2).sealed(), is_provisional: false };
        replica.weather(Weather::Away);
        replica.rejects("a-1");
        replica.local.note(&session(1), &newer.record, newer.is_provisional);
        let turn = replica.turn();
        let met = replica.bindings.use_known(turn.placing(), &session(1), &old).unwrap();
        assert_eq!(
            (seen(&met), &met.written),
            ((taken, true, BindingResult::Degraded), &Written::Here(newer.record.clone()))
        );
        assert_eq!(known(&replica), newer, "the newer binding stays");
        // The newer binding's key is dead, too.
        replica.says(taken, Condition::Drained);
        let moved = replica.bindings.use_known(turn.placing(), &session(1), &old).unwrap();
        let next = replica.record(other, 3).sealed();
        assert_eq!(
            (seen(&moved), &moved.written),
            ((other, true, BindingResult::Degraded), &Written::Here(next.clone()))
        );
        assert_eq!(known(&replica), Known { record: next, is_provisional: false });
    }
}

/// The store has confirmed the session, sealed or not. A turn without the store moves it by one
/// epoch, so that the merge keeps the move.
#[tokio::test(start_paused = true)]
async fn turn_without_the_store_moves_a_known_session_by_one_epoch() {
    for sealed in [false, true] {
        let [replica] = replicas(SIX);
        replica.put(&BindingRecord { sealed, ..replica.record("b-1", 2) }).await;
        assert_eq!(replica.goes(replica.turn()).await.as_deref(), Ok("b-1"));
        replica.weather(Weather::Away);
        let mut turn = replica.turn();
        let here = replica.bind(&mut turn).await.unwrap();
        replica.refuses("b-1", &mut turn);
        let moved = replica.rebind(&mut turn, &here).await.unwrap();
        let next = BindingRecord { sealed, ..replica.record("b-2", 3) };
        assert_eq!(
            (seen(&moved), &moved.written),
            (("b-2", true, BindingResult::Degraded), &Written::Here(next.clone())),
            "sealed {sealed}"
        );
        assert_eq!(known(&replica), Known { record: next.clone(), is_provisional: false });
        replica.weather(Weather::Fair);
        assert_eq!(merges(&replica).await, 1);
        replica.is_stored(&next).await;
    }
}

/// The organization that the store has confirmed answers first without the store. The session is
/// sealed and not provisional.
#[tokio::test(start_paused = true)]
async fn known_session_served_without_the_store_is_sealed_and_stays_known() {
    let [replica] = replicas(SIX);
    let bound = replica.record("b-1", 1);
    replica.put(&bound).await;
    assert_eq!(replica.goes(replica.turn()).await.as_deref(), Ok("b-1"));
    replica.weather(Weather::Away);
    let here = replica.bind(&mut replica.turn()).await.unwrap();
    replica.serves(&here).await;
    assert_eq!(known(&replica), Known { record: bound.sealed(), is_provisional: false });
    replica.rejects("b-1");
    assert_eq!(replica.goes(replica.turn()).await.as_deref(), Ok("b-2"));
    replica.weather(Weather::Fair);
    assert_eq!(merges(&replica).await, 1);
    replica.is_stored(&replica.record("b-2", 2).sealed()).await;
}

/// A sibling serves a provisional session whose key is limited. The binding stays provisional and
/// gives way to the stored one, even if its key dies before the turn's next attempt.
#[tokio::test(start_paused = true)]
async fn provisional_binding_that_a_sibling_serves_stays_provisional() {
    for is_served in [false, true] {
        let [replica] = replicas(SIX);
        replica.weather(Weather::Away);
        let mut turn = replica.turn();
        let provisional = replica.bind(&mut turn).await.unwrap();
        replica.limits(&provisional.key.id);
        let beside = replica.bind(&mut turn).await.unwrap();
        let bound =
            BindingRecord { sealed: is_served, ..BindingRecord::first(&provisional.key, 1) };
        assert_eq!((beside.result, beside.has_moved), (BindingResult::Spilled, true));
        if is_served {
            replica.serves(&beside).await;
        }
        assert_eq!(known(&replica), Known { record: bound, is_provisional: true });
        replica.rejects(&provisional.key.id);
        let moved = replica.rebind(&mut turn, &beside).await.unwrap();
        assert_eq!(moved.key.id, beside.key.id, "the organization has no other key");
        let next = BindingRecord { sealed: is_served, ..BindingRecord::first(&moved.key, 1) };
        assert_eq!(
            (&moved.written, known(&replica)),
            (&Written::Here(next.clone()), Known { record: next, is_provisional: true })
        );
        replica.weather(Weather::Fair);
        let foreign = if provisional.key.organization == "org-a" { "b-1" } else { "a-1" };
        let stored = replica.record(foreign, 1).sealed();
        replica.put(&stored).await;
        merges(&replica).await;
        replica.is_stored(&stored).await;
    }
}

/// While a turn runs under a provisional binding, the store announces another binding of the same
/// epoch. The turn's own note stays provisional.
#[tokio::test(start_paused = true)]
async fn turn_under_a_provisional_binding_stays_so_despite_an_announcement() {
    let [replica] = replicas(SIX);
    replica.weather(Weather::Away);
    let mut turn = replica.turn();
    let provisional = replica.bind(&mut turn).await.unwrap();
    let foreign = if provisional.key.organization == "org-a" { "b-1" } else { "a-1" };
    let stored = replica.record(foreign, 1).sealed();
    replica.local.confirm(&session(1), &stored);
    replica.serves(&provisional).await;
    let served = BindingRecord::first(&provisional.key, 1).sealed();
    assert_eq!(known(&replica), Known { record: served, is_provisional: true });
    replica.local.confirm(&session(1), &stored);
    replica.rejects(&provisional.key.id);
    let moved = replica.rebind(&mut turn, &provisional).await.unwrap();
    assert_eq!(
        (moved.is_provisional, known(&replica).is_provisional, known(&replica).record.epoch),
        (true, true, 1)
    );
}

/// A provisional binding leads to no final error.
#[tokio::test(start_paused = true)]
async fn exhausted_provisional_organization_is_no_final_error() {
    let [replica] = replicas(SIX);
    let own = replica.bindings.places.default_of(replica.turn().placing(), &session(1)).unwrap();
    replica.exhausts(&own.id, Scope::Organization);
    replica.weather(Weather::Away);
    assert_eq!(replica.goes(replica.turn()).await, Err(ErrorKind::NoKeyAvailable));
    replica.weather(Weather::Fair);
    let begun = replica.bind(&mut replica.turn()).await.unwrap();
    assert_ne!(
        begun.key.organization, own.organization,
        "with the store, another organization is chosen"
    );
}

/// Without the store, a ready key of the provisional organization comes before a limited one. If
/// none is ready, the turn waits for a limited key.
#[tokio::test(start_paused = true)]
async fn provisional_session_stays_in_its_organization_and_uses_a_ready_key() {
    let [replica] = replicas(SIX);
    let own = replica.bindings.places.default_of(replica.turn().placing(), &session(1)).unwrap();
    replica.weather(Weather::Away);
    replica.limits(&own.id);
    let sibling = replica.bind(&mut replica.turn()).await.unwrap();
    assert!(
        sibling.key.organization == own.organization && sibling.key.id != own.id,
        "{sibling:?}"
    );
    assert_eq!(sibling.written, Written::Here(BindingRecord::first(&sibling.key, 1)));
    replica.local.forget(&session(1));
    replica.limits(&sibling.key.id);
    assert_eq!(
        replica.goes(replica.turn()).await,
        Err(ErrorKind::RateLimitExceeded),
        "no other organization is tried"
    );
    assert_eq!(
        replica.goes(replica.turn().with(|turn| turn.tried.wait_left = LONG)).await.as_deref(),
        Ok(own.id.as_str())
    );
}

/// The session's key is not loaded here. Without the store, an unsealed session moves to another
/// organization.
#[tokio::test(start_paused = true)]
async fn unloaded_organization_is_left_by_unsealed_sessions_without_the_store() {
    for (sealed, sibling) in [(false, false), (true, false), (false, true), (true, true)] {
        let [early, late] = replicas::<2>(SIX);
        let bound = BindingRecord { sealed, generation: 2, ..early.record("c-1", 2) };
        late.put(&bound).await;
        late.loads(if sibling {
            "a-1 org-a one 1, c-2 org-c two 1"
        } else {
            "a-1 org-a one 1, b-1 org-b one 1"
        });
        late.is_of(1);
        late.local.confirm(&session(1), &bound);
        late.weather(Weather::Away);
        let mut turn = late.turn();
        let bind = late.bind(&mut turn).await;
        match (sealed, sibling) {
            (_, true) => assert_eq!(seen(&bind.unwrap()), ("c-2", true, BindingResult::Spilled)),
            (true, false) => {
                assert_eq!(bind.unwrap_err().retry_after, Some(Duration::from_secs(1)))
            }
            (false, false) => {
                let moved = bind.unwrap();
                assert_eq!((moved.has_moved, moved.result), (true, BindingResult::Degraded));
                assert_eq!(moved.written, Written::Here(late.record(&moved.key.id, 3)));
            }
        }
        late.weather(Weather::Fair);
        late.is_stored(&bound).await;
    }
}

/// A key that was added without the store takes no session, because other replicas would not choose
/// it. A key that was removed takes none, either.
#[tokio::test(start_paused = true)]
async fn order_of_the_moment_of_loss_holds_without_the_store() {
    let [replica] = replicas("a-1 org-a one 1, a-2 org-a two 1");
    let begins = |number| {
        let (turn, places) = (replica.turn(), &replica.bindings.places);
        places.default_of(turn.placing(), &session(number)).unwrap().id.clone()
    };
    let is_default = |number, id| {
        let turn = replica.turn();
        replica.bindings.places.is_default(turn.placing(), &session(number), &replica.key(id))
    };
    let before: Vec<_> = (0..40).map(begins).collect();
    assert!((0..40).all(|number| is_default(number, "a-1") == (before[number as usize] == "a-1")));
    replica.loads("a-1 org-a one 1, a-2 org-a two 1, a-0 org-a one 50, b-1 org-b one 50");
    assert_eq!((0..40).map(begins).collect::<Vec<_>>(), before, "an added key changes nothing");
    replica.loads("a-1 org-a one 50, a-2 org-a two 1");
    assert_eq!((0..40).map(begins).collect::<Vec<_>>(), before, "nor do other weights");
    replica.loads("a-2 org-a two 1, b-1 org-b one 50");
    assert!((0..40).all(|number| begins(number) == "a-2"), "a removed key is not used");
    assert!((0..40).all(|number| is_default(number, "a-2")));
    replica.is_of(2);
    assert!((0..40).any(|number| begins(number) == "b-1"), "the new set has its ordinal");
}
