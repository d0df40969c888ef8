//! Tokens cannot be tried quickly.

use std::time::Duration;

use tokio::time::Instant;

use crate::world::cluster::{ALICE, Cluster};
use crate::world::waiting::{Budget, ms};
use crate::world::wire::{Request, ask};

const BODY: &str =
    r#"{"model":"gpt-5.4","prompt_cache_key":"prompt-canary","stream":true,"input":"body-canary"}"#;

/// Behind a load balancer, all clients have one address, so only wrong tokens wait.
#[tokio::test]
async fn wrong_token_is_refused_more_and_more_slowly_and_a_valid_one_never() {
    let cluster = Cluster::new().start().await;
    let address = cluster.address();
    let wrong = Request::turn("sk-wrong", BODY);
    for _ in 0..10 {
        assert_eq!(ask(address, &wrong).await.status, 401);
    }
    assert_eq!(cluster.replica().metrics().await.get("warmkey_refusals_slowed_total"), 0.0);
    let began = Instant::now();
    for _ in 0..6 {
        assert_eq!(ask(address, &wrong).await.status, 401);
    }
    assert!(began.elapsed() > ms(50 + 100 + 200 + 400 + 800 + 1_000), "{:?}", began.elapsed());
    assert_eq!(cluster.replica().metrics().await.get("warmkey_refusals_slowed_total"), 6.0);
    let flood: Vec<_> = (0..50)
        .map(|_| {
            let wrong = wrong.clone();
            tokio::spawn(async move { ask(address, &wrong).await.status })
        })
        .collect();
    let budget = Budget::begin(Duration::from_millis(700));
    assert_eq!(ask(address, &Request::turn(ALICE, BODY)).await.status, 200);
    budget.holds("a turn with a valid token");
    for one in flood {
        assert_eq!(one.await.unwrap(), 401);
    }
}

/// The refusal is about the URL, and its token is valid.
#[tokio::test]
async fn credential_in_a_url_beside_a_valid_token_is_refused_at_once() {
    let cluster = Cluster::new().start().await;
    let address = cluster.address();
    let in_url = Request::turn(ALICE, BODY).target("/responses?api_key=canary");
    for _ in 0..20 {
        let refused = ask(address, &in_url).await;
        assert_eq!((refused.status, refused.code().as_str()), (401, "invalid_api_key"));
    }
    let wrong = Request::turn("sk-wrong", BODY).target("/responses?api_key=canary");
    for _ in 0..10 {
        assert_eq!(ask(address, &wrong).await.status, 401);
    }
    let slowed = async || cluster.replica().metrics().await.get("warmkey_refusals_slowed_total");
    assert_eq!(slowed().await, 0.0, "neither slowed nor counted as a wrong token");
    assert_eq!(ask(address, &wrong).await.status, 401);
    assert_eq!(slowed().await, 1.0);
}
