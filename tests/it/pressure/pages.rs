//! Tests requests of pages in a browser, and handshakes from which a proxy has removed parts.

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::socket::{Refused, Upstream, head, open, open_with};
use crate::world::wire::{Request, ask, value};

async fn refused(cluster: &Running, head: &str) -> Refused {
    open_with(cluster.address(), head, b"").await.err().expect("it is refused")
}

/// After a 426, Codex uses HTTP at once and for good. After a 404, it tries again and again.
#[tokio::test]
async fn handshake_that_a_proxy_took_apart_is_told_what_it_lacks() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new().upstream_at(&upstream.url()).start().await;
    let whole = head("/responses", ALICE, &[]);
    let (upgrade, connection) = ("upgrade: websocket\r\n", "connection: Upgrade\r\n");
    for (what, request) in [
        (
            "nginx without its two lines",
            whole.replace(upgrade, "").replace(connection, "connection: close\r\n"),
        ),
        ("no upgrade", whole.replace(upgrade, "")),
        ("no connection", whole.replace(connection, "")),
        ("HTTP/1.0", whole.replace("HTTP/1.1", "HTTP/1.0")),
        ("another version", whole.replace("sec-websocket-version: 13", "sec-websocket-version: 8")),
    ] {
        let refusal = refused(&cluster, &request).await;
        assert_eq!(
            (refusal.status, refusal.code().as_str()),
            (426, "websocket_not_supported"),
            "{what}"
        );
        assert_eq!(value(&refusal.headers, "upgrade"), Some("websocket"), "{what}");
        assert_eq!(value(&refusal.headers, "sec-websocket-version"), Some("13"), "{what}");
    }
    let plain = Request::new("GET", "/responses").bearer(ALICE);
    assert_eq!(ask(cluster.address(), &plain).await.code(), "unknown_url");
    assert!(!upstream.is_asked().await);
}

#[tokio::test]
async fn page_may_call_where_a_token_is_asked_for_and_only_there() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new().upstream_at(&upstream.url()).start().await;
    let opening = open(cluster.address(), ALICE, &[("origin", "https://evil.example")]);
    let (opened, _there) = tokio::join!(opening, upstream.accept());
    assert!(opened.is_ok(), "a bearer token is no browser's forgery");
    drop(opened);

    let cluster = Cluster::new().clients("").server("open", "true").start().await;
    let own = format!("http://{}", cluster.address());
    let turn = r#"{"model":"gpt-5.4","prompt_cache_key":"s","input":"hello"}"#;
    let post = || Request::new("POST", "/responses").body(turn);
    for (what, request) in [
        ("another origin", post().header("origin", "https://evil.example")),
        ("our own host, by a rebound name", post().header("origin", &own)),
        ("a sandbox", post().header("origin", "null")),
        ("a form", post().header("sec-fetch-site", "cross-site")),
        ("a question", Request::new("OPTIONS", "/responses").header("origin", &own)),
        ("another method", Request::new("GET", "/models").header("sec-fetch-site", "same-origin")),
    ] {
        let answer = ask(cluster.address(), &request).await;
        assert_eq!((answer.status, answer.code().as_str()), (403, "origin_not_allowed"), "{what}");
    }
    for name in ["evil.example", "localhost.evil.example:8080"] {
        let rebound = format!("GET /v1/models HTTP/1.1\r\nhost: {name}\r\n\r\n");
        assert_eq!(refused(&cluster, &rebound).await.status, 403, "{name}");
    }
    let page = head("/responses", "x", &[("origin", &own)]);
    assert_eq!(refused(&cluster, &page).await.status, 403);
    assert!(cluster.turns().await.is_empty());
    assert_eq!(ask(cluster.address(), &post()).await.status, 200, "no page");
}
