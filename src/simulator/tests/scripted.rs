//! A client gets exactly what a script says: every header, page and word.

use super::socket::{Socket, code, create, with};
use super::*;

fn header<'a>(answered: &'a Answered, name: &str) -> Option<&'a str> {
    answered.headers.get(name).map(|value| value.to_str().expect("text"))
}

#[tokio::test]
async fn retry_time_can_be_sent_in_every_form_or_in_none() {
    let upstream = upstream().await;
    let body = ask("gpt-5.4", &[user("hi")]);
    let limited = json!({"status": 429, "times": 1});
    upstream.fault(with(limited.clone(), json!({"retry_after": false}))).await;
    let silent = upstream.post("a-1", &body).await;
    assert_eq!((silent.status, silent.error().as_str()), (429, "rate_limit_exceeded"));
    let telling = |name: &str| name.starts_with("retry-after") || name.starts_with("x-ratelimit");
    assert!(
        !silent.headers.keys().any(|name| telling(name.as_str()))
            && !silent.text.contains("try again"),
        "{}",
        silent.text
    );

    upstream.fault(with(limited.clone(), json!({"retry_after_text": "soon"}))).await;
    assert_eq!(header(&upstream.post("a-1", &body).await, "retry-after"), Some("soon"));

    upstream
        .fault(with(limited.clone(), json!({"retry_after": 40, "retry_after_date": true})))
        .await;
    let dated = upstream.post("a-1", &body).await;
    assert!(
        header(&dated, "retry-after").is_some_and(|date| date.ends_with(" GMT"))
            && dated.text.contains("try again in 40s")
    );

    let headers =
        json!({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"});
    upstream.fault(with(limited, json!({"retry_after": false, "headers": headers}))).await;
    let answer = upstream.post("a-1", &body).await;
    assert_eq!(
        (header(&answer, "x-ratelimit-reset-requests"), header(&answer, "retry-after")),
        (Some("6m0s"), None)
    );

    // A served answer may also say that it was the last one for a while.
    upstream.fault(json!({"headers": {"x-ratelimit-remaining-requests": "0"}, "times": 1})).await;
    let last = upstream.post("a-1", &body).await;
    assert_eq!((last.status, header(&last, "x-ratelimit-remaining-requests")), (200, Some("0")));
    assert_eq!(
        header(&last, "x-ratelimit-limit-requests"),
        Some("120000"),
        "besides the usual headers"
    );
}

#[tokio::test]
async fn proxy_before_the_service_answers_with_a_page() {
    let upstream = upstream().await;
    for status in [500, 502, 504] {
        upstream
            .fault(json!({"status": status, "html": "<html>Bad gateway</html>", "times": 1}))
            .await;
        let page = upstream.post("a-1", &ask("gpt-5.4", &[user("hi")])).await;
        assert_eq!((page.status, page.text.as_str()), (status, "<html>Bad gateway</html>"));
        assert_eq!(header(&page, "content-type"), Some("text/html; charset=UTF-8"));
    }
}

#[tokio::test]
async fn refusal_has_the_type_and_the_code_of_the_real_one() {
    let upstream = upstream().await;
    for (status, named, code, kind) in [
        (401, None, "invalid_api_key", "invalid_request_error"),
        (401, Some("account_deactivated"), "account_deactivated", "invalid_request_error"),
        (403, None, "unsupported_country_region_territory", "request_forbidden"),
        (404, None, "model_not_found", "invalid_request_error"),
        (429, None, "rate_limit_exceeded", "tokens"),
        (429, Some("slow_down"), "slow_down", "rate_limit_error"),
        (429, Some("insufficient_quota"), "insufficient_quota", "insufficient_quota"),
        (
            429,
            Some("project_spend_limit_exceeded"),
            "project_spend_limit_exceeded",
            "insufficient_quota",
        ),
        (500, None, "server_error", "server_error"),
        (502, None, "server_error", "server_error"),
        (503, None, "server_is_overloaded", "service_unavailable_error"),
        (503, Some("slow_down"), "slow_down", "service_unavailable_error"),
        (504, None, "server_error", "server_error"),
    ] {
        let fault = json!({"status": status, "code": named, "times": 2});
        upstream.fault(fault.clone()).await;
        let refused = upstream.post("a-1", &ask("gpt-5.4", &[user("hi")])).await;
        let error = &refused.json()["error"];
        assert_eq!(
            (refused.status, &error["code"], &error["type"]),
            (status, &json!(code), &json!(kind)),
            "{fault}"
        );
        // The same as a frame.
        let mut socket = match status {
            401 => {
                upstream.simulator.clear_faults(&Scope::default());
                let socket = Socket::open(&upstream, "a-1").await;
                upstream.fault(fault.clone()).await;
                socket
            }
            _ => Socket::open(&upstream, "a-1").await,
        };
        let frame = socket.turn(&create("gpt-5.4", None, &[user("hi")])).await;
        assert_eq!((&frame["status"], &frame["error"]), (&json!(status), error), "{fault}");
        upstream.simulator.clear_faults(&Scope::default());
    }
}

#[tokio::test]
async fn stream_that_begins_well_can_end_in_a_limit_or_a_quota() {
    let upstream = upstream().await;
    for (named, text) in [
        ("rate_limit_exceeded", "Please try again in 7s."),
        ("insufficient_quota", "exceeded your current quota"),
    ] {
        upstream.fault(json!({"status": 200, "code": named, "retry_after": 7, "times": 2})).await;
        let failed = upstream.post("a-1", &ask("gpt-5.4", &[user("hi")])).await;
        let error = &failed.response()["error"];
        assert_eq!((failed.status, &error["code"]), (200, &json!(named)));
        assert!(error["message"].as_str().is_some_and(|message| message.contains(text)), "{error}");
        let mut socket = Socket::open(&upstream, "a-1").await;
        let event = socket.turn(&create("gpt-5.4", None, &[user("hi")])).await;
        assert_eq!(
            (&event["type"], &event["response"]["error"]),
            (&json!("response.failed"), error)
        );
    }
}

#[tokio::test]
async fn frame_and_handshake_carry_the_script() {
    let upstream = upstream().await;
    let request = create("gpt-5.4", None, &[user("hi")]);
    let mut socket = Socket::open(&upstream, "a-1").await;
    upstream.fault(json!({"status": 429, "retry_after": false, "times": 1})).await;
    let silent = socket.turn(&request).await;
    assert_eq!((code(&silent), silent.get("headers")), ((429, "rate_limit_exceeded"), None));
    upstream.fault(json!({"status": 429, "retry_after_text": "soon", "headers": {"x-odd": "1"}, "times": 1})).await;
    assert_eq!(
        socket.turn(&request).await["headers"],
        json!({"retry-after": "soon", "x-odd": "1"})
    );
    upstream.fault(json!({"at": "handshake", "headers": {"x-odd": "1"}, "times": 1})).await;
    assert_eq!(Socket::open(&upstream, "a-1").await.headers["x-odd"], "1");
}

#[tokio::test]
async fn key_can_be_healed_alone() {
    let upstream = upstream().await;
    let body = ask("gpt-5.4", &[user("hi")]);
    for key in ["a-1", "a-2"] {
        upstream.fault(json!({"key": key, "status": 401})).await;
    }
    let heal =
        |scope: Value| upstream.client.delete(upstream.url("/_sim/fault")).body(scope.to_string());
    assert_eq!(upstream.send(heal(json!({"key": "a-1"}))).await.status, 204);
    assert_eq!(
        (upstream.post("a-1", &body).await.status, upstream.post("a-2", &body).await.status),
        (200, 401)
    );
    assert_eq!(upstream.send(heal(json!({"kye": "a-2"}))).await.status, 400);
    assert_eq!(upstream.send(heal(json!({}))).await.status, 204);
    assert_eq!(upstream.post("a-2", &body).await.status, 200);
}
