//! Tests of the fields and prefixes that a body yields.

use super::*;

fn text(text: &str) -> Field {
    Field::Text(text.into())
}

#[test]
fn routing_fields_are_found() {
    let peek = Peek::at(br#"{"model":"gpt-5.4","input":[{"prompt_cache_key":"inner"}],"prompt_cache_key":"k","client_metadata":{"a":1,"session_id":"s"},"conversation":{"id":"c"}}"#).unwrap();
    let expected = Peek {
        model: text("gpt-5.4"),
        model_place: Some((9, 18)),
        prompt_cache_key: text("k"),
        names_cache_key: true,
        session_id: text("s"),
        conversation: text("c"),
        ..Peek::default()
    };
    assert_eq!(peek, expected);
    assert_eq!(Peek::at(br#"{"conversation":"c"}"#).unwrap().conversation, text("c"));
}

#[test]
fn last_duplicate_field_wins() {
    assert_eq!(Peek::at(br#"{"model":"a","model":"b"}"#).unwrap().model, text("b"));
    assert_eq!(Peek::at(br#"{"mod\u0065l":"c","model\ud800":"d"}"#).unwrap().model, text("c"));
    assert_eq!(
        Peek::at(br#"{"prompt_cache_key":"a","prompt_cache_key":7}"#).unwrap().prompt_cache_key,
        Field::Malformed
    );
}

/// Upstreams differ in which duplicate of a field they read.
#[test]
fn duplicates_that_say_whose_content_is_reached_must_agree() {
    for (body, expected) in [
        (r#"{"previous_response_id":"resp_1","x":1,"previous_response_id":null}"#, true),
        (r#"{"previous_response_id":"a","previous\u005fresponse_id":"b"}"#, true),
        (r#"{"conversation":"a","conversation":{"id":"a"}}"#, true),
        (r#"{"conversation":{"id":"a","x":1,"i\u0064":"b"}}"#, true),
        (r#"{"conversation":{"id":"a","id":"a"}}"#, false),
        (r#"{"model":"a","model":"a","previous_response_id":null}"#, false),
        (r#"{"store":true,"store":false,"prompt_cache_key":1,"prompt_cache_key":2}"#, false),
        (r#"{"input":[{"model":"a","model":"b"}]}"#, false),
    ] {
        let references = Peek::at(body.as_bytes()).unwrap().references;
        assert_eq!(references.is_ambiguous, expected, "{body}");
        assert!(!references.names_two_models && !references.names_two_kinds, "{body}");
    }
    for (body, expected) in [
        (r#"{"service_tier":"default","service_ti\u0065r":"flex"}"#, true),
        (r#"{"service_tier":"flex","service_tier":null}"#, true),
        (r#"{"service_tier":"flex","service_tier":"flex"}"#, false),
        (r#"{"input":[{"service_tier":"flex","service_tier":"auto"}]}"#, false),
    ] {
        let references = Peek::at(body.as_bytes()).unwrap().references;
        assert_eq!(references.names_two_kinds, expected, "{body}");
    }
    for (body, expected) in [
        (r#"{"model":"a","m\u006fdel":"b"}"#, true),
        (r#"{"model":"a","model":"a"}"#, false),
        (r#"{"input":[{"model":"a","model":"b"}]}"#, false),
    ] {
        let references = Peek::at(body.as_bytes()).unwrap().references;
        assert_eq!(references.names_two_models, expected, "{body}");
    }
}

#[test]
fn field_of_another_type_is_malformed_not_fatal() {
    let peek = Peek::at(
        br#"{"model":7,"prompt_cache_key":[],"client_metadata":"x","conversation":{"id":{}}}"#,
    )
    .unwrap();
    let malformed = Field::Malformed;
    assert_eq!(
        peek,
        Peek {
            model: malformed.clone(),
            model_place: Some((9, 10)),
            prompt_cache_key: malformed.clone(),
            names_cache_key: true,
            session_id: Field::Absent,
            conversation: malformed,
            ..Peek::default()
        }
    );
    let null = Peek::at(br#"{"prompt_cache_key":null}"#).unwrap();
    assert_eq!(null, Peek { names_cache_key: true, ..Peek::default() });
}

#[test]
fn previous_response_of_any_type_is_an_id() {
    let id = |body: &[u8]| Peek::at(body).unwrap().previous_response_id.id().map(str::to_owned);
    assert_eq!(id(br#"{"previous_response_id":"resp_1"}"#).as_deref(), Some("resp_1"));
    assert_eq!(
        id(br#"{"previous\u005fresponse_id":"a","previous_response_id":"\u0062"}"#).as_deref(),
        Some("b")
    );
    for nothing in [
        &b"{}"[..],
        br#"{"previous_response_id":null}"#,
        br#"{"input":{"previous_response_id":"x"}}"#,
    ] {
        assert_eq!(id(nothing), None);
    }
    let long = format!(r#"{{"previous_response_id":"{}"}}"#, "x".repeat(LONGEST));
    for unknown in [
        br#"{"previous_response_id":7}"#,
        &br#"{"previous_response_id":"\ud800"}"#[..],
        long.as_bytes(),
    ] {
        assert_eq!(id(unknown).as_deref(), Some(""));
    }
}

#[test]
fn response_is_stored_unless_the_request_declines() {
    let is_unstored = |body: &[u8]| Peek::at(body).unwrap().is_unstored;
    assert!(
        is_unstored(br#"{"store" : false}"#) && is_unstored(br#"{"store":true,"store":false}"#)
    );
    for stored in
        [&b"{}"[..], br#"{"store":true}"#, br#"{"store":null}"#, br#"{"store":"false"}"#, b"[]"]
    {
        assert!(!is_unstored(stored));
    }
}

#[test]
fn json_of_any_kind_passes() {
    let deep = format!(r#"{{"input":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let bodies: [&[u8]; 9] = [
        b"[]",
        b" 7 ",
        b"\"text\"",
        b"null",
        b"{}",
        deep.as_bytes(),
        br#"{"n":[-0,1.0e2,123456789012345678901234567890,1E+400],"\ud800":"\udfff\u0000"}"#,
        b"{\"input\":\"\xff\xfe\"}",
        b"\r\n\t{ \"model\" : \"m\" }\n",
    ];
    for body in bodies {
        assert!(Peek::at(body).is_ok(), "{}", String::from_utf8_lossy(&body[..body.len().min(60)]));
    }
}

#[test]
fn text_that_is_not_json_fails() {
    for body in [
        "",
        "{",
        "{\"a\":1",
        "{\"a\":1}x",
        "{'a':1}",
        "{\"a\":01}",
        "{\"a\":NaN}",
        "{\"a\":1,}",
        "model=gpt",
        "{1:2}",
    ] {
        assert!(Peek::at(body.as_bytes()).is_err(), "{body}");
    }
}

#[test]
fn stable_prefix_stays_the_same_through_a_conversation() {
    let turn = |rest: &str| {
        format!(
            r#"{{"model":"m","tools":[{{"name":"t"}}],"input":[{{"role":"developer","content":"d"}},{{"role":"user","content":"u"}}{rest}]}}"#
        )
    };
    let (first, later) =
        (turn(""), turn(r#",{"role":"assistant","content":"a"},{"role":"user","content":"v"}"#));
    assert_eq!(stable_prefix(first.as_bytes()).unwrap(), stable_prefix(later.as_bytes()).unwrap());
    let other = first.replace(r#""u""#, r#""w""#);
    assert_ne!(stable_prefix(first.as_bytes()), stable_prefix(other.as_bytes()));
    for nothing in [
        r#"{}"#,
        r#"{"input":""}"#,
        r#"{"input":[]}"#,
        r#"{"input":[{"role":"assistant"}]}"#,
        r#"{"input":7}"#,
    ] {
        assert_eq!(stable_prefix(nothing.as_bytes()), None, "{nothing}");
    }
}

#[test]
fn prefix_of_thousands_of_parts_names_no_conversation() {
    for (count, expected) in [(4_000, true), (5_000, false)] {
        let greetings = r#"{"role":"assistant"},"#.repeat(count);
        let body = format!(r#"{{"input":[{greetings}{{"role":"user","content":"u"}}]}}"#);
        assert_eq!(stable_prefix(body.as_bytes()).is_some(), expected, "{count}");
    }
}

/// A difference in any of these parts makes another conversation.
#[test]
fn stable_prefix_has_every_part_that_distinguishes_conversations() {
    let body = |model: &str, instructions: &str, tools: &str, items: &[(&str, &str)]| {
        let items: Vec<_> = items
            .iter()
            .map(|(role, text)| format!(r#"{{"role":"{role}","content":"{text}"}}"#))
            .collect();
        format!(
            r#"{{"model":"{model}","instructions":"{instructions}","tools":[{tools}],"input":[{}]}}"#,
            items.join(",")
        )
    };
    let items = [("system", "s"), ("developer", "d"), ("user", "u")];
    let base = body("m", "i", "1", &items);
    let prefix = |body: &str| {
        stable_prefix(body.as_bytes())
            .map(|parts| parts.iter().map(|part| part.to_vec()).collect::<Vec<_>>())
    };
    let whole = prefix(&base).expect("there is a text");
    assert_eq!(whole, [&b"\"m\""[..], b"\"i\"", b"[1]", b"\"s\"", b"\"d\"", b"\"u\""]);
    for (what, other) in [
        ("model", body("n", "i", "1", &items)),
        ("instructions", body("m", "j", "1", &items)),
        ("tools", body("m", "i", "2", &items)),
        ("system text", body("m", "i", "1", &[("system", "x"), items[1], items[2]])),
        ("developer text", body("m", "i", "1", &[items[0], ("developer", "x"), items[2]])),
        ("one system text fewer", body("m", "i", "1", &items[1..])),
        ("user text", body("m", "i", "1", &[items[0], items[1], ("user", "x")])),
        // The same text, in another field.
        ("model for instructions", body("i", "m", "1", &items)),
    ] {
        assert!(prefix(&other).is_some_and(|other| other != whole), "{what}: {other}");
    }
    for more in [("user", "v"), ("assistant", "a"), ("developer", "x")] {
        assert_eq!(
            prefix(&body("m", "i", "1", &[items[0], items[1], items[2], more])),
            Some(whole.clone()),
            "{more:?}"
        );
    }
    // An input without a list is one text. Developer text alone makes no conversation.
    assert_eq!(prefix(r#"{"input":"u"}"#), Some(vec![vec![], vec![], vec![], b"\"u\"".to_vec()]));
    assert_ne!(prefix(r#"{"input":"u"}"#), prefix(r#"{"input":"v"}"#));
    assert_eq!(prefix(&body("m", "i", "1", &items[..2])), None);
    // Tools in the input.
    let lite = |tool: &str| {
        format!(
            r#"{{"input":[{{"role":"developer","tools":["{tool}"]}},{{"role":"user","content":"u"}}]}}"#
        )
    };
    assert!(prefix(&lite("a")).is_some() && prefix(&lite("a")) != prefix(&lite("b")));
}

#[test]
fn field_inside_a_field_is_read_like_one_at_the_top() {
    let at = |body: &str| Peek::at(body.as_bytes()).unwrap();
    let session = |metadata: &str| at(&format!(r#"{{"client_metadata":{metadata}}}"#)).session_id;
    assert_eq!(session(r#"{"session_id":"a","session_id":"\u0062"}"#), text("b"));
    assert_eq!(session(r#"{"x":{"session_id":"a"}}"#), Field::Absent);
    assert_eq!(
        (session(r#"{"session_id":null}"#), session("[]"), session("null")),
        (Field::Absent, Field::Absent, Field::Absent)
    );
    assert_eq!(session(r#"{"session_id":["a"]}"#), Field::Malformed);
    let conversation = |value: &str| at(&format!(r#"{{"conversation":{value}}}"#)).conversation;
    assert_eq!((conversation("{}"), conversation("null")), (Field::Absent, Field::Absent));
    assert_eq!(
        (conversation("7"), conversation(r#"{"id":7}"#)),
        (Field::Malformed, Field::Malformed)
    );
}

#[test]
fn field_is_read_up_to_a_length() {
    let key = |length: usize| {
        Peek::at(format!(r#"{{"prompt_cache_key":"{}"}}"#, "k".repeat(length)).as_bytes())
            .unwrap()
            .prompt_cache_key
    };
    assert_eq!(
        key(LONGEST - 2),
        text(&"k".repeat(LONGEST - 2)),
        "the longest value, with its quotes"
    );
    assert_eq!(key(LONGEST - 1), Field::Malformed);
}

#[test]
fn stable_prefix_of_chat_is_that_of_its_messages() {
    let body = |messages: &str| format!(r#"{{"messages":[{messages}],"model":"m"}}"#);
    let prefix = |messages: &str| {
        let body = body(messages);
        stable_prefix(body.as_bytes()).map(|parts| parts.concat())
    };
    let first = r#"{"role":"system","content":"s"},{"role":"user","content":"a"}"#;
    let later =
        format!(r#"{first},{{"role":"assistant","content":"b"}},{{"role":"user","content":"c"}}"#);
    assert!(prefix(first).is_some());
    assert_eq!(prefix(first), prefix(&later));
    assert_ne!(prefix(first), prefix(&first.replace("\"a\"", "\"b\"")));
    assert_ne!(prefix(first), prefix(&first.replace("\"s\"", "\"t\"")));
    assert_eq!(prefix(r#"{"role":"system","content":"s"}"#), None, "no user has spoken");
}

/// An assistant may greet before the first user message, in either dialect.
#[test]
fn stable_prefix_goes_through_a_greeting_to_the_first_user_text() {
    for name in ["messages", "input"] {
        let prefix = |items: &str| {
            let body = format!(r#"{{"model":"m","{name}":[{items}]}}"#);
            stable_prefix(body.as_bytes()).map(|parts| parts.concat())
        };
        let first = r#"{"role":"system","content":"s"},{"role":"assistant","content":"hi"},{"role":"user","content":"a"}"#;
        let later = format!(
            r#"{first},{{"role":"assistant","content":"b"}},{{"role":"user","content":"c"}}"#
        );
        let own = prefix(first).expect("a user has spoken");
        assert_eq!(own, b"\"m\"\"s\"\"hi\"\"a\"");
        assert_eq!(prefix(&later), Some(own.clone()));
        for (text, other) in [("\"a\"", "\"x\""), ("\"hi\"", "\"x\"")] {
            let other = prefix(&first.replace(text, other));
            assert!(other.is_some_and(|other| other != own));
        }
        assert_eq!(prefix(r#"{"role":"assistant","content":"hi"}"#), None);
        assert_eq!(prefix(r#"{"role":"tool","content":"x"},{"role":"user","content":"a"}"#), None);
    }
}
