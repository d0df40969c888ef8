//! Tests of tables of keys: how they are built, compared and replaced.

use super::*;
use crate::setting::{Secret, SecretSource};
use crate::wire::endpoint::Endpoint;

fn table(ids: &[&str]) -> Result<Table, String> {
    let upstream: UpstreamSettings =
        serde_json::from_str(r#"{"name":"openai","base_url":"https://api.openai.com/v1/"}"#)
            .unwrap();
    let keys: Vec<_> = ids
        .iter()
        .map(|id| KeySettings {
            id: (*id).into(),
            upstream: "openai".into(),
            organization: "org-a".into(),
            project: None,
            region: None,
            weight: 1,
            secret: SecretSource::Text(Secret::new("sk-1")),
        })
        .collect();
    Table::new(&[upstream], &keys)
}

#[test]
fn set_of_keys_has_one_fingerprint_whatever_its_order() {
    let print = |ids: &[&str]| table(ids).unwrap().fingerprint();
    assert_eq!(print(&["a", "b"]), print(&["b", "a"]));
    assert_ne!(print(&["a", "b"]), print(&["a"]));
    assert_ne!(print(&["a", "b"]), print(&["ab"]));
    assert_ne!(
        Table::sketch("a o 1 sk-a").fingerprint(),
        Table::sketch("a p 1 sk-a").fingerprint(),
        "another place"
    );
}

/// Pins the tags that other versions and replicas read. Another program computed them once.
#[test]
fn tags_and_fingerprint_are_the_same_in_every_version() {
    let table = Table::sketch("b o 2 sk-b, a o 1 sk-a");
    let key = &table.keys()[1];
    let tags = [key.tag, key.organization_tag, key.project_tag, key.shown_tag];
    assert_eq!(tags.map(|tag| tag.to_string()), ["LvuVKDJr", "dzXDLvEd", "O4NujpfZ", "1Z41-anE"]);
    assert_eq!(table.fingerprint(), "N32u9hcx");
}

#[test]
fn key_that_stays_as_it_is_stays_the_same_one() {
    let before = Table::sketch("a org-a 1 sk-a, b org-b 1 sk-b, c org-c 1 sk-c");
    let after = Table::sketch("c org-c 2 sk-c, b org-b 1 sk-new, a org-a 1 sk-a").keeping(&before);
    let is_kept = |id: &str| {
        let find = |table: &Table| table.keys().iter().find(|key| key.id == id).cloned().unwrap();
        Arc::ptr_eq(&find(&before), &find(&after))
    };
    assert_eq!([is_kept("a"), is_kept("b"), is_kept("c")], [true, false, false]);
    assert_eq!(after.keys().iter().map(|key| key.weight).collect::<Vec<_>>(), [2, 1, 1]);
    let moved = Table::sketch("a org-z 1 sk-a").keeping(&before);
    assert_eq!(moved.keys()[0].organization, "org-z", "the same secret in another place");
    assert!(!after.is_same(&before) && before.fingerprint() == after.fingerprint());
    let reordered =
        Table::sketch("b org-b 1 sk-b, c org-c 1 sk-c, a org-a 1 sk-a").keeping(&before);
    assert!(reordered.is_same(&before) && !reordered.is_same(&after));
    assert!(
        !Table::sketch("a org-a 1 sk-a, b org-b 1 sk-b").keeping(&before).is_same(&before),
        "one is gone"
    );
}

#[test]
fn key_is_replaced_when_its_upstream_changes() {
    let table = |options: &str| upstream(options).unwrap().1;
    let before = table(r#""base_url":"http://h""#);
    let is_kept = |options: &str| table(options).keeping(&before).is_same(&before);
    assert!(is_kept(r#""base_url":"http://h/""#));
    for changed in [
        "\"base_url\":\"http://i\"",
        "\"proxy\":\"http://p:1\"",
        "\"idle_timeout\":\"9s\"",
        "\"connect_timeout\":\"9s\"",
        "\"http2\":true",
    ] {
        let base = if changed.contains("base_url") { "" } else { r#""base_url":"http://h","# };
        assert!(!is_kept(&format!("{base}{changed}")), "{changed}");
    }
}

#[test]
fn turns_go_to_responses_below_the_base() {
    assert_eq!(
        table(&["a"]).unwrap().keys()[0].upstream.host.url(Endpoint::CreateResponse, None).as_str(),
        "https://api.openai.com/v1/responses"
    );
}

/// A table of one key at an upstream of these options.
fn upstream(options: &str) -> Result<(UpstreamSettings, Table), String> {
    let settings: UpstreamSettings =
        serde_json::from_str(&format!("{{\"name\":\"u\",{options}}}")).unwrap();
    let key: KeySettings = serde_json::from_str(
        r#"{"id":"a-1","upstream":"u","organization":"org-a","secret":"sk-canary"}"#,
    )
    .unwrap();
    let table = Table::new(std::slice::from_ref(&settings), &[key])?;
    Ok((settings, table))
}

#[test]
fn address_of_an_upstream_carries_no_credential() {
    for address in [
        "https://canary@h/v1",
        "https://user:canary@h/v1",
        "https://:canary@h/v1",
        "htps://user:canary@h/v1",
        "https://user:canary@:x/",
        "https://h/v1?api-key=canary",
        "https://h/v1#canary",
        "canary",
        "",
    ] {
        let fault = upstream(&format!("\"base_url\":{address:?}")).err().expect(address);
        assert!(
            fault.starts_with("upstream u: base_url: ") && !fault.contains("canary"),
            "{address}: {fault}"
        );
    }
}

#[test]
fn password_of_a_proxy_is_never_shown() {
    let (settings, table) =
        upstream(r#""base_url":"http://h","proxy":"http://user:canary@proxy:1""#).unwrap();
    assert!(!format!("{settings:?}{:?}", table.keys()).contains("canary"));
    let fault = upstream(r#""base_url":"http://h","proxy":"http://user:canary@proxy:x""#)
        .err()
        .expect("no port");
    assert!(fault.contains("proxy: ") && !fault.contains("canary"), "{fault}");
    let fault = upstream(r#""base_url":"http://h","proxy":{"env":"WARMKEY_NO_SUCH"}"#)
        .err()
        .expect("no variable");
    assert!(fault.contains("proxy: environment variable WARMKEY_NO_SUCH"), "{fault}");
}

#[test]
fn option_that_cannot_serve_is_refused_by_name() {
    for (options, expected) in [
        (r#""base_url":"http://h","speaks":["chat"]"#, "speaks: "),
        (r#""base_url":"http://h","speaks":[]"#, "speaks: "),
        (r#""base_url":"http://h","connect_timeout":"0s""#, "connect_timeout: "),
        (r#""base_url":"http://h","first_byte_timeout":"0s""#, "first_byte_timeout: "),
        (r#""base_url":"http://h","idle_timeout":"0s""#, "idle_timeout: "),
        (r#""base_url":"ftp://h""#, "base_url: "),
        (r#""base_url":"http://h","session_header":"two words""#, "session_header: "),
        (r#""base_url":"http://h","session_header":"Authorization""#, "session_header: "),
        (r#""base_url":"https://h","ca_file":"/no/such/file""#, "ca_file /no/such/file: "),
        (r#""base_url":"http://h","ca_file":"Cargo.toml""#, "ca_file: is for https"),
        (r#""base_url":"https://h","ca_file":"Cargo.toml""#, "ca_file Cargo.toml holds no PEM"),
    ] {
        let fault = upstream(options).err().expect(options);
        assert!(fault.starts_with(&format!("upstream u: {expected}")), "{options}: {fault}");
    }
    let (_, usual) = upstream(r#""base_url":"http://h""#).unwrap();
    let (_, silent) = upstream(r#""base_url":"http://h","speaks":["responses"]"#).unwrap();
    let speaks = |table: &Table| table.keys()[0].upstream.speaks_websocket;
    assert!(speaks(&usual) && !speaks(&silent));
    let chat = |table: &Table| table.keys()[0].upstream.speaks_chat;
    assert!(chat(&usual) && !chat(&silent));
}

#[test]
fn header_that_frames_or_identifies_names_no_session() {
    let table =
        |name: &str| upstream(&format!(r#""base_url":"http://h","session_header":{name:?}"#)).err();
    for name in [
        "Content-Encoding",
        "transfer-encoding",
        "upgrade",
        "accept-encoding",
        "api-key",
        "api_key",
        "openai-organization",
        "x-warmkey-hop",
        "yai-sticky-session",
        "x-forwarded-for",
        "sec-websocket-key",
    ] {
        let fault = table(name).expect(name);
        assert!(fault.starts_with("upstream u: session_header: "), "{name}: {fault}");
    }
    for name in ["x-session-affinity", "session-id", "X-Conversation"] {
        assert_eq!(table(name), None, "{name}");
    }
}

#[test]
fn key_names_an_upstream_that_is_there_and_has_a_name() {
    let upstream: UpstreamSettings =
        serde_json::from_str(r#"{"name":"u","base_url":"http://h"}"#).unwrap();
    let table = |upstreams: &[UpstreamSettings], change: fn(&mut KeySettings)| {
        let mut key = settings();
        change(&mut key);
        Table::new(upstreams, &[key]).err().unwrap_or_default()
    };
    let one = std::slice::from_ref(&upstream);
    assert_eq!(table(one, |_| ()), "");
    assert_eq!(table(&[upstream.clone(), upstream.clone()], |_| ()), "upstream: two are named u");
    assert_eq!(table(one, |key| key.upstream = "v".into()), "key a: there is no upstream v");
    for wrong in ["", "a b", "\u{e9}", "a\n"] {
        for fault in [
            Table::new(one, &[KeySettings { id: wrong.into(), ..settings() }]),
            Table::new(one, &[KeySettings { organization: wrong.into(), ..settings() }]),
        ] {
            assert!(fault.err().expect(wrong).contains("is not visible ASCII"), "{wrong:?}");
        }
    }
}

/// White space at an end would get lost in a header, and other characters could not be sent.
#[test]
fn key_secret_with_white_space_at_an_end_is_refused_and_not_shown() {
    for wrong in [
        "canary ", " canary", "canary\n", "\ncanary", "\tcanary", "can\tary", "can\nary",
        "can\0ary",
    ] {
        let secret = SecretSource::Text(Secret::new(wrong));
        let upstream: UpstreamSettings =
            serde_json::from_str(r#"{"name":"u","base_url":"http://h"}"#).unwrap();
        let fault =
            Table::new(&[upstream], &[KeySettings { secret, ..settings() }]).err().expect(wrong);
        let why = "the secret in the file has a control character, or white space at an end";
        assert_eq!(fault, format!("key a: secret: {why}"), "{wrong:?}");
    }
}

fn settings() -> KeySettings {
    serde_json::from_str(r#"{"id":"a","upstream":"u","organization":"o","secret":"sk-1"}"#).unwrap()
}

#[test]
fn table_without_a_key_or_with_a_repeated_id_is_refused() {
    assert!(table(&[]).is_err());
    assert!(table(&["a", "a"]).is_err_and(|why| why.contains("two have the id a")));
}

#[test]
fn idle_connections_of_all_pools_stay_within_what_is_kept_for_them() {
    for (kept, pools, idle) in [
        (16_384, 2, MAX_IDLE),
        (16_384, 64, 256),
        (384, 4, 96),
        (384, 1_000, MIN_IDLE),
        (1, 0, MIN_IDLE),
    ] {
        let each = idle_connections(kept, pools);
        assert_eq!(each, idle, "{kept} for {pools}");
        assert!(each == MIN_IDLE || each * pools <= kept, "{kept} for {pools}");
    }
    assert_eq!([Http2::Never, Http2::Offered, Http2::Always].map(pools_of), [1, 2, 2]);
}
