//! Headers that a real upstream must never see, and how a request must be framed.
//!
//! The simulator is stricter here than the real service, which would accept most of this. It
//! refuses a gateway's own headers, foreign credentials, and a body of unknown length. A refusal
//! with one of these codes is a fault of the gateway.

use http::{HeaderMap, HeaderName, header};

use super::refusal::Refusal;

/// Headers that belong to a hop or to a client, never to an upstream.
const FORBIDDEN: &[&str] = &[
    "yai-sticky-session",
    "cookie",
    "x-api-key",
    "x-goog-api-key",
    "chatgpt-account-id",
    "proxy-authorization",
];
const FORBIDDEN_PREFIX: &str = "x-warmkey-";
/// The credential of Azure's hosts, in place of `authorization`.
pub const API_KEY: HeaderName = HeaderName::from_static("api-key");

/// Every header name once, sorted.
pub fn names(headers: &HeaderMap) -> Vec<String> {
    let mut names: Vec<String> = headers.keys().map(|name| name.as_str().to_owned()).collect();
    names.sort_unstable();
    names
}

pub fn check(headers: &HeaderMap) -> Result<(), Refusal> {
    let leaked = headers
        .keys()
        .map(http::HeaderName::as_str)
        .find(|name| FORBIDDEN.contains(name) || name.starts_with(FORBIDDEN_PREFIX));
    if let Some(name) = leaked {
        return Err(leak(&format!("The header '{name}' must not reach an upstream.")));
    }
    if headers.contains_key(API_KEY) && headers.contains_key(header::AUTHORIZATION) {
        return Err(leak("Two credentials came: one of them is the client's."));
    }
    for name in [
        header::AUTHORIZATION,
        API_KEY,
        header::HOST,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
    ] {
        if headers.get_all(&name).iter().count() > 1 {
            return Err(leak(&format!("The header '{name}' came more than once.")));
        }
    }
    Ok(())
}

/// Checks that the body's length is known from the start. A handshake has no body.
pub fn framing(headers: &HeaderMap, is_handshake: bool) -> Result<(), Refusal> {
    let framing = |text: &str| Refusal::invalid(Some("simulator_framing"), None, text);
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(framing(
            "The body came with a transfer-encoding; its length was known to the client.",
        ));
    }
    let lengths: Vec<_> = headers.get_all(header::CONTENT_LENGTH).iter().collect();
    match lengths.as_slice() {
        [] if is_handshake => Ok(()),
        [length] if is_handshake && length.as_bytes() != b"0" => {
            Err(framing("A handshake came with a body."))
        }
        [length]
            if length.to_str().is_ok_and(|text| text.bytes().all(|byte| byte.is_ascii_digit())) =>
        {
            Ok(())
        }
        [] => Err(framing("The body came without a content-length.")),
        _ => Err(framing("The body came with an ambiguous content-length.")),
    }
}

fn leak(text: &str) -> Refusal {
    Refusal::invalid(Some("simulator_leak"), None, text)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(names: &[&'static str]) -> HeaderMap {
        names
            .iter()
            .map(|name| (HeaderName::from_static(name), HeaderValue::from_static("1")))
            .collect()
    }

    #[test]
    fn plain_request_passes() {
        assert_eq!(
            check(&headers(&[
                "authorization",
                "content-length",
                "session-id",
                "x-codex-window-id",
                "traceparent"
            ])),
            Ok(())
        );
    }

    #[test]
    fn headers_that_no_upstream_should_get_are_named() {
        for name in [
            "yai-sticky-session",
            "x-warmkey-hop",
            "x-warmkey-turn",
            "cookie",
            "x-api-key",
            "chatgpt-account-id",
        ] {
            let refusal = check(&headers(&["content-length", name])).expect_err(name);
            assert_eq!(refusal.code.as_deref(), Some("simulator_leak"));
            assert!(refusal.message.contains(name));
        }
        let twice = headers(&["content-length", "authorization", "authorization"]);
        assert_eq!(check(&twice).expect_err("twice").code.as_deref(), Some("simulator_leak"));
    }

    #[test]
    fn length_is_asked_for_once() {
        for wrong in [
            headers(&[]),
            headers(&["content-length", "transfer-encoding"]),
            headers(&["content-length", "content-length"]),
        ] {
            assert_eq!(
                framing(&wrong, false).expect_err("framing").code.as_deref(),
                Some("simulator_framing")
            );
        }
        assert_eq!(framing(&headers(&["content-length"]), false), Ok(()));
        assert_eq!(framing(&headers(&[]), true), Ok(()));
        assert!(framing(&headers(&["content-length"]), true).is_err(), "a handshake has no body");
    }
}
