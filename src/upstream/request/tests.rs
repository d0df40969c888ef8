//! Tests of requests as upstreams get them.

use http::header::{AUTHORIZATION, CONTENT_ENCODING};

use super::*;
use crate::key::table::Table;
use crate::setting::Secret;
use crate::wire::endpoint::StoredCall;

/// Returns the one key of an upstream with these options.
fn key(options: &str) -> std::sync::Arc<Key> {
    let upstream =
        serde_json::from_str(&format!(r#"{{"name":"u","base_url":"http://h/v1"{options}}}"#));
    let key = r#"{"id":"a","upstream":"u","organization":"o","secret":"sk-1"}"#;
    let table = Table::new(&[upstream.unwrap()], &[serde_json::from_str(key).unwrap()]).unwrap();
    std::sync::Arc::clone(&table.keys()[0])
}

/// Returns the request as it is sent with the key of an upstream with these options.
fn rendered(request: &Request<'_>, options: &str) -> reqwest::Request {
    request.for_key(&key(options), false, None).expect("every upstream can be asked this")
}

fn head(method: &str, target: &str) -> Parts {
    let request = http::Request::builder().method(method).uri(target);
    request.header("authorization", "Bearer wk").body(()).unwrap().into_parts().0
}

/// Reasoning may take minutes, but a client waits for a handshake only for seconds.
#[test]
fn handshake_is_waited_for_less_than_a_turn() {
    let head = head("POST", "/responses");
    let body = Bytes::new();
    let [turn, socket] = [Content::Body(&body), Content::WebSocket("nonce")]
        .map(|content| Request::new(&head, Endpoint::CreateResponse, content));
    for (configured, of_turn, of_socket) in [(600, 600, 10), (10, 10, 10), (3, 3, 3)] {
        let wait =
            |request: &Request<'_>| request.timeout(Duration::from_secs(configured)).as_secs();
        assert_eq!((wait(&turn), wait(&socket)), (of_turn, of_socket), "{configured}");
    }
}

#[test]
fn stored_response_is_asked_for_by_the_clients_own_method_and_query() {
    let head = head("GET", "/responses/resp_1?stream=true");
    let endpoint = Endpoint::Stored(StoredCall::Retrieve, "resp_1");
    let sent = rendered(&Request::new(&head, endpoint, Content::Nothing), "");
    assert_eq!(
        (sent.method().as_str(), sent.url().as_str(), sent.body().is_none()),
        ("GET", "http://h/v1/responses/resp_1?stream=true", true)
    );
}

#[test]
fn key_is_shown_in_the_header_that_its_host_wants() {
    let head = head("POST", "/responses");
    let body = Bytes::from_static(b"{}");
    let request = Request::new(&head, Endpoint::CreateResponse, Content::Body(&body));
    let bearer = rendered(&request, "");
    assert_eq!(bearer.headers()[AUTHORIZATION], "Bearer sk-1");
    assert!(!bearer.headers().contains_key("api-key"));
    let azure = rendered(&request, r#","credential":"api-key","query":"api-version=v1""#);
    assert!(azure.headers()["api-key"] == "sk-1" && azure.headers()["api-key"].is_sensitive());
    assert!(!azure.headers().contains_key(AUTHORIZATION), "nor is the client's token shown");
    assert_eq!(azure.url().as_str(), "http://h/v1/responses?api-version=v1");
}

#[test]
fn session_is_told_to_another_warmkey_alone() {
    let (head, secret) = (head("POST", "/responses"), Secret::new("hop-secret"));
    let body = Bytes::from_static(b"{}");
    let hop = Hop { session: "abc;parent=def".into(), secret: &secret };
    let request =
        Request::new(&head, Endpoint::CreateResponse, Content::Body(&body)).with_hop(Some(hop));
    let openai = rendered(&request, "");
    assert!(!openai.headers().keys().any(|name| name.as_str().contains("warmkey")));
    assert!(!openai.headers().contains_key("yai-sticky-session"));
    let inner = rendered(&request, r#","kind":"gateway""#);
    let told = |name: &str| inner.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(
        (told("yai-sticky-session").as_str(), told("x-warmkey-hop").as_str()),
        ("abc;parent=def", "hop-secret")
    );
    assert!(inner.headers()["x-warmkey-hop"].is_sensitive());
}

#[test]
fn model_is_renamed_only_where_an_operator_says_so() {
    let mut head = head("POST", "/responses");
    head.headers.insert(CONTENT_ENCODING, "zstd".parse().unwrap());
    let text = br#"{"input":"x","model":"gpt-5.4"}"#;
    let body = Bytes::from(zstd::encode_all(&text[..], 1).unwrap());
    let text = Bytes::from_static(text);
    let asked = AskedModel { model: "gpt-5.4", decoded: Some(&text), place: Some((21, 30)) };
    let request = Request::new(&head, Endpoint::CreateResponse, Content::Body(&body)).asking(asked);
    let sent = |options: &str| {
        let request = rendered(&request, options);
        let body = request.body().and_then(reqwest::Body::as_bytes).unwrap_or_default();
        (body.to_vec(), request.headers().contains_key(CONTENT_ENCODING))
    };
    assert_eq!(sent(""), (body.to_vec(), true));
    assert_eq!(sent(r#","models":{"gpt-5.5":"other"}"#), (body.to_vec(), true));
    assert_eq!(
        sent(r#","models":{"gpt-5.4":"ours"}"#),
        (br#"{"input":"x","model":"ours"}"#.to_vec(), false)
    );
}

#[test]
fn model_of_a_chat_body_is_renamed_in_each_dialect() {
    let mut head = head("POST", "/chat/completions");
    head.headers.insert(CONTENT_ENCODING, "zstd".parse().unwrap());
    let text = br#"{"model":"gpt-5.4","messages":[{"role":"user","content":"x"}]}"#;
    let own = Bytes::from(zstd::encode_all(&text[..], 1).unwrap());
    let chat = ChatBody::new(own.clone(), Some(Bytes::from_static(text)), None, false);
    let request = Request::new(&head, Endpoint::CreateChatCompletion, Content::Chat(&chat))
        .asking(AskedModel { model: "gpt-5.4", decoded: None, place: Some((9, 18)) });
    let sent = |options: &str| {
        let request = rendered(&request, options);
        let body = request.body().and_then(reqwest::Body::as_bytes).unwrap_or_default();
        let is_encoded = request.headers().contains_key(CONTENT_ENCODING);
        (body.to_vec(), request.url().path().to_owned(), is_encoded)
    };
    assert_eq!(sent(""), (own.to_vec(), "/v1/chat/completions".into(), true));
    let names = r#","models":{"gpt-5.4":"ours"}"#;
    let renamed = String::from_utf8_lossy(text).replace("gpt-5.4", "ours");
    assert_eq!(sent(names), (renamed.into_bytes(), "/v1/chat/completions".into(), false));
    let (body, path, is_encoded) = sent(&format!(r#"{names},"speaks":["responses"]"#));
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&body["model"], path.as_str()), (&"ours".into(), "/v1/responses"));
    assert!(!is_encoded && body["input"].is_array());
}

#[test]
fn digest_of_a_body_goes_only_with_that_body() {
    let mut head = head("POST", "/chat/completions");
    for name in ["content-digest", "content-md5"] {
        head.headers.insert(name, "x".parse().unwrap());
    }
    let own = Bytes::from_static(br#"{"model":"gpt-5.4","messages":[]}"#);
    let session = SessionId::parse("FVm43fzVIvXqRQ8foYWpvg").unwrap();
    let derived = ChatBody::new(own.clone(), None, Some(&session), false);
    let as_it_came = ChatBody::new(own.clone(), None, None, false);
    let names = r#","models":{"gpt-5.4":"ours"}"#;
    for (content, options, is_kept) in [
        (Content::Body(&own), "", true),
        (Content::Body(&own), names, false),
        (Content::Chat(&as_it_came), "", true),
        (Content::Chat(&as_it_came), names, false),
        (Content::Chat(&as_it_came), r#","speaks":["responses"]"#, false),
        (Content::Chat(&derived), "", false),
        (Content::Chat(&derived), r#","cache_key":false"#, true),
    ] {
        let request = Request::new(&head, Endpoint::CreateChatCompletion, content)
            .asking(AskedModel { model: "gpt-5.4", decoded: None, place: Some((9, 18)) });
        let sent = rendered(&request, options);
        for name in ["content-digest", "content-md5"] {
            assert_eq!(sent.headers().contains_key(name), is_kept, "{name}, {options}");
        }
    }
}
