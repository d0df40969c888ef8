//! Tests of turns that are not served by their session's key: their effect on the binding and its
//! seal.

use super::*;
use crate::binding::demand::Sealed;
use crate::binding::select::Reach;

/// Only the session's organization can open a sibling's answer.
#[tokio::test(start_paused = true)]
async fn answer_of_a_sibling_seals_the_session() {
    for generation in [0, 1] {
        let [replica, other] = replicas::<2>(KEYS);
        let bound = BindingRecord { generation, ..replica.record("a-1", 1) };
        replica.put(&bound).await;
        replica.limits("a-1");
        let mut turn = replica.turn();
        let spilled = replica.bind(&mut turn).await.unwrap();
        assert_eq!(
            (seen(&spilled), spilled.is_provisional),
            (("a-2", true, BindingResult::Spilled), true)
        );
        assert_eq!(spilled.written, Written::Beside(bound.clone()));
        replica.is_stored(&bound).await;
        replica.serves(&spilled).await;
        // The session stays bound to its own key, at its own epoch.
        replica.is_stored(&bound.sealed()).await;
        // No other organization serves the session's next turns, on any replica, whatever they
        // carry.
        for replica in [&replica, &other] {
            replica.exhausts("a-1", Scope::Organization);
            assert_eq!(replica.goes(replica.turn()).await, Err(ErrorKind::InsufficientQuota));
        }
        replica.is_stored(&bound.sealed()).await;
        replica.weather(Weather::Away);
        assert_eq!(replica.goes(replica.turn()).await, Err(ErrorKind::InsufficientQuota));
    }
}

/// The store is away when the sibling answers.
#[tokio::test(start_paused = true)]
async fn seal_that_the_store_misses_is_written_at_the_next_turn() {
    let replica = one();
    let bound = replica.record("a-1", 1);
    replica.put(&bound).await;
    replica.limits("a-1");
    let spilled = replica.bind(&mut replica.turn()).await.unwrap();
    replica.weather(Weather::Away);
    replica.serves(&spilled).await;
    replica.weather(Weather::Fair);
    replica.is_stored(&bound).await;
    replica.exhausts("a-1", Scope::Organization);
    assert_eq!(
        replica.goes(replica.turn()).await,
        Err(ErrorKind::InsufficientQuota),
        "this replica knows"
    );
    replica.is_stored(&bound.sealed()).await;
}

#[tokio::test(start_paused = true)]
async fn own_answer_seals_the_session_and_fills_in_its_generation() {
    let replica = one();
    let bound = BindingRecord { generation: 0, ..replica.record("a-1", 2) };
    replica.put(&bound).await;
    let binding = replica.bind(&mut replica.turn()).await.unwrap();
    assert!(binding.is_provisional, "it has served nothing yet");
    replica.serves(&binding).await;
    replica.is_stored(&BindingRecord { generation: 1, ..bound.sealed() }).await;
    assert!(!replica.bind(&mut replica.turn()).await.unwrap().is_provisional);
}

/// A chat client carries nothing that only one organization can open.
#[tokio::test(start_paused = true)]
async fn chat_answer_seals_nothing_and_fills_in_the_generation() {
    let replica = one();
    let bound = BindingRecord { generation: 0, ..replica.record("a-1", 1) };
    replica.put(&bound).await;
    let binding = replica.bind(&mut replica.turn()).await.unwrap();
    replica.bindings.confirm(&binding, false, &mut replica.bindings.budget()).await;
    replica.is_stored(&BindingRecord { generation: 1, ..bound }).await;
    replica.limits("a-1");
    let spilled = replica.bind(&mut replica.turn()).await.unwrap();
    replica.bindings.confirm(&spilled, false, &mut replica.bindings.budget()).await;
    replica.exhausts("a-1", Scope::Organization);
    assert_eq!(replica.goes(replica.turn()).await.as_deref(), Ok("b-1"), "it may still leave");
}

/// A seal that comes after the session has moved does not undo the move.
#[tokio::test(start_paused = true)]
async fn seal_overwrites_no_move() {
    let [one, two] = replicas::<2>(KEYS);
    one.put(&one.record("a-1", 1)).await;
    let slow = one.bind(&mut one.turn()).await.unwrap();
    two.rejects("a-1");
    assert_eq!(two.goes(two.turn()).await.as_deref().map(|id| id != "a-1"), Ok(true));
    let moved = two.stored().await;
    one.serves(&slow).await;
    assert_eq!(one.stored().await, moved);
}

/// The turn continues from content that another project stores.
#[tokio::test(start_paused = true)]
async fn turn_beside_the_binding_keeps_it_and_seals_it_within_its_organization() {
    for (to, is_sibling) in [("a-2", true), ("b-1", false)] {
        let replica = one();
        let bound = replica.record("a-1", 4);
        replica.put(&bound).await;
        let within = Reach::project_of(&replica.key(to));
        let mut turn = replica.turn().with(|turn| turn.within = within);
        let beside = replica.bind(&mut turn).await.unwrap();
        assert_eq!(seen(&beside), (to, true, BindingResult::Spilled));
        replica.serves(&beside).await;
        replica.is_stored(&if is_sibling { bound.sealed() } else { bound }).await;
        assert_eq!(replica.decided("spill", "stored"), 1);
        // No other key has the content.
        replica.rejects(to);
        let error = replica.rebind(&mut turn, &beside).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoKeyAvailable);
        assert!(
            error.message.contains(&format!("stored by {}/", replica.key(to).organization)),
            "{}",
            error.message
        );
    }
}

#[test]
fn sealed_content_is_found_in_a_text_and_not_inside_its_strings() {
    for (text, expected) in [
        (&br#"{"input":[{"type":"reasoning","encrypted_content":"gAAA"}]}"#[..], true),
        (br#"{"input":"say \"encrypted_content\""}"#, false),
        (br#"{"include":["reasoning.encrypted_content"]}"#, false),
        (b"", false),
    ] {
        assert_eq!(Sealed::In(text).is_sealed(), expected, "{}", String::from_utf8_lossy(text));
    }
    assert!(Sealed::Known(true).is_sealed() && !Sealed::Known(false).is_sealed());
}

/// The turn waits briefly for a suspected key, because moving away and back would be worse.
#[tokio::test(start_paused = true)]
async fn suspected_key_is_settled_before_its_sessions_leave_it() {
    let [replica] = replicas("a-1 org-a one 1, a-2 org-a two 1, b-1 org-b one 1");
    let bound = replica.record("a-1", 1).sealed();
    for (is_refused, expected) in [(false, ("a-1", false)), (true, ("a-2", true))] {
        replica.put(&bound).await;
        replica.registry.observe(&replica.key("a-1"), Ailment::Rejected(Scope::Key));
        let settles = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if is_refused { replica.rejects("a-1") } else { replica.recovers("a-1") }
        };
        let mut turn = replica.turn();
        let (binding, ()) = tokio::join!(replica.bind(&mut turn), settles);
        let binding = binding.unwrap();
        assert_eq!((binding.key.id.as_str(), binding.has_moved), expected);
        let epoch = if is_refused { 2 } else { 1 };
        replica.is_stored(&replica.record(expected.0, epoch).sealed()).await;
        // The key was accepted a moment ago, so a refusal would be believed at once.
        replica.registry.conditions.forget(|_| true);
    }
}

/// No probe answers for two seconds: a sibling serves, and the session stays.
#[tokio::test(start_paused = true)]
async fn suspected_key_that_is_not_probed_keeps_its_sessions() {
    let replica = one();
    let bound = replica.record("a-1", 1).sealed();
    replica.put(&bound).await;
    replica.registry.observe(&replica.key("a-1"), Ailment::Rejected(Scope::Key));
    let beside = replica.bind(&mut replica.turn()).await.unwrap();
    assert_eq!(seen(&beside), ("a-2", true, BindingResult::Spilled));
    replica.is_stored(&bound).await;
    assert_eq!(replica.decided("spill", "suspected"), 1);
}

/// Another replica has loaded a key that this replica has not loaded yet.
#[tokio::test(start_paused = true)]
async fn key_that_is_not_loaded_yet_keeps_its_sessions() {
    let [early, late] = replicas::<2>("a-1 org-a one 1, a-2 org-a two 1, c-1 org-c one 1");
    late.loads("a-1 org-a one 1, b-1 org-b one 1");
    late.is_of(1);
    for (id, expected) in [("a-2", Ok("a-1".to_owned())), ("c-1", Err(ErrorKind::NoKeyAvailable))] {
        let bound = BindingRecord { generation: 2, ..early.record(id, 1) };
        late.put(&bound).await;
        assert_eq!(late.goes(late.turn()).await, expected);
        late.is_stored(&bound).await;
        let turn = tokio::time::timeout(LONG, late.registry.reload_requested()).await;
        assert!(turn.is_ok(), "a reload is wanted");
        late.local.forget(&session(1));
    }
    let error = late.bind(&mut late.turn()).await.unwrap_err();
    assert_eq!(error.retry_after, Some(Duration::from_secs(1)));
    // If the binding's generation is the same or older, the key counts as removed.
    late.is_of(2);
    assert_eq!(late.goes(late.turn()).await.map(|id| id != "c-1"), Ok(true));
    assert_eq!(late.decided("move", "removed"), 1);
}
