//! Tests `warmkey probe`: the program itself asks a replica, and plays a session through the load
//! balancer.

use std::process::Output;

use tokio::process::Command;

use crate::world::admin::TOKEN;
use crate::world::cluster::{Cluster, Running};
use crate::world::process::WARMKEY;
use crate::world::simulator::siblings;
use crate::world::waiting::{SOON, within};

async fn probe(cluster: &Running, words: &[&str]) -> Output {
    let file = cluster.replicas[0].file();
    let mut command = Command::new(WARMKEY);
    command.arg("probe").args(words).arg("--config").arg(file).kill_on_drop(true);
    within(SOON, "probe", command.output()).await.expect("warmkey can be run")
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&both).into_owned();
    assert!(!text.contains("canary"), "{text}");
    text
}

fn two_replicas() -> Cluster {
    let keys = [siblings("org-a", 1), siblings("org-b", 1)].concat();
    Cluster::new()
        .keys(keys)
        .redis()
        .replicas(2)
        .balanced()
        .server("admin_token", &format!("{TOKEN:?}"))
}

#[tokio::test]
async fn replica_that_drains_is_live_and_not_ready() {
    let cluster = Cluster::new().server("drain_delay", "\"30s\"").start().await;
    for words in [["live"], ["ready"]] {
        let output = probe(&cluster, &words).await;
        assert!(output.status.success(), "{words:?}: {}", text(&output));
    }
    cluster.replicas[0].terminate().await;
    cluster.replicas[0].says("still serving").await;
    assert!(probe(&cluster, &["live"]).await.status.success());
    let output = probe(&cluster, &["ready"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("503"), "{}", text(&output));
}

#[tokio::test]
async fn replica_that_is_gone_is_not_live() {
    let mut cluster = Cluster::new().start().await;
    cluster.replicas[0].kill().await;
    assert_eq!(probe(&cluster, &["live"]).await.status.code(), Some(1));
}

#[tokio::test]
async fn session_through_the_balancer_says_which_key_served_it() {
    let cluster = two_replicas().start().await;
    let url = format!("http://{}", cluster.address());
    let output = probe(&cluster, &["session", "--url", &url]).await;
    assert!(output.status.success(), "{}", text(&output));
    let turns = cluster.turns().await;
    assert_eq!(turns.len(), 2, "two turns and no more");
    assert_eq!(turns[0].key, turns[1].key);
    assert_eq!(text(&output), format!("two turns served by key {}\n", turns[0].key));
    assert!(turns[1].cached_tokens == turns[1].ideal_cached_tokens);
}

#[tokio::test]
async fn session_fails_where_a_turn_is_refused_or_its_key_cannot_be_told() {
    let cluster = two_replicas().start().await;
    let url = format!("http://{}", cluster.address());
    // These replicas share no store, so the replica that is asked knows nothing of the session.
    let other = Cluster::new().server("admin_token", &format!("{TOKEN:?}")).start().await;
    let admin = format!("http://{}", other.replicas[0].admin());
    let output = probe(&cluster, &["session", "--url", &url, "--admin", &admin]).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("Nothing is known of a session"), "{}", text(&output));

    cluster.upstream().fault(serde_json::json!({ "status": 400, "code": "invalid_prompt" })).await;
    let output = probe(&cluster, &["session", "--url", &url]).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("400"), "{}", text(&output));
}
