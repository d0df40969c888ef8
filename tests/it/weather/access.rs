//! Tests a Redis that requires a password or TLS: the log names the fault, and no turn is lost.

use std::path::PathBuf;

use super::*;
use crate::world::certificates::Certificates;
use crate::world::process::Folder;
use crate::world::redis::Redis;

const UP: &str = "warmkey_store_up";
const EXISTING: &str = r#"warmkey_bindings_total{result="existing"}"#;

/// A Redis whose user `gateway` has this password.
async fn guarded(folder: &Folder, password: &str) -> Redis {
    let redis = Redis::start(folder.path()).await;
    redis
        .run(&["ACL", "SETUSER", "gateway", "on", &format!(">{password}"), "~warmkey:*", "+@all"])
        .await;
    redis
}

fn write_url(folder: &Folder, redis: &Redis, password: &str) -> PathBuf {
    folder.write(
        "store.url",
        &redis.url().replace("redis://", &format!("redis://gateway:{password}@")),
    )
}

async fn cut(redis: &Redis) {
    redis.run(&["CLIENT", "KILL", "USER", "gateway"]).await;
}

/// B-13: the old password becomes invalid first, and the new one comes later.
#[tokio::test]
async fn rotated_password_costs_no_turn() {
    let folder = Folder::new();
    let redis = guarded(&folder, "canary-old").await;
    let file = write_url(&folder, &redis, "canary-old");
    let cluster = Cluster::new()
        .keys(siblings("org-a", 4))
        .replicas(2)
        .store_in(&file)
        .store("")
        .start()
        .await;
    for replica in &cluster.replicas {
        replica.shows(UP, 1.0).await;
    }
    let mut sessions: Vec<Codex> = (0..8).map(|_| Codex::new(cluster.address(), ALICE)).collect();
    sessions = turn_each(sessions).await;
    redis.run(&["ACL", "SETUSER", "gateway", "resetpass", ">canary-new"]).await;
    cut(&redis).await;
    for replica in &cluster.replicas {
        replica.shows(UP, 0.0).await;
    }
    sessions = turn_each(sessions).await;
    // The log names the fault, and no password.
    let is_named = async || {
        (cluster.logs().matches("refuses the user or password").count() >= 2).then_some(())
    };
    eventually(SOON, "a line of each replica about the password", is_named).await;
    for replica in &cluster.replicas {
        let series = format!("{FAILURES}{{reason=\"authentication\"}}");
        assert!(replica.metrics().await.get(&series) > 0.0, "the failure is counted");
    }
    write_url(&folder, &redis, "canary-new");
    for replica in &cluster.replicas {
        replica.shows(UP, 1.0).await;
    }
    let found = cluster.replica().metrics().await.get(EXISTING);
    sessions = turn_each(sessions).await;
    cluster.replica().shows(EXISTING, found + sessions.len() as f64).await;
    // A careful rotation: both passwords work for a while, and no turn notices.
    redis.run(&["ACL", "SETUSER", "gateway", ">canary-newest"]).await;
    write_url(&folder, &redis, "canary-newest");
    redis.run(&["ACL", "SETUSER", "gateway", "<canary-new"]).await;
    cut(&redis).await;
    turn_each(sessions).await;
    for replica in &cluster.replicas {
        replica.shows(UP, 1.0).await;
    }
    let turns = cluster.turns().await;
    let moved = drift(
        BTreeMap::new(),
        turns.iter().map(|turn| (turn.session.clone().unwrap_or_default(), turn.key.clone())),
    );
    assert!(moved.is_empty() && turns.iter().all(|turn| turn.is_served()), "{moved:?}");
    assert!(!cluster.logs().contains("canary-"), "no password is ever shown");
}

/// B-14: the log names the missing right, and all turns are served.
#[tokio::test]
async fn user_with_too_few_rights_is_named() {
    let folder = Folder::new();
    let redis = guarded(&folder, "canary-old").await;
    redis.run(&["ACL", "SETUSER", "gateway", "-@scripting"]).await;
    let file = write_url(&folder, &redis, "canary-old");
    let cluster = Cluster::new().keys(siblings("org-a", 4)).store_in(&file).store("").start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    for _ in 0..3 {
        codex.turn("all the same").await.served();
    }
    let is_named = async || cluster.logs().to_ascii_lowercase().contains("noperm").then_some(());
    eventually(SOON, "a line about the missing right", is_named).await;
}

/// A Redis that speaks TLS at the returned port.
async fn secured(folder: &Folder, certificates: &Certificates) -> (Redis, u16) {
    let port = crate::world::port::free().port();
    let arguments = certificates.arguments(port);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    (Redis::start_with(folder.path(), &arguments).await, port)
}

#[tokio::test]
async fn redis_is_reached_through_tls() {
    let folder = Folder::new();
    let certificates = Certificates::make(folder.path(), "good").await;
    let (mut redis, port) = secured(&folder, &certificates).await;
    for host in ["127.0.0.1", "localhost"] {
        let cluster =
            Cluster::new().keys(siblings("org-a", 4)).store_at(&format!("rediss://{host}:{port}"));
        let cluster =
            cluster.store(&format!("ca_file = {:?}", certificates.authority())).start().await;
        cluster.replica().shows(UP, 1.0).await;
        let mut codex = Codex::new(cluster.address(), ALICE);
        codex.turn("in secret").await.served();
        codex.turn("in secret").await.served();
        cluster.replica().shows(EXISTING, 1.0).await;
        assert_eq!(redis.bindings().await.len(), 1);
        redis.kill().await;
        cluster.replica().shows(UP, 0.0).await;
        redis.restart().await;
        cluster.replica().shows(UP, 1.0).await;
    }
}

/// B-19: the certificate is another authority's, or Redis speaks plain text.
#[tokio::test]
async fn redis_that_cannot_be_trusted_is_sent_nothing() {
    let folder = Folder::new();
    let good = Certificates::make(folder.path(), "good").await;
    let other = Certificates::make(folder.path(), "other").await;
    let (redis, port) = secured(&folder, &other).await;
    let plain = redis.address().port();
    for (what, port, named) in
        [("signed by somebody else", port, "certificate"), ("plain text", plain, "TLS")]
    {
        let cluster = Cluster::new()
            .keys(siblings("org-a", 4))
            .replicas(2)
            .store_at(&format!("rediss://127.0.0.1:{port}"));
        let cluster = cluster.store(&format!("ca_file = {:?}", good.authority())).start().await;
        let mut codex = Codex::new(cluster.address(), ALICE);
        for number in [0, 1, 0] {
            codex.moves_to(cluster.replicas[number].address());
            codex.turn(what).await.served();
        }
        assert!(
            cluster.turns().await.windows(2).all(|pair| pair[0].key == pair[1].key),
            "{what}: one key"
        );
        cluster.shows(UP, 0.0).await;
        let is_named = async || {
            cluster.logs().to_ascii_lowercase().contains(&named.to_ascii_lowercase()).then_some(())
        };
        eventually(SOON, &format!("{what}: a line that says {named:?}"), is_named).await;
        assert_eq!(redis.bindings().await.len(), 0, "{what}: nothing is stored there");
    }
}
