//! Causes of coldness, one by one: Warmkey's own reason and the upstream's diagnosis agree, and
//! what is stored for it costs few bytes.

use serde_json::{Value, json};
use warmkey::usage::price::{Prices, Sale};
use warmkey::wire::terminal::Usage;

use super::{Running, rows, written, written_at};
use crate::world::cluster::ALICE;
use crate::world::codex::Codex;
use crate::world::redis::shape::Shape;
use crate::world::wire::{Request, ask};

/// A body of a session, with enough input for a cache. Each session has a beginning of its own.
fn body(session: &str) -> Value {
    let long = format!("{session} knows this well. ").repeat(300);
    json!({
        "model": "gpt-6-sol",
        "stream": true,
        "input": [{ "role": "user", "content": long }],
        "tools": [{ "type": "function", "name": "look", "parameters": {} }],
        "prompt_cache_key": session,
        "reasoning": { "effort": "low" },
        "text": { "verbosity": "low", "format": { "type": "text" } },
    })
}

/// The upstream's reason, Warmkey's reason, and the change that makes a turn cold for it.
type Cause<'c> = (&'c str, &'c str, &'c dyn Fn(&mut Value));

/// Plays one turn, and returns the response.
async fn turn(cluster: &Running, session: &str, kind: &str, body: &Value) -> Value {
    let metadata = json!({ "request_kind": kind }).to_string();
    let request = Request::turn(ALICE, body.to_string())
        .header("session-id", session)
        .header("x-codex-turn-metadata", &metadata);
    let answer = ask(cluster.address(), &request).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = answer.text();
    let event = text.split("event: response.completed\ndata: ").nth(1).expect("it is completed");
    let line = event.lines().next().expect("data");
    serde_json::from_str::<Value>(line).expect("JSON")["response"].clone()
}

/// Returns the session in which the upstream does not name the reason.
fn alone(diagnosis: &str) -> String {
    format!("untold-{diagnosis}")
}

/// Every reason that OpenAI states. A turn whose input was compacted is no loss. If the upstream
/// names no reason, Warmkey finds the same one by itself.
#[tokio::test]
async fn upstreams_diagnosis_agrees_with_the_reason() {
    let cluster = written_at("sqlite:ledger.db").start().await;
    let changed = |session: &str, change: &dyn Fn(&mut Value)| {
        let mut body = body(session);
        change(&mut body);
        body
    };
    let causes: [Cause<'_>; 8] = [
        ("model_changed", "model_changed", &|body| body["model"] = json!("gpt-6.1-sol")),
        ("prompt_cache_key_changed", "prefix_changed", &|body| {
            body["prompt_cache_key"] = json!("another");
        }),
        ("service_tier_changed", "prefix_changed", &|body| body["service_tier"] = json!("flex")),
        ("tools_changed", "prefix_changed", &|body| body["tools"][0]["name"] = json!("see")),
        ("text_format_changed", "prefix_changed", &|body| {
            body["text"]["format"] = json!({ "type": "json_object" });
        }),
        ("reasoning_effort_changed", "prefix_changed", &|body| {
            body["reasoning"]["effort"] = json!("high");
        }),
        ("verbosity_changed", "prefix_changed", &|body| body["text"]["verbosity"] = json!("high")),
        ("input_changed", "prefix_changed", &|body| {
            let long = format!("{} is quite another thing. ", body["prompt_cache_key"]).repeat(300);
            body["input"][0]["content"] = json!(long);
        }),
    ];
    let mut turns = 0;
    for (diagnosis, _, change) in &causes {
        let first = turn(&cluster, diagnosis, "turn", &body(diagnosis)).await;
        let mut second = changed(diagnosis, change);
        second["prompt_cache_options"] = json!({ "comparison_response_id": first["id"] });
        let answer = turn(&cluster, diagnosis, "turn", &second).await;
        let told = &answer["prompt_cache_diagnostics"];
        assert_eq!((&told["type"], &told["reason"]), (&json!("cache_miss"), &json!(diagnosis)));
        turns += 2;
        // The same change in another session, whose reason the upstream does not name.
        let alone = alone(diagnosis);
        turn(&cluster, &alone, "turn", &body(&alone)).await;
        let mut second = changed(&alone, change);
        second["prompt_cache_options"] = json!({ "comparison_response_id": "resp_none" });
        let answer = turn(&cluster, &alone, "turn", &second).await;
        assert_eq!(answer["prompt_cache_diagnostics"]["reason"], json!(null), "{answer}");
        turns += 2;
    }
    // The history is compacted: the next input has nothing of the one before.
    let compacted = "context_compacted";
    for is_told in [true, false] {
        let session = if is_told { compacted.to_owned() } else { alone(compacted) };
        turn(&cluster, &session, "turn", &body(&session)).await;
        let mut asking = body(&session);
        asking["input"]
            .as_array_mut()
            .expect("items")
            .push(json!({ "type": "compaction_trigger" }));
        let answer = turn(&cluster, &session, "compaction", &asking).await;
        let mut second = body(&session);
        let long = format!("What was left of {session}. ").repeat(300);
        second["input"] = json!([answer["output"][0], { "role": "user", "content": long }]);
        let compared = if is_told { answer["id"].clone() } else { json!("resp_none") };
        second["prompt_cache_options"] = json!({ "comparison_response_id": compared });
        let answer = turn(&cluster, &session, "turn", &second).await;
        let reason = is_told.then_some(compacted);
        assert_eq!(answer["prompt_cache_diagnostics"]["reason"], json!(reason));
        turns += 3;
    }

    written(cluster.replica().admin(), turns).await;
    for (diagnosis, reason, _) in &causes {
        for (session, told) in
            [((*diagnosis).to_owned(), Some(*diagnosis)), (alone(diagnosis), None)]
        {
            let rows = rows(&cluster, &session).await;
            let found: Vec<_> = rows
                .iter()
                .map(|row| (row.diagnostic.as_deref(), row.cold_reason.as_deref()))
                .collect();
            assert_eq!(
                found,
                [(None, Some("first_turn")), (told, Some(*reason))],
                "{diagnosis}, which the upstream tells as {told:?}"
            );
            assert!(rows[1].expected_cached_tokens > Some(1_024), "{:?}", rows[1]);
        }
    }
    for (session, told) in [(compacted.to_owned(), Some(compacted)), (alone(compacted), None)] {
        let rows = rows(&cluster, &session).await;
        let last = rows.last().expect("turns");
        assert_eq!((last.diagnostic.as_deref(), last.cold_reason.as_deref()), (told, None));
    }
}

/// Reads in Redis what is stored beside a binding: its life is the binding's, and its size is
/// stated in docs/ledger.md.
#[tokio::test]
async fn promise_costs_few_bytes() {
    let mut cluster = written_at("none:").binding("ttl = \"1h\"").redis().start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    for turn in ["first", "second"] {
        codex.turn(turn).await.served();
    }
    cluster.shows("warmkey_expected_turns_total", 1.0).await;
    let redis = cluster.redis();
    let names: Vec<String> = redis.ask(&["KEYS", "warmkey:*.last"]).await;
    let [name] = &names[..] else { panic!("one session: {names:?}") };
    let life: i64 = redis.ask(&["TTL", name]).await;
    assert!((3_500..=3_600).contains(&life), "{life}");
    let bytes: u64 = redis.ask(&["MEMORY", "USAGE", name]).await;
    let text: String = redis.ask(&["GET", name]).await;
    assert!(bytes <= 240 && text.len() <= 90, "{bytes} bytes: {text}");
}

/// A replica's turn leaves a promise, and another replica finds it, in every kind of Redis.
#[tokio::test]
async fn promise_is_shared_by_replicas() {
    for shape in [Shape::Standalone, Shape::Sentinel, Shape::Cluster] {
        let cluster = written_at("none:").redis_as(shape).replicas(2).start().await;
        let mut codex = Codex::new(cluster.address(), ALICE);
        for turn in 0..4 {
            let replica = &cluster.replicas[turn % 2];
            codex.moves_to(replica.address());
            codex.turn("go on").await.served();
            let stored = "warmkey_store_seconds_count{operation=\"put\"}";
            replica.shows(stored, (turn / 2 + 1) as f64).await;
        }
        cluster.replicas[0].shows("warmkey_expected_turns_total", 1.0).await;
        cluster.replicas[1].shows("warmkey_expected_turns_total", 2.0).await;
        cluster.shows("warmkey_cold_turns_total{reason=\"first_turn\"}", 1.0).await;
    }
}

/// A turn has the price of the model that answered, and its row says if the upstream ran tools.
#[tokio::test]
async fn row_is_priced_by_what_answered() {
    let usage = r#""usage":{"input_tokens":9000,"input_tokens_details":{"cached_tokens":8832},"output_tokens":7}"#;
    let event = format!(
        "event: response.completed\ndata: {{\"type\":\"response.completed\",\"response\":{{\"model\":\"gpt-5.4-mini-2026-03-17\",\"service_tier\":\"flex\",\"output\":[{{\"type\":\"web_search_call\"}}],{usage}}}}}\n\n"
    );
    let upstream = crate::world::recorder::Recorder::answering(crate::world::recorder::stream(&[
        event.as_bytes(),
    ]))
    .await;
    let cluster = written_at("sqlite:ledger.db").recorded_by(&upstream).start().await;
    let body = r#"{"model":"gpt-5.4","stream":true,"input":"hello"}"#;
    let request = Request::turn(ALICE, body).header("session-id", "s");
    assert_eq!(ask(cluster.address(), &request).await.status, 200);
    written(cluster.replica().admin(), 1).await;
    let rows = rows(&cluster, "s").await;
    let [row] = &rows[..] else { panic!("one turn: {rows:?}") };
    assert_eq!((row.model.as_str(), row.used_hosted_tools), ("gpt-5.4", Some(true)));
    let usage = Usage { input: 9_000, cached: 8_832, output: 7, ..Usage::default() };
    let (model, tier, region) = ("gpt-5.4-mini", Some("flex"), "us");
    let day = jiff::Timestamp::now().to_zoned_datetime(jiff::tz::TimeZone::UTC).date();
    let cost = Prices::default().cost(&Sale { model, tier, region, day, usage: &usage });
    let cost = cost.expect("a price");
    assert_eq!(row.price_id.as_deref(), Some(cost.price_id.as_str()));
    assert!(cost.price_id.starts_with("gpt-5.4-mini/flex"), "{}", cost.price_id);
    assert_eq!(row.cost_nano, i64::try_from(cost.nano_usd).ok());
}

/// A picture over HTTP is longer than what is kept of an answer: its items are unknown, not none.
#[tokio::test]
async fn hosted_tool_of_a_long_answer_is_unknown_and_not_absent() {
    let picture = "A".repeat(700_000);
    let event = format!(
        "event: response.completed\ndata: {{\"type\":\"response.completed\",\"response\":{{\"output\":[{{\"type\":\"image_generation_call\",\"result\":\"{picture}\"}}],\"usage\":{{\"input_tokens\":9,\"output_tokens\":7}}}}}}\n\n"
    );
    let upstream = crate::world::recorder::Recorder::answering(crate::world::recorder::stream(&[
        event.as_bytes(),
    ]))
    .await;
    let cluster = written_at("sqlite:ledger.db").recorded_by(&upstream).start().await;
    let body = r#"{"model":"gpt-5.4","stream":true,"input":"hello"}"#;
    let request = Request::turn(ALICE, body).header("session-id", "s");
    assert_eq!(ask(cluster.address(), &request).await.status, 200);
    written(cluster.replica().admin(), 1).await;
    let rows = rows(&cluster, "s").await;
    let [row] = &rows[..] else { panic!("one turn: {rows:?}") };
    assert_eq!((row.used_hosted_tools, row.tokens.as_ref().map(|all| all.output)), (None, Some(7)));
}
