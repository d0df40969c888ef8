//! Tests of which signal names the session of a turn.

use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn identify(client: &str, headers: &[(&'static str, &str)], body: &str) -> Identity {
    let identifier = Identifier::new(&Secret::new(SECRET), Some(Secret::new("hop-secret")));
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, value.parse().unwrap());
    }
    let client = ClientId::new(client);
    let by_headers = identifier.by_headers(&client, &map);
    if by_headers.session.is_some() {
        return by_headers;
    }
    let by_body = identifier.by_body(&client, &Peek::at(body.as_bytes()).unwrap());
    let session =
        by_body.session.or_else(|| identifier.identify_by_prefix(&client, body.as_bytes()));
    Identity { session, skipped: by_headers.skipped + by_body.skipped }
}

fn id(client: &str, headers: &[(&'static str, &str)], body: &str) -> String {
    identify(client, headers, body).session.unwrap().to_string()
}

#[test]
fn strongest_signal_wins() {
    let body = concat!(
        r#"{"prompt_cache_key":"k","client_metadata":{"session_id":"m"},"#,
        r#""conversation":"c","input":"hi"}"#
    );
    let all = [
        ("x-warmkey-hop", "hop-secret"),
        ("yai-sticky-session", "h"),
        ("session-id", "s"),
        ("conversation-id", "v"),
    ];
    let ids: Vec<_> =
        (0..=4).map(|weaker| id("a", all.get(weaker..).unwrap_or(&[]), body)).collect();
    assert_eq!(ids[1], ids[2], "a sticky id without the hop secret counts for nothing");
    assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 4);
    assert!(ids.iter().all(|id| id.len() == 22));
}

#[test]
fn identity_in_three_places_is_one_session() {
    let header = id("a", &[("session-id", "s")], "{}");
    assert_eq!(header, id("a", &[("session_id", "s")], "{}"));
    assert_eq!(header, id("a", &[], r#"{"prompt_cache_key":"s"}"#));
    assert_eq!(header, id("a", &[], r#"{"client_metadata":{"session_id":"s"}}"#));
    assert_ne!(header, id("a", &[("conversation-id", "s")], "{}"));
}

#[test]
fn equal_ids_of_two_clients_are_two_sessions() {
    assert_ne!(id("a", &[("session-id", "s")], "{}"), id("b", &[("session-id", "s")], "{}"));
    assert_ne!(id("a", &[], r#"{"input":"hi"}"#), id("b", &[], r#"{"input":"hi"}"#));
}

#[test]
fn response_is_its_clients_own_and_no_session() {
    let identifier = Identifier::new(&Secret::new(SECRET), None);
    let response = |client: &str, id: &str| {
        identifier.response(&ClientId::new(client), id).as_str().to_owned()
    };
    assert_eq!(response("a", "resp_1"), response("a", "resp_1"));
    assert_ne!(response("a", "resp_1"), response("b", "resp_1"));
    assert_ne!(response("a", "resp_1"), response("a", "resp_2"));
    assert_ne!(response("a", "resp_1"), id("a", &[("session-id", "resp_1")], "{}"));
    assert_eq!(response("a", "").len(), SessionId::LENGTH);
}

#[test]
fn malformed_signals_are_skipped_and_counted() {
    let long = "x".repeat(257);
    for wrong in ["", "two words", &long] {
        let identity = identify("a", &[("session-id", wrong), ("session_id", "s")], "{}");
        assert_eq!(
            (identity.session.map(|id| id.to_string()), identity.skipped),
            (Some(id("a", &[("session-id", "s")], "{}")), 1)
        );
    }
    assert_eq!(
        identify("a", &[], r#"{"prompt_cache_key":[],"conversation":"\u0000"}"#),
        Identity { session: None, skipped: 2 }
    );
}

#[test]
fn forged_hop_is_not_believed() {
    let plain = id("a", &[], r#"{"prompt_cache_key":"k"}"#);
    assert_eq!(
        plain,
        id(
            "a",
            &[("x-warmkey-hop", "wrong"), ("yai-sticky-session", "h")],
            r#"{"prompt_cache_key":"k"}"#
        )
    );
}

/// The signals from the strongest to the weakest. Each has a value of its own, and the session that
/// it names if it is the only signal.
#[test]
fn signals_stand_in_one_order() {
    let headers = [
        (HOP, "hop-secret"),
        (STICKY, "hop"),
        ("session-id", "first"),
        ("session_id", "second"),
        ("x-session-id", "third"),
        ("conversation-id", "fourth"),
        ("conversation_id", "fifth"),
    ];
    let fields = [
        r#""prompt_cache_key":"sixth""#,
        r#""client_metadata":{"session_id":"seventh"}"#,
        r#""conversation":{"id":"eighth"}"#,
        r#""model":"m","input":"hi""#,
    ];
    // The order of the fields varies, so that a field's place in the body decides nothing.
    let body = |from: usize| {
        format!("{{{}}}", fields[from..].iter().rev().copied().collect::<Vec<_>>().join(","))
    };
    let client = ClientId::new("a");
    let hasher = Hasher::new(&Secret::new(SECRET));
    let alone = |kind, value: &str| hasher.session(&client, kind, [value.as_bytes()]).to_string();
    let mut expected = vec![alone(SessionKind::Hop, "hop")];
    expected.extend(["first", "second", "third"].map(|value| alone(SessionKind::Session, value)));
    expected.extend(["fourth", "fifth"].map(|value| alone(SessionKind::Conversation, value)));
    // The two headers of an edge are one signal.
    for (number, expected) in expected.iter().enumerate() {
        let weaker = if number == 0 { &headers[..] } else { &headers[number + 1..] };
        assert_eq!(id("a", weaker, &body(0)), *expected, "{weaker:?}");
    }
    for (from, kind, value) in [
        (0, SessionKind::Session, "sixth"),
        (1, SessionKind::Session, "seventh"),
        (2, SessionKind::Conversation, "eighth"),
    ] {
        assert_eq!(id("a", &[], &body(from)), alone(kind, value), "{}", body(from));
    }
    let unnamed = body(3);
    let derived = stable_prefix(unnamed.as_bytes()).expect("there is a text");
    assert_eq!(
        id("a", &[], &unnamed),
        hasher.session(&client, SessionKind::Derived, derived).to_string()
    );
}

#[test]
fn weaker_signal_is_not_looked_at() {
    let skipped =
        |headers: &[(&'static str, &str)], body: &str| identify("a", headers, body).skipped;
    assert_eq!(
        skipped(&[("session-id", "s"), ("session_id", "two words"), ("conversation-id", "")], "{}"),
        0
    );
    assert_eq!(
        skipped(&[("session-id", "two words"), ("session_id", ""), ("conversation-id", "c")], "{}"),
        2
    );
    assert_eq!(
        skipped(
            &[],
            r#"{"prompt_cache_key":"","client_metadata":{"session_id":7},"conversation":"c"}"#
        ),
        2
    );
    // If a header is repeated, its first well-formed value counts.
    let twice = [("session-id", "two words"), ("session-id", "s"), ("session-id", "t")];
    assert_eq!(
        (id("a", &twice, "{}"), skipped(&twice, "{}")),
        (id("a", &[("session-id", "s")], "{}"), 1)
    );
}

#[test]
fn hop_is_told_from_what_stands_behind_it() {
    let hop = |sticky: &str| id("a", &[(HOP, "hop-secret"), (STICKY, sticky)], "{}");
    assert_eq!(hop("abc;parent=def"), hop("abc"));
    assert_ne!(hop("abc;parent=def"), hop("abd;parent=def"));
    // In other headers, a semicolon is an ordinary character.
    let session = |value: &str| id("a", &[("session-id", value)], "{}");
    assert_ne!(session("abc;parent=def"), session("abc"));
    // If the edge's header is malformed, the next signal counts.
    let identity =
        identify("a", &[(HOP, "hop-secret"), (STICKY, ";parent=def"), ("session-id", "s")], "{}");
    assert_eq!(
        (identity.session.map(|id| id.to_string()), identity.skipped),
        (Some(session("s")), 1)
    );
}

#[test]
fn hop_is_not_trusted_without_a_secret() {
    let (client, sticky) = (
        ClientId::new("a"),
        HeaderMap::from_iter([(STICKY.parse().unwrap(), "h".parse().unwrap())]),
    );
    for (secret, shown) in
        [(None, None), (None, Some("")), (Some("hop-secret"), None), (Some("hop-secret"), Some(""))]
    {
        let identifier = Identifier::new(&Secret::new(SECRET), secret.map(Secret::new));
        let mut headers = sticky.clone();
        headers.extend(
            shown.map(|shown| (http::HeaderName::from_static(HOP), shown.parse().unwrap())),
        );
        assert_eq!(
            identifier.by_headers(&client, &headers),
            Identity::default(),
            "{secret:?} {shown:?}"
        );
        assert_eq!(identifier.lineage(&client, &headers), Lineage::default());
    }
}

/// A fork finds its parent under the same ids that the parent's own turns have.
#[test]
fn parent_is_named_as_its_own_turns_name_it() {
    let identifier = Identifier::new(&Secret::new(SECRET), Some(Secret::new("hop-secret")));
    let client = ClientId::new("a");
    let lineage = |headers: &[(&'static str, &str)]| {
        let headers =
            headers.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap()));
        identifier.lineage(&client, &HeaderMap::from_iter(headers))
    };
    let forked = ("x-codex-turn-metadata", r#"{"forked_from_thread_id":"p"}"#);
    let thread =
        lineage(&[("session-id", "root"), ("thread-id", "p")]).thread.expect("a thread of its own");
    let parent =
        lineage(&[("session-id", "s"), ("thread-id", "s"), forked]).parent.expect("a fork");
    assert_eq!(parent.root.to_string(), id("a", &[("session-id", "p")], "{}"));
    assert_eq!(parent.thread, thread);
    // A sticky session's parent is a sticky session, and wins over what the client itself sends.
    let sticky = (STICKY, "s;parent=q");
    let parent = lineage(&[(HOP, "hop-secret"), sticky, forked]).parent.expect("a fork");
    assert_eq!(parent.root.to_string(), id("a", &[(HOP, "hop-secret"), (STICKY, "q")], "{}"));
    assert_eq!(
        parent.thread,
        lineage(&[("session-id", "root"), ("thread-id", "q")]).thread.expect("a thread")
    );
    // A forged sticky session does not win.
    let forged = lineage(&[(HOP, "wrong"), sticky, forked]).parent.expect("a fork");
    assert_eq!(forged.root.to_string(), id("a", &[("session-id", "p")], "{}"));
    assert_eq!(lineage(&[(HOP, "hop-secret"), (STICKY, "s")]), Lineage::default());
}

#[test]
fn value_that_a_client_sent_names_its_sessions() {
    let identifier = Identifier::new(&Secret::new(SECRET), None);
    let alice = ClientId::new("a");
    let named: Vec<_> =
        identifier.find_sessions(&alice, "s").iter().map(ToString::to_string).collect();
    let expected = ["session-id", "conversation-id"].map(|name| id("a", &[(name, "s")], "{}"));
    assert_eq!(named[..2], expected);
    assert!(identifier.find_sessions(&alice, "two words").is_empty());
}
