//! The bytes of a chat turn towards an upstream that speaks chat, and the header by which upstreams
//! know sessions.

use super::RESPONSES;
use crate::world::cluster::{ALICE, Cluster};
use crate::world::codex::sha256;
use crate::world::recorder::{Recorder, Step, answer};
use crate::world::wire::{Request, ask};

/// A completion, as an upstream that speaks chat answers it.
fn completion() -> Vec<Step> {
    let body = r#"{"id":"chatcmpl-1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}"#;
    vec![Step::Send(answer("200 OK", "content-type: application/json\r\n", body.as_bytes()))]
}

#[tokio::test]
async fn missing_cache_key_alone_is_added_to_a_chat_body() {
    const FIELD: &str = r#""prompt_cache_key":"#;
    let bare =
        r#" {"model" : "gpt-5.4","messages":[{"role":"user","content":"caf\u00e9"}], "x":1.0e2}"#;
    let own = r#"{"prompt_cache_key":"own","model":"gpt-5.4","messages":[{"role":"user","content":"x"}]}"#;
    let null =
        r#"{"model":"gpt-5.4","prompt_cache_key":null,"messages":[{"role":"user","content":"x"}]}"#;
    let nobody = r#"{"model":"gpt-5.4","messages":[]}"#;
    for (options, body, is_spliced) in [
        ("", bare, true),
        ("cache_key = false", bare, false),
        ("", own, false),
        ("", null, false),
        // Nothing distinguishes this conversation from another one, so it gets no key.
        ("", nobody, false),
    ] {
        let upstream = Recorder::answering(completion()).await;
        let cluster = Cluster::new().upstream(options).recorded_by(&upstream).start().await;
        for target in ["/chat/completions", "/v1/chat/completions"] {
            let found = ask(cluster.address(), &Request::turn(ALICE, body).target(target)).await;
            assert_eq!(found.status, 200, "{}", found.text());
        }
        for seen in upstream.seen() {
            assert_eq!(seen.line, "POST /v1/chat/completions HTTP/1.1");
            let text = String::from_utf8(seen.body).expect("text");
            if is_spliced {
                let (before, rest) = text.split_once(FIELD).expect("a key");
                let (key, rest) = rest.split_once(',').expect("more fields");
                assert_eq!(format!("{before}{rest}"), body);
                assert!(key.len() <= 66 && key.len() > 10, "{key}");
            } else {
                assert_eq!(text, body);
            }
        }
    }
}

/// Bodies of a client that names its session in a header. `{KEY}`: the place where the gateway adds
/// the field.
const ODD: [&str; 20] = [
    "\r\n\t {{KEY},\"model\":\"m\",\"messages\":[]}\n\n \t",
    "{{KEY}}",
    " {{KEY} \n } ",
    r#"{{KEY},"model":"a","model":"m","messages":[],"messages":[{"role":"user","content":"x"}]}"#,
    r#"{{KEY}, "messages":[{"role":"user","content":"\"prompt_cache_key\":\"x\"","prompt_cache_key":"inner"}]}"#,
    r#"{{KEY},"metadata":{"prompt_cache_key":"of the metadata"},"tools":[{"prompt_cache_key":null}]}"#,
    r#"{{KEY},"x":"{\"prompt_cache_key\":1}","y":"prompt_cache_key"}"#,
    r#"{{KEY},"Prompt_cache_key":"a","prompt_cache_key ":"b","prompt_cache_key\u0000":"c","":"prompt_cache_key"}"#,
    r#"{"prompt_cache\u005fkey":"own","model":"m","messages":[]}"#,
    r#"{"model":"m","messages":[],"\u0070rompt\u005Fcache_ke\u0079" : "own"}"#,
    r#"{"prompt_cache_key":"a","model":"m","prompt_cache_key":"b"}"#,
    r#"{"prompt_cache_key":"a","model":"m","prompt_cache_key":null}"#,
    r#"{"model":"m","prompt_cache_key":null ,"messages":[]}"#,
    r#"{"prompt_cache_key":""}"#,
    r#"{"model":"m","prompt_cache_key":{"prompt_cache_key":7}}"#,
    "\n{ \"prompt_cache_key\" : [ ] } \r\n",
    " [] ",
    r#"[{"model":"m","messages":[]}]"#,
    r#""prompt_cache_key""#,
    "null",
];

#[tokio::test]
async fn odd_chat_body_gets_one_cache_key_and_keeps_every_other_byte() {
    const FIELD: &str = r#""prompt_cache_key":"warmkey-"#;
    let upstream = Recorder::answering(completion()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let posted = |body: &str| {
        let request = Request::turn(ALICE, body).target("/v1/chat/completions");
        request.header("session-id", "one")
    };
    let mut keys = std::collections::BTreeSet::new();
    for template in ODD {
        let body = template.replace("{KEY},", "").replace("{KEY}", "");
        let before = upstream.seen().len();
        let answer = ask(cluster.address(), &posted(&body)).await;
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
        let seen = &upstream.seen()[before];
        let text = std::str::from_utf8(&seen.body).expect("text");
        assert_eq!(seen.header("content-length"), Some(&text.len().to_string()[..]), "{body}");
        if !template.contains("{KEY}") {
            assert_eq!(text, body);
            continue;
        }
        let (_, rest) = text.split_once(FIELD).unwrap_or_else(|| panic!("a key: {text}"));
        let (name, _) = rest.split_once('"').expect("the key ends");
        assert_eq!(text, template.replace("{KEY}", &format!("{FIELD}{name}\"")));
        keys.insert(name.to_owned());
    }
    assert_eq!(keys.len(), 1, "one session: {keys:?}");
    // With a byte order mark, the body is not JSON (RFC 8259, section 8.1), and no rule could read
    // it.
    let sent = upstream.seen().len();
    for body in
        ["\u{feff}{\"model\":\"m\"}", "\u{a0}{\"model\":\"m\"}", "{\"model\":\"m\"}\u{feff}", ""]
    {
        let refused = ask(cluster.address(), &posted(body)).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "invalid_json"), "{body:?}");
    }
    assert_eq!(upstream.seen().len(), sent, "nothing went upstream");
}

#[tokio::test]
async fn encoded_chat_body_passes_as_it_is_and_is_translated() {
    let body = r#"{"model":"gpt-5.4","messages":[{"role":"user","content":"hello"}]}"#;
    let encoded = zstd::encode_all(body.as_bytes(), 1).expect("memory is enough");
    let request = Request::turn(ALICE, encoded.clone())
        .target("/chat/completions")
        .header("content-encoding", "zstd");
    let cluster = Cluster::new().start().await;
    assert_eq!(ask(cluster.address(), &request).await.status, 200);
    assert_eq!(cluster.turns().await[0].body_sha256, sha256(&encoded));
    let cluster = Cluster::new().upstream(RESPONSES).start().await;
    let found = ask(cluster.address(), &request).await;
    assert_eq!(found.status, 200, "{}", found.text());
}

#[tokio::test]
async fn session_header_is_derived_and_never_replaced() {
    const NAME: &str = "x-session-affinity";
    let options = format!("session_header = \"{NAME}\"");
    let upstream = Recorder::answering(completion()).await;
    let cluster =
        Cluster::new().upstream(&options).recorded_by(&upstream).replicas(2).redis().start().await;
    let sent = async |request: Request, replica: usize| {
        let before = upstream.seen().len();
        ask(cluster.replicas[replica].address(), &request).await;
        upstream.seen()[before].header(NAME).map(str::to_owned)
    };
    let chat = |text: &str| {
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#);
        Request::turn(ALICE, body).target("/chat/completions")
    };
    let first = sent(chat("a"), 0).await.expect("a derived header");
    assert_eq!(sent(chat("a"), 1).await.as_ref(), Some(&first), "on every replica");
    assert_ne!(sent(chat("b"), 0).await.expect("another session"), first);
    assert_eq!(sent(chat("a").header(NAME, "own"), 0).await.as_deref(), Some("own"));
    let turn = Request::turn(ALICE, r#"{"model":"m","input":"x"}"#);
    let named = sent(turn.clone().header("session-id", "s"), 0).await;
    assert!(named.is_some() && named == sent(turn.header("session-id", "s"), 1).await);
    assert_eq!(
        sent(Request::turn(ALICE, r#"{"model":"m","input":[]}"#), 0).await,
        None,
        "no session"
    );
}
