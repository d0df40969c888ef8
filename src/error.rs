//! What went wrong with a turn: whose fault it is, whether it may be tried again, and what the client is told.
//!
//! The one place where an error becomes a response. Never carries a secret or a byte of a body.

use std::time::Duration;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};

/// Tells the official SDKs whether another try can help; without it they try again by status alone.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// How often it is looked whether an exhausted quota is there again.
const QUOTA: Duration = Duration::from_secs(600);

/// Who failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Client,
    Gateway,
    Upstream,
}

/// The own errors of `contract.md`, a variant a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    InvalidApiKey,
    ModelNotAllowed,
    UnknownUrl,
    UpgradeRequired,
    OriginNotAllowed,
    PreviousResponseNotFound,
    ConversationNotFound,
    FileNotFound,
    ConnectionLimit,
    InvalidJson,
    InvalidRequest,
    RequestTooLarge,
    RequestTimeout,
    InsufficientQuota,
    RateLimitExceeded,
    NoKeyAvailable,
    LedgerUnavailable,
    UpstreamUnreachable,
    UpstreamInterrupted,
    UpstreamTimeout,
    Internal,
}

impl Kind {
    /// Status, `error.code`, `error.type`, and who failed.
    const fn describe(self) -> (StatusCode, &'static str, &'static str, Fault) {
        const REQUEST: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            Self::InvalidApiKey => (StatusCode::UNAUTHORIZED, "invalid_api_key", REQUEST, Fault::Client),
            Self::ModelNotAllowed => (StatusCode::FORBIDDEN, "model_not_allowed", REQUEST, Fault::Client),
            Self::UnknownUrl => (StatusCode::NOT_FOUND, "unknown_url", REQUEST, Fault::Client),
            // Codex goes on over HTTP at once and for good; any other refusal it tries again and again.
            Self::UpgradeRequired => (StatusCode::UPGRADE_REQUIRED, "websocket_not_supported", REQUEST, Fault::Client),
            // A page in a browser of somebody who may call, written by somebody who may not.
            Self::OriginNotAllowed => (StatusCode::FORBIDDEN, "origin_not_allowed", REQUEST, Fault::Client),
            Self::PreviousResponseNotFound => (StatusCode::BAD_REQUEST, "previous_response_not_found", REQUEST, Fault::Client),
            Self::ConversationNotFound => (StatusCode::NOT_FOUND, "conversation_not_found", REQUEST, Fault::Client),
            Self::FileNotFound => (StatusCode::NOT_FOUND, "file_not_found", REQUEST, Fault::Client),
            // In the real service's words, since it is what Codex always answers with a new connection and its full input.
            Self::ConnectionLimit => (StatusCode::BAD_REQUEST, "websocket_connection_limit_reached", REQUEST, Fault::Gateway),
            Self::InvalidJson => (StatusCode::BAD_REQUEST, "invalid_json", REQUEST, Fault::Client),
            Self::InvalidRequest => (StatusCode::BAD_REQUEST, "invalid_request", REQUEST, Fault::Client),
            Self::RequestTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", REQUEST, Fault::Client),
            Self::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, "request_timeout", REQUEST, Fault::Client),
            // Codex stops at once on this code, and tells its user: what is meant here.
            Self::InsufficientQuota => {
                (StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", "insufficient_quota", Fault::Upstream)
            }
            // Codex waits as long as it is told, and tries again.
            Self::RateLimitExceeded => {
                (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", "rate_limit_error", Fault::Upstream)
            }
            Self::NoKeyAvailable => (StatusCode::SERVICE_UNAVAILABLE, "no_key_available", SERVER, Fault::Gateway),
            // Operators alone ask what is written down.
            Self::LedgerUnavailable => (StatusCode::SERVICE_UNAVAILABLE, "ledger_unavailable", SERVER, Fault::Gateway),
            Self::UpstreamUnreachable => (StatusCode::BAD_GATEWAY, "upstream_unreachable", SERVER, Fault::Upstream),
            Self::UpstreamInterrupted => (StatusCode::SERVICE_UNAVAILABLE, "upstream_interrupted", SERVER, Fault::Upstream),
            Self::UpstreamTimeout => (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", SERVER, Fault::Upstream),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error", SERVER, Fault::Gateway),
        }
    }
}

/// An error that a client will see: `message` is for the client, `cause` for the log.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    /// When another try can succeed. `None`: the client's own schedule is as good as any.
    pub retry_after: Option<Duration>,
    pub cause: Option<String>,
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None, cause: None }
    }

    /// A limit that is passing. The wait is told in the words that clients look for, too.
    pub fn limited(message: &str, wait: Duration) -> Self {
        let message = format!("{message} Please try again in {}s.", whole_seconds(wait));
        Self::new(Kind::RateLimitExceeded, message).retry_after(wait)
    }

    /// As a handshake is told it: that a key is short is no limit of the connection's, and every client comes again after a 503.
    pub fn for_handshake(self) -> Self {
        let kind = if self.kind == Kind::RateLimitExceeded { Kind::NoKeyAvailable } else { self.kind };
        Self { kind, ..self }
    }

    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    pub const fn status(&self) -> StatusCode {
        self.kind.describe().0
    }

    pub const fn code(&self) -> &'static str {
        self.kind.describe().1
    }

    pub const fn fault(&self) -> Fault {
        self.kind.describe().3
    }

    /// When to come again, where that is told. Every 429 tells it, also one that its code makes final.
    fn wait(&self) -> Option<Duration> {
        self.retry_after.or((self.kind == Kind::InsufficientQuota).then_some(QUOTA))
    }

    /// The OpenAI error shape. A wait is told in whole seconds, rounded up: Codex gives up on anything else.
    pub fn to_response<B: From<String>>(&self) -> Response<B> {
        let (status, code, class, fault) = self.kind.describe();
        // In the order in which the real service writes them.
        let message = serde_json::Value::from(self.message.as_str());
        let param = if self.kind == Kind::PreviousResponseNotFound { r#""previous_response_id""# } else { "null" };
        let body = format!(r#"{{"error":{{"message":{message},"type":"{class}","param":{param},"code":"{code}"}}}}"#);
        let mut response = Response::new(B::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let is_final = fault == Fault::Client && self.kind != Kind::RequestTimeout;
        if is_final || self.kind == Kind::InsufficientQuota {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Some(wait) = self.wait() {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        response
    }

    /// The error frame of a WebSocket, on the lane that it is about. It carries `status`: without one Codex ignores it.
    pub fn to_frame(&self, lane: Option<&str>) -> String {
        let (status, code, class, _) = self.kind.describe();
        let text = |text: &str| serde_json::Value::from(text);
        let mut frame = format!(r#"{{"type":"error","status":{}"#, status.as_u16());
        if let Some(lane) = lane {
            frame.push_str(&format!(r#","stream_id":{}"#, text(lane)));
        }
        frame.push_str(&format!(r#","error":{{"type":"{class}","code":"{code}","message":{}"#, text(&self.message)));
        if self.kind == Kind::PreviousResponseNotFound {
            frame.push_str(r#","param":"previous_response_id""#);
        }
        frame.push('}');
        if let Some(wait) = self.wait() {
            frame.push_str(&format!(r#","headers":{{"retry-after":"{}"}}"#, whole_seconds(wait)));
        }
        frame.push('}');
        frame
    }
}

/// At least one second, rounded up.
fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_in_whole_seconds_rounded_up() {
        for (wait, told) in [(0, 1), (1, 1), (999, 1), (1_000, 1), (1_001, 2), (45_000, 45)] {
            assert_eq!(whole_seconds(Duration::from_millis(wait)), told, "{wait} ms");
        }
    }

    /// Clients decide by these, and operators by whose fault it is.
    #[test]
    fn an_error_has_its_status_and_code_and_whoever_failed() {
        let (request, server) = ("invalid_request_error", "server_error");
        for (kind, status, code, class, fault) in [
            (Kind::InvalidApiKey, 401, "invalid_api_key", request, Fault::Client),
            (Kind::ModelNotAllowed, 403, "model_not_allowed", request, Fault::Client),
            (Kind::UnknownUrl, 404, "unknown_url", request, Fault::Client),
            (Kind::UpgradeRequired, 426, "websocket_not_supported", request, Fault::Client),
            (Kind::OriginNotAllowed, 403, "origin_not_allowed", request, Fault::Client),
            (Kind::PreviousResponseNotFound, 400, "previous_response_not_found", request, Fault::Client),
            (Kind::ConversationNotFound, 404, "conversation_not_found", request, Fault::Client),
            (Kind::FileNotFound, 404, "file_not_found", request, Fault::Client),
            (Kind::ConnectionLimit, 400, "websocket_connection_limit_reached", request, Fault::Gateway),
            (Kind::InvalidJson, 400, "invalid_json", request, Fault::Client),
            (Kind::InvalidRequest, 400, "invalid_request", request, Fault::Client),
            (Kind::RequestTooLarge, 413, "request_too_large", request, Fault::Client),
            (Kind::RequestTimeout, 408, "request_timeout", request, Fault::Client),
            (Kind::InsufficientQuota, 429, "insufficient_quota", "insufficient_quota", Fault::Upstream),
            (Kind::RateLimitExceeded, 429, "rate_limit_exceeded", "rate_limit_error", Fault::Upstream),
            (Kind::NoKeyAvailable, 503, "no_key_available", server, Fault::Gateway),
            (Kind::UpstreamUnreachable, 502, "upstream_unreachable", server, Fault::Upstream),
            (Kind::UpstreamInterrupted, 503, "upstream_interrupted", server, Fault::Upstream),
            (Kind::UpstreamTimeout, 504, "upstream_timeout", server, Fault::Upstream),
            (Kind::Internal, 500, "internal_error", server, Fault::Gateway),
        ] {
            let error = Error::new(kind, "m");
            assert_eq!((error.status().as_u16(), error.code(), error.fault()), (status, code, fault));
            let response = error.to_response::<String>();
            let param = if kind == Kind::PreviousResponseNotFound { r#""previous_response_id""# } else { "null" };
            let body = format!(r#"{{"error":{{"message":"m","type":"{class}","param":{param},"code":"{code}"}}}}"#);
            assert_eq!((response.status().as_u16(), response.body()), (status, &body));
            // A body that came too slowly may come faster; a quota is not there again for a while.
            let is_final = fault == Fault::Client && status != 408 || kind == Kind::InsufficientQuota;
            let told = response.headers().get(SHOULD_RETRY).map(|value| value.to_str().unwrap());
            assert_eq!(told, is_final.then_some("false"), "{code}");
            let wait = response.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap());
            assert_eq!(wait, (kind == Kind::InsufficientQuota).then_some("600"), "{code}");
            let frame = error.to_frame(None);
            assert!(
                frame.starts_with(&format!(r#"{{"type":"error","status":{status},"error":{{"type":"{class}","code":"{code}""#))
            );
            assert_eq!(frame.ends_with(r#","headers":{"retry-after":"600"}}"#), kind == Kind::InsufficientQuota, "{frame}");
        }
    }

    #[test]
    fn a_limit_says_when_to_come_again_and_to_a_handshake_is_no_limit() {
        let limited = || Error::limited("It is short.", Duration::from_millis(1_200));
        let (error, response) = (limited(), limited().to_response::<String>());
        assert_eq!((error.status().as_u16(), error.message.as_str()), (429, "It is short. Please try again in 2s."));
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        let (error, response) = (limited().for_handshake(), limited().for_handshake().to_response::<String>());
        assert_eq!(
            (error.status().as_u16(), error.code(), &response.headers()[RETRY_AFTER]),
            (503, "no_key_available", &"2".parse().unwrap())
        );
        for kind in [Kind::InsufficientQuota, Kind::UpgradeRequired, Kind::UpstreamTimeout] {
            assert_eq!(Error::new(kind, "m").for_handshake().kind, kind, "that is said as it is");
        }
    }

    #[test]
    fn a_frame_is_written_as_the_real_service_writes_it() {
        let message = "Previous response with id 'resp_\"abc' not found.";
        assert_eq!(
            Error::new(Kind::PreviousResponseNotFound, message).to_frame(Some("a.b")),
            r#"{"type":"error","status":400,"stream_id":"a.b","error":{"type":"invalid_request_error","code":"previous_response_not_found","message":"Previous response with id 'resp_\"abc' not found.","param":"previous_response_id"}}"#
        );
        assert_eq!(
            Error::new(Kind::UpstreamInterrupted, "Lost.").retry_after(Duration::from_secs(1)).to_frame(None),
            r#"{"type":"error","status":503,"error":{"type":"server_error","code":"upstream_interrupted","message":"Lost."},"headers":{"retry-after":"1"}}"#
        );
    }

    #[test]
    fn what_the_client_did_wrong_is_not_worth_another_try() {
        let response = Error::new(Kind::InvalidJson, "no JSON").to_response::<String>();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(response.headers()[SHOULD_RETRY], "false");
        let response = Error::new(Kind::NoKeyAvailable, "none").retry_after(Duration::from_secs(1)).to_response::<String>();
        assert_eq!(response.headers().get(SHOULD_RETRY), None);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
    }
}
