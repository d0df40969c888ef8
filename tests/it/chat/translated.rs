//! A chat turn for an upstream that speaks only Responses: what is refused, and how errors and cuts
//! reach the client.

use serde_json::{Value, json};

use super::RESPONSES;
use crate::world::chat::Chat;
use crate::world::cluster::{ALICE, Cluster};
use crate::world::recorder::{Recorder, Step, answer, completed};
use crate::world::simulator::Fault;
use crate::world::wire::{Request, ask};

#[tokio::test]
async fn field_that_cannot_be_translated_is_named() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().upstream(RESPONSES).recorded_by(&upstream).start().await;
    for (name, value) in [
        ("n", json!(2)),
        ("stop", json!(["x"])),
        ("seed", json!(7)),
        ("frequency_penalty", json!(1)),
        ("audio", json!({ "voice": "alloy" })),
        ("logprobs", json!(true)),
        ("functions", json!([{}])),
        ("not_known", json!("x")),
    ] {
        let said = Chat::new(cluster.address(), ALICE).field(name, value).turn("hello").await;
        let error = said.answer.json()["error"].clone();
        assert_eq!(said.answer.status, 400, "{error}");
        assert_eq!(
            (&error["param"], &error["code"], &error["type"]),
            (&json!(name), &json!("unsupported_parameter"), &json!("invalid_request_error"))
        );
        assert_eq!(said.answer.header("x-should-retry"), Some("false"));
    }
    assert!(upstream.seen().is_empty(), "nothing went upstream");
    cluster.shows(r#"warmkey_turns_total{transport="http",outcome="refused"}"#, 8.0).await;
}

#[tokio::test]
async fn chat_body_that_is_no_json_or_too_foreign_is_refused() {
    let cluster = Cluster::new().upstream(RESPONSES).start().await;
    let refused = async |body: &str| {
        let request = Request::turn(ALICE, body).target("/chat/completions");
        let found = ask(cluster.address(), &request).await;
        (found.status, found.code())
    };
    assert_eq!(refused("{").await, (400, "invalid_json".into()));
    assert_eq!(refused("[]").await, (400, "invalid_request".into()));
    let file = r#"{"model":"gpt-5.4","messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"file-1"}}]}]}"#;
    assert_eq!(refused(file).await, (404, "file_not_found".into()));
}

#[tokio::test]
async fn error_before_a_translated_answer_is_the_upstreams() {
    let cluster = Cluster::new().upstream(RESPONSES).start().await;
    for (fault, status) in
        [(Fault::down(418).code("teapot"), 418), (Fault::down(400).code("odd"), 400)]
    {
        cluster.upstream().fails_with(fault.times(1)).await;
        let said = Chat::new(cluster.address(), ALICE).streaming().turn("hello").await;
        assert_eq!(said.answer.status, status);
        assert!(said.answer.json()["error"]["message"].is_string());
    }
    // For a limit that lasts, the client receives the gateway's own error.
    cluster.upstream().fails_with(Fault::limited(3_600)).await;
    let said = Chat::new(cluster.address(), ALICE).turn("hello").await;
    assert_eq!((said.answer.status, said.answer.code().as_str()), (429, "rate_limit_exceeded"));
    assert!(said.answer.retry_after() > 0);
}

#[tokio::test]
async fn failure_inside_an_answer_is_told_in_chats_own_way() {
    for upstream in ["", RESPONSES] {
        let cluster = Cluster::new().upstream(upstream).start().await;
        cluster.upstream().fails_with(Fault::failing("server_error").times(1)).await;
        let said = Chat::new(cluster.address(), ALICE).streaming().turn("hello").await;
        let last: Value = said
            .answer
            .text()
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .next_back()
            .map(|data| serde_json::from_str(data).expect("JSON"))
            .expect("an event");
        assert_eq!((said.answer.status, &last["error"]["code"]), (200, &json!("server_error")));
        assert!(!said.is_done && said.reason.is_none());
        cluster.shows(r#"warmkey_turns_total{transport="http",outcome="failed"}"#, 1.0).await;
    }
}

#[tokio::test]
async fn cut_answer_is_never_taken_for_a_whole_one() {
    for upstream in ["", RESPONSES] {
        let cluster = Cluster::new().upstream(upstream).start().await;
        for reset in [true, false] {
            let cut = json!({ "cut_after_events": 6, "reset": reset, "times": 1 });
            cluster.upstream().fault(cut).await;
            let said = Chat::new(cluster.address(), ALICE).streaming().turn("hello").await;
            assert!(!said.is_done && said.reason.is_none(), "{}", said.answer.text());
            assert_eq!(said.answer.whole, !reset);
            let is_told = said.answer.text().contains("upstream_interrupted");
            assert_eq!(is_told, upstream == RESPONSES, "{}", said.answer.text());
        }
        cluster.shows(r#"warmkey_turns_total{transport="http",outcome="cut"}"#, 2.0).await;
        let cut = json!({ "cut_after_events": 6, "reset": true, "times": 1 });
        cluster.upstream().fault(cut).await;
        let said = Chat::new(cluster.address(), ALICE).turn("hello").await;
        if upstream == RESPONSES {
            assert_eq!(said.answer.code(), "upstream_interrupted");
        } else {
            assert!(!said.answer.whole || said.answer.status == 503);
        }
    }
}

/// A response in one piece, with this status and error.
fn response(status: &str, error: &str) -> Vec<Step> {
    let body = format!(
        r#"{{"id":"resp_1","object":"response","created_at":5,"status":"{status}","model":"gpt-5.4","error":{error},"output":[{{"type":"message","content":[{{"type":"output_text","text":"hi"}}]}}],"usage":{{"input_tokens":9,"output_tokens":1,"total_tokens":10}}}}"#
    );
    vec![Step::Send(answer("200 OK", "content-type: application/json\r\n", body.as_bytes()))]
}

#[tokio::test]
async fn whole_answer_is_translated_with_its_status() {
    let failed = r#"{"code":"server_error","message":"m"}"#;
    for (steps, status) in [(response("completed", "null"), 200), (response("failed", failed), 500)]
    {
        let upstream = Recorder::answering(steps).await;
        let cluster = Cluster::new().upstream(RESPONSES).recorded_by(&upstream).start().await;
        let request = Request::turn(
            ALICE,
            r#"{"model":"gpt-5.4","messages":[{"role":"user","content":"x"}]}"#,
        )
        .target("/chat/completions")
        .header("accept-encoding", "gzip, br");
        let found = ask(cluster.address(), &request).await;
        assert_eq!(found.status, status, "{}", found.text());
        let length = found.body.len().to_string();
        assert_eq!(found.header("content-length"), Some(length.as_str()));
        let body = found.json();
        if status == 200 {
            assert_eq!(body["choices"][0]["message"]["content"], "hi");
        } else {
            assert_eq!(body["error"]["code"], "server_error");
        }
        let seen = upstream.only();
        assert_eq!(seen.line, "POST /v1/responses HTTP/1.1");
        assert_eq!(seen.header("accept-encoding"), Some("identity"));
        let sent: Value = serde_json::from_slice(&seen.body).expect("JSON");
        assert_eq!(sent["store"], json!(false));
        assert!(sent["prompt_cache_key"].as_str().is_some_and(|key| key.len() <= 64));
    }
}
