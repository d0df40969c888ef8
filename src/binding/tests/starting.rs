//! Tests of `start` with `[binding]`.

use super::*;
use crate::binding::{BindingSettings, start};

/// B4: a replica remembers a binding for less time than the store holds it. Otherwise the replica
/// would restore a binding that the store has expired.
#[tokio::test(start_paused = true)]
async fn memory_lasts_for_half_the_ttl_after_start() {
    let second = Duration::from_secs(1);
    let metrics = Arc::new(Metrics::new());
    let store = Arc::new(Store::in_memory(Arc::new(Memory::new(100)), Arc::clone(&metrics)));
    let registry = Arc::new(Registry::new(table(KEYS), Arc::clone(&metrics)));
    let settings: BindingSettings =
        serde_json::from_str(r#"{"ttl":"4000s","wait":"5s","memory":2}"#).unwrap();
    let tasks = Tasks::new();
    let (bindings, _owners) = start(&store, &registry, &settings, &metrics, &tasks);
    let client = Client::unrestricted("alice");
    let mut budget = bindings.budget();
    for number in 1..=3 {
        let turn = Turn::of(&client).with(|turn| {
            turn.demand.session = Some(session(number));
            turn.demand.model = MODEL;
        });
        bindings.bind(turn.placing(), Ok(None), &mut budget).await.unwrap();
    }
    let remembered = || [1, 2, 3].map(|number| bindings.local.recall(&session(number)).is_some());
    assert_eq!(remembered(), [false, true, true], "as many as `memory` says");
    tokio::time::advance(TTL / 2 - second).await;
    assert_eq!(remembered(), [false, true, true]);
    tokio::time::advance(second).await;
    assert_eq!(remembered(), [false; 3]);
    // The store holds the binding for the whole `ttl`.
    let left = bindings.look_up(&session(3), &mut budget).await.unwrap().map(|entry| entry.left);
    assert_eq!(left, Some(TTL / 2));
    assert!(tasks.join(second).await);
}
