//! Tests which headers pass, which are replaced, and which stay in the gateway.

use crate::world::cluster::{ALICE, Cluster};
use crate::world::fixtures::shapes;
use crate::world::recorder::{Recorder, Step, answer, completed};
use crate::world::wire::{Request, ask, values};

const BODY: &str = r#"{"model":"gpt-5.4","stream":true,"input":"prompt-canary"}"#;
const HOP: &str = "hop-canary-0123456789abcdefghijklmnopqrstuvwxyz";

#[tokio::test]
async fn headers_of_codex_pass_with_values_and_order() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    for (number, shape) in shapes().iter().enumerate() {
        let own = [
            ("openai-beta", "responses_websockets=2026-02-06"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("tracestate", "a=1"),
            ("x-codex-turn-state", "opaque=/+;token"),
            ("x-codex-routing-hint", "model=gpt-5.4;tier=fast"),
            ("x-openai-subagent", "collab_spawn"),
            ("x-codex-repeated", "first"),
            ("x-codex-repeated", "second, with a comma"),
            ("x-codex-repeated", "third"),
        ];
        let request = own
            .iter()
            .fold(shape.request(ALICE), |request, (name, value)| request.header(name, value));
        assert_eq!(ask(cluster.address(), &request).await.status, 200, "{}", shape.name);
        let seen = &upstream.seen()[number];
        for (name, value) in shape.headers.iter().filter(|(name, _)| name != "chatgpt-account-id") {
            assert!(
                values(&seen.headers, name).contains(&value.as_str()),
                "{}: {name} passes",
                shape.name
            );
        }
        for (name, value) in &own[..6] {
            assert!(values(&seen.headers, name).contains(value), "{}: {name} passes", shape.name);
        }
        assert_eq!(
            values(&seen.headers, "x-codex-repeated"),
            ["first", "second, with a comma", "third"]
        );
        assert_eq!(values(&seen.headers, "accept"), ["text/event-stream"], "nothing is added");
        assert_eq!(seen.header("accept-encoding"), None, "nothing is added");
    }
}

#[tokio::test]
async fn credentials_of_the_client_do_not_go_upstream() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let slots = [
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "cookie",
        "chatgpt-account-id",
        "openai-organization",
        "openai-project",
        "yai-sticky-session",
        "x-warmkey-hop",
        "proxy-authorization",
        "x-org",
        "x-project",
        "keep-alive",
        "te",
    ];
    let mut request = Request::turn(ALICE, BODY)
        .header("connection", "authorization, x-org")
        .header("connection", "x-project");
    for slot in slots {
        request = request.header(slot, "sent-canary");
    }
    assert_eq!(ask(cluster.address(), &request).await.status, 200);
    let seen = upstream.only();
    assert!(!format!("{:?}", seen.headers).contains("sent-canary"), "{:?}", seen.headers);
    let keys = values(&seen.headers, "authorization");
    assert!(
        matches!(keys[..], ["Bearer sk-canary-org-a-1" | "Bearer sk-canary-org-a-2"]),
        "the key's own secret: {keys:?}"
    );
    assert_eq!(
        values(&seen.headers, "host"),
        [upstream.url().trim_start_matches("http://").trim_end_matches("/v1")]
    );
    for name in slots {
        assert_eq!(values(&seen.headers, name), [""; 0], "{name} stays here");
    }
}

#[tokio::test]
async fn credential_slot_other_than_authorization_is_no_token() {
    let cluster = Cluster::new().start().await;
    for slot in ["x-goog-api-key", "cookie", "proxy-authorization"] {
        let answer = ask(
            cluster.address(),
            &Request::new("POST", "/responses").header(slot, ALICE).body(BODY),
        )
        .await;
        assert_eq!((answer.status, answer.code().as_str()), (401, "invalid_api_key"), "{slot}");
    }
}

#[tokio::test]
async fn credentials_of_the_upstream_do_not_reach_the_client() {
    let headers = "content-type: application/json\r\nset-cookie: a=sk-canary-1\r\nauthorization: Bearer sk-canary-org-a-1\r\n\
                   openai-organization: org-canary\r\nopenai-project: proj-canary\r\nx-api-key: sk-canary-2\r\nserver: canary\r\n\
                   x-echo-authorization: Bearer sk-canary-3\r\nwww-authenticate: canary\r\nproxy-authenticate: canary\r\n\
                   x-codex-turn-state: ts-1\r\nopenai-model: gpt-5.4\r\nx-models-etag: \"etag1\"\r\nx-reasoning-included: true\r\n\
                   x-request-id: req_upstream\r\nx-oai-request-id: req_oai\r\ncf-ray: ray1\r\nretry-after: 7\r\n\
                   x-codex-active-limit: primary\r\nx-codex-primary-used-percent: 12\r\nx-codex-primary-window-minutes: 300\r\n\
                   x-codex-primary-reset-at: 1795360814\r\nx-codex-secondary-used-percent: 3\r\nx-codex-limit-name: weekly\r\n\
                   x-codex-credits-has-credits: true\r\nx-codex-credits-unlimited: false\r\nx-codex-credits-balance: 9\r\n\
                   x-codex-promo-message: hello\r\nx-codex-rate-limit-reached-type: none\r\nx-openai-authorization-error: none\r\n\
                   x-error-json: {}\r\nx-codex-safety-buffering-enabled: false\r\n";
    let upstream = Recorder::answering(vec![Step::Send(answer("200 OK", headers, b"{}"))]).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let got = ask(cluster.address(), &Request::turn(ALICE, BODY)).await;
    assert!(!format!("{:?}", got.headers).contains("canary"), "{:?}", got.headers);
    let passing = headers
        .split("\r\n")
        .filter(|line| !line.contains("canary"))
        .filter_map(|line| line.split_once(": "));
    for (name, value) in passing {
        assert_eq!(values(&got.headers, name), [value], "{name} passes");
    }
}

#[tokio::test]
async fn answer_says_which_turn_it_is() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let mut turns = Vec::new();
    let requests = [
        Request::turn(ALICE, BODY),
        Request::turn(ALICE, "no JSON"),
        Request::turn("unknown", BODY),
        Request::new("POST", "/nowhere").bearer(ALICE),
        Request::turn(ALICE, BODY),
    ];
    for request in requests {
        let answer = ask(cluster.address(), &request).await;
        assert_eq!(values(&answer.headers, "x-request-id").len(), 1, "{answer:?}");
        turns.extend(values(&answer.headers, "x-warmkey-turn").into_iter().map(str::to_owned));
    }
    assert_eq!(turns.len(), 5, "one each: {turns:?}");
    assert!(
        turns
            .iter()
            .all(|turn| turn.len() == 32 && turn.bytes().all(|byte| byte.is_ascii_hexdigit())),
        "trace ids: {turns:?}"
    );
    turns.sort();
    turns.dedup();
    assert_eq!(turns.len(), 5, "each its own");
    // A `traceparent` from the client stays. Turns that share it have spans of their own.
    let traced = Request::turn(ALICE, BODY)
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let mut spans = Vec::new();
    for _ in 0..2 {
        let answer = ask(cluster.address(), &traced).await;
        let turn = answer.header("x-warmkey-turn").expect("the turn's id").to_owned();
        let (trace, span) = turn.split_once('-').expect("a trace and a span");
        assert_eq!((trace, span.len()), ("0af7651916cd43dd8448eb211c80319c", 16), "{turn}");
        spans.push(span.to_owned());
    }
    assert_ne!(spans[0], spans[1]);
}

#[tokio::test]
async fn hop_header_is_believed_only_beside_its_secret() {
    let upstream = Recorder::answering(completed()).await;
    let hop = format!("\n[hop]\nsecret = {HOP:?}\n");
    let clients = format!("{hop}[[client]]\nid = \"alice\"\ntoken = {ALICE:?}\n");
    let cluster = Cluster::new().recorded_by(&upstream).clients(&clients).start().await;
    let turn = |session: &str| {
        Request::turn(ALICE, BODY)
            .header("session-id", session)
            .header("YAI-Sticky-Session", "shared")
    };
    for (session, hop) in [("one", HOP), ("two", HOP), ("three", "wrong")] {
        assert_eq!(
            ask(cluster.address(), &turn(session).header("x-warmkey-hop", hop)).await.status,
            200
        );
    }
    // The first two share a binding; the third has its own.
    cluster.shows(r#"warmkey_bindings_total{result="created"}"#, 2.0).await;
    cluster.shows(r#"warmkey_bindings_total{result="existing"}"#, 1.0).await;
    let seen = upstream.seen();
    assert_eq!(seen.len(), 3);
    for seen in seen {
        assert_eq!((seen.header("yai-sticky-session"), seen.header("x-warmkey-hop")), (None, None));
    }
}
