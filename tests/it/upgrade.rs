//! Tests the handshake of a WebSocket: which client may connect, to which key, and how a refusal
//! reads.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::cluster::{ALICE, Cluster};
use crate::world::port;
use crate::world::recorder::{Recorder, Step, answer, completed as completed_http};
use crate::world::simulator::siblings;
use crate::world::socket::{Refused, Upstream, create, head, open, open_with, session, turn};
use crate::world::waiting::{SOON, ms, within};
use crate::world::wire::{Request, ask, value, values};

async fn refused(
    cluster: &crate::world::cluster::Running,
    token: &str,
    headers: &[(&str, &str)],
) -> Refused {
    open(cluster.address(), token, headers).await.err().expect("it is refused")
}

#[tokio::test]
async fn handshake_reaches_the_upstream_with_the_keys_identity() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new().upstream_at(&upstream.url()).start().await;
    let sent = [
        ("session-id", "s"),
        ("x-codex-turn-metadata", r#"{"model":"gpt-5.4"}"#),
        ("x-codex-turn-state", "opaque"),
        ("x-new-header", "one"),
        ("x-new-header", "two"),
        ("cookie", "canary"),
        ("openai-organization", "canary"),
        ("sec-websocket-protocol", "openai-insecure-api-key.canary"),
        ("x-forwarded-for", "canary"),
    ];
    let request = head("/v1/responses?client_version=1", ALICE, &sent);
    let opening = open_with(cluster.address(), &request, b"");
    let there = async {
        let asked = upstream.asked().await;
        assert_eq!(asked.line, "GET /v1/responses?client_version=1 HTTP/1.1");
        assert!(asked.key().starts_with("sk-canary-org-a-"), "{:?}", asked.headers);
        for (name, expected) in [
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-version", "13"),
            ("openai-beta", "responses_websockets=2026-02-06"),
            (
                "user-agent",
                "codex_exec/0.169.0 (Debian 12.0.0; x86_64) unknown (codex_exec; 0.169.0)",
            ),
            ("session-id", "s"),
            ("x-codex-turn-metadata", r#"{"model":"gpt-5.4"}"#),
            ("x-codex-turn-state", "opaque"),
        ] {
            assert_eq!(values(&asked.headers, name), [expected], "{name}");
        }
        assert_eq!(values(&asked.headers, "x-new-header"), ["one", "two"]);
        assert!(!format!("{:?}", asked.headers).contains("canary\""), "{:?}", asked.headers);
        for own in [
            "sec-websocket-extensions",
            "sec-websocket-protocol",
            "content-length",
            "transfer-encoding",
        ] {
            assert_eq!(value(&asked.headers, own), None, "{own}");
        }
        assert_ne!(value(&asked.headers, "sec-websocket-key"), Some("aMgmqkQqgExh1/SCvQpsDA=="));
        let answered = "x-codex-turn-state: ts\r\nopenai-model: gpt-5.4\r\nx-models-etag: \"e\"\r\nx-reasoning-included: true\r\n\
            x-request-id: req_1\r\nset-cookie: canary\r\nopenai-organization: canary\r\n";
        asked.accept(answered).await
    };
    let (opened, mut there) = tokio::join!(opening, there);
    let (mut client, headers) = opened.expect("a WebSocket");
    for (name, expected) in [
        ("x-codex-turn-state", "ts"),
        ("openai-model", "gpt-5.4"),
        ("x-models-etag", "\"e\""),
        ("x-reasoning-included", "true"),
        ("x-request-id", "req_1"),
    ] {
        assert_eq!(value(&headers, name), Some(expected), "{name}");
    }
    assert!(value(&headers, "x-warmkey-turn").is_some());
    assert_eq!(value(&headers, "sec-websocket-extensions"), None, "compression is declined");
    assert!(!format!("{headers:?}").contains("canary"), "{headers:?}");
    turn(&mut client, &mut there, "resp_1").await;
}

#[tokio::test]
async fn frames_are_not_passed_on_before_the_upstream_has_accepted() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new().upstream_at(&upstream.url()).start().await;
    // This is a short text frame, masked with zeros, right after the handshake.
    let text = br#"{"type":"response.cancel"}"#;
    let early = [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0][..], text].concat();
    let request = head("/responses", ALICE, &[]);
    let there = async {
        let mut asked = upstream.asked().await;
        assert!(asked.rest.is_empty());
        let more = tokio::time::timeout(ms(300), asked.stream.read_u8()).await;
        assert!(more.is_err(), "and no byte comes before the answer");
        let mut there = asked.accept("").await;
        assert_eq!(there.text().await.as_bytes(), text);
    };
    let (opened, ()) = tokio::join!(open_with(cluster.address(), &request, &early), there);
    opened.expect("a WebSocket");

    // No bytes may follow a refusal: the upstream would read them as another request.
    let smuggled = "POST /v1/responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer x\r\ncontent-length: 0\r\n\r\n";
    let there = async {
        let mut asked = upstream.asked().await;
        asked
            .stream
            .write_all(b"HTTP/1.1 400 No\r\ncontent-length: 0\r\n\r\n")
            .await
            .expect("the answer is taken");
        let mut rest = asked.rest;
        let _ = tokio::time::timeout(ms(300), asked.stream.read_to_end(&mut rest)).await;
        assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
    };
    let (opened, ()) =
        tokio::join!(open_with(cluster.address(), &request, smuggled.as_bytes()), there);
    assert_eq!(opened.err().expect("it is refused").status, 400);
}

#[tokio::test]
async fn refused_key_is_left_before_the_client_sees_anything() {
    for (status, code) in [("401 Unauthorized", "invalid_api_key")] {
        let upstream = Upstream::start().await;
        let keys = [siblings("org-a", 1), siblings("org-b", 1)].concat();
        let cluster = Cluster::new().keys(keys).upstream_at(&upstream.url()).start().await;
        let there = async {
            let first = upstream.asked().await;
            let key = first.key();
            first.refuse(status, code).await;
            let second = upstream.asked().await;
            assert_ne!(second.key(), key);
            second.accept("").await
        };
        let (mut client, mut there) = tokio::join!(session(cluster.address(), ALICE, "s"), there);
        turn(&mut client, &mut there, "resp_1").await;
        cluster.replica().shows(r#"warmkey_bindings_total{result="rebound"}"#, 1.0).await;
    }
}

#[tokio::test]
async fn client_is_told_when_to_come_again_where_no_key_is_left() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new().upstream_at(&upstream.url()).start().await;
    let there = async {
        for _ in 0..2 {
            upstream.asked().await.refuse("401 Unauthorized", "invalid_api_key").await;
        }
    };
    let (refusal, ()) = tokio::join!(refused(&cluster, ALICE, &[("session-id", "s")]), there);
    assert_eq!((refusal.status, refusal.code().as_str()), (503, "no_key_available"), "{refusal:?}");
    assert!((1..=60).contains(&refusal.retry_after()));
    cluster
        .replica()
        .shows(r#"warmkey_turns_total{transport="websocket",outcome="unserved"}"#, 1.0)
        .await;
}

#[tokio::test]
async fn upstream_without_websocket_sends_codex_to_http() {
    for status in [
        "404 Not Found",
        "405 Method Not Allowed",
        "426 Upgrade Required",
        "200 OK",
        "301 Moved Permanently",
    ] {
        let upstream =
            Recorder::answering(vec![Step::Send(answer(status, "location: /x\r\n", b"{}"))]).await;
        let cluster = Cluster::new().recorded_by(&upstream).start().await;
        let refusal = refused(&cluster, ALICE, &[]).await;
        assert_eq!(
            (refusal.status, refusal.code().as_str()),
            (426, "websocket_not_supported"),
            "{status}"
        );
        assert_eq!(upstream.seen().len(), 1);
    }
    let upstream = Recorder::answering(completed_http()).await;
    let cluster =
        Cluster::new().recorded_by(&upstream).upstream("speaks = [\"responses\"]").start().await;
    assert_eq!(refused(&cluster, ALICE, &[]).await.status, 426);
    assert!(upstream.seen().is_empty(), "the upstream is not asked");
    let body = r#"{"model":"gpt-5.4","input":"x"}"#;
    assert_eq!(
        ask(cluster.address(), &Request::turn(ALICE, body)).await.status,
        200,
        "and goes on over HTTP"
    );
}

#[tokio::test]
async fn other_refusals_pass_or_say_when_to_come_again() {
    for (status, code, own, waits) in [
        (400, "invalid_value", "invalid_value", None),
        (429, "rate_limit_exceeded", "no_key_available", Some(20)),
        (503, "server_is_overloaded", "no_key_available", Some(5)),
    ] {
        let upstream = Upstream::start().await;
        let cluster = Cluster::new().upstream_at(&upstream.url()).start().await;
        let line = format!("{status} X");
        // A limit of handshakes says nothing about another key, so that key is asked, too.
        let keys = if status == 429 { 2 } else { 1 };
        let there = async {
            for _ in 0..keys {
                upstream.asked().await.refuse(&line, code).await;
            }
        };
        let (refusal, ()) = tokio::join!(refused(&cluster, ALICE, &[]), there);
        let expected = if own == code { status } else { 503 };
        assert_eq!((refusal.status, refusal.code().as_str()), (expected, own));
        let stated = refusal
            .headers
            .iter()
            .find(|(name, _)| name == "retry-after")
            .and_then(|(_, value)| value.parse::<u64>().ok());
        assert_eq!(stated, waits, "{code}");
    }
}

#[tokio::test]
async fn upstream_that_answers_no_handshake_is_unreachable() {
    let cluster = Cluster::new().upstream_at(&format!("http://{}/v1", port::free())).start().await;
    assert_eq!(refused(&cluster, ALICE, &[]).await.code(), "upstream_unreachable");

    let upstream = Upstream::start().await;
    let cluster = Cluster::new().upstream_at(&upstream.url()).start().await;
    for wrong in ["upgrade: websocket\r\nsec-websocket-accept: x", "upgrade: h2c", "x: y"] {
        let there = async {
            let mut asked = upstream.asked().await;
            let head = format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\n{wrong}\r\n\r\n"
            );
            asked.stream.write_all(head.as_bytes()).await.expect("the answer is taken");
            asked
        };
        let (refusal, _asked) = tokio::join!(refused(&cluster, ALICE, &[]), there);
        assert_eq!(
            (refusal.status, refusal.code().as_str()),
            (502, "upstream_unreachable"),
            "{wrong}"
        );
    }
    let gone = async { drop(upstream.asked().await) };
    let (refusal, ()) = tokio::join!(refused(&cluster, ALICE, &[]), gone);
    assert_eq!((refusal.status, refusal.retry_after()), (503, 1));
}

#[tokio::test]
async fn stranger_reaches_no_upstream() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new().upstream_at(&upstream.url()).start().await;
    assert_eq!(refused(&cluster, "unknown", &[]).await.code(), "invalid_api_key");
    let query = head("/responses?api_key=canary", ALICE, &[]);
    assert_eq!(
        open_with(cluster.address(), &query, b"").await.err().expect("it is refused").status,
        401
    );
    for (wrong, status) in [
        ("sec-websocket-version: 13", 426),
        ("connection: Upgrade", 426),
        ("sec-websocket-key: aMgmqkQqgExh1/SCvQpsDA==", 400),
    ] {
        let request = head("/responses", ALICE, &[]).replace(&format!("{wrong}\r\n"), "");
        assert_eq!(
            open_with(cluster.address(), &request, b"").await.err().expect("it is refused").status,
            status,
            "{wrong}"
        );
    }
    assert_eq!(refused(&cluster, ALICE, &[("content-length", "5")]).await.status, 400);
    for target in ["/", "/v2/responses", "/chat/completions"] {
        let refusal = open_with(cluster.address(), &head(target, ALICE, &[]), b"")
            .await
            .err()
            .expect("it is refused");
        assert_eq!(refusal.code(), "unknown_url", "{target}");
    }
    assert!(!upstream.is_asked().await);
}

#[tokio::test]
async fn new_session_goes_where_websocket_is_spoken() {
    // Two upstreams: the second one is given behind the harness's own.
    let (deaf, upstream) = (Recorder::answering(completed_http()).await, Upstream::start().await);
    let more = format!(
        "speaks = [\"responses\"]\n[[upstream]]\nname = \"other\"\nbase_url = {:?}\n\
         [[key]]\nid = \"b-1\"\nupstream = \"other\"\norganization = \"org-b\"\nsecret = \"sk-canary-b\"\n",
        upstream.url()
    );
    let cluster = Cluster::new().recorded_by(&deaf).upstream(&more).start().await;
    for number in 0..6 {
        let name = format!("s{number}");
        let (mut client, mut there) =
            tokio::join!(session(cluster.address(), ALICE, &name), upstream.accept());
        turn(&mut client, &mut there, "resp_1").await;
    }
    // A session that began on an upstream without WebSocket stays there.
    let mut stays = 0;
    for number in 0..6 {
        let name = format!("h{number}");
        let request = Request::turn(ALICE, create(None)).header("session-id", &name);
        let seen = deaf.seen().len();
        let asking = ask(cluster.address(), &request);
        let there = async {
            tokio::select! {
                asked = upstream.asked() => {
                    asked.refuse("400 No", "invalid_value").await;
                    false
                }
                () = deaf.reached(seen + 1) => true,
            }
        };
        let (answer, begins_here) =
            within(SOON, "an answer", async { tokio::join!(asking, there) }).await;
        if begins_here {
            assert_eq!(answer.status, 200);
            stays += 1;
            assert_eq!(refused(&cluster, ALICE, &[("session-id", &name)]).await.status, 426);
        }
    }
    assert!(stays > 0, "some sessions begin at the first upstream");
}
