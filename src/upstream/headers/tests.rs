//! Tests each header by its name: whether it passes, is removed or is replaced.

use super::*;

fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), value.parse::<HeaderValue>().unwrap()))
        .collect()
}

fn names(headers: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn identity_of_the_hop_is_replaced() {
    let mut client = map(&[
        ("authorization", "Bearer wk-client"),
        ("user-agent", "codex_exec/0.169.0"),
        ("x-codex-window-id", "t:0"),
    ]);
    for name in [
        "x-api-key",
        "api-key",
        "cookie",
        "chatgpt-account-id",
        "openai-organization",
        "x-warmkey-hop",
        "x-forwarded-for",
        "host",
    ] {
        client.insert(name, HeaderValue::from_static("canary"));
    }
    let sent = outgoing(&client, false);
    assert_eq!(names(&sent), ["user-agent", "x-codex-window-id"]);
}

#[test]
fn nominated_header_stays_here_and_ours_does_not() {
    let client = map(&[
        ("connection", "authorization, X-Org , close"),
        ("authorization", "Bearer wk"),
        ("x-org", "1"),
    ]);
    assert_eq!(names(&outgoing(&client, false)), [""; 0]);
}

#[test]
fn nominated_header_stays_here_beside_what_is_no_name() {
    let mut client = map(&[("x-org", "1"), ("x-other", "2")]);
    client.insert("connection", HeaderValue::from_bytes(b"\xff, x-org").unwrap());
    assert_eq!(names(&outgoing(&client, false)), ["x-other"]);
}

#[test]
fn foreign_turn_state_stays_here() {
    let client = map(&[(TURN_STATE, "opaque")]);
    assert_eq!(outgoing(&client, false)[TURN_STATE], "opaque");
    assert!(!outgoing(&client, true).contains_key(TURN_STATE));
}

#[test]
fn repeated_names_keep_their_values_and_order() {
    let mut client = HeaderMap::new();
    for value in ["one", "two", "three"] {
        client.append("x-openai-thing", HeaderValue::from_static(value));
    }
    let sent = outgoing(&client, false);
    assert_eq!(sent.get_all("x-openai-thing").iter().collect::<Vec<_>>(), ["one", "two", "three"]);
}

#[test]
fn encoding_that_cannot_be_read_is_not_asked_for() {
    for (asked, kept) in [
        ("gzip, deflate, br, zstd", "gzip, zstd"),
        ("br;q=1.0, GZIP;q=0.8, *;q=0.1", "GZIP;q=0.8"),
        ("br, deflate", "identity"),
        ("*", "identity"),
        // If no coding has to go, the client's own bytes stay.
        ("gzip,identity;q=0", "gzip,identity;q=0"),
        ("", ""),
    ] {
        let mut headers = map(&[("accept-encoding", asked)]);
        keep_readable(&mut headers);
        assert_eq!(
            headers.get_all("accept-encoding").iter().collect::<Vec<_>>(),
            [kept],
            "{asked}"
        );
    }
    let mut twice = map(&[("accept-encoding", "br")]);
    twice.append("accept-encoding", HeaderValue::from_static("zstd"));
    keep_readable(&mut twice);
    assert_eq!(twice.get_all("accept-encoding").iter().collect::<Vec<_>>(), ["zstd"]);
    for (readable, kept) in [("gzip", "gzip"), ("br", "identity"), ("", "identity")] {
        let mut unreadable = map(&[("accept-encoding", readable)]);
        unreadable.append("accept-encoding", HeaderValue::from_bytes(b"br, \xff").unwrap());
        keep_readable(&mut unreadable);
        let sent: Vec<_> = unreadable.get_all("accept-encoding").iter().collect();
        assert_eq!(sent, [kept], "{readable}");
    }
    let mut none = map(&[]);
    keep_readable(&mut none);
    assert!(none.is_empty(), "nothing is added");
}

#[test]
fn headers_return_if_they_are_listed() {
    let upstream = map(&[
        ("content-type", "text/event-stream"),
        ("x-codex-turn-state", "s"),
        ("x-weekly-primary-used-percent", "7"),
        ("x-ratelimit-remaining-tokens", "9"),
        ("x-request-id", "Bearer sk-upstream"),
        ("set-cookie", "a=b"),
        ("openai-organization", "org"),
        ("authorization", "Bearer sk-upstream"),
    ]);
    let passed = returned(&upstream, &Secret::new("sk-upstream"));
    assert_eq!(
        names(&passed),
        [
            "content-type",
            "x-codex-turn-state",
            "x-ratelimit-remaining-tokens",
            "x-weekly-primary-used-percent"
        ]
    );
}

/// Each header is tested alone, because a test of all together could miss one.
#[test]
fn header_of_the_hop_stays_here() {
    for name in [
        "authorization",
        "proxy-authorization",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "x-amz-security-token",
        "ocp-apim-subscription-key",
        "cookie",
        "cookie2",
        "chatgpt-account-id",
        "openai-organization",
        "openai-project",
        "yai-sticky-session",
        "x-warmkey-hop",
        "x-warmkey-turn",
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "expect",
        "host",
        "content-length",
        "forwarded",
        "via",
        "x-real-ip",
        "true-client-ip",
        "cf-connecting-ip",
        "x-client-ip",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "sec-websocket-key",
        "sec-websocket-version",
        "sec-websocket-protocol",
        "sec-websocket-extensions",
    ] {
        let sent = outgoing(&map(&[(name, "canary"), ("user-agent", "u")]), false);
        assert_eq!(names(&sent), ["user-agent"], "{name}");
    }
}

/// Headers that Codex sends, that other clients send, and that no client sends yet.
#[test]
fn header_that_is_not_the_hops_passes() {
    for name in [
        "accept",
        "content-type",
        "content-encoding",
        "idempotency-key",
        "openai-beta",
        "originator",
        "origin",
        "session-id",
        "session_id",
        "thread-id",
        "conversation-id",
        "x-session-id",
        "traceparent",
        "tracestate",
        "user-agent",
        "version",
        "x-client-request-id",
        "x-codex-beta-features",
        "x-codex-parent-thread-id",
        "x-codex-routing-hint",
        "x-codex-turn-metadata",
        "x-codex-turn-state",
        "x-codex-window-id",
        "x-openai-internal-codex-responses-lite",
        "x-openai-subagent",
        "x-stainless-lang",
        "x-never-heard-of",
        // These names only begin like names that stay here.
        "x-forwarded",
        "x-warmkey",
        "sec-fetch-mode",
        "cookie3",
        "x-api-keys",
    ] {
        let sent = outgoing(&map(&[(name, "1, 2 ;x")]), false);
        assert_eq!(
            (sent.len(), sent.get(name).map(HeaderValue::as_bytes)),
            (1, Some(&b"1, 2 ;x"[..])),
            "{name}"
        );
    }
}

#[test]
fn header_is_nominated_by_any_line_in_any_case() {
    let mut client = map(&[
        ("connection", "X-One,,x-two"),
        ("x-one", "1"),
        ("x-two", "2"),
        ("x-three", "3"),
        ("x-four", "4"),
    ]);
    client.append("connection", HeaderValue::from_static("\tx-Three "));
    client.append("connection", HeaderValue::from_bytes(b"x-four \xff").unwrap());
    let sent = outgoing(&client, false);
    assert_eq!(names(&sent), ["x-four"], "a value that is no text nominates nothing");
    // A name in `Connection` removes its own header, and no similar one.
    let client = map(&[("connection", "x"), ("x-one", "1")]);
    assert_eq!(names(&outgoing(&client, false)), ["x-one"]);
}

#[test]
fn credential_is_the_secret_and_nothing_else() {
    let value = secret_value("Bearer ", &Secret::new("sk-1")).expect("a header can carry it");
    assert!(value == "Bearer sk-1" && value.is_sensitive());
    // The client's credential is never sent, even if the gateway has none to send.
    assert_eq!(secret_value("", &Secret::new("sk\n1")), None);
    assert!(outgoing(&map(&[("authorization", "Bearer wk-client")]), false).is_empty());
}

#[test]
fn handshake_is_for_a_plain_websocket() {
    let client = map(&[
        ("upgrade", "h2c"),
        ("sec-websocket-key", "client"),
        ("sec-websocket-extensions", "permessage-deflate"),
    ]);
    let sent = upgrading(outgoing(&client, false), "nonce");
    assert_eq!(
        names(&sent),
        ["connection", "sec-websocket-key", "sec-websocket-version", "upgrade"]
    );
    let found = ["connection", "upgrade", "sec-websocket-version", "sec-websocket-key"]
        .map(|name| &sent[name]);
    assert_eq!(found, ["Upgrade", "websocket", "13", "nonce"]);
}

#[test]
fn header_of_an_answer_returns_if_it_is_listed() {
    let returns = |name: &'static str| {
        !returned(&map(&[(name, "7")]), &Secret::new("sk-upstream")).is_empty()
    };
    for name in [
        "age",
        "cache-control",
        "cf-ray",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-length",
        "content-type",
        "date",
        "etag",
        "expires",
        "last-modified",
        "openai-model",
        "openai-processing-ms",
        "openai-version",
        "retry-after",
        "retry-after-ms",
        "vary",
        "x-error-json",
        "x-models-etag",
        "x-oai-request-id",
        "x-reasoning-included",
        "x-request-id",
        "x-should-retry",
        "x-codex-active-limit",
        "x-codex-turn-state",
        "x-codex-credits-has-credits",
        "x-openai-authorization-error",
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-tokens",
        "x-stainless-x",
        "x-weekly-primary-used-percent",
        "x-weekly-secondary-window-minutes",
        "x-weekly-primary-reset-at",
        "x-weekly-limit-name",
        "x-weekly-primary-reset-after-seconds",
        "x-weekly-credits-has-credits",
        "x-weekly-credits-unlimited",
    ] {
        assert!(returns(name), "{name}");
    }
    for name in [
        "authorization",
        "connection",
        "keep-alive",
        "location",
        "openai-organization",
        "openai-project",
        "proxy-authenticate",
        "server",
        "set-cookie",
        "strict-transport-security",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "www-authenticate",
        "x-api-key",
        "x-warmkey-turn",
        // A suffix counts only at the end of a name that begins with `x-`.
        "weekly-limit-name",
        "x-weekly-limit-name-x",
    ] {
        assert!(!returns(name), "{name}");
    }
}

#[test]
fn secret_returns_in_no_header() {
    let upstream = |value: &str| map(&[("x-request-id", value)]);
    let returned =
        |value: &str, secret: &str| returned(&upstream(value), &Secret::new(secret)).len();
    for value in ["sk-upstream", "Bearer sk-upstream", "req-sk-upstream-1"] {
        assert_eq!(returned(value, "sk-upstream"), 0, "{value}");
    }
    for harmless in ["sk-upstrea", "SK-UPSTREAM", ""] {
        assert_eq!(returned(harmless, "sk-upstream"), 1, "{harmless}");
    }
    let mut twice = upstream("one");
    twice.append("x-request-id", HeaderValue::from_static("sk-upstream"));
    twice.append("x-request-id", HeaderValue::from_static("two"));
    let passed = super::returned(&twice, &Secret::new("sk-upstream"));
    assert_eq!(
        passed.get_all("x-request-id").iter().collect::<Vec<_>>(),
        ["one", "two"],
        "in their order"
    );
}

#[test]
fn session_is_named_unless_the_client_named_it() {
    let name = HeaderName::from_static("x-session-affinity");
    let session = SessionId::parse("FVm43fzVIvXqRQ8foYWpvg").unwrap();
    let mut sent = map(&[("session-id", "own")]);
    name_session(&mut sent, &name, &session);
    assert_eq!(sent["session-id"], "own");
    assert_eq!(sent[&name], derive_key(&session).as_str());
    let mut sent = map(&[("x-session-affinity", "own")]);
    name_session(&mut sent, &name, &session);
    assert!(sent[&name] == "own" && sent.len() == 1);
}

#[test]
fn version_of_the_models_is_hidden_from_a_client_with_a_list_of_its_own() {
    let all = Client::unrestricted("alice");
    let some = Client::of_models("bob", &["m"]);
    for (client, is_shown) in [(all, true), (some, false)] {
        let mut answer = HeaderMap::new();
        answer.insert("x-models-etag", HeaderValue::from_static("\"e\""));
        hide_models_version(&mut answer, &client);
        assert_eq!(answer.contains_key("x-models-etag"), is_shown);
    }
}
