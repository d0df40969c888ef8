//! Outages of the database: it stops and returns, starts late, or loses an answer. Every turn is
//! written exactly once.

use std::time::Duration;

use serde_json::Value;

use super::{agrees, command, written, written_at};
use crate::world::cluster::ALICE;
use crate::world::codex::Codex;
use crate::world::postgres::Postgres;
use crate::world::postgres::wire::Wire;
use crate::world::process::Folder;
use crate::world::waiting::{Budget, SOON, eventually};

const DROPPED: &str = "warmkey_ledger_dropped_total";

#[tokio::test]
async fn turns_of_an_outage_are_written_when_it_is_over() {
    let folder = Folder::new();
    let mut postgres = Postgres::start(folder.path()).await;
    let cluster = written_at(&postgres.url()).start().await;
    let admin = cluster.replica().admin();
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("before").await.served();
    written(admin, 1).await;
    postgres.kill().await;
    for turn in 0..5 {
        codex.turn(&format!("meanwhile {turn}")).await.served();
    }
    cluster.replica().shows("warmkey_ledger_up", 0.0).await;
    cluster.replica().says("the ledger is away").await;
    postgres.restart().await;
    codex.turn("afterwards").await.served();
    written(admin, 7).await;
    cluster.replica().shows("warmkey_ledger_up", 1.0).await;
    agrees(&cluster, admin).await;
    assert_eq!(cluster.replica().metrics().await.get(DROPPED), 0.0);
    assert_eq!(cluster.logs().matches("the ledger is away").count(), 1, "once");
}

/// The tables are made once the database is there. Until then configured tokens work.
#[tokio::test]
async fn database_may_come_after_the_replica() {
    let folder = Folder::new();
    let mut postgres = Postgres::start(folder.path()).await;
    postgres.kill().await;
    let cluster = written_at(&postgres.url()).start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("without it").await.served();
    postgres.restart().await;
    codex.turn("with it").await.served();
    let admin = cluster.replica().admin();
    eventually(SOON, "the tables are there", async || {
        (crate::world::admin::asked(admin, "GET", "/usage").await.status == 200).then_some(())
    })
    .await;
    written(admin, 2).await;
    agrees(&cluster, admin).await;
}

/// A turn that is written twice counts once.
#[tokio::test]
async fn commit_without_an_answer_is_written_once() {
    let folder = Folder::new();
    let postgres = Postgres::start(folder.path()).await;
    let wire = Wire::to(postgres.address()).await;
    let cluster = written_at(&postgres.url_at(wire.address())).start().await;
    let admin = cluster.replica().admin();
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("first").await.served();
    written(admin, 1).await;
    for round in 1..=3 {
        wire.swallow(1);
        codex.turn(&format!("swallowed {round}")).await.served();
        eventually(SOON, "a commit is swallowed", async || (wire.left() == 0).then_some(())).await;
        codex.turn(&format!("heard {round}")).await.served();
        written(admin, 1 + 2 * round).await;
        agrees(&cluster, admin).await;
    }
    assert_eq!(cluster.replica().metrics().await.get(DROPPED), 0.0);
}

/// A turn is written down within a second, so that a kill costs no older one.
#[tokio::test]
async fn killed_replica_loses_at_most_its_last_second() {
    const TURNS: usize = 5;
    let mut cluster = written_at("sqlite:ledger.db").start().await;
    let admin = cluster.replica().admin();
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("the first one").await.served();
    written(admin, 1).await;
    for turn in 1..TURNS {
        codex.turn(&format!("turn {turn}")).await.served();
    }
    let budget = Budget::begin(Duration::from_secs(1));
    written(admin, TURNS).await;
    budget.holds("all turns are written down");
    codex.turn("of the last second").await.served();
    cluster.replicas[0].kill().await;
    let (code, said, errors) = command(&cluster, &["usage", "--json"]).await;
    assert_eq!(code, 0, "{errors}");
    let report: Value = serde_json::from_str(&said).expect("JSON");
    let kept = report["total"]["turns"].as_u64().expect("a count") as usize;
    assert!((TURNS..=TURNS + 1).contains(&kept), "{report}");
    assert_eq!(report["total"]["unpriced_turns"], 0, "{report}");
}
