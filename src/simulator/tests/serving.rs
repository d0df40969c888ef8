//! Tests of an upstream without faults: it caches, seals, calls tools, stores, and keeps its
//! record.

use super::*;

#[tokio::test]
async fn session_is_warm_on_its_organization_and_shut_out_of_any_other() {
    for model in ["gpt-5.4", "gpt-6-sol"] {
        let upstream = upstream().await;
        let mut input = history();
        let first = upstream.post("a-1", &ask(model, &input)).await;
        assert_eq!((first.status, first.cached()), (200, 0), "{model}");
        input.extend(first.response()["output"].as_array().expect("items").iter().cloned());
        input.push(user("go on"));

        let moved = upstream.post("b-1", &ask(model, &input)).await;
        assert_eq!((moved.status, moved.error().as_str()), (400, "invalid_encrypted_content"));
        let text =
            "Reason: Encrypted content organization_id did not match the target organization.";
        assert!(moved.text.contains(text), "{}", moved.text);

        // Another key of the same organization and region shares the cache.
        let second = upstream.post("a-2", &ask(model, &input)).await;
        assert!(second.cached() > 4900, "{model}: {}", second.cached());
        let turns = upstream.simulator.turns();
        assert_eq!(
            (turns[2].cached_tokens, turns[2].ideal_cached_tokens),
            (second.cached(), second.cached())
        );
        assert_eq!(turns.iter().map(|turn| turn.status).collect::<Vec<_>>(), [200, 400, 200]);
    }
}

#[tokio::test]
async fn cold_turn_is_seen_beside_the_ideal() {
    let upstream = upstream().await;
    let input = history();
    upstream.post("a-1", &ask("gpt-5.4", &input)).await;
    assert_eq!(upstream.post("b-1", &ask("gpt-5.4", &input)).await.cached(), 0);
    let summary = upstream.simulator.summary();
    assert_eq!((summary.cached_tokens, summary.keys_per_session_max, summary.sessions), (0, 2, 1));
    assert!(summary.ideal_cached_tokens > 4900);
}

#[tokio::test]
async fn session_that_shares_a_machine_by_chance_is_not_expected_to() {
    let upstream = upstream_with(Config { machines: 1, ..Config::default() }).await;
    let mut other = ask("gpt-5.4", &history());
    upstream.post("a-1", &other).await;
    other["prompt_cache_key"] = "session-2".into();
    upstream.post("b-1", &other).await;
    upstream.post("a-1", &other).await;
    let turns = upstream.simulator.turns();
    assert_eq!(turns[1].ideal_cached_tokens, 0);
    assert!(turns[2].cached_tokens > 4900 && turns[2].ideal_cached_tokens > 4900);
}

#[tokio::test]
async fn another_region_of_the_same_organization_is_cold_but_opens_what_is_sealed() {
    let upstream = upstream().await;
    let mut input = history();
    let first = upstream.post("a-1", &ask("gpt-5.4", &input)).await;
    input.extend(first.response()["output"].as_array().expect("items").iter().cloned());
    input.push(user("go on"));
    assert_eq!(upstream.post("eu-1", &ask("gpt-5.4", &input)).await.cached(), 0);
}

#[tokio::test]
async fn burst_overflows_to_cold_machines_and_a_paced_session_does_not() {
    const FIVE_SECONDS: Duration = Duration::from_secs(5);
    for (scale, pace, cold) in [(1.0, Duration::ZERO, 2), (1000.0, FIVE_SECONDS, 1)] {
        let upstream = upstream_with(Config { time_scale: scale, ..Config::default() }).await;
        let body = ask("gpt-5.4", &history());
        for _ in 0..20 {
            upstream.post("a-1", &body).await;
            upstream.passes(pace).await;
        }
        let turns = upstream.simulator.turns();
        assert_eq!(turns.iter().filter(|turn| turn.cached_tokens == 0).count(), cold, "at {scale}");
        assert_eq!(
            turns.iter().filter(|turn| turn.ideal_cached_tokens == 0).count(),
            1,
            "at {scale}"
        );
    }
}

#[tokio::test]
async fn newer_regime_writes_diagnoses_and_answers_in_its_own_fields() {
    let upstream = upstream().await;
    let mut input = history();
    let first = upstream.post("a-1", &ask("gpt-6-sol", &input)).await.response();
    assert!(
        first["usage"]["input_tokens_details"]["cache_write_tokens"]
            .as_u64()
            .is_some_and(|written| written > 4900)
    );
    assert_eq!(first["prompt_cache_options"]["ttl"], "30m");
    assert_eq!(first["prompt_cache_diagnostics"]["type"], "unavailable");
    input[0]["content"] = "other".repeat(4000).into();
    let second = upstream.post("a-1", &ask("gpt-6-sol", &input)).await.response();
    assert_eq!(second["prompt_cache_diagnostics"]["reason"], "input_changed");
}

#[tokio::test]
async fn tool_is_called_once_and_then_answered() {
    let upstream = upstream().await;
    let mut input = vec![user("TOOL please")];
    let first = upstream.post("a-1", &ask("gpt-5.4", &input)).await.response();
    let call = first["output"][1].clone();
    assert_eq!(
        (call["type"].as_str(), call["name"].as_str()),
        (Some("function_call"), Some("exec_command"))
    );
    let output =
        json!({"type": "function_call_output", "call_id": call["call_id"], "output": "hi"});

    let lost = upstream.post("a-1", &ask("gpt-5.4", &[input[0].clone(), output.clone()])).await;
    assert!(
        (lost.status, lost.error().starts_with("No tool call found for function call output"))
            == (400, true)
    );
    input.extend([first["output"][0].clone(), call, output]);
    assert_eq!(
        upstream.post("a-1", &ask("gpt-5.4", &input)).await.response()["output"][1]["type"],
        "message"
    );
}

#[tokio::test]
async fn history_is_compacted_and_continued() {
    let upstream = upstream().await;
    let mut input = history();
    input.push(json!({"type": "compaction_trigger"}));
    let output = upstream.post("a-1", &ask("gpt-5.4", &input)).await.response()["output"].clone();
    assert_eq!(
        (output.as_array().map(Vec::len), output[0]["type"].as_str()),
        (Some(1), Some("compaction"))
    );
    let next = ask("gpt-5.4", &[output[0].clone(), user("three")]);
    assert_eq!(upstream.post("a-2", &next).await.status, 200);
    assert_eq!(upstream.post("b-1", &next).await.error(), "invalid_encrypted_content");
}

#[tokio::test]
async fn stored_response_is_found_in_its_project_and_no_other() {
    let upstream = upstream().await;
    let stored = json!({"model": "gpt-5.4", "input": "x".repeat(20_000)});
    let first = upstream.post("a-1", &stored).await.json();
    let next =
        json!({"model": "gpt-5.4", "input": "and then?", "previous_response_id": first["id"]});
    let second = upstream.post("a-1", &next).await;
    assert!(
        second.json()["usage"]["input_tokens_details"]["cached_tokens"]
            .as_u64()
            .is_some_and(|cached| cached > 4800),
        "{}",
        second.text
    );
    assert_eq!(upstream.post("a-2", &next).await.error(), "previous_response_not_found");
    let forgotten = json!({"model": "gpt-5.4", "input": "x", "store": false});
    let id = upstream.post("a-1", &forgotten).await.json()["id"].clone();
    let lost = json!({"model": "gpt-5.4", "input": "x", "previous_response_id": id});
    assert_eq!(upstream.post("a-1", &lost).await.error(), "previous_response_not_found");
}

#[tokio::test]
async fn judge_answers_over_http_and_everything_else_is_not_found() {
    let upstream = upstream().await;
    upstream
        .send(upstream.request("a-1", &ask("gpt-5.4", &history())).header("session-id", "s-1"))
        .await;
    let turns: Vec<Turn> = serde_json::from_str(
        &upstream.send(upstream.client.get(upstream.url("/_sim/turns"))).await.text,
    )
    .expect("turns");
    assert_eq!(
        (turns.len(), turns[0].session.as_deref(), turns[0].transport.as_str()),
        (1, Some("s-1"), "http")
    );
    assert_eq!(
        turns[0].body_sha256,
        body::hex(&sha2::Digest::finalize(<sha2::Sha256 as sha2::Digest>::new_with_prefix(
            ask("gpt-5.4", &history()).to_string()
        )))
    );
    let summary = upstream.send(upstream.client.get(upstream.url("/_sim/summary"))).await.json();
    assert_eq!(
        (summary["turns"].as_u64(), summary["statuses"]["200"].as_u64()),
        (Some(1), Some(1))
    );
    assert_eq!(upstream.send(upstream.client.post(upstream.url("/_sim/reset"))).await.status, 204);
    assert!(upstream.simulator.turns().is_empty());
    for request in [
        upstream.client.get(upstream.url("/v1/responses")),
        upstream.client.post(upstream.url("/v1/embeddings")),
    ] {
        let answered = upstream.send(request).await;
        assert_eq!(answered.status, 404);
        assert!(answered.error().starts_with("Invalid URL ("), "{}", answered.text);
    }
}

#[tokio::test]
async fn public_address_needs_an_option() {
    let address = SocketAddr::from(([0, 0, 0, 0], 1));
    let simulator =
        |expose| Simulator::new(&Config { expose, ..Config::default() }).expect("no keys are fine");
    assert!(simulator(false).admits(address).is_err() && simulator(true).admits(address).is_ok());
}
