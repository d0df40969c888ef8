//! Tests of errors: what clients and operators see of each.

use super::*;

#[test]
fn wait_is_whole_seconds_rounded_up() {
    for (wait, told) in [(0, 1), (1, 1), (999, 1), (1_000, 1), (1_001, 2), (45_000, 45)] {
        assert_eq!(whole_seconds(Duration::from_millis(wait)), told, "{wait} ms");
    }
}

/// Clients act on status and code. Operators act on the party at fault.
#[test]
fn error_has_its_status_code_and_party_at_fault() {
    let (request, server) = ("invalid_request_error", "server_error");
    for (kind, status, code, class, fault) in [
        (ErrorKind::InvalidApiKey, 401, "invalid_api_key", request, Fault::Client),
        (ErrorKind::CredentialInUrl, 401, "invalid_api_key", request, Fault::Client),
        (ErrorKind::ModelNotAllowed, 403, "model_not_allowed", request, Fault::Client),
        (ErrorKind::UnknownUrl, 404, "unknown_url", request, Fault::Client),
        (ErrorKind::UpgradeRequired, 426, "websocket_not_supported", request, Fault::Client),
        (ErrorKind::OriginNotAllowed, 403, "origin_not_allowed", request, Fault::Client),
        (
            ErrorKind::PreviousResponseNotFound,
            400,
            "previous_response_not_found",
            request,
            Fault::Client,
        ),
        (ErrorKind::ResponseNotFound, 404, "response_not_found", request, Fault::Client),
        (ErrorKind::ModelNotFound, 404, "model_not_found", request, Fault::Client),
        (ErrorKind::ConversationNotFound, 404, "conversation_not_found", request, Fault::Client),
        (ErrorKind::FileNotFound, 404, "file_not_found", request, Fault::Client),
        (ErrorKind::ItemNotFound, 404, "item_not_found", request, Fault::Client),
        (
            ErrorKind::ConnectionLimit,
            400,
            "websocket_connection_limit_reached",
            request,
            Fault::Gateway,
        ),
        (ErrorKind::InvalidJson, 400, "invalid_json", request, Fault::Client),
        (ErrorKind::InvalidRequest, 400, "invalid_request", request, Fault::Client),
        (ErrorKind::UnsupportedParameter, 400, "unsupported_parameter", request, Fault::Client),
        (ErrorKind::RequestTooLarge, 413, "request_too_large", request, Fault::Client),
        (ErrorKind::RequestTimeout, 408, "request_timeout", request, Fault::Client),
        (
            ErrorKind::InsufficientQuota,
            429,
            "insufficient_quota",
            "insufficient_quota",
            Fault::Upstream,
        ),
        (
            ErrorKind::RateLimitExceeded,
            429,
            "rate_limit_exceeded",
            "rate_limit_error",
            Fault::Upstream,
        ),
        (ErrorKind::NoKeyAvailable, 503, "no_key_available", server, Fault::Gateway),
        (ErrorKind::UpstreamUnreachable, 502, "upstream_unreachable", server, Fault::Upstream),
        (ErrorKind::UpstreamInterrupted, 503, "upstream_interrupted", server, Fault::Upstream),
        (ErrorKind::UpstreamTimeout, 504, "upstream_timeout", server, Fault::Upstream),
        (ErrorKind::Internal, 500, "internal_error", server, Fault::Gateway),
    ] {
        let error = Error::new(kind, "m");
        assert_eq!((error.status().as_u16(), error.code(), error.fault()), (status, code, fault));
        let response = error.to_response::<String>();
        let param = match kind {
            ErrorKind::PreviousResponseNotFound => r#""previous_response_id""#,
            ErrorKind::ModelNotFound => r#""model""#,
            ErrorKind::ItemNotFound => r#""input""#,
            _ => "null",
        };
        let body = format!(
            r#"{{"error":{{"message":"m","type":"{class}","param":{param},"code":"{code}"}}}}"#
        );
        assert_eq!((response.status().as_u16(), response.body()), (status, &body));
        // A retry may send its body faster. A quota stays exhausted for a while.
        let is_final =
            fault == Fault::Client && status != 408 || kind == ErrorKind::InsufficientQuota;
        let told = response.headers().get(SHOULD_RETRY).map(|value| value.to_str().unwrap());
        assert_eq!(told, is_final.then_some("false"), "{code}");
        let wait = response.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap());
        assert_eq!(wait, (kind == ErrorKind::InsufficientQuota).then_some("600"), "{code}");
        let frame = error.to_frame(None);
        assert!(frame.starts_with(&format!(
            r#"{{"type":"error","status":{status},"error":{{"type":"{class}","code":"{code}""#
        )));
        assert_eq!(
            frame.ends_with(r#","headers":{"retry-after":"600"}}"#),
            kind == ErrorKind::InsufficientQuota,
            "{frame}"
        );
    }
}

#[test]
fn limit_states_its_wait_and_becomes_503_for_a_handshake() {
    let limited = || Error::limited("Key limited.", Duration::from_millis(1_200));
    let (error, response) = (limited(), limited().to_response::<String>());
    assert_eq!(
        (error.status().as_u16(), error.message.as_str()),
        (429, "Key limited. Please try again in 2s.")
    );
    assert_eq!(response.headers()[RETRY_AFTER], "2");
    let (error, response) =
        (limited().for_handshake(), limited().for_handshake().to_response::<String>());
    assert_eq!(
        (error.status().as_u16(), error.code(), &response.headers()[RETRY_AFTER]),
        (503, "no_key_available", &"2".parse().unwrap())
    );
    for kind in
        [ErrorKind::InsufficientQuota, ErrorKind::UpgradeRequired, ErrorKind::UpstreamTimeout]
    {
        assert_eq!(Error::new(kind, "m").for_handshake().kind, kind, "other errors stay");
    }
}

#[test]
fn frame_matches_the_real_service() {
    let message = "Previous response with id 'resp_\"abc' not found.";
    assert_eq!(
        Error::new(ErrorKind::PreviousResponseNotFound, message).to_frame(Some("a.b")),
        r#"{"type":"error","status":400,"stream_id":"a.b","error":{"type":"invalid_request_error","code":"previous_response_not_found","message":"Previous response with id 'resp_\"abc' not found.","param":"previous_response_id"}}"#
    );
    assert_eq!(
        Error::new(ErrorKind::UpstreamInterrupted, "Lost.")
            .retry_after(Duration::from_secs(1))
            .to_frame(None),
        r#"{"type":"error","status":503,"error":{"type":"server_error","code":"upstream_interrupted","message":"Lost."},"headers":{"retry-after":"1"}}"#
    );
}

#[test]
fn client_fault_is_not_retried() {
    let response = Error::new(ErrorKind::InvalidJson, "no JSON").to_response::<String>();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(response.headers()[SHOULD_RETRY], "false");
    let response = Error::new(ErrorKind::NoKeyAvailable, "none")
        .retry_after(Duration::from_secs(1))
        .to_response::<String>();
    assert_eq!(response.headers().get(SHOULD_RETRY), None);
    assert_eq!(response.headers()[RETRY_AFTER], "1");
}

#[test]
fn error_names_the_field_that_it_is_about() {
    let error = Error::new(ErrorKind::UnsupportedParameter, "m").about("a\"b");
    let response: Response<String> = error.to_response();
    assert!(response.body().contains(r#""param":"a\"b""#), "{}", response.body());
}
