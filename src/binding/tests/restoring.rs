//! Tests of the store's losses: bindings that this replica knows and the store does not.

use super::*;
use crate::store::name::Name;

/// This replica's memory outlives the stored binding and restores it.
#[tokio::test(start_paused = true)]
async fn binding_that_the_store_has_lost_is_restored() {
    let replica = one();
    let bound = BindingRecord { generation: 0, ..replica.record("b-1", 3).sealed() };
    replica.put(&bound).await;
    assert_eq!(replica.goes(replica.turn()).await.as_deref(), Ok("b-1"));
    replica.loses();
    assert_eq!(replica.stored().await, None);
    let restored = replica.bind(&mut replica.turn()).await.unwrap();
    assert_eq!(seen(&restored), ("b-1", false, BindingResult::Existing));
    replica.is_stored(&BindingRecord { generation: 1, ..bound }).await;
    // A failover brings back a lower epoch; the higher one stands.
    replica.put(&replica.record("a-1", 2).sealed()).await;
    assert_eq!(replica.goes(replica.turn()).await.as_deref(), Ok("b-1"));
    replica.is_stored(&replica.record("b-1", 3).sealed()).await;
}

#[tokio::test(start_paused = true)]
async fn value_of_a_newer_version_is_neither_used_nor_overwritten() {
    let replica = one();
    let text = "something that this version does not understand";
    replica
        .store
        .claim(Name::Binding(session(1).as_str()), text, TTL, &mut replica.store.budget())
        .await
        .unwrap();
    let mut turn = replica.turn();
    let binding = replica.bind(&mut turn).await.unwrap();
    let default =
        replica.bindings.places.default_of(replica.turn().placing(), &session(1)).unwrap();
    assert_eq!(seen(&binding), (default.id.as_str(), false, BindingResult::Degraded));
    replica.serves(&binding).await;
    assert_eq!(replica.stored().await.as_deref(), Some(text));
    // The content of the session's history is not known, so the turn stays in its organization.
    let organization = binding.key.organization.clone();
    for id in
        ["a-1", "a-2", "b-1"].into_iter().filter(|id| replica.key(id).organization == organization)
    {
        replica.rejects(id);
    }
    assert!(replica.rebind(&mut turn, &binding).await.is_err());
    assert_eq!(replica.stored().await.as_deref(), Some(text));
}

/// A stored lifetime is renewed once a quarter of it has passed, and not before.
#[tokio::test(start_paused = true)]
async fn stored_lifetime_is_renewed_after_a_quarter() {
    let replica = with_clock();
    let bound = replica.record("a-1", 1).sealed();
    replica.put(&bound).await;
    let left = async || {
        let binding = replica.bind(&mut replica.turn()).await.unwrap();
        replica.serves(&binding).await;
        // The renewal runs in the background.
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        let entry = replica
            .store
            .get(Name::Binding(session(1).as_str()), &mut replica.store.budget())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(entry.value, bound.to_string());
        entry.left
    };
    tokio::time::advance(TTL / 4).await;
    assert_eq!(left().await, TTL / 4 * 3, "not yet");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(left().await, TTL);
    assert!(replica.tasks.join(LONG).await);
}
