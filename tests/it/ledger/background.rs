//! A response in the background: its usage does not come with the answer of its turn, so it is
//! unknown.

use serde_json::{Value, json};

use super::{command, usage, written, written_at};
use crate::world::admin::asked;
use crate::world::chain::{Chain, id_of};
use crate::world::cluster::ALICE;
use crate::world::codex::uuid;
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Request, ask};

/// The turn is one row, whose tokens and cost are unknown however often the response is polled.
/// The upstream bills it, so it counts as unpriced.
#[tokio::test]
async fn turn_in_the_background_has_unknown_usage_which_is_not_zero() {
    let cluster = written_at("sqlite:ledger.db").start().await;
    let session = uuid();
    let chain = Chain::new(cluster.address()).of_session(&session);
    let answer = chain.asks(json!({ "background": true })).await;
    let id = id_of(&answer);
    let retrieve = Request::new("GET", &format!("/v1/responses/{id}")).bearer(ALICE);
    let polled = eventually(SOON, "the response is made", async || {
        let polled = ask(cluster.address(), &retrieve).await.json();
        (polled["status"] == "completed").then_some(polled)
    })
    .await;
    assert!(polled["usage"]["input_tokens"].as_u64() > Some(0), "the upstream counts it: {polled}");
    assert_eq!(ask(cluster.address(), &retrieve).await.status, 200);

    let admin = cluster.replica().admin();
    let total = written(admin, 1).await.remove("total").expect("a total");
    let said = ["input_tokens", "output_tokens", "unpriced_turns"].map(|name| total[name].clone());
    assert_eq!((said, &total["cost_usd"]), ([json!(0), json!(0), json!(1)], &json!("0.000000000")));
    assert_eq!(usage(admin, "model").await["total"]["turns"], 1, "a poll is no turn");
    let page = asked(admin, "GET", &format!("/sessions?client=alice&id={session}")).await.json();
    let [turn] = &page["turns"].as_array().expect("turns")[..] else { panic!("one turn: {page}") };
    for unknown in ["input_tokens", "cached_tokens", "output_tokens", "cost_usd", "cold_reason"] {
        assert_eq!(turn[unknown], Value::Null, "{unknown} of {turn}");
    }
    cluster.shows("warmkey_usage_missing_total", 1.0).await;
    let (code, report, _) = command(&cluster, &["usage"]).await;
    assert_eq!(code, 0, "{report}");
}
