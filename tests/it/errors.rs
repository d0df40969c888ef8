//! The gateway's own errors: their status and code, in OpenAI's shape.

use serde_json::json;

use crate::world::cluster::{ALICE, BOB, Cluster};
use crate::world::port;
use crate::world::recorder::{Recorder, Step, completed};
use crate::world::waiting::{SOON, within};
use crate::world::wire::{Answer, Connection, Request, ask};

const BODY: &str = r#"{"model":"gpt-5.4","prompt_cache_key":"s","stream":true,"input":"hello"}"#;

fn expect(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{}", answer.text());
    let error = &answer.json()["error"];
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
    assert!(error["type"].as_str().is_some_and(|class| !class.is_empty()), "{error}");
    assert_eq!(error.get("param"), Some(&json!(null)), "{error}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(
        answer.header("x-request-id").is_some() && answer.header("x-warmkey-turn").is_some(),
        "{:?}",
        answer.headers
    );
    assert!(answer.whole);
}

#[tokio::test]
async fn token_is_required() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let turn = || {
        Request::new("POST", "/v1/responses").header("content-type", "application/json").body(BODY)
    };
    let wrong = [
        turn(),
        turn().bearer("unknown"),
        turn().bearer(""),
        turn().header("authorization", ALICE),
        turn().header("authorization", &format!("Basic {ALICE}")),
        turn().bearer(ALICE).bearer(BOB),
        turn().bearer(ALICE).bearer("unknown"),
        turn().bearer(&ALICE[1..]),
        turn().bearer(&format!("{ALICE} {BOB}")),
    ];
    for request in wrong {
        expect(&ask(cluster.address(), &request).await, 401, "invalid_api_key");
    }
    assert!(upstream.seen().is_empty());
    // The scheme of `authorization` is case-insensitive.
    assert_eq!(
        ask(cluster.address(), &turn().header("authorization", &format!("bearer {ALICE}")))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn credential_in_the_url_is_refused_and_goes_nowhere() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    for query in ["key=canary", "a=1&api_key=canary", "ACCESS_TOKEN=canary"] {
        let request =
            Request::new("POST", &format!("/v1/responses?{query}")).bearer(ALICE).body(BODY);
        expect(&ask(cluster.address(), &request).await, 401, "invalid_api_key");
    }
    assert!(upstream.seen().is_empty() && !cluster.logs().contains("canary"));
    let request = Request::new("POST", "/v1/responses?client_version=1").bearer(ALICE).body(BODY);
    assert_eq!(ask(cluster.address(), &request).await.status, 200);
    assert!(
        upstream.seen()[0].line.contains("/responses?client_version=1 "),
        "{}",
        upstream.seen()[0].line
    );
}

#[tokio::test]
async fn token_is_refused_before_the_body_is_read() {
    let cluster = Cluster::new().start().await;
    let mut connection = Connection::open(cluster.address()).await;
    let head = "POST /responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer unknown\r\ncontent-length: 60000000\r\n\r\n";
    connection.send_raw(head.as_bytes()).await.expect("the head is taken");
    let mut answer =
        within(SOON, "an answer to the head alone", connection.head()).await.expect("an answer");
    connection.finish(&mut answer).await;
    expect(&answer, 401, "invalid_api_key");
}

#[tokio::test]
async fn token_may_be_known_by_its_hash_or_from_a_file() {
    let folder = crate::world::process::Folder::new();
    let file = folder.write("tokens", "carol token-of-carol\ndave token-of-dave\n");
    let hash = crate::world::codex::sha256(b"token-of-erin");
    let clients = format!(
        "[[client]]\nid = \"erin\"\ntoken_sha256 = {hash:?}\n[[client]]\ntoken_file = {:?}\n",
        file.display().to_string()
    );
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).clients(&clients).start().await;
    for (token, status) in [
        ("token-of-carol", 200),
        ("token-of-dave", 200),
        ("token-of-erin", 200),
        ("token-of-carl", 401),
        (&hash, 401),
    ] {
        assert_eq!(
            ask(cluster.address(), &Request::turn(token, BODY)).await.status,
            status,
            "{token}"
        );
    }
}

#[tokio::test]
async fn gateway_without_tokens_refuses_everybody() {
    let cluster = Cluster::new().clients("").start().await;
    expect(&ask(cluster.address(), &Request::turn(ALICE, BODY)).await, 401, "invalid_api_key");
}

#[tokio::test]
async fn open_gateway_asks_for_no_token() {
    let upstream = Recorder::answering(completed()).await;
    let cluster =
        Cluster::new().recorded_by(&upstream).clients("").server("open", "true").start().await;
    let request =
        Request::new("POST", "/responses").header("content-type", "application/json").body(BODY);
    assert_eq!(ask(cluster.address(), &request).await.status, 200);
}

#[tokio::test]
async fn client_may_be_limited_to_some_models() {
    let upstream = Recorder::answering(completed()).await;
    let clients =
        format!("[[client]]\nid = \"alice\"\ntoken = {ALICE:?}\nmodels = [\"gpt-5.4\"]\n");
    let cluster = Cluster::new().recorded_by(&upstream).clients(&clients).start().await;
    assert_eq!(ask(cluster.address(), &Request::turn(ALICE, BODY)).await.status, 200);
    let refused = [
        r#"{"model":"gpt-5.4-mini","input":"x"}"#,
        r#"{"input":"x"}"#,
        // Of two fields with the same name, the last one counts, as it does upstream.
        r#"{"model":"gpt-5.4","input":"x","model":"gpt-6"}"#,
        r#"{"model":"gpt-5.4","input":"x","\u006dodel":"gpt-6"}"#,
    ];
    for body in refused {
        expect(
            &ask(cluster.address(), &Request::turn(ALICE, body)).await,
            403,
            "model_not_allowed",
        );
    }
    let hidden = zstd::encode_all(refused[0].as_bytes(), 1).expect("memory is enough");
    let answer =
        ask(cluster.address(), &Request::turn(ALICE, hidden).header("content-encoding", "zstd"))
            .await;
    expect(&answer, 403, "model_not_allowed");
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn client_may_be_limited_to_some_organizations() {
    let upstream = Recorder::answering(completed()).await;
    let keys = [
        crate::world::simulator::siblings("org-a", 2),
        crate::world::simulator::siblings("org-b", 1),
    ]
    .concat();
    let clients =
        format!("[[client]]\nid = \"alice\"\ntoken = {ALICE:?}\norganizations = [\"org-b\"]\n");
    let cluster = Cluster::new().keys(keys).recorded_by(&upstream).clients(&clients).start().await;
    for session in 0..12 {
        let request = Request::turn(ALICE, BODY).header("session-id", &session.to_string());
        assert_eq!(ask(cluster.address(), &request).await.status, 200);
    }
    assert!(upstream.seen().iter().all(|seen| seen.key() == "sk-canary-org-b-1"));
}

#[tokio::test]
async fn other_urls_are_unknown() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let unknown = [
        ("POST", "/"),
        ("POST", "/nope"),
        ("POST", "/v2/responses"),
        ("POST", "/v1/v1/responses"),
        ("GET", "/responses"),
        ("PUT", "/v1/responses"),
        ("DELETE", "/v1/responses"),
        ("OPTIONS", "/responses"),
        ("TRACE", "/responses"),
        ("UNHEARD-OF", "/responses"),
        ("POST", "/v1/../responses"),
        ("POST", "/%72esponses"),
        ("GET", "/metrics"),
        ("GET", "/_sim/turns"),
    ];
    for (method, target) in unknown {
        let answer =
            ask(cluster.address(), &Request::new(method, target).bearer(ALICE).body(BODY)).await;
        expect(&answer, 404, "unknown_url");
    }
    for target in ["/responses", "/v1/responses", "/responses?a=b", "/responses/", "/v1//responses"]
    {
        assert_eq!(
            ask(cluster.address(), &Request::turn(ALICE, BODY).target(target)).await.status,
            200,
            "{target}"
        );
    }
    assert_eq!(upstream.seen().len(), 5);
}

/// Clients ask for the models to learn whether their token is accepted. This upstream has no list.
#[tokio::test]
async fn models_without_valid_token_are_401_and_without_a_list_502() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    for target in ["/models", "/v1/models", "/v1/models?client_version=1", "/models/"] {
        let get = || Request::new("GET", target);
        for request in [get(), get().bearer("unknown"), get().bearer(ALICE).bearer(BOB)] {
            expect(&ask(cluster.address(), &request).await, 401, "invalid_api_key");
        }
        expect(&ask(cluster.address(), &get().bearer(ALICE)).await, 502, "upstream_unreachable");
        for (token, status) in [("unknown", 401), (ALICE, 502)] {
            let url = format!("http://{}{target}", cluster.address());
            let client = reqwest::Client::builder().no_proxy().build().expect("a client is made");
            let head = client.head(&url).bearer_auth(token).send().await.expect("a head");
            assert_eq!(head.status(), status, "{target}");
        }
    }
    // Other methods, and paths that name no model, are unknown with or without a token.
    for (method, target) in [
        ("POST", "/v1/models"),
        ("DELETE", "/models"),
        ("GET", "/models/a%2"),
        ("POST", "/models/gpt-5.4"),
    ] {
        expect(&ask(cluster.address(), &Request::new(method, target)).await, 404, "unknown_url");
    }
}

#[tokio::test]
async fn models_of_an_open_gateway_need_no_token() {
    let cluster = Cluster::new().clients("").server("open", "true").start().await;
    let listed = ask(cluster.address(), &Request::new("GET", "/v1/models")).await;
    assert_eq!((listed.status, &listed.json()["object"]), (200, &"list".into()));
}

#[tokio::test]
async fn upstream_that_refuses_connections_is_unreachable() {
    let cluster = Cluster::new().upstream_at(&format!("http://{}/v1", port::free())).start().await;
    for _ in 0..3 {
        expect(
            &ask(cluster.address(), &Request::turn(ALICE, BODY)).await,
            502,
            "upstream_unreachable",
        );
    }
    // The fault is the host's, and never a key's.
    for key in ["org-a-1", "org-a-2"] {
        let ready = format!("warmkey_key_state{{key=\"{key}\",state=\"ready\"}}");
        assert_eq!(cluster.replica().metrics().await.get(&ready), 1.0, "{key}");
    }
}

#[tokio::test]
async fn upstream_that_never_answers_times_out_and_is_asked_once() {
    let upstream = Recorder::answering(vec![Step::Hold]).await;
    let cluster = Cluster::new()
        .recorded_by(&upstream)
        .upstream("first_byte_timeout = \"500ms\"")
        .start()
        .await;
    let answer =
        within(SOON, "an answer", ask(cluster.address(), &Request::turn(ALICE, BODY))).await;
    expect(&answer, 504, "upstream_timeout");
    upstream.left(0).await;
    assert_eq!(upstream.seen().len(), 1, "a turn that may have been served is never sent again");
}

#[tokio::test]
async fn connection_lost_after_the_body_is_not_resent() {
    for end in [Step::Close, Step::Reset] {
        let upstream =
            Recorder::answering(vec![Step::Pause(crate::world::waiting::ms(50)), end]).await;
        let cluster = Cluster::new().recorded_by(&upstream).start().await;
        let answer = ask(cluster.address(), &Request::turn(ALICE, BODY)).await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!((1..=60).contains(&answer.retry_after()));
        assert_eq!(
            upstream.seen().len(),
            1,
            "a turn that may have been served is never sent again"
        );
    }
}
