//! Tests stored responses through both tiers: each request about one reaches the project that
//! stores it, and only for its own client.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::tiers::{HOP, SESSIONS, Tiers, keys};
use crate::world::chain::{Chain, id_of, made};
use crate::world::cluster::{ALICE, BOB};
use crate::world::codex::uuid;
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Answer, Request, ask};

/// The requests about a response: the method, and the path after the response's id.
const ABOUT: [(&str, &str); 5] = [
    ("GET", ""),
    ("GET", "?stream=true"),
    ("GET", "/input_items"),
    ("POST", "/cancel"),
    ("DELETE", ""),
];

impl Tiers {
    /// Asks replica `number` of the edge about a response.
    async fn about(
        &self,
        number: usize,
        token: &str,
        (method, behind): (&str, &str),
        id: &str,
    ) -> Answer {
        let request = Request::new(method, &format!("/v1/responses/{id}{behind}")).bearer(token);
        let request = if method == "POST" { request.body("") } else { request };
        ask(self.edge.replicas[number].address(), &request).await
    }

    async fn status(&self, number: usize, id: &str) -> Value {
        self.about(number, ALICE, ABOUT[0], id).await.json()["status"].clone()
    }

    /// Checks the upstream's record: each request about `id` was made with the key of its turn, and
    /// none shows a header of a hop.
    async fn judge_calls(&self, id: &str, count: usize) {
        let key = made(&self.judge().await, id).key.clone();
        let calls = self.inner.upstream().calls().await;
        let own: Vec<_> = calls.iter().filter(|call| call.method_path.contains(id)).collect();
        // If a key no longer serves, a sibling of its project does. Here all keys serve.
        assert!(own.iter().all(|call| call.key == key), "{key}: {own:?}");
        assert_eq!(own.len(), count, "{own:?}");
        for call in own {
            let is_told = |name: &String| name.contains("warmkey") || name.contains("yai-");
            assert!(!call.headers.iter().any(is_told), "{:?}", call.headers);
        }
    }
}

#[tokio::test]
async fn background_response_is_polled_and_canceled_through_both_tiers() {
    let tiers = Tiers::start(HOP, keys()).await;
    let mut used = BTreeSet::new();
    for number in 0..SESSIONS {
        let (here, there) = (number % 2, 1 - number % 2);
        let chain = Chain::new(tiers.edge.replicas[here].address());
        let begun = chain
            .asks(json!({ "background": true, "input": format!("SLOW:60x50ms {}", uuid()) }))
            .await;
        assert_eq!((begun.status, &begun.json()["status"]), (200, &json!("queued")));
        let id = id_of(&begun);
        let running = tiers.status(there, &id).await;
        assert!(running == "queued" || running == "in_progress", "{running}");
        // Neither another client of the edge nor one of the inner gateway can cancel it.
        let foreign = tiers.about(there, BOB, ABOUT[3], &id).await;
        assert_eq!((foreign.status, foreign.code().as_str()), (404, "response_not_found"));
        let request = Request::new("POST", &format!("/responses/{id}/cancel")).bearer(ALICE);
        let foreign = ask(tiers.inner.address(), &request.body("")).await;
        assert_eq!((foreign.status, foreign.code().as_str()), (404, "response_not_found"));
        let canceled = tiers.about(there, ALICE, ABOUT[3], &id).await;
        let text = canceled.text();
        assert_eq!(
            (canceled.status, &canceled.json()["status"]),
            (200, &json!("cancelled")),
            "{text}"
        );
        assert_eq!(tiers.status(here, &id).await, "cancelled");
        tiers.judge_calls(&id, 3).await;
        used.insert(made(&tiers.turns().await, &id).key.clone());
    }
    assert!(used.len() > 1, "more than one key is at work: {used:?}");
    // A response that no client cancels comes to its end. The conversation continues from it, on
    // its key.
    let first = id_of(&Chain::new(tiers.edge.address()).asks(json!({ "background": true })).await);
    eventually(SOON, "the response is made", async || {
        (tiers.status(0, &first).await == "completed").then_some(())
    })
    .await;
    let next = Chain::new(tiers.edge.replicas[1].address()).after(&first).turn().await;
    let turns = tiers.judge().await;
    assert_eq!(made(&turns, &first).key, made(&turns, &next).key);
}

#[tokio::test]
async fn stored_response_is_read_and_deleted_through_both_tiers() {
    let tiers = Tiers::start(HOP, keys()).await;
    let mut used = BTreeSet::new();
    for number in 0..SESSIONS {
        let (here, there) = (number % 2, 1 - number % 2);
        let mut chain =
            Chain { is_streamed: true, ..Chain::new(tiers.edge.replicas[here].address()) };
        let (first, id) = (chain.turn().await, chain.turn().await);
        for about in ABOUT {
            let foreign = tiers.about(there, BOB, about, &id).await;
            assert_eq!((foreign.status, foreign.code().as_str()), (404, "response_not_found"));
        }
        assert_eq!(tiers.status(there, &id).await, "completed");
        let stream = tiers.about(there, ALICE, ABOUT[1], &id).await.text();
        assert!(stream.contains("event: response.created"), "{stream}");
        assert!(stream.trim_end().ends_with('}') && stream.contains("response.completed"));
        let items = tiers.about(here, ALICE, ABOUT[2], &id).await.json();
        assert_eq!(items["data"][0]["role"], "user", "{items}");
        let deleted = tiers.about(there, ALICE, ABOUT[4], &id).await.json();
        assert_eq!((&deleted["id"], &deleted["deleted"]), (&json!(id), &json!(true)), "{deleted}");
        assert_eq!(tiers.about(here, ALICE, ABOUT[0], &id).await.status, 404);
        assert_eq!(tiers.status(here, &first).await, "completed", "the one before stays");
        tiers.judge_calls(&id, 5).await;
        let turns = tiers.turns().await;
        assert_eq!(made(&turns, &first).key, made(&turns, &id).key, "one key for both");
        used.insert(made(&turns, &id).key.clone());
    }
    assert!(used.len() > 1, "more than one key is at work: {used:?}");
}
