//! Tests of the facts that a scan finds in a body, and of the answer to every turn.

use super::*;
use crate::setting::Size;
use crate::turn::entry::ForeignIds;
use crate::turn::http::heavy_places::HEAVY;
use crate::turn::memory::BodyMemory;
use crate::turn::tests::gateway;
use http::header::CONTENT_ENCODING;

fn turns(gateway: Gateway) -> HttpTurns {
    let replay = Replay::new(Size(1 << 20), BodyMemory::new(Size(1 << 20)));
    HttpTurns {
        gateway: Arc::new(gateway),
        replay,
        propagation: None,
        tasks: Tasks::new(),
        heavy: Arc::new(HeavyPlaces::new(HEAVY)),
    }
}

/// Returns the glance at `text` in this encoding, or the error's code.
async fn seen(
    turns: &HttpTurns,
    client: &Client,
    text: &str,
    encoding: &'static str,
) -> Result<Glance, &'static str> {
    let headers = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(encoding))]);
    let bytes = if encoding == "zstd" {
        zstd::encode_all(text.as_bytes(), 1).unwrap()
    } else {
        text.into()
    };
    let body = turns.replay.read(http::Version::HTTP_11, Body::from(bytes)).await.unwrap();
    let asking = Asking { client, headers: &headers, by_chat: false };
    let glance = turns.glance(asking, &body, &Identity::default(), LIGHT);
    glance.map(|glance| glance.expect("a short text")).map_err(|error| error.code())
}

#[tokio::test]
async fn body_is_scanned_in_every_known_encoding() {
    let (mut turns, alice) = (turns(gateway(&[("a", "o", "p")])), Client::unrestricted("alice"));
    let text = r#"{"model":"m","store":false,"previous_response_id":"r","input":[{"encrypted_content":"x"}]}"#;
    for encoding in ["identity", "zstd"] {
        let glance = seen(&turns, &alice, text, encoding).await.unwrap();
        assert_eq!(
            (glance.model.as_str(), glance.previous.as_deref(), glance.is_unstored),
            ("m", Some("r"), true)
        );
        // An unencoded body stays available and is searched only when needed.
        assert_eq!(glance.is_sealed, (encoding == "zstd").then_some(true));
        let glance = seen(&turns, &alice, r#"{"input":"x"}"#, encoding).await.unwrap();
        assert_eq!(
            (glance.model.as_str(), glance.previous, glance.is_unstored, glance.needs_project),
            ("", None, false, false)
        );
        assert_eq!(glance.is_sealed, (encoding == "zstd").then_some(false));
        assert!(
            glance.identity.session.is_none() && glance.derived.is_some(),
            "no field names a session"
        );
        let glance = seen(&turns, &alice, r#"{"input":"x","prompt_cache_key":"k"}"#, encoding)
            .await
            .unwrap();
        assert!(glance.identity.session.is_some() && glance.derived.is_none());
        let conversation = r#"{"input":"x","conversation":"c"}"#;
        assert_eq!(
            seen(&turns, &alice, conversation, encoding).await.err(),
            Some("conversation_not_found")
        );
        assert_eq!(seen(&turns, &alice, "{", encoding).await.err(), Some("invalid_json"));
    }
    assert_eq!(seen(&turns, &alice, text, "br").await.err(), Some("invalid_request"));
    // An unreadable body may hold anything, also another client's id.
    let mut gateway = gateway(&[("a", "o", "p")]);
    gateway.entry.foreign_ids = ForeignIds::Pass;
    turns = self::turns(gateway);
    for unreadable in ["br", "zstd, gzip", "deflate"] {
        let refused = seen(&turns, &alice, text, unreadable).await.err();
        assert_eq!(refused, Some("invalid_request"), "{unreadable}");
    }
    let glance = seen(&turns, &alice, r#"{"conversation":{"id":"c"}}"#, "zstd").await.unwrap();
    assert!(glance.needs_project, "a conversation needs its session's project");
}

fn answered(id: Option<&'static str>) -> Response<Outgoing> {
    let mut response = Response::new(Outgoing::from(String::new()));
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, HeaderValue::from_static(id));
    }
    response
}

#[tokio::test]
async fn turn_that_panics_is_answered() {
    let id = TurnId::random();
    let response = catch_panic(id, async { panic!("a turn of a test") }).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()[TURN]),
        (500, &id.to_string().parse().unwrap())
    );
}

#[tokio::test]
async fn answer_has_its_upstreams_id_or_else_its_own() {
    let id = TurnId::random();
    for said in [Some("req_1"), None] {
        let response = catch_panic(id, async { answered(said) }).await;
        let own = id.to_string();
        let told =
            [TURN, REQUEST_ID].map(|name| response.headers()[name].to_str().unwrap().to_owned());
        assert_eq!(told, [own.clone(), said.map_or(own, str::to_owned)]);
    }
}
