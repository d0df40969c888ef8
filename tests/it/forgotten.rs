//! Forgotten bindings: the gateway finds the one organization that can open a sealed session's
//! history, unseen by the client.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::json;

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::recorder::{Recorder, Step, answer, completed};
use crate::world::simulator::{Key, Turn, siblings};
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Request, ask};

const ORGANIZATIONS: [&str; 3] = ["org-a", "org-b", "org-c"];
const SESSIONS: usize = 24;

fn keys() -> Vec<Key> {
    ORGANIZATIONS.iter().flat_map(|organization| siblings(organization, 2)).collect()
}

/// Weights that begin nearly every session in the first organization. With even weights, two of
/// three sessions would begin in another one.
fn lopsided() -> Vec<Key> {
    let mut keys = keys();
    (keys[0].weight, keys[1].weight) = (50, 50);
    keys
}

/// Replicas with even weights, and sealed sessions that began before.
async fn sealed(cluster: Cluster) -> (Running, Vec<Codex>) {
    so_many_sealed(cluster, SESSIONS).await
}

async fn so_many_sealed(cluster: Cluster, count: usize) -> (Running, Vec<Codex>) {
    let mut cluster = cluster.keys(lopsided()).replicas(2).redis().start().await;
    for replica in &cluster.replicas {
        replica.shows("warmkey_store_up", 1.0).await;
    }
    let mut sessions = Vec::new();
    for _ in 0..count {
        let mut codex = Codex::new(cluster.address(), ALICE);
        codex.turn("first").await.served();
        sessions.push(codex);
    }
    cluster.change(|cluster| cluster.keys(keys()));
    (cluster, sessions)
}

/// Resumes every session at alternating replicas, and checks that each is served within the allowed
/// number of attempts.
async fn resume(cluster: &Running, sessions: &mut [Codex]) {
    let before = cluster.turns().await;
    let organizations: BTreeMap<_, _> = before
        .iter()
        .map(|turn| (turn.session.clone().unwrap_or_default(), turn.organization.clone()))
        .collect();
    for (number, codex) in sessions.iter_mut().enumerate() {
        codex.moves_to(cluster.replicas[number % 2].address());
        codex.turn("do you remember?").await.served();
    }
    let turns = cluster.turns().await;
    let mut extra = 0;
    for codex in sessions.iter() {
        let attempts = attempts(&turns[before.len()..], codex);
        let (last, others) = attempts.split_last().expect("the turn has reached the upstream");
        assert!(
            last.is_served() && last.organization == organizations[&codex.session],
            "its own organization: {attempts:?}"
        );
        let mut tried: Vec<&str> = attempts.iter().map(|turn| turn.organization.as_str()).collect();
        tried.sort_unstable();
        tried.dedup();
        assert_eq!(tried.len(), attempts.len(), "each organization once: {attempts:?}");
        assert!(others.iter().all(|turn| turn.status == 400), "{attempts:?}");
        assert!(
            attempts.iter().all(|turn| turn.body_sha256 == last.body_sha256),
            "the same bytes each time"
        );
        extra += others.len();
    }
    assert!(extra > 0, "every session was found at once: this test shows nothing");
    // If one replica has found an organization, all replicas know it.
    let before = turns.len();
    for (number, codex) in sessions.iter_mut().enumerate() {
        codex.moves_to(cluster.replicas[(number + 1) % 2].address());
        codex.turn("and now?").await.served();
    }
    let turns = cluster.turns().await;
    assert_eq!(turns.len(), before + sessions.len(), "no further attempts");
}

fn attempts(turns: &[Turn], codex: &Codex) -> Vec<Turn> {
    turns.iter().filter(|turn| turn.session.as_deref() == Some(&codex.session)).cloned().collect()
}

/// B-8, for sessions that no replica remembers.
#[tokio::test]
async fn sealed_sessions_survive_a_flush_and_a_restart() {
    let (mut cluster, mut sessions) = sealed(Cluster::new()).await;
    cluster.redis().run(&["FLUSHALL"]).await;
    for number in 0..2 {
        cluster.replace(number).await;
        cluster.replicas[number].shows("warmkey_store_up", 1.0).await;
    }
    assert_eq!(cluster.redis().bindings().await, Vec::<String>::new());
    resume(&cluster, &mut sessions).await;
}

/// Only a forgotten organization is searched for. A known organization is the only one asked, even
/// if it cannot open the history. Its answer goes to the client, and the stored binding stays.
#[tokio::test]
async fn known_organization_that_cannot_open_a_history_is_the_only_one_asked() {
    let mut cluster = Cluster::new().keys(keys()).replicas(2).redis().start().await;
    cluster.shows("warmkey_store_up", 2.0).await;
    let mut codex = Codex::new(cluster.replicas[0].address(), ALICE);
    codex.turn("first").await.served();
    let first = attempts(&cluster.turns().await, &codex)[0].clone();
    let redis = cluster.redis();
    let stored = eventually(SOON, "the seal", async || {
        let (name, value) = redis.binding().await;
        value.ends_with(" s").then_some((name, value))
    })
    .await;
    let fault = json!({ "organization": first.organization, "status": 400, "code": "invalid_encrypted_content" });
    cluster.upstream().fault(fault).await;
    // The first replica remembers the session; the second one finds it in the store.
    for number in [0, 1] {
        let before = cluster.turns().await.len();
        let mut codex = codex.clone();
        codex.moves_to(cluster.replicas[number].address());
        let answer = codex.turn("do you remember?").await.answer;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "invalid_encrypted_content"),
            "{number}"
        );
        let asked: Vec<_> = cluster.turns().await[before..]
            .iter()
            .map(|turn| (turn.key.clone(), turn.status))
            .collect();
        assert_eq!(asked, [(first.key.clone(), 400)], "{number}: one key, once");
        assert_eq!(cluster.redis().binding().await, stored, "{number}");
    }
    cluster.upstream().heal().await;
    for number in [0, 1] {
        codex.moves_to(cluster.replicas[number].address());
        codex.turn("and now?").await.served();
        assert_eq!(
            cluster.turns().await.last().map(|turn| turn.key.clone()),
            Some(first.key.clone()),
            "{number}"
        );
    }
    assert_eq!(cluster.redis().binding().await, stored);
}

#[tokio::test]
async fn sealed_sessions_survive_their_bindings() {
    let (mut cluster, mut sessions) = sealed(Cluster::new().binding("ttl = \"3s\"")).await;
    cluster.change(|cluster| cluster.binding(""));
    let redis = cluster.redis();
    eventually(SOON, "the end of all bindings", async || {
        redis.bindings().await.is_empty().then_some(())
    })
    .await;
    for number in 0..2 {
        cluster.replace(number).await;
        cluster.replicas[number].shows("warmkey_store_up", 1.0).await;
    }
    resume(&cluster, &mut sessions).await;
}

/// No replica remembers the sessions, and the store is away.
#[tokio::test]
async fn sealed_sessions_survive_a_restart_while_redis_is_away() {
    let (mut cluster, mut sessions) = sealed(Cluster::new()).await;
    cluster.redis().kill().await;
    for number in 0..2 {
        cluster.replace(number).await;
    }
    let before = cluster.turns().await;
    for codex in &mut sessions {
        for number in [0, 1] {
            codex.moves_to(cluster.replicas[number].address());
            codex.turn("in the dark").await.served();
        }
        let turns = cluster.turns().await;
        let attempts = attempts(&turns[before.len()..], codex);
        assert!(
            attempts.len() <= 2 * ORGANIZATIONS.len(),
            "each replica tries each organization once: {attempts:?}"
        );
        let found: Vec<&Turn> = attempts.iter().filter(|turn| turn.is_served()).collect();
        assert!(
            found.len() == 2 && found[0].key == found[1].key,
            "both find the same key: {attempts:?}"
        );
    }
}

/// If the search meets an organization that fails, it goes on to the right one.
#[tokio::test]
async fn search_goes_past_an_organization_that_is_unwell() {
    let (mut cluster, sessions) = so_many_sealed(Cluster::new(), 3 * SESSIONS).await;
    cluster.redis().run(&["FLUSHALL"]).await;
    for number in 0..2 {
        cluster.replace(number).await;
        cluster.replicas[number].shows("warmkey_store_up", 1.0).await;
    }
    let before = cluster.turns().await.len();
    cluster
        .upstream()
        .fault(json!({ "organization": "org-b", "status": 503, "code": "server_error" }))
        .await;
    let mut past = 0;
    for mut codex in sessions {
        codex.moves_to(cluster.address());
        let ended = codex.turn("do you remember?").await;
        let turns = cluster.turns().await;
        let attempts = attempts(&turns[before..], &codex);
        match attempts.first().map(|turn| turn.organization.as_str()) {
            // The gateway cannot know whether the failing organization is the right one, so the
            // client tries again.
            Some("org-b") => {}
            _ => {
                ended.served();
                past += usize::from(attempts.iter().any(|turn| turn.status == 503));
            }
        }
    }
    // One session of six begins at the third organization and goes on to the second.
    assert!(past > 0, "no session met the failing organization: this test shows nothing");
}

/// The first organization of a search may be out of quota. Its refusal does not count as the
/// session's.
#[tokio::test]
async fn provisional_binding_that_is_exhausted_is_given_up() {
    let (mut cluster, sessions) = sealed(Cluster::new()).await;
    let turns = cluster.turns().await;
    cluster.redis().run(&["FLUSHALL"]).await;
    for number in 0..2 {
        cluster.replace(number).await;
        cluster.replicas[number].shows("warmkey_store_up", 1.0).await;
    }
    for organization in ["org-b", "org-c"] {
        cluster.upstream().exhaust(organization).await;
    }
    let before = turns.len();
    let mut asked = 0;
    for (number, mut codex) in sessions.into_iter().enumerate() {
        let organization = attempts(&turns, &codex)[0].organization.clone();
        codex.moves_to(cluster.replicas[number % 2].address());
        let session = codex.clone();
        if organization != "org-a" {
            assert_eq!(
                codex.turn("your own is exhausted").await.answer.code(),
                "insufficient_quota"
            );
        } else if number % 3 == 0 {
            let mut talk = codex.by_websocket();
            talk.turn("do you remember?").await;
            talk.turn("and now?").await;
        } else {
            codex.turn("do you remember?").await.served();
            codex.turn("and now?").await.served();
        }
        let attempts = attempts(&cluster.turns().await[before..], &session);
        assert!(
            attempts.iter().all(|turn| !turn.is_served() || turn.organization == "org-a"),
            "{attempts:?}"
        );
        asked += attempts.iter().filter(|turn| turn.status == 429).count();
    }
    assert!(asked > 0, "no session met the exhausted organization: this test shows nothing");
}

/// If no organization accepts, their answers decide what the client gets. An organization that
/// could open the history comes first, then one that may accept at another time.
#[tokio::test]
async fn other_organizations_answers_decide_a_search_in_vain() {
    let foreign = ("400 No", "invalid_encrypted_content");
    let (limited, failed, steep) = (
        ("429 No", "rate_limit_exceeded"),
        ("503 No", "server_error"),
        ("503 No", "server_is_overloaded"),
    );
    let (invalid, denied) = (("400 No", "invalid_value"), ("404 No", "model_not_found"));
    let (broken, served) = (("", ""), ("200 OK", ""));
    // The answers of the second and the third organization; the client's status and code, and how
    // many organizations were asked.
    let cases = [
        (foreign, foreign, 400, "invalid_encrypted_content", 3),
        (denied, foreign, 400, "invalid_encrypted_content", 3),
        (limited, foreign, 429, "rate_limit_exceeded", 3),
        (failed, foreign, 503, "server_error", 3),
        (steep, foreign, 503, "no_key_available", 3),
        (failed, limited, 503, "server_error", 3),
        (limited, failed, 429, "rate_limit_exceeded", 3),
        (invalid, foreign, 400, "invalid_value", 3),
        (failed, invalid, 400, "invalid_value", 3),
        (broken, served, 503, "upstream_interrupted", 2),
        (invalid, served, 200, "", 3),
        (failed, served, 200, "", 3),
        (limited, served, 200, "", 3),
    ];
    let asked = Mutex::new(BTreeMap::<String, usize>::new());
    let upstream = Recorder::start(move |seen| {
        let case = seen.header("session-id").expect("the test numbers its sessions").to_owned();
        let mut asked = asked.lock().expect("no holder panics");
        let count = asked.entry(case.clone()).or_default();
        *count += 1;
        let (second, third, ..) = cases[case.parse::<usize>().expect("a number")];
        match [foreign, second, third].get(*count - 1) {
            Some(("200 OK", _)) | None => completed(),
            Some(("", _)) => vec![Step::Close],
            Some((status, code)) => {
                let error = format!(
                    r#"{{"error":{{"message":"m","type":"t","param":null,"code":"{code}"}}}}"#
                );
                vec![Step::Send(answer(
                    status,
                    "content-type: application/json\r\n",
                    error.as_bytes(),
                ))]
            }
        }
    })
    .await;
    let keys: Vec<Key> =
        ORGANIZATIONS.iter().flat_map(|organization| siblings(organization, 1)).collect();
    let cluster = Cluster::new().keys(keys).recorded_by(&upstream).start().await;
    for (number, (second, third, status, code, count)) in cases.into_iter().enumerate() {
        let what = format!("{second:?}, {third:?}");
        // One model for each case, since a limit covers one model.
        let body = format!(r#"{{"model":"gpt-{number}","stream":true,"input":"x"}}"#);
        let before = upstream.seen().len();
        let got = ask(
            cluster.address(),
            &Request::turn(ALICE, body).header("session-id", &number.to_string()),
        )
        .await;
        assert_eq!(got.status, status, "{what}: {}", got.text());
        assert!(status == 200 || got.code() == code, "{what}: {}", got.text());
        assert!(!matches!(status, 429 | 503) || got.retry_after() >= 1, "{what}");
        let mut keys: Vec<_> =
            upstream.seen()[before..].iter().map(|seen| seen.key().to_owned()).collect();
        let last = keys.last().cloned();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(
            (keys.len(), upstream.seen().len() - before),
            (count, count),
            "{what}: each was asked once"
        );
        if status == 200 {
            // The session is bound where it was accepted.
            let next = Request::turn(ALICE, r#"{"model":"other","stream":true,"input":"x"}"#);
            assert_eq!(
                ask(cluster.address(), &next.header("session-id", &number.to_string()))
                    .await
                    .status,
                200,
                "{what}"
            );
            assert_eq!(upstream.seen().last().map(|seen| seen.key().to_owned()), last, "{what}");
        }
    }
}
