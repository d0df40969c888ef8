//! Tokens that a command makes and revokes, and replicas that follow.

use std::time::Duration;

use super::{command, written_at};
use crate::world::cluster::{ALICE, Running};
use crate::world::codex::Codex;
use crate::world::postgres::Postgres;
use crate::world::process::Folder;
use crate::world::waiting::eventually;

/// Time within which every replica must know a token, as the contract promises.
const KNOWN: Duration = Duration::from_secs(5);

async fn status(cluster: &Running, replica: usize, token: &str) -> u16 {
    Codex::new(cluster.replicas[replica].address(), token).turn("who am I").await.answer.status
}

async fn becomes(cluster: &Running, replica: usize, token: &str, expected: u16) {
    let what = format!("{expected} at replica {replica}");
    eventually(KNOWN, &what, async || {
        (status(cluster, replica, token).await == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn token_is_known_and_revoked_everywhere() {
    let folder = Folder::new();
    let mut postgres = Postgres::start(folder.path()).await;
    let mut cluster = written_at(&postgres.url()).redis().replicas(2).start().await;
    let (code, said, told) = command(&cluster, &["token", "add", "--client", "carol"]).await;
    assert_eq!(code, 0, "{told}");
    let token = said.trim_end();
    assert!(token.starts_with("wk-") && token.len() == 46 && !told.contains(token), "{said}{told}");
    let id = told.split_whitespace().next().expect("a name").to_owned();
    for replica in 0..2 {
        becomes(&cluster, replica, token, 200).await;
    }
    let (_, list, _) = command(&cluster, &["token", "list"]).await;
    assert!(list.contains(&id) && list.contains("carol") && !list.contains(token), "{list}");

    // No request asks the database for a token. Known tokens therefore work without the database,
    // and others are refused.
    postgres.kill().await;
    assert_eq!(
        (status(&cluster, 0, token).await, status(&cluster, 1, "wk-unknown").await),
        (200, 401)
    );
    let (code, _, errors) = command(&cluster, &["token", "revoke", &id]).await;
    assert!(
        code == 1 && errors.lines().count() == 1 && errors.contains("cannot be used"),
        "{errors}"
    );
    postgres.restart().await;
    let (code, said, errors) = command(&cluster, &["token", "revoke", &id]).await;
    assert!(code == 0 && said.contains("carol"), "{said}{errors}");
    for replica in 0..2 {
        becomes(&cluster, replica, token, 401).await;
        assert_eq!(status(&cluster, replica, ALICE).await, 200, "a configured one stays");
    }
    let (code, _, errors) = command(&cluster, &["token", "revoke", &id]).await;
    assert!(code == 1 && errors.contains(&id), "once: {errors}");

    // A restarted replica knows the tokens of the database before its first turn.
    let (_, said, _) = command(&cluster, &["token", "add", "--client", "dave"]).await;
    cluster.replace(0).await;
    assert_eq!(status(&cluster, 0, said.trim_end()).await, 200);
}

/// The rights of a client are those of its section, which needs no token of its own.
#[tokio::test]
async fn token_has_the_rights_of_its_client() {
    let section = "[[client]]\nid = \"carol\"\nmodels = [\"gpt-5.6-sol\"]\n";
    let cluster = written_at("sqlite:ledger.db").clients(section).start().await;
    cluster.replica().says("no client has a token").await;
    let (_, said, _) = command(&cluster, &["token", "add", "--client", "carol"]).await;
    let token = said.trim_end();
    becomes(&cluster, 0, token, 403).await;
    Codex::new(cluster.address(), token).model("gpt-5.6-sol").turn("allowed").await.served();
    for number in 0..2 {
        let (code, ..) = command(&cluster, &["token", "add", "--client", "carol"]).await;
        assert_eq!(code, 0, "{number}");
    }
    let (_, said, _) = command(&cluster, &["token", "revoke", "carol"]).await;
    assert_eq!(said.lines().count(), 3, "all tokens of a client: {said}");
    becomes(&cluster, 0, token, 401).await;
    assert!(!cluster.logs().contains(token));
}
