//! The whole simulator over a real socket, as a gateway meets it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::judge::{Outcome, Turn};
use super::*;
use crate::setting::{Secret, SecretSource};

struct Upstream {
    simulator: Arc<Simulator>,
    address: SocketAddr,
    client: reqwest::Client,
    closing: CancellationToken,
}

fn key(id: &str, organization: &str, project: &str) -> KeyConfig {
    KeyConfig {
        id: Some(id.into()),
        secret: SecretSource::Text(Secret::new(format!("sk-{id}"))),
        organization: organization.into(),
        project: project.into(),
        region: "us".into(),
    }
}

async fn upstream_with(config: Config) -> Upstream {
    let keys = vec![key("a-1", "org-a", "one"), key("a-2", "org-a", "two"), key("b-1", "org-b", "one")];
    let simulator = Simulator::new(&Config { key: keys, ..config }).expect("three keys");
    let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), Duration::from_secs(5)).expect("a port");
    let address = listener.address().expect("bound");
    let (tasks, closing) = (Tasks::new(), CancellationToken::new());
    tasks.spawn(Arc::clone(&simulator).serve(listener, tasks.clone(), closing.clone()));
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    Upstream { simulator, address, client, closing }
}

async fn upstream() -> Upstream {
    upstream_with(Config::default()).await
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

struct Answered {
    status: u16,
    headers: reqwest::header::HeaderMap,
    text: String,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{}: {error}", self.text))
    }

    fn error(&self) -> String {
        let error = &self.json()["error"];
        error["code"].as_str().or(error["message"].as_str()).unwrap_or_default().to_owned()
    }

    /// The terminal event's response.
    fn response(&self) -> Value {
        let data = self.text.lines().rev().find_map(|line| line.strip_prefix("data: ")).expect("an event");
        serde_json::from_str::<Value>(data).expect("JSON")["response"].take()
    }

    fn cached(&self) -> u64 {
        self.response()["usage"]["input_tokens_details"]["cached_tokens"].as_u64().expect("usage")
    }
}

impl Upstream {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Answered {
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answered { status, headers, text: response.text().await.expect("a body") }
    }

    fn request(&self, key: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client.post(self.url("/responses")).bearer_auth(format!("sk-{key}")).body(body.to_string())
    }

    async fn post(&self, key: &str, body: &Value) -> Answered {
        self.send(self.request(key, body)).await
    }

    async fn fault(&self, fault: Value) {
        let answered = self.send(self.client.post(self.url("/_sim/fault")).body(fault.to_string())).await;
        assert_eq!(answered.status, 204, "{}", answered.text);
    }

    /// The last turn on record, once `ready` of it.
    async fn last(&self, ready: impl Fn(&Turn) -> bool) -> Turn {
        for _ in 0..1000 {
            if let Some(turn) = self.simulator.turns().pop().filter(&ready) {
                return turn;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("{:?}", self.simulator.turns().last());
    }
}

fn user(text: &str) -> Value {
    json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})
}

fn ask(model: &str, input: &[Value]) -> Value {
    json!({
        "model": model, "stream": true, "store": false, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "session-1",
        "input": input, "client_metadata": {"session_id": "session-1"}, "tools": [{"type": "function", "name": "exec_command"}],
    })
}

/// A history of about 5,000 tokens.
fn history() -> Vec<Value> {
    vec![json!({"type": "message", "role": "developer", "content": "rule ".repeat(4000)}), user("hello")]
}

#[tokio::test]
async fn a_session_is_warm_on_its_organization_and_shut_out_of_any_other() {
    for model in ["gpt-5.4", "gpt-6-sol"] {
        let upstream = upstream().await;
        let mut input = history();
        let first = upstream.post("a-1", &ask(model, &input)).await;
        assert_eq!((first.status, first.cached()), (200, 0), "{model}");
        input.extend(first.response()["output"].as_array().expect("items").iter().cloned());
        input.push(user("go on"));

        let moved = upstream.post("b-1", &ask(model, &input)).await;
        assert_eq!((moved.status, moved.error().as_str()), (400, "invalid_encrypted_content"));
        let text = "Reason: Encrypted content organization_id did not match the target organization.";
        assert!(moved.text.contains(text), "{}", moved.text);

        // Another key of the same organization and region shares the cache.
        let second = upstream.post("a-2", &ask(model, &input)).await;
        assert!(second.cached() > 4900, "{model}: {}", second.cached());
        let turns = upstream.simulator.turns();
        assert_eq!((turns[2].cached_tokens, turns[2].ideal_cached_tokens), (second.cached(), second.cached()));
        assert_eq!(turns.iter().map(|turn| turn.status).collect::<Vec<_>>(), [200, 400, 200]);
    }
}

#[tokio::test]
async fn a_cold_turn_is_seen_beside_the_ideal() {
    let upstream = upstream().await;
    let input = history();
    upstream.post("a-1", &ask("gpt-5.4", &input)).await;
    assert_eq!(upstream.post("b-1", &ask("gpt-5.4", &input)).await.cached(), 0);
    let summary = upstream.simulator.summary();
    assert_eq!((summary.cached_tokens, summary.keys_per_session_max, summary.sessions), (0, 2, 1));
    assert!(summary.ideal_cached_tokens > 4900);
}

#[tokio::test]
async fn the_newer_regime_writes_diagnoses_and_answers_in_its_own_fields() {
    let upstream = upstream().await;
    let mut input = history();
    let first = upstream.post("a-1", &ask("gpt-6-sol", &input)).await.response();
    assert!(first["usage"]["input_tokens_details"]["cache_write_tokens"].as_u64().is_some_and(|written| written > 4900));
    assert_eq!(first["prompt_cache_options"]["ttl"], "30m");
    assert_eq!(first["prompt_cache_diagnostics"]["type"], "unavailable");
    input[0]["content"] = "other".repeat(4000).into();
    let second = upstream.post("a-1", &ask("gpt-6-sol", &input)).await.response();
    assert_eq!(second["prompt_cache_diagnostics"]["reason"], "input_changed");
}

#[tokio::test]
async fn a_tool_is_called_once_and_then_answered() {
    let upstream = upstream().await;
    let mut input = vec![user("TOOL please")];
    let first = upstream.post("a-1", &ask("gpt-5.4", &input)).await.response();
    let call = first["output"][1].clone();
    assert_eq!((call["type"].as_str(), call["name"].as_str()), (Some("function_call"), Some("exec_command")));
    let output = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "hi"});

    let lost = upstream.post("a-1", &ask("gpt-5.4", &[input[0].clone(), output.clone()])).await;
    assert!((lost.status, lost.error().starts_with("No tool call found for function call output")) == (400, true));
    input.extend([first["output"][0].clone(), call, output]);
    assert_eq!(upstream.post("a-1", &ask("gpt-5.4", &input)).await.response()["output"][1]["type"], "message");
}

#[tokio::test]
async fn a_history_is_compacted_and_gone_on_from() {
    let upstream = upstream().await;
    let mut input = history();
    input.push(json!({"type": "compaction_trigger"}));
    let output = upstream.post("a-1", &ask("gpt-5.4", &input)).await.response()["output"].clone();
    assert_eq!((output.as_array().map(Vec::len), output[0]["type"].as_str()), (Some(1), Some("compaction")));
    let next = ask("gpt-5.4", &[output[0].clone(), user("three")]);
    assert_eq!(upstream.post("a-2", &next).await.status, 200);
    assert_eq!(upstream.post("b-1", &next).await.error(), "invalid_encrypted_content");
}

#[tokio::test]
async fn a_stored_response_is_found_in_its_project_and_no_other() {
    let upstream = upstream().await;
    let stored = json!({"model": "gpt-5.4", "input": "x".repeat(20_000)});
    let first = upstream.post("a-1", &stored).await.json();
    let next = json!({"model": "gpt-5.4", "input": "and then?", "previous_response_id": first["id"]});
    let second = upstream.post("a-1", &next).await;
    assert!(
        second.json()["usage"]["input_tokens_details"]["cached_tokens"].as_u64().is_some_and(|cached| cached > 4800),
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
async fn what_must_not_reach_an_upstream_is_refused_and_recorded() {
    let upstream = upstream().await;
    let body = ask("gpt-5.4", &history());
    for (name, value) in [("YAI-Sticky-Session", "x"), ("x-warmkey-hop", "x"), ("cookie", "a=b"), ("x-api-key", "sk")] {
        let answered = upstream.send(upstream.request("a-1", &body).header(name, value)).await;
        assert_eq!((answered.status, answered.error().as_str()), (400, "simulator_leak"), "{name}");
        let turn = upstream.simulator.turns().pop().expect("recorded");
        assert!(turn.headers.contains(&name.to_ascii_lowercase()) && turn.code.as_deref() == Some("simulator_leak"));
    }
    let chunked = reqwest::Body::wrap(http_body_util::StreamBody::new(futures_util::stream::iter([Ok::<_, std::io::Error>(
        http_body::Frame::data(bytes::Bytes::from(body.to_string())),
    )])));
    let answered = upstream.send(upstream.request("a-1", &body).body(chunked)).await;
    assert_eq!(answered.error(), "simulator_framing");
    assert_eq!(upstream.post("nobody", &body).await.error(), "invalid_api_key");
    assert_eq!(upstream.post("a-1", &json!([])).await.status, 400);
    let turn = upstream.simulator.turns().pop().expect("recorded");
    assert_eq!((turn.outcome, turn.key.as_deref(), turn.status), (Outcome::Refused, Some("a-1"), 400));
}

#[tokio::test]
async fn a_turn_state_belongs_to_its_key() {
    let upstream = upstream().await;
    let body = ask("gpt-5.4", &history());
    let first = upstream.post("a-1", &body).await;
    let state = first.headers["x-codex-turn-state"].to_str().expect("text").to_owned();
    let again = upstream.send(upstream.request("a-1", &body).header("x-codex-turn-state", &state)).await;
    assert!(again.status == 200 && !again.headers.contains_key("x-codex-turn-state"));
    let moved = upstream.send(upstream.request("a-2", &body).header("x-codex-turn-state", &state)).await;
    assert_eq!((moved.status, moved.error().as_str()), (400, "simulator_foreign_turn_state"));
}

#[tokio::test]
async fn faults_strike_as_scripted() {
    let upstream = upstream().await;
    let body = ask("gpt-5.4", &history());
    upstream.fault(json!({"key": "a-1", "status": 429, "retry_after": 2, "times": 1})).await;
    let limited = upstream.post("a-1", &body).await;
    assert_eq!((limited.status, limited.headers["retry-after"].to_str().expect("text")), (429, "2"));
    assert!(limited.text.contains("Please try again in 2s."));

    upstream.fault(json!({"organization": "org-a", "status": 401, "code": "account_deactivated"})).await;
    assert_eq!(upstream.post("a-2", &body).await.error(), "account_deactivated");
    let models = |key: &str| upstream.client.get(upstream.url("/v1/models")).bearer_auth(format!("sk-{key}"));
    assert_eq!(upstream.send(models("a-1")).await.status, 401);
    assert_eq!(upstream.send(models("b-1")).await.status, 200);
    assert_eq!(upstream.send(upstream.client.delete(upstream.url("/_sim/fault"))).await.status, 204);
    assert_eq!(upstream.post("a-1", &body).await.status, 200);

    upstream.fault(json!({"cut_after_events": 3, "times": 1})).await;
    let cut = upstream.post("a-1", &body).await;
    assert_eq!((cut.status, cut.text.matches("event: ").count(), cut.text.contains("completed")), (200, 3, false));

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
async fn a_client_that_leaves_is_noticed_wherever_it_leaves() {
    let upstream = upstream().await;
    // While it is read to: long before the answer would have ended.
    let slow = head_and_body(&ask("gpt-5.4", &[user("SLOW:1000x1s")]));
    let mut stream = TcpStream::connect(upstream.address).await.expect("connected");
    stream.write_all(&slow).await.expect("sent");
    let mut some = [0; 512];
    assert!(stream.read(&mut some).await.is_ok_and(|count| count > 0));
    drop(stream);
    let turn = upstream.last(|turn| turn.outcome != Outcome::Open).await;
    assert_eq!((turn.outcome, turn.status), (Outcome::ClientLeft, 200));

    // Before it was answered at all.
    upstream.fault(json!({"stall": "600s", "times": 1})).await;
    let mut stream = TcpStream::connect(upstream.address).await.expect("connected");
    stream.write_all(&slow).await.expect("sent");
    upstream.last(|turn| turn.turn == 2 && turn.model.is_some()).await;
    drop(stream);
    let turn = upstream.last(|turn| turn.outcome != Outcome::Open).await;
    assert_eq!((turn.outcome, turn.status), (Outcome::ClientLeft, 0));

    // Before all of its body had come.
    let mut stream = TcpStream::connect(upstream.address).await.expect("connected");
    stream.write_all(&slow[..slow.len() - 1]).await.expect("sent");
    upstream.last(|turn| turn.turn == 3).await;
    drop(stream);
    let turn = upstream.last(|turn| turn.outcome != Outcome::Open).await;
    assert_eq!((turn.outcome, turn.status), (Outcome::ClientLeft, 0));
}

#[tokio::test]
async fn limits_refuse_with_the_time_to_wait_and_a_faster_clock_waits_less() {
    let upstream = upstream_with(Config { requests_per_minute: 1, time_scale: 60.0, ..Config::default() }).await;
    let body = ask("gpt-5.4", &[user("hi")]);
    let first = upstream.post("a-1", &body).await;
    assert_eq!((first.status, first.headers["x-ratelimit-limit-requests"].to_str().expect("text")), (200, "1"));
    let second = upstream.post("a-1", &body).await;
    assert_eq!(
        (second.status, second.error().as_str(), second.headers["retry-after"].to_str().expect("text")),
        (429, "rate_limit_exceeded", "1")
    );
    assert_eq!(upstream.post("a-2", &body).await.status, 200);
}

#[tokio::test]
async fn the_judge_answers_over_http_and_everything_else_is_not_found() {
    let upstream = upstream().await;
    upstream.send(upstream.request("a-1", &ask("gpt-5.4", &history())).header("session-id", "s-1")).await;
    let turns: Vec<Turn> =
        serde_json::from_str(&upstream.send(upstream.client.get(upstream.url("/_sim/turns"))).await.text).expect("turns");
    assert_eq!((turns.len(), turns[0].session.as_deref(), turns[0].transport.as_str()), (1, Some("s-1"), "http"));
    assert_eq!(
        turns[0].body_sha256,
        body::hex(&sha2::Digest::finalize(<sha2::Sha256 as sha2::Digest>::new_with_prefix(
            ask("gpt-5.4", &history()).to_string()
        )))
    );
    let summary = upstream.send(upstream.client.get(upstream.url("/_sim/summary"))).await.json();
    assert_eq!((summary["turns"].as_u64(), summary["statuses"]["200"].as_u64()), (Some(1), Some(1)));
    assert_eq!(upstream.send(upstream.client.post(upstream.url("/_sim/reset"))).await.status, 204);
    assert!(upstream.simulator.turns().is_empty());
    for request in [upstream.client.get(upstream.url("/v1/responses")), upstream.client.post(upstream.url("/v1/embeddings"))] {
        let answered = upstream.send(request).await;
        assert_eq!(answered.status, 404);
        assert!(answered.error().starts_with("Invalid URL ("), "{}", answered.text);
    }
}

#[tokio::test]
async fn a_public_address_needs_to_be_meant() {
    let address = SocketAddr::from(([0, 0, 0, 0], 1));
    let simulator = |expose| Simulator::new(&Config { expose, ..Config::default() }).expect("no keys are fine");
    assert!(simulator(false).admits(address).is_err() && simulator(true).admits(address).is_ok());
}
