//! Tests traces from outside: a real collector receives exactly one trace of each turn, which
//! agrees with the upstream's record.

use serde_json::{Value, json};

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::collector::{Collector, Seen, Trace};
use crate::world::simulator::{Fault, siblings};
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Request, ask};

mod away;
mod choice;
mod parents;
mod websocket;

/// A trace of a client's own, and the client's span.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
const PROMPT: &str = "prompt-canary";

/// The children of a served turn.
const SERVED: [&str; 5] = ["authenticate", "bind", "chat gpt-5.4", "identify", "relay"];

/// The `traceparent` of Codex. Its flag is always 01.
fn traceparent() -> String {
    format!("00-{TRACE}-{SPAN}-01")
}

/// A body of a session, long enough to be cached.
fn body(session: &str) -> String {
    let text = format!("{PROMPT} {}", "word ".repeat(2_000));
    json!({ "model": "gpt-5.4", "prompt_cache_key": session, "stream": true, "store": false,
        "input": text })
    .to_string()
}

async fn traced(cluster: Cluster) -> (Collector, Running) {
    let collector = Collector::start().await;
    let cluster = cluster.telemetry(&collector.options()).start().await;
    (collector, cluster)
}

/// Plays a turn. Returns the id that the client received.
async fn play(cluster: &Running, request: &Request, status: u16) -> String {
    let answer = ask(cluster.address(), request).await;
    assert_eq!(answer.status, status, "{}", answer.text());
    answer.header("x-warmkey-turn").expect("the turn's id").to_owned()
}

/// Checks that a served turn's spans state what the upstream has recorded.
fn agrees(trace: &Trace, recorded: &Value, transport: &str) {
    let Trace { turn, .. } = trace;
    assert_eq!(trace.names(), SERVED);
    let [attempt] = trace.attempts()[..] else { panic!("one attempt: {trace:?}") };
    let hash = turn.said("warmkey.session");
    assert_eq!(hash.len(), 22, "a session is shown by its hash: {hash}");
    let is_same = |span: &Seen, name: &str, field: &str| {
        let expected = match &recorded[field] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        assert_eq!(span.said(name), expected, "{name} of {}", span.name);
    };
    for span in [turn, attempt] {
        for (name, field) in [
            ("warmkey.key", "key"),
            ("warmkey.organization", "organization"),
            ("gen_ai.request.model", "model"),
            ("gen_ai.usage.input_tokens", "input_tokens"),
            ("gen_ai.usage.cache_read.input_tokens", "cached_tokens"),
            ("gen_ai.usage.cache_write.input_tokens", "cache_write_tokens"),
            ("gen_ai.usage.output_tokens", "output_tokens"),
        ] {
            is_same(span, name, field);
        }
        assert!(!span.is_error, "{span:?}");
    }
    is_same(attempt, "gen_ai.response.id", "response_id");
    for (name, expected) in [
        ("warmkey.client", "alice"),
        ("warmkey.transport", transport),
        ("warmkey.outcome", "completed"),
        ("warmkey.attempts", "1"),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(turn.said(name), expected, "{name}");
    }
    for (name, expected) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "openai"),
        ("gen_ai.request.stream", "true"),
        ("gen_ai.response.finish_reasons", "completed"),
        ("openai.api.type", "responses"),
        ("openai.response.service_tier", "default"),
        ("server.address", "127.0.0.1"),
        ("http.response.status_code", "200"),
        ("error.type", ""),
    ] {
        assert_eq!(attempt.said(name), expected, "{name}");
    }
    let first: f64 = attempt.said("gen_ai.response.time_to_first_chunk").parse().expect("seconds");
    let whole = (attempt.time.1 - attempt.time.0) as f64 / 1e9;
    assert!(first > 0.0 && first <= whole, "{first} of {whole} seconds");
    let overhead: f64 = turn.said("warmkey.overhead").parse().expect("seconds");
    assert!(overhead > 0.0 && overhead <= whole + 1.0, "{overhead}");
}

/// The upstream's record of its turns.
async fn judged(cluster: &Running) -> Vec<Value> {
    let answer = crate::world::wire::get(cluster.upstream().address(), "/_sim/turns").await;
    answer.json().as_array().expect("a list of turns").clone()
}

#[tokio::test]
async fn turn_over_http_is_one_trace_that_agrees_with_the_upstream() {
    let (collector, mut cluster) = traced(Cluster::new().keys(siblings("org-a", 1))).await;
    let mut ids = Vec::new();
    for session in ["a", "a", "b"] {
        ids.push(play(&cluster, &Request::turn(ALICE, body(session)), 200).await);
    }
    let traces = collector.traced(3).await;
    let recorded = judged(&cluster).await;
    for ((trace, id), recorded) in traces.iter().zip(&ids).zip(&recorded) {
        agrees(trace, recorded, "http");
        let turn = &trace.turn;
        assert_eq!((&turn.trace, turn.parent.as_str()), (id, ""), "the turn begins its trace");
        assert_eq!(turn.resource["service.name"], "warmkey");
        assert_eq!(turn.events, ["received"]);
    }
    let said = |name| traces.iter().map(|trace| trace.turn.said(name)).collect::<Vec<_>>();
    assert_eq!(said("warmkey.binding"), ["created", "existing", "created"]);
    assert_eq!(said("warmkey.cold_reason"), ["first_turn", "", "first_turn"]);
    assert_ne!(said("warmkey.session")[0], said("warmkey.session")[2]);
    eventually(SOON, "a write of the ledger is traced", async || {
        collector.spans().into_iter().find(|span| span.name == "flush")
    })
    .await;
    collector.traced_in_all(&mut cluster, 3).await;
}

/// Returns what each attempt of a turn states: its status, why it did not serve, and whether it
/// failed.
fn attempts(trace: &Trace) -> Vec<(&str, &str, bool)> {
    let all = trace.children.iter().filter(|span| span.name == "chat gpt-5.4");
    all.map(|span| {
        (span.said("http.response.status_code"), span.said("warmkey.reason"), span.is_error)
    })
    .collect()
}

#[tokio::test]
async fn attempt_is_a_span_that_says_why_the_next_came() {
    let (collector, mut cluster) = traced(Cluster::new().keys(siblings("org-a", 2))).await;
    cluster.upstream().fails_with(Fault::down(502).times(1)).await;
    play(&cluster, &Request::turn(ALICE, body("a")), 200).await;
    let key = collector.traced(1).await[0].turn.said("warmkey.key").to_owned();
    cluster.upstream().revoke(&key).await;
    play(&cluster, &Request::turn(ALICE, body("a")), 200).await;

    let traces = collector.traced_in_all(&mut cluster, 2).await;
    assert_eq!(attempts(&traces[0]), [("502", "failed", true), ("200", "", false)]);
    let moved = &traces[1];
    assert_eq!(attempts(moved), [("401", "rejected", true), ("200", "", false)]);
    let keys: Vec<_> = moved.attempts().iter().map(|span| span.said("warmkey.key")).collect();
    assert_eq!((keys[0], keys[1]), (key.as_str(), moved.turn.said("warmkey.key")));
    assert_ne!(keys[0], keys[1]);
    assert_eq!(moved.turn.said("warmkey.attempts"), "2");
    assert_eq!(moved.turn.said("warmkey.binding"), "rebound");
    assert!(!moved.turn.is_error, "the client noticed nothing");
    assert_eq!(moved.attempts()[0].said("gen_ai.usage.input_tokens"), "");
    let probes = collector.spans().iter().filter(|span| span.name == "probe").count();
    assert!(probes > 0, "a probe is a span of its own");
}

#[tokio::test]
async fn turn_that_no_key_serves_says_why() {
    let (collector, cluster) = traced(Cluster::new().keys(siblings("org-a", 1))).await;
    cluster.upstream().fails_with(Fault::exhausted()).await;
    play(&cluster, &Request::turn(ALICE, body("a")), 429).await;
    let traces = collector.traced(1).await;
    assert_eq!(attempts(&traces[0]), [("429", "exhausted", true)]);
    let turn = &traces[0].turn;
    assert!(turn.is_error && turn.said("http.response.status_code") == "429", "{turn:?}");
    assert!(!traces[0].names().contains(&"relay"));
}

#[tokio::test]
async fn wait_for_a_limited_key_is_an_event() {
    let (collector, cluster) = traced(Cluster::new().keys(siblings("org-a", 1))).await;
    cluster.upstream().fails_with(Fault::limited(1).times(1)).await;
    play(&cluster, &Request::turn(ALICE, body("a")), 200).await;
    let traces = collector.traced(1).await;
    assert_eq!(traces[0].turn.events, ["received", "wait"]);
    assert_eq!(attempts(&traces[0]), [("429", "limited", true), ("200", "", false)]);
}

#[tokio::test]
async fn failed_turn_is_one_trace_and_a_strangers_request_is_none() {
    let (collector, mut cluster) = traced(Cluster::new().keys(siblings("org-a", 1))).await;
    play(&cluster, &Request::turn("unknown", body("a")), 401).await;
    play(&cluster, &Request::turn(ALICE, "no JSON"), 400).await;
    cluster.upstream().fails_with(Fault::failing("server_error").times(1)).await;
    play(&cluster, &Request::turn(ALICE, body("a")), 200).await;
    cluster.upstream().heal().await;
    cluster.upstream().fails_with(Fault::breaking().times(1)).await;
    play(&cluster, &Request::turn(ALICE, body("b")), 503).await;

    let traces = collector.traced_in_all(&mut cluster, 3).await;
    let outcomes: Vec<_> = traces
        .iter()
        .map(|trace| (trace.turn.said("warmkey.outcome"), trace.turn.said("error.type")))
        .collect();
    assert_eq!(outcomes, [("refused", "refused"), ("failed", "failed"), ("unserved", "unserved")]);
    assert!(traces.iter().all(|trace| trace.turn.is_error));
    assert_eq!(traces[0].names(), ["authenticate", "identify"]);
    assert_eq!(traces[1].names(), SERVED);
    let broken = traces[2].attempts();
    assert_eq!(broken[0].said("error.type"), "interrupted");
    assert_eq!(broken[0].said("http.response.status_code"), "");
}

/// Spans hold neither a prompt nor a secret, however the turn ends.
#[tokio::test]
async fn span_holds_no_prompt_and_no_secret() {
    let (collector, cluster) = traced(Cluster::new().keys(siblings("org-a", 2))).await;
    let secret = |request: Request| request.header("x-private", "header-canary");
    play(&cluster, &secret(Request::turn(ALICE, body("session-canary"))), 200).await;
    play(&cluster, &secret(Request::turn(ALICE, format!("{PROMPT} no JSON"))), 400).await;
    let message = "message-canary";
    cluster.upstream().fails_with(Fault::down(500).message(message)).await;
    play(&cluster, &secret(Request::turn(ALICE, body("session-canary"))), 500).await;
    let uri = Request::turn(ALICE, body("a")).target("/v1/responses?api_key=url-canary");
    play(&cluster, &uri, 401).await;
    let traces = collector.traced(4).await;
    assert!(traces.iter().any(|trace| trace.turn.is_error));
    for span in collector.spans() {
        assert!(!span.text.contains("canary"), "{}", span.text);
        assert!(!span.text.contains("word word"), "{}", span.text);
    }
}
