//! Tests of the facts that a scan finds in a body.

use axum::body::Body;
use http::HeaderValue;
use http::header::CONTENT_ENCODING;

use super::*;
use crate::setting::Size;
use crate::turn::entry::ForeignIds;
use crate::turn::memory::BodyMemory;
use crate::turn::tests::gateway;

/// Returns the glance at `text` in this encoding, or the error's code.
async fn seen(
    gateway: &Gateway,
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
    let replay = &Replay::new(Size(1 << 20), BodyMemory::new(Size(1 << 20)));
    let body = replay.read(&client.id, http::Version::HTTP_11, Body::from(bytes)).await.unwrap();
    let asking = Asking { gateway, replay, client, headers: &headers, by_chat: false };
    let glance = asking.glance(&body, &Identity::default(), LIGHT);
    glance.map(|glance| glance.expect("a short text")).map_err(|error| error.code())
}

#[tokio::test]
async fn body_is_scanned_in_every_known_encoding() {
    let alice = Client::unrestricted("alice");
    let mut gateway = gateway(&[("a", "o", "p")]);
    let text = r#"{"model":"m","store":false,"previous_response_id":"r","input":[{"encrypted_content":"x"}]}"#;
    for encoding in ["identity", "zstd"] {
        let glance = seen(&gateway, &alice, text, encoding).await.unwrap();
        assert_eq!(
            (glance.model.as_str(), glance.previous.as_deref(), glance.is_unstored),
            ("m", Some("r"), true)
        );
        // An unencoded body stays available and is searched only when needed.
        assert_eq!(glance.is_sealed, (encoding == "zstd").then_some(true));
        let glance = seen(&gateway, &alice, r#"{"input":"x"}"#, encoding).await.unwrap();
        assert_eq!(
            (glance.model.as_str(), glance.previous, glance.is_unstored, glance.needs_project),
            ("", None, false, false)
        );
        assert_eq!(glance.is_sealed, (encoding == "zstd").then_some(false));
        assert!(
            glance.identity.session.is_none() && glance.derived.is_some(),
            "no field names a session"
        );
        let glance = seen(&gateway, &alice, r#"{"input":"x","prompt_cache_key":"k"}"#, encoding)
            .await
            .unwrap();
        assert!(glance.identity.session.is_some() && glance.derived.is_none());
        let conversation = r#"{"input":"x","conversation":"c"}"#;
        assert_eq!(
            seen(&gateway, &alice, conversation, encoding).await.err(),
            Some("conversation_not_found")
        );
        assert_eq!(seen(&gateway, &alice, "{", encoding).await.err(), Some("invalid_json"));
    }
    assert_eq!(seen(&gateway, &alice, text, "br").await.err(), Some("invalid_request"));
    // A body that the gateway cannot read may hold anything, such as another client's id.
    gateway.entry.foreign_ids = ForeignIds::Pass;
    for unreadable in ["br", "zstd, gzip", "deflate"] {
        let refused = seen(&gateway, &alice, text, unreadable).await.err();
        assert_eq!(refused, Some("invalid_request"), "{unreadable}");
    }
    let glance = seen(&gateway, &alice, r#"{"conversation":{"id":"c"}}"#, "zstd").await.unwrap();
    assert!(glance.needs_project, "a conversation needs its session's project");
}
