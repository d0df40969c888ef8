//! Tests of an operator's view of a session.

use super::*;
use crate::binding::trail::{Mark, Step, keep_writing};
use crate::metrics::{Decision, Reason};

async fn writes(replica: &Replica, lines: &[&str]) {
    let lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
    replica
        .store
        .append(session(1).as_str(), &lines, TTL, &mut replica.store.budget())
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn view_shows_the_stored_binding_or_else_the_remembered_one() {
    let replica = one();
    assert!(replica.bindings.view(&session(1)).await.is_none(), "there is nothing");
    replica.local.confirm(&session(1), &replica.record("a-1", 2));
    replica.put(&BindingRecord { generation: 7, ..replica.record("b-1", 3).sealed() }).await;
    let shown = async || {
        let view = replica.bindings.view(&session(1)).await.unwrap();
        let bound = view.binding.unwrap();
        (
            bound.key.unwrap_or_default(),
            bound.organization,
            bound.epoch,
            bound.generation,
            bound.sealed,
            bound.stored,
        )
    };
    assert_eq!(shown().await, ("b-1".into(), Some("org-b".into()), 3, 7, true, true));
    replica.weather(Weather::Away);
    assert_eq!(shown().await, ("a-1".into(), Some("org-a".into()), 2, 1, false, false));
    replica.weather(Weather::Fair);
    // The session's key is no longer configured, and its organization has another key.
    replica.loads("b-2 org-b one 1");
    assert_eq!(shown().await, (String::new(), Some("org-b".into()), 3, 7, true, true));
}

/// Replicas write independently, some lines twice, and newer versions write other formats.
#[tokio::test(start_paused = true)]
async fn trail_is_shown_in_the_order_of_its_times_and_each_line_once() {
    let replica = one();
    let (second, first) = ("20 move rejected a-1 a-2", "10 spill limited a-1 b-1");
    writes(&replica, &[second, first, "something else", second]).await;
    let view = replica.bindings.view(&session(1)).await.unwrap();
    assert!(view.binding.is_none());
    assert_eq!(view.trail, [first, second].map(|line| Mark::parse(line).unwrap()));
}

/// The store accepts a line, and its answer is lost.
#[tokio::test(start_paused = true)]
async fn step_that_is_written_again_is_shown_once() {
    let replica = one();
    let (trail, mut unwritten) = Trail::new(Arc::clone(&replica.metrics));
    let (session, key) = (session(1), replica.key("a-1"));
    let (decision, reason) = (Decision::Refuse, Reason::Exhausted);
    trail.record(&Step { session: Some(&session), decision, reason, from: Some(&key), to: None });
    drop(trail);
    replica.weather(Weather::Mute);
    keep_writing(Arc::clone(&replica.store), TTL, &mut unwritten).await;
    replica.weather(Weather::Fair);
    let view = replica.bindings.view(&session).await.unwrap();
    let [mark] = &view.trail[..] else { panic!("{:?}", view.trail) };
    assert_eq!((mark.decision.as_str(), mark.reason.as_str()), ("refuse", "exhausted"));
    assert_eq!((mark.from.as_deref(), mark.to.as_deref()), (Some("a-1"), None));
}
