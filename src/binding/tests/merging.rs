//! Tests of the merge: bindings made without the store go into the store once it answers again.

use super::*;
use crate::binding::local::Known;
use crate::binding::outage::merge_all;
use crate::store::name::Name;

async fn merges(replica: &Replica) -> usize {
    merge_all(&replica.store, &replica.local, &replica.registry, TTL).await
}

fn known(replica: &Replica) -> Known {
    replica.local.recall(&session(1)).unwrap()
}

/// While the generation is unknown, no replica could later tell a removed key from one that is not
/// loaded yet.
#[tokio::test(start_paused = true)]
async fn binding_is_not_merged_before_the_generation_is_known() {
    let replica = one();
    replica.is_of(0);
    replica.weather(Weather::Away);
    let begun = replica.bind(&mut replica.turn()).await.unwrap();
    replica.serves(&begun).await;
    let record = BindingRecord { generation: 0, ..replica.record(&begun.key.id, 1) };
    assert_eq!(known(&replica).record, record.sealed());
    replica.weather(Weather::Fair);
    assert_eq!((merges(&replica).await, replica.stored().await), (0, None));
    replica.is_of(3);
    assert_eq!(merges(&replica).await, 1);
    replica.is_stored(&BindingRecord { generation: 3, ..record.sealed() }).await;
}

/// A binding's first answer comes while the store is away. The merge seals the binding and changes
/// nothing else.
#[tokio::test(start_paused = true)]
async fn merge_seals_an_unsealed_binding_and_leaves_a_newer_versions_value() {
    let replica = one();
    let bound = BindingRecord { generation: 0, ..replica.record("a-1", 3) };
    replica.put(&bound).await;
    let binding = replica.bind(&mut replica.turn()).await.unwrap();
    replica.weather(Weather::Away);
    replica.serves(&binding).await;
    replica.weather(Weather::Fair);
    assert_eq!((merges(&replica).await, merges(&replica).await), (1, 0));
    replica.is_stored(&bound.sealed()).await;

    let text = "of a newer version";
    let here = replica.record("b-1", 9);
    replica.local.note(&session(2), &here, false);
    replica
        .store
        .claim(Name::Binding(session(2).as_str()), text, TTL, &mut replica.store.budget())
        .await
        .unwrap();
    assert_eq!((merges(&replica).await, merges(&replica).await), (1, 0));
    assert_eq!(replica.local.recall(&session(2)), None, "the store decides");
    let entry = replica
        .store
        .get(Name::Binding(session(2).as_str()), &mut replica.store.budget())
        .await
        .unwrap();
    assert_eq!(entry.map(|entry| entry.value).as_deref(), Some(text));
}

/// There are more bindings than are merged at a time, and the store has moved one of them.
#[tokio::test(start_paused = true)]
async fn bindings_made_without_the_store_are_merged_at_once() {
    let replica = one();
    for number in 0..70 {
        replica.local.note(&session(number), &replica.record("a-1", 1).sealed(), true);
    }
    replica.put(&replica.record("b-1", 2)).await;
    assert_eq!((merges(&replica).await, merges(&replica).await), (70, 0));
    assert_eq!(known(&replica).record, replica.record("b-1", 2));
    for number in (0..70).filter(|number| *number != 1) {
        let entry = replica
            .store
            .get(Name::Binding(session(number).as_str()), &mut replica.store.budget())
            .await
            .unwrap();
        assert_eq!(
            entry.map(|entry| entry.value),
            Some(replica.record("a-1", 1).sealed().to_string())
        );
    }
}

/// The store goes away between two operations of a turn. The replica remembers the write.
#[tokio::test(start_paused = true)]
async fn store_that_goes_away_within_a_turn_costs_nothing() {
    let replica = one();
    let mut budget = replica.bindings.budget();
    let turn = replica.turn();
    let found = replica.bindings.look_up(&session(1), &mut budget).await;
    replica.weather(Weather::Away);
    let (begun, _) = replica.bindings.bind(turn.placing(), found, &mut budget).await.unwrap();
    assert_eq!((begun.result, begun.is_provisional), (BindingResult::Degraded, true));
    assert!(known(&replica).is_provisional, "another turn may have been first");

    let replica = one();
    replica.put(&replica.record("a-1", 1).sealed()).await;
    replica.rejects("a-1");
    let found = replica.bindings.look_up(&session(1), &mut budget).await;
    replica.weather(Weather::Mute);
    let turn = replica.turn();
    let (moved, _) = replica.bindings.bind(turn.placing(), found, &mut budget).await.unwrap();
    assert_eq!(
        (seen(&moved), moved.is_provisional),
        (("a-2", true, BindingResult::Degraded), false)
    );
    assert_eq!(
        known(&replica),
        Known { record: replica.record("a-2", 2).sealed(), is_provisional: false }
    );
    replica.weather(Weather::Fair);
    // The write had arrived.
    replica.is_stored(&replica.record("a-2", 2).sealed()).await;
}
