//! A dead key is left once, unseen by the client, and no session ever moves back.

use std::sync::{Arc, Mutex};

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::recorder::{Recorder, Step, answer, completed};
use crate::world::simulator::{Turn, path_of, siblings};
use crate::world::waiting::found;
use crate::world::wire::{Request, ask};

async fn key_of(cluster: &Running, codex: &Codex) -> String {
    path_of(&cluster.turns().await, &codex.session).pop().expect("the session has a key")
}

fn refused(turns: &[Turn], status: u16) -> usize {
    turns.iter().filter(|turn| turn.status == status).count()
}

#[tokio::test]
async fn dead_key_is_left_once_and_unseen() {
    let cluster = Cluster::new().keys(siblings("org-a", 3)).start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("first").await.served();
    let dead = key_of(&cluster, &codex).await;
    cluster.upstream().revoke(&dead).await;
    codex.turn("unseen").await.served();
    let next = key_of(&cluster, &codex).await;
    assert_ne!(next, dead);
    for turn in 0..3 {
        codex.turn(&format!("stays {turn}")).await.served();
    }
    for _ in 0..15 {
        Codex::new(cluster.address(), ALICE).turn("new").await.served();
    }
    let turns = cluster.turns().await;
    assert_eq!(refused(&turns, 401), 1, "the replica does not use it again");
    // The sessions do not move back even when the key works again.
    cluster.upstream().heal().await;
    codex.turn("does not move back").await.served();
    assert_eq!(path_of(&cluster.turns().await, &codex.session), [dead.clone(), next]);
    let metrics = cluster.replica().metrics().await;
    let state = |state: &str| {
        metrics.get(&format!("warmkey_key_state{{key=\"{dead}\",state=\"{state}\"}}"))
    };
    assert_eq!((state("disabled"), state("ready")), (1.0, 0.0));
}

#[tokio::test]
async fn moved_turn_is_the_same_without_the_old_keys_state() {
    let revoked = Arc::new(Mutex::new(None::<String>));
    let known = Arc::clone(&revoked);
    let upstream = Recorder::start(move |seen| {
        if known.lock().expect("no holder panics").as_deref() == Some(seen.key()) {
            let error = r#"{"error":{"message":"Incorrect API key provided: sk-canary","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#;
            return vec![Step::Send(answer("401 Unauthorized", "content-type: application/json\r\n", error.as_bytes()))];
        }
        completed()
    })
    .await;
    let cluster = Cluster::new().keys(siblings("org-a", 3)).recorded_by(&upstream).start().await;
    let turn = |text: &str| {
        Request::turn(ALICE, format!(r#"{{"model":"gpt-5.4","stream":true,"input":"{text}"}}"#))
            .header("session-id", "s")
    };
    assert_eq!(ask(cluster.address(), &turn("first")).await.status, 200);
    let key = upstream.only().key().to_owned();
    *revoked.lock().expect("no holder panics") = Some(key.clone());
    assert_eq!(
        ask(cluster.address(), &turn("second").header("x-codex-turn-state", "issued-by-the-first"))
            .await
            .status,
        200
    );
    let turns: Vec<_> =
        upstream.seen().into_iter().filter(|seen| seen.line.starts_with("POST")).collect();
    let [_, refused, moved] = &turns[..] else { panic!("one attempt more: {} turns", turns.len()) };
    assert_eq!(
        (refused.key(), refused.header("x-codex-turn-state")),
        (key.as_str(), Some("issued-by-the-first"))
    );
    assert_ne!(moved.key(), key);
    assert_eq!(moved.header("x-codex-turn-state"), None, "another key is sent no turn state");
    assert!(refused.body == moved.body && !moved.body.is_empty(), "the same bytes again");
}

#[tokio::test]
async fn new_session_leaves_an_exhausted_organization() {
    let keys = [siblings("org-a", 2), siblings("org-b", 1)].concat();
    let cluster = Cluster::new().keys(keys).start().await;
    cluster.upstream().exhaust("org-a").await;
    let mut codex = Vec::new();
    for _ in 0..12 {
        let mut session = Codex::new(cluster.address(), ALICE);
        session.turn("first").await.served();
        codex.push(session);
    }
    let turns = cluster.turns().await;
    assert!(turns.iter().filter(|turn| turn.is_served()).all(|turn| turn.organization == "org-b"));
    assert_eq!(refused(&turns, 429), 1, "one refusal speaks for the organization");
    cluster.upstream().heal().await;
    for session in &mut codex {
        session.turn("does not move back").await.served();
        assert_eq!(path_of(&cluster.turns().await, &session.session), ["org-b-1"]);
    }
}

#[tokio::test]
async fn sealed_session_never_leaves_its_organization() {
    let keys = [siblings("org-a", 2), siblings("org-b", 2)].concat();
    let cluster = Cluster::new().keys(keys).start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("first").await.served();
    let organization = cluster.turns().await[0].organization.clone();
    cluster.upstream().exhaust(&organization).await;
    let ended = codex.turn("no credit").await;
    assert_eq!((ended.answer.status, ended.completed), (429, false), "{}", ended.answer.text());
    let error = &ended.answer.json()["error"];
    assert!(
        error["code"].is_string() && error["message"].as_str().is_some_and(|text| text.len() > 20),
        "{error}"
    );
    // A sub-agent's first turn holds nothing sealed, but belongs to its sealed session.
    let ended = codex.spawn().turn("no credit").await;
    // The upstream is not asked again, and the error is one that Codex stops at.
    assert_eq!(
        (ended.answer.status, ended.answer.code().as_str()),
        (429, "insufficient_quota"),
        "{}",
        ended.answer.text()
    );
    assert_eq!(ended.answer.header("x-should-retry"), Some("false"));
    let turns = cluster.turns().await;
    assert!(turns.iter().all(|turn| turn.organization == organization), "no other key was tried");
    // Other sessions go on.
    for _ in 0..4 {
        Codex::new(cluster.address(), ALICE).turn("new").await.served();
    }
}

#[tokio::test]
async fn sealed_session_moves_within_its_organization_only() {
    let keys = [siblings("org-a", 2), siblings("org-b", 2)].concat();
    let cluster = Cluster::new().keys(keys).start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("first").await.served();
    let first = key_of(&cluster, &codex).await;
    let organization = cluster.turns().await[0].organization.clone();
    cluster.upstream().revoke(&first).await;
    codex.turn("moves to the sibling").await.served();
    let second = key_of(&cluster, &codex).await;
    assert_eq!(cluster.turns().await.pop().expect("a turn").organization, organization);
    cluster.upstream().revoke(&second).await;
    let ended = codex.turn("has nowhere to go").await;
    assert!(
        ended.answer.status >= 500,
        "never the upstream's 401: {} {}",
        ended.answer.status,
        ended.answer.text()
    );
    assert!(ended.answer.retry_after() >= 1);
    let turns = cluster.turns().await;
    assert!(turns.iter().all(|turn| turn.organization == organization), "no other key was tried");
}

/// The upstream refuses both keys for a time, at different moments. When it accepts them again, all
/// replicas learn it.
#[tokio::test]
async fn keys_that_were_refused_for_a_time_come_back_and_nothing_moves_back() {
    let cluster = Cluster::new().keys(siblings("org-a", 2)).replicas(2).redis().start().await;
    for (number, key) in ["org-a-1", "org-a-2"].into_iter().enumerate() {
        cluster.upstream().revoke(key).await;
        let before = refused(&cluster.turns().await, 401);
        found("a session on the key", async || {
            Codex::new(cluster.replicas[number].address(), ALICE).turn("meets the failure").await;
            (refused(&cluster.turns().await, 401) > before).then_some(())
        })
        .await;
        cluster.upstream().heal().await;
    }
    for key in ["org-a-1", "org-a-2"] {
        cluster.replicas[1].command("probe", key).await;
        for replica in &cluster.replicas {
            replica
                .shows(&format!("warmkey_key_state{{key=\"{key}\",state=\"disabled\"}}"), 0.0)
                .await;
        }
    }
    let mut codex = Codex::new(cluster.replicas[0].address(), ALICE);
    for turn in 0..8 {
        codex.moves_to(cluster.replicas[turn % 2].address());
        codex.turn("to and fro").await.served();
    }
    let path = path_of(&cluster.turns().await, &codex.session);
    assert_eq!(path.len(), 1, "peace: {path:?}");
}

#[tokio::test]
async fn client_is_told_to_wait_where_there_is_no_key() {
    let cluster = Cluster::new().keys(siblings("org-a", 2)).start().await;
    for key in ["org-a-1", "org-a-2"] {
        cluster.upstream().revoke(key).await;
    }
    for _ in 0..3 {
        let ended = Codex::new(cluster.address(), ALICE).turn("nobody").await;
        assert_eq!(
            (ended.answer.status, ended.answer.code().as_str()),
            (503, "no_key_available"),
            "{}",
            ended.answer.text()
        );
        assert!(ended.answer.retry_after() >= 1);
    }
    assert!(refused(&cluster.turns().await, 401) <= 2, "each key was asked once");
}

#[tokio::test]
async fn reasoning_that_another_organization_sealed_is_refused_by_the_upstream() {
    // The gateway has lost the other keys under its client. The client receives the upstream's
    // error, byte for byte, and the error is final.
    let cluster = Cluster::new().keys(siblings("org-a", 1)).start().await;
    let elsewhere = Cluster::new().keys(siblings("org-z", 1)).start().await;
    let mut codex = Codex::new(elsewhere.address(), ALICE);
    codex.turn("first").await.served();
    codex.moves_to(cluster.address());
    let ended = codex.turn("second").await;
    assert_eq!(
        (ended.answer.status, ended.answer.code().as_str()),
        (400, "invalid_encrypted_content"),
        "{}",
        ended.answer.text()
    );
}
