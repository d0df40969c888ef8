//! Tests of an upstream's refusals and scripted failures.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::simulator::judge::Outcome;

#[tokio::test]
async fn packed_body_is_read_and_hashed_as_it_came() {
    let upstream = upstream().await;
    let packed =
        zstd::encode_all(ask("gpt-5.4", &history()).to_string().as_bytes(), 3).expect("packed");
    let sha256 = body::hex(&sha2::Digest::finalize(
        <sha2::Sha256 as sha2::Digest>::new_with_prefix(&packed),
    ));
    let request =
        upstream.request("a-1", &json!({})).header("content-encoding", "zstd").body(packed);
    assert_eq!(upstream.send(request).await.status, 200);
    let turn = upstream.simulator.turns().pop().expect("recorded");
    assert_eq!((turn.body_sha256, turn.model.as_deref()), (sha256, Some("gpt-5.4")));
}

#[tokio::test]
async fn odd_request_gets_a_plain_answer() {
    let upstream = upstream().await;
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let body = format!(
        "{{\"model\":\"gpt-4o\",\"model\":\"gpt-5.4\",\n\"stream\":true,\"metadata\":{{\"a\":{deep}}},\n\"tool_choice\":{{\n\"type\":{deep}}},\"temperature\":1e999,\"input\":[{{\"role\":\"user\",\"content\":\"\\ud800\",\"x\":-0.0E-7}}]}}"
    );
    let request =
        upstream.client.post(upstream.url("/v1/responses")).bearer_auth("sk-a-1").body(body);
    let answered = upstream.send(request).await;
    assert_eq!(
        (answered.status, answered.response()["model"].as_str()),
        (200, Some("gpt-5.4")),
        "{}",
        answered.text
    );
}

#[tokio::test]
async fn header_that_must_not_reach_an_upstream_is_refused_and_recorded() {
    let upstream = upstream().await;
    let body = ask("gpt-5.4", &history());
    for (name, value) in [
        ("YAI-Sticky-Session", "x"),
        ("x-warmkey-hop", "x"),
        ("cookie", "a=b"),
        ("x-api-key", "sk"),
    ] {
        let answered = upstream.send(upstream.request("a-1", &body).header(name, value)).await;
        assert_eq!((answered.status, answered.error().as_str()), (400, "simulator_leak"), "{name}");
        let turn = upstream.simulator.turns().pop().expect("recorded");
        assert!(
            turn.headers.contains(&name.to_ascii_lowercase())
                && turn.code.as_deref() == Some("simulator_leak")
        );
    }
    let chunked =
        reqwest::Body::wrap(http_body_util::StreamBody::new(futures_util::stream::iter([Ok::<
            _,
            std::io::Error,
        >(
            http_body::Frame::data(bytes::Bytes::from(body.to_string())),
        )])));
    let answered = upstream.send(upstream.request("a-1", &body).body(chunked)).await;
    assert_eq!(answered.error(), "simulator_framing");
    assert_eq!(upstream.post("nobody", &body).await.error(), "invalid_api_key");
    assert_eq!(upstream.post("a-1", &json!([])).await.status, 400);
    let turn = upstream.simulator.turns().pop().expect("recorded");
    assert_eq!(
        (turn.outcome, turn.key.as_deref(), turn.status),
        (Outcome::Refused, Some("a-1"), 400)
    );
}

#[tokio::test]
async fn turn_state_belongs_to_its_key() {
    let upstream = upstream().await;
    let body = ask("gpt-5.4", &history());
    let first = upstream.post("a-1", &body).await;
    let state = first.headers["x-codex-turn-state"].to_str().expect("text").to_owned();
    let again =
        upstream.send(upstream.request("a-1", &body).header("x-codex-turn-state", &state)).await;
    assert!(again.status == 200 && !again.headers.contains_key("x-codex-turn-state"));
    let moved =
        upstream.send(upstream.request("a-2", &body).header("x-codex-turn-state", &state)).await;
    assert_eq!((moved.status, moved.error().as_str()), (400, "simulator_foreign_turn_state"));
}

#[tokio::test]
async fn faults_strike_as_scripted() {
    let upstream = upstream().await;
    let body = ask("gpt-5.4", &history());
    upstream.fault(json!({"key": "a-1", "status": 429, "retry_after": 2, "times": 1})).await;
    let limited = upstream.post("a-1", &body).await;
    assert_eq!(
        (limited.status, limited.headers["retry-after"].to_str().expect("text")),
        (429, "2")
    );
    assert!(limited.text.contains("Please try again in 2s."));

    upstream
        .fault(json!({"organization": "org-a", "status": 401, "code": "account_deactivated"}))
        .await;
    assert_eq!(upstream.post("a-2", &body).await.error(), "account_deactivated");
    let models = |key: &str| {
        upstream.client.get(upstream.url("/v1/models")).bearer_auth(format!("sk-{key}"))
    };
    assert_eq!(upstream.send(models("a-1")).await.status, 401);
    assert_eq!(upstream.send(models("b-1")).await.status, 200);
    assert_eq!(
        upstream.send(upstream.client.delete(upstream.url("/_sim/fault"))).await.status,
        204
    );
    assert_eq!(upstream.post("a-1", &body).await.status, 200);

    upstream.fault(json!({"cut_after_events": 3, "times": 1})).await;
    let cut = upstream.post("a-1", &body).await;
    assert_eq!(
        (cut.status, cut.text.matches("event: ").count(), cut.text.contains("completed")),
        (200, 3, false)
    );

    upstream.fault(json!({"status": 200, "code": "server_error", "times": 1})).await;
    assert!(upstream.post("a-1", &body).await.text.contains("event: response.failed"));

    upstream.fault(json!({"reset": true, "cut_after_events": 4, "times": 1})).await;
    let mut broken = upstream.request("a-1", &body).send().await.expect("a head");
    assert!(broken.chunk().await.expect("what was said before").is_some());
    assert!(broken.text().await.is_err());

    upstream.fault(json!({"reset": true, "times": 1})).await;
    assert!(upstream.request("a-1", &body).send().await.is_err());
    assert_eq!(upstream.last(|turn| turn.outcome == Outcome::Cut).await.status, 0);
    assert_eq!(upstream.post("a-1", &body).await.status, 200);
}

/// A fault's subject, with a key and a model that it does not concern.
fn scopes() -> [(Value, &'static str, &'static str); 4] {
    [
        (json!({"key": "a-1"}), "a-2", "gpt-5.4"),
        (json!({"organization": "org-a"}), "b-1", "gpt-5.4"),
        (json!({"project": "one"}), "a-2", "gpt-5.4"),
        (json!({"model": "gpt-5.4"}), "a-1", "gpt-5.5"),
    ]
}

#[tokio::test]
async fn fault_strikes_its_scope_and_no_other() {
    let upstream = upstream().await;
    let body = |model: &str| ask(model, &[user("hi")]);
    let with = |scope: &Value, fault: Value| {
        let mut all = scope.clone();
        all.as_object_mut()
            .expect("an object")
            .extend(fault.as_object().expect("an object").clone());
        all["times"] = json!(1);
        all
    };
    for (scope, other, model) in scopes() {
        for (status, code) in [
            (401, "invalid_api_key"),
            (404, "model_not_found"),
            (429, "rate_limit_exceeded"),
            (503, "slow_down"),
        ] {
            upstream
                .fault(with(&scope, json!({"status": status, "code": code, "retry_after": 7})))
                .await;
            assert_eq!(
                upstream.post(other, &body(model)).await.status,
                200,
                "{scope}: {other} with {model} is spared"
            );
            let struck = upstream.post("a-1", &body("gpt-5.4")).await;
            assert_eq!((struck.status, struck.error().as_str()), (status, code), "{scope}");
            assert_eq!(struck.headers["retry-after"], "7", "{scope}");
            assert_eq!(
                upstream.post("a-1", &body("gpt-5.4")).await.status,
                200,
                "{scope}: once is once"
            );
        }
        upstream.fault(with(&scope, json!({"cut_after_events": 2, "stall": "30ms"}))).await;
        assert!(
            upstream.post(other, &body(model)).await.text.contains("event: response.completed")
        );
        let cut = upstream.post("a-1", &body("gpt-5.4")).await;
        assert_eq!(
            (cut.text.matches("event: ").count(), cut.text.contains("event: response.completed")),
            (2, false),
            "{scope}"
        );

        upstream.fault(with(&scope, json!({"reset": true}))).await;
        assert_eq!(upstream.post(other, &body(model)).await.status, 200);
        assert!(
            upstream.request("a-1", &body("gpt-5.4")).send().await.is_err(),
            "{scope}: no answer at all"
        );

        upstream.fault(with(&scope, json!({"stall": "300ms"}))).await;
        assert_eq!(upstream.post(other, &body(model)).await.status, 200);
        let began = std::time::Instant::now();
        assert_eq!(upstream.post("a-1", &body("gpt-5.4")).await.status, 200);
        assert!(began.elapsed() >= Duration::from_millis(300), "{scope}: {:?}", began.elapsed());
    }
}

/// The bytes of a request that a client would send.
fn head_and_body(body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "POST /v1/responses HTTP/1.1\r\nhost: upstream\r\nauthorization: Bearer sk-a-1\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into()
}

#[tokio::test]
async fn client_that_leaves_is_noticed_wherever_it_leaves() {
    let upstream = upstream().await;
    // While the client reads: long before the answer would have ended.
    let slow = head_and_body(&ask("gpt-5.4", &[user("SLOW:1000x1s")]));
    let mut stream = TcpStream::connect(upstream.address).await.expect("connected");
    stream.write_all(&slow).await.expect("sent");
    let mut some = [0; 512];
    assert!(stream.read(&mut some).await.is_ok_and(|count| count > 0));
    drop(stream);
    let turn = upstream.last(|turn| turn.outcome != Outcome::Open).await;
    assert_eq!((turn.outcome, turn.status), (Outcome::ClientLeft, 200));

    // Before the answer began.
    upstream.fault(json!({"stall": "600s", "times": 1})).await;
    let mut stream = TcpStream::connect(upstream.address).await.expect("connected");
    stream.write_all(&slow).await.expect("sent");
    upstream.last(|turn| turn.turn == 2 && turn.model.is_some()).await;
    drop(stream);
    let turn = upstream.last(|turn| turn.outcome != Outcome::Open).await;
    assert_eq!((turn.outcome, turn.status), (Outcome::ClientLeft, 0));

    // Before the whole body had come.
    let mut stream = TcpStream::connect(upstream.address).await.expect("connected");
    stream.write_all(&slow[..slow.len() - 1]).await.expect("sent");
    upstream.last(|turn| turn.turn == 3).await;
    drop(stream);
    let turn = upstream.last(|turn| turn.outcome != Outcome::Open).await;
    assert_eq!((turn.outcome, turn.status), (Outcome::ClientLeft, 0));
}
