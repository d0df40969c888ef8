//! An answer about one request is never a state of a key: what one client receives changes nothing
//! for the others. Each test has two replicas, a real Redis, and the upstream's record as the
//! judge.

use std::time::Duration;

use serde_json::json;

use crate::world::cluster::{ALICE, BOB, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::sessions::{begin, decided, first_keys, go_on};
use crate::world::simulator::{Fault, Key, Turn, path_of, siblings};
use crate::world::socket::{Refused, open, plain, session};
use crate::world::waiting::Budget;
use crate::world::wire::{Answer, Request, ask};

mod frames;
mod strained;
mod strained_socket;

fn two() -> Cluster {
    Cluster::new().replicas(2).redis()
}

/// Two keys of one organization and one of another, each in its own project.
fn pool() -> Vec<Key> {
    let a = |id: &str| Key::new(id, "org-a").of_project(id);
    [vec![a("org-a-1"), a("org-a-2")], siblings("org-b", 1)].concat()
}

/// Returns a turn of the session `id`, with these additional fields.
fn turn(token: &str, id: &str, fields: &str) -> Request {
    let body = format!(r#"{{"model":"gpt-5.4",{fields}"stream":true,"input":"hello"}}"#);
    Request::turn(token, body).header("session-id", id)
}

fn of_session<'t>(turns: &'t [Turn], id: &str) -> Vec<&'t Turn> {
    turns.iter().filter(|turn| turn.session.as_deref() == Some(id)).collect()
}

/// Checks that no replica knows anything bad about a key, and that each session is served by the
/// key it had.
async fn nothing_has_changed(cluster: &Running, all: &mut [Codex], first_keys: &[String]) {
    for replica in &cluster.replicas {
        for key in replica.keys().await {
            assert_eq!(key["state"], "ready", "{key}");
        }
    }
    for codex in &mut *all {
        go_on(cluster, codex, 2).await;
    }
    let turns = cluster.turns().await;
    for (codex, first_key) in all.iter().zip(first_keys) {
        assert_eq!(
            path_of(&turns, &codex.session),
            std::slice::from_ref(first_key),
            "the session stays"
        );
    }
}

/// Checks that the turn of session `id` met `status` at one key, once.
async fn met_once(cluster: &Running, id: &str, status: u16) {
    let turns = cluster.turns().await;
    let own = of_session(&turns, id);
    assert_eq!(own.iter().map(|turn| turn.status).collect::<Vec<_>>(), [status], "one attempt");
}

fn is_error(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{}", answer.text());
}

/// Number 1. If `/models` accepts the key, a 401 is about the request: the client receives it at
/// once as a 403.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusal_of_a_request_is_no_refusal_of_its_key() {
    let cluster = two().keys(pool()).start().await;
    let mut all = begin(&cluster, 8).await;
    let first_keys = first_keys(&cluster, &all).await;
    let generic = Fault::revoked().message("Your request was refused.");
    for (number, (fault, code, probes)) in [
        (Fault::lacking_scope(), "missing_scope", 0),
        (Fault::lacking_scope().code("invalid_request_error"), "invalid_request_error", 0),
        (generic, "invalid_api_key", 1),
        (Fault::deactivated(), "account_deactivated", 1),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("refused-{number}");
        cluster.upstream().fails_with(fault.session(&id)).await;
        let before = cluster.upstream().probes().await.len();
        let budget = Budget::begin(Duration::from_secs(2));
        let answer = ask(cluster.address(), &turn(ALICE, &id, "")).await;
        budget.holds("an answer at once");
        is_error(&answer, 403, code);
        met_once(&cluster, &id, 401).await;
        let asked = cluster.upstream().probes().await.len() - before;
        assert_eq!(asked, probes, "{code}: the text says it, or one probe decides");
        nothing_has_changed(&cluster, &mut all, &first_keys).await;
    }
}

/// Number 1, on a WebSocket: the frame's status is 403, and the connection stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusing_frame_of_a_request_is_no_refusal_of_its_key() {
    let cluster = two().keys(pool()).start().await;
    let mut all = begin(&cluster, 4).await;
    let first_keys = first_keys(&cluster, &all).await;
    for (id, fault) in [("scope", Fault::lacking_scope()), ("generic", Fault::revoked())] {
        cluster.upstream().fails_with(fault.session(id).times(1)).await;
        let mut socket = session(cluster.address(), ALICE, id).await;
        socket.send(&plain("lacks a right")).await;
        let event = socket.event(&["error", "response.completed"]).await;
        assert_eq!((&event["type"], &event["status"]), (&json!("error"), &json!(403)), "{event}");
        socket.send(&plain("and goes on")).await;
        let event = socket.event(&["error", "response.completed"]).await;
        assert_eq!(event["type"], "response.completed", "{event}");
        nothing_has_changed(&cluster, &mut all, &first_keys).await;
    }
}

/// Number 2. A 429 about something other than the key passes as it came, with a `Retry-After`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limit_of_something_else_limits_nobody_else() {
    let cluster = two().keys(pool()).start().await;
    let mut all = begin(&cluster, 6).await;
    let first_keys = first_keys(&cluster, &all).await;
    let silent = Fault::limited_in_silence;
    let named = |text: &str| silent().message(text);
    let room = |fault: Fault| {
        fault
            .header("x-ratelimit-remaining-tokens", "29000000")
            .header("x-ratelimit-remaining-requests", "4999")
    };
    for (number, (fault, fields)) in [
        (Fault::without_capacity(), r#""service_tier":"flex","#),
        (Fault::without_capacity(), ""),
        (silent().class("images"), ""),
        (named("Rate limit reached for gpt-image-1 in organization o on tokens per min."), ""),
        (named("Rate limit reached for gpt-5.4 in organization o on input-images per min."), ""),
        (room(silent()), ""),
        (named("Request too large for gpt-5.4: Limit 30000, Requested 40000."), ""),
        (Fault::too_steep(), ""),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("limited-{number}");
        cluster.upstream().fails_with(fault.session(&id)).await;
        let answer = ask(cluster.address(), &turn(ALICE, &id, fields)).await;
        assert_eq!(answer.status, 429, "{}", answer.text());
        assert!(answer.retry_after() >= 1, "a time to come back");
        let upstreams = ["resource_unavailable", "rate_limit_exceeded", "slow_down"];
        assert!(upstreams.contains(&answer.code().as_str()), "{}", answer.text());
        met_once(&cluster, &id, 429).await;
        nothing_has_changed(&cluster, &mut all, &first_keys).await;
    }
    // This is a page of an edge in front of the upstream.
    cluster.upstream().fails_with(Fault::page(429).session("page")).await;
    let answer = ask(cluster.address(), &turn(ALICE, "page", "")).await;
    assert_eq!((answer.status, answer.retry_after() >= 1), (429, true));
    assert!(answer.text().contains("Bad gateway"), "as it came");
    nothing_has_changed(&cluster, &mut all, &first_keys).await;
}

/// Number 2. The limit of a special tier counts only for that tier.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limit_of_a_tier_is_the_tiers_alone() {
    let cluster = two().keys(pool()).start().await;
    let mut all = begin(&cluster, 6).await;
    let first_keys = first_keys(&cluster, &all).await;
    cluster.upstream().fails_with(Fault::limited(60).tier("flex")).await;
    for replica in &cluster.replicas {
        let flex = turn(ALICE, "flex", r#""service_tier":"flex","#);
        let answer = ask(replica.address(), &flex).await;
        is_error(&answer, 429, "rate_limit_exceeded");
        assert!(answer.retry_after() > 50);
    }
    for codex in &mut all {
        go_on(&cluster, codex, 2).await;
    }
    let turns = cluster.turns().await;
    for (codex, first_key) in all.iter().zip(&first_keys) {
        assert_eq!(path_of(&turns, &codex.session), std::slice::from_ref(first_key));
    }
}

/// Number 2, on a WebSocket: the frame passes with its own code and a `retry-after`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limiting_frame_about_something_else_limits_nobody_else() {
    let cluster = two().keys(pool()).start().await;
    let mut all = begin(&cluster, 4).await;
    let first_keys = first_keys(&cluster, &all).await;
    cluster.upstream().fails_with(Fault::without_capacity().session("s")).await;
    let mut socket = session(cluster.address(), ALICE, "s").await;
    socket.send(&plain("flex")).await;
    let event = socket.event(&["error", "response.completed"]).await;
    assert_eq!(
        (&event["status"], &event["error"]["code"]),
        (&json!(429), &json!("resource_unavailable")),
        "{event}"
    );
    assert_eq!(event["headers"]["retry-after"], "20", "{event}");
    nothing_has_changed(&cluster, &mut all, &first_keys).await;
}

/// Number 3. A page, an empty body or a refusal by policy is no loss of access, even if two clients
/// meet it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusal_of_a_text_is_no_loss_of_access() {
    let cluster = two().keys(pool()).start().await;
    let mut all = begin(&cluster, 6).await;
    let first_keys = first_keys(&cluster, &all).await;
    let policy = Fault::forbidden().code("content_policy_violation");
    let pages = [403, 404].map(Fault::page).into_iter().chain([403, 404].map(Fault::bare));
    let others = [policy, Fault::forbidden().code("")];
    for (number, fault) in pages.chain(others).enumerate() {
        for (client, token) in [("alice", ALICE), ("bob", BOB), ("alice", ALICE)] {
            let id = format!("{client}-{number}");
            cluster.upstream().fails_with(fault.clone().session(&id)).await;
            let answer = ask(cluster.address(), &turn(token, &id, "")).await;
            assert!(matches!(answer.status, 403 | 404), "{}", answer.status);
        }
        nothing_has_changed(&cluster, &mut all, &first_keys).await;
    }
}

/// Number 4. The answer to a handshake says nothing about turns over HTTP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_handshake_says_nothing_about_turns() {
    let cluster = two().keys(pool()).start().await;
    let mut all = begin(&cluster, 6).await;
    let first_keys = first_keys(&cluster, &all).await;
    let model = [("x-codex-turn-metadata", r#"{"model":"gpt-5.4"}"#), ("session-id", "s")];
    for (fault, expected) in [
        (Fault::limited(60), 503),
        (Fault::too_steep().header("retry-after", "60"), 503),
        (Fault::exhausted(), 503),
        (Fault::overspent(), 503),
        (Fault::forbidden(), 403),
        (Fault::page(403), 403),
        (Fault::lacking_scope(), 403),
        (Fault::revoked(), 403),
        (Fault::down(500), 500),
    ] {
        cluster.upstream().fails_with(fault.at_handshakes()).await;
        let refused: Refused =
            open(cluster.address(), ALICE, &model).await.err().expect("it is refused");
        assert_eq!(refused.status, expected, "{}", refused.body);
        cluster.upstream().heal().await;
        nothing_has_changed(&cluster, &mut all, &first_keys).await;
    }
    assert!(decided(&cluster, "move", "limited").await.abs() < f64::EPSILON);
}

/// Number 4. If a key is really dead, a probe finds that, and all replicas know it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_key_is_found_out_by_one_probe() {
    let cluster = two().keys(pool()).start().await;
    let mut all = begin(&cluster, 8).await;
    let first_keys = first_keys(&cluster, &all).await;
    // Only this organization has another key for a sealed session.
    let dead =
        first_keys.iter().find(|key| key.starts_with("org-a")).expect("eight sessions").clone();
    cluster.upstream().revoke(&dead).await;
    for codex in &mut all {
        go_on(&cluster, codex, 1).await;
    }
    cluster.all_have(&dead, "disabled").await;
    let refused = cluster.turns().await.iter().filter(|turn| turn.status == 401).count();
    assert_eq!(refused, 1, "one turn met it, unseen by its client");
}
