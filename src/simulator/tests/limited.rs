//! Rate limits as a client meets them: which requests are refused, and what each answer says of the
//! project's remaining limit.

use super::socket::{Socket, code, create};
use super::*;

/// The values of an answer's headers of these names, given without their `x-ratelimit-`.
fn limits<const N: usize>(answered: &Answered, names: [&str; N]) -> [String; N] {
    names.map(|name| {
        let value = answered.headers.get(format!("x-ratelimit-{name}"));
        value.map_or("nothing", |value| value.to_str().expect("text")).to_owned()
    })
}

#[tokio::test]
async fn limits_refuse_with_the_time_to_wait_and_a_faster_clock_waits_less() {
    let upstream =
        upstream_with(Config { requests_per_minute: 1, time_scale: 60.0, ..Config::default() })
            .await;
    let body = ask("gpt-5.4", &[user("hi")]);
    let first = upstream.post("a-1", &body).await;
    assert_eq!(
        (first.status, limits(&first, ["limit-requests", "remaining-requests"])),
        (200, ["1", "0"].map(String::from))
    );
    let reset = &limits(&first, ["reset-requests"])[0];
    assert!(
        reset == "1s" || reset.ends_with("ms"),
        "a minute of the upstream's is a second: {reset}"
    );
    let second = upstream.post("a-1", &body).await;
    assert_eq!(
        (
            second.status,
            second.error().as_str(),
            second.headers["retry-after"].to_str().expect("text")
        ),
        (429, "rate_limit_exceeded", "1")
    );
    assert_eq!(
        limits(&second, ["limit-requests", "remaining-requests"]),
        ["1", "0"].map(String::from)
    );
    assert_eq!(upstream.post("a-2", &body).await.status, 200);
}

#[tokio::test]
async fn project_may_be_limited_and_its_sibling_not() {
    let short = KeyConfig { requests_per_minute: Some(1), ..key("a-1", "org-a", "one") };
    let keys = vec![short, key("a-1b", "org-a", "one"), key("a-2", "org-a", "two")];
    let upstream = upstream_with(Config { key: keys, ..Config::default() }).await;
    let body = ask("gpt-5.4", &[user("hi")]);
    let mut statuses = Vec::new();
    for key in ["a-1", "a-1b", "a-2", "a-2"] {
        statuses.push(upstream.post(key, &body).await.status);
    }
    assert_eq!(statuses, [200, 429, 200, 200], "keys of one project share what it may");
    assert_eq!(
        upstream.post("a-1", &ask("gpt-5.5", &[user("hi")])).await.status,
        200,
        "another model has its own"
    );
}

#[tokio::test]
async fn request_larger_than_the_limit_is_told_so_and_not_to_come_back() {
    let upstream = upstream_with(Config { tokens_per_minute: 2000, ..Config::default() }).await;
    let large = upstream.post("a-1", &ask("gpt-5.4", &history())).await;
    assert_eq!((large.status, large.error().as_str()), (429, "rate_limit_exceeded"));
    assert!(
        large.text.contains("Request too large for gpt-5.4") && !large.text.contains("try again"),
        "{}",
        large.text
    );
    assert!(
        !large.headers.contains_key("retry-after") && !large.headers.contains_key("retry-after-ms")
    );
    assert_eq!(
        limits(&large, ["limit-tokens", "remaining-tokens"]),
        ["2000", "2000"].map(String::from)
    );
    assert_eq!(upstream.post("a-1", &ask("gpt-5.4", &[user("hi")])).await.status, 200);
}

#[tokio::test]
async fn refused_request_counts_and_tells_where_its_project_stands() {
    let upstream = upstream_with(Config { requests_per_minute: 4, ..Config::default() }).await;
    let body = ask("gpt-5.4", &[user("hi")]);
    let left = ["remaining-requests"];
    let invalid = upstream.post("a-1", &json!({"model": "gpt-5.4", "input": 5})).await;
    assert_eq!((invalid.status, limits(&invalid, left)), (400, ["3".into()]));
    upstream.fault(json!({"status": 500, "times": 1})).await;
    let scripted = upstream.post("a-1", &body).await;
    assert_eq!(
        (scripted.status, limits(&scripted, left)),
        (500, ["nothing".into()]),
        "a script says all there is to say"
    );
    let answered = upstream.post("a-1", &body).await;
    assert_eq!(
        (answered.status, limits(&answered, left)),
        (200, ["1".into()]),
        "both of them counted"
    );
}

#[tokio::test]
async fn error_frame_says_when_to_come_back() {
    let upstream = upstream_with(Config { requests_per_minute: 1, ..Config::default() }).await;
    let mut socket = Socket::open(&upstream, "a-1").await;
    let request = create("gpt-5.4", None, &[user("hello")]);
    assert_eq!(socket.turn(&request).await["type"], "response.completed");
    let limited = socket.turn(&request).await;
    assert_eq!(code(&limited), (429, "rate_limit_exceeded"));
    let headers = &limited["headers"];
    assert_eq!(
        (&headers["x-ratelimit-limit-requests"], &headers["x-ratelimit-remaining-requests"]),
        (&json!("1"), &json!("0"))
    );
    let wait: u64 =
        headers["retry-after"].as_str().and_then(|text| text.parse().ok()).expect("whole seconds");
    assert!((50..=60).contains(&wait), "{headers}");
}
