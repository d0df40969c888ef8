//! Tests the page of a session: where the session is bound, and which decisions were made about it.

use serde_json::{Value, json};

use crate::world::admin::{TOKEN, asked};
use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::simulator::{path_of, siblings};
use crate::world::waiting::{SOON, eventually};

fn two_replicas() -> Cluster {
    Cluster::new()
        .keys(siblings("org-a", 2))
        .redis()
        .replicas(2)
        .server("admin_token", &format!("{TOKEN:?}"))
}

/// The stored id of the only session, as the logs show it.
async fn id_of_the_one(cluster: &mut Running) -> String {
    let name = cluster.redis().binding().await.0;
    let id = name.strip_prefix("warmkey:").expect("a binding has the prefix").to_owned();
    let is_logged =
        async || cluster.logs().contains(&format!("\"session\":\"{id}\"")).then_some(());
    eventually(SOON, "a log line of the session", is_logged).await;
    id
}

/// Waits until the trail of a session ends with this decision, on every replica.
async fn ends(cluster: &Running, id: &str, decision: &str, reason: &str) -> Vec<Value> {
    let mut trails = Vec::new();
    for replica in &cluster.replicas {
        let trail =
            eventually(SOON, &format!("{decision} because of {reason} in the trail"), async || {
                let trail = replica.session(id).await["trail"]
                    .as_array()
                    .expect("a trail is a list")
                    .clone();
                trail
                    .last()
                    .is_some_and(|mark| mark["decision"] == decision && mark["reason"] == reason)
                    .then_some(trail)
            })
            .await;
        trails.push(trail);
    }
    assert!(trails.iter().all(|trail| *trail == trails[0]), "every replica shows the same");
    trails.swap_remove(0)
}

#[tokio::test]
async fn trail_tells_what_happened_to_a_session() {
    let mut cluster = two_replicas().start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    for number in [0, 1, 0] {
        codex.moves_to(cluster.replicas[number].address());
        codex.turn("nothing happens").await.served();
    }
    let id = id_of_the_one(&mut cluster).await;
    let key = path_of(&cluster.turns().await, &codex.session).remove(0);
    let bound = json!({ "key": key, "organization": "org-a", "epoch": 1, "generation": 1, "sealed": true, "stored": true });
    for replica in &cluster.replicas {
        let view = replica.session(&id).await;
        let shown = json!({ "session": view["session"], "binding": view["binding"], "trail": view["trail"] });
        assert_eq!(shown, json!({ "session": id, "binding": bound, "trail": [] }));
        assert_eq!(view["turns"], json!([]), "there is no ledger");
    }
    assert_eq!(
        cluster.redis().ask::<u64>(&["EXISTS", &format!("warmkey:{id}.trail")]).await,
        0,
        "the trail holds nothing of that"
    );
    cluster.replicas[1].command("disable", &key).await;
    cluster.all_have(&key, "disabled").await;
    codex.moves_to(cluster.replicas[0].address());
    codex.turn("served by a sibling").await.served();
    let trail = ends(&cluster, &id, "spill", "disabled").await;
    let sibling = trail[0]["to"].as_str().expect("a key").to_owned();
    assert_eq!((trail.len(), &trail[0]["from"]), (1, &json!(key)), "{trail:?}");
    assert_eq!(cluster.replicas[1].session(&id).await["binding"]["key"], key, "it stays its own");
    cluster.replicas[1].command("drain", &key).await;
    codex.moves_to(cluster.replicas[1].address());
    codex.turn("moved").await.served();
    let trail = ends(&cluster, &id, "move", "drained").await;
    assert_eq!(
        (trail.len(), &trail[1]["from"], &trail[1]["to"]),
        (2, &json!(key), &json!(sibling)),
        "{trail:?}"
    );
    let binding = cluster.replicas[0].session(&id).await["binding"].clone();
    assert_eq!((&binding["key"], &binding["epoch"]), (&json!(sibling), &json!(2)));
    // Without the store, the trail waits to be written, and the replica shows the lines that it
    // remembers.
    cluster.redis().kill().await;
    for replica in &cluster.replicas {
        replica.shows("warmkey_store_up", 0.0).await;
    }
    cluster.upstream().exhaust("org-a").await;
    // A drain of the other key changes nothing, because the organization has no credit.
    assert_eq!(codex.turn("no credit").await.answer.code(), "insufficient_quota");
    let shown = cluster.replicas[1].session(&id).await;
    assert_eq!(
        (&shown["binding"]["key"], &shown["binding"]["stored"]),
        (&json!(sibling), &json!(false)),
        "{shown}"
    );
    cluster.redis().restart().await;
    let trail = ends(&cluster, &id, "refuse", "exhausted").await;
    assert_eq!(trail.last().map(|mark| &mark["to"]), Some(&Value::Null), "{trail:?}");
    let at = |mark: &Value| mark["at"].as_u64().expect("a time");
    assert!(trail.is_sorted_by_key(at) && at(&trail[0]) > 1_700_000_000_000, "{trail:?}");
}

#[tokio::test]
async fn trail_has_an_end_and_a_life() {
    let mut cluster = two_replicas().binding("ttl = \"1h\"").start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("first").await.served();
    let id = id_of_the_one(&mut cluster).await;
    cluster.upstream().exhaust("org-a").await;
    assert_eq!(codex.turn("no credit").await.answer.status, 429);
    let name = format!("warmkey:{id}.trail");
    let length = async |cluster: &mut Running| cluster.redis().ask::<u64>(&["LLEN", &name]).await;
    eventually(SOON, "a trail", async || (length(&mut cluster).await == 1).then_some(())).await;
    cluster.replicas[0].command("disable", "org:org-a").await;
    for _ in 0..40 {
        assert_eq!(codex.turn("not now").await.answer.status, 503);
    }
    let trail = eventually(SOON, "a full trail, without its oldest line", async || {
        let trail =
            cluster.replicas[1].session(&id).await["trail"].as_array().expect("a list").clone();
        (length(&mut cluster).await == 32 && trail.iter().all(|mark| mark["reason"] == "disabled"))
            .then_some(trail)
    })
    .await;
    assert_eq!(trail.last().map(|mark| &mark["decision"]), Some(&json!("refuse")));
    let life: i64 = cluster.redis().ask(&["PTTL", &name]).await;
    assert!((3_500_000..=3_600_000).contains(&life), "{life}");
    let missing = asked(cluster.replica().admin(), "GET", "/sessions/AAAAAAAAAAAAAAAAAAAAAA").await;
    assert_eq!((missing.status, missing.code().as_str()), (404, "unknown_url"));
}
