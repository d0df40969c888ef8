//! Errors of a turn: the party at fault, whether a retry may help, and the answer that the client
//! gets.
//!
//! Every error becomes a response in this file. An error never carries a secret or a byte of a
//! body.

use std::time::Duration;

use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderName, HeaderValue, Response, StatusCode};

/// Tells the official SDKs whether a retry can help. Without this header they decide by status
/// alone.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Interval at which the gateway probes an exhausted quota. Clients get the interval as
/// `Retry-After`.
const QUOTA: Duration = Duration::from_secs(600);

/// The party that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Client,
    Gateway,
    Upstream,
}

/// The gateway's own errors, one variant for each `error.code` that the gateway itself answers
/// with. Only a credential in a URL shares its code with wrong tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    InvalidApiKey,
    /// The URL shows a credential, beside a valid token.
    CredentialInUrl,
    ModelNotAllowed,
    UnknownUrl,
    UpgradeRequired,
    OriginNotAllowed,
    PreviousResponseNotFound,
    ResponseNotFound,
    ConversationNotFound,
    FileNotFound,
    ItemNotFound,
    ModelNotFound,
    ConnectionLimit,
    InvalidJson,
    InvalidRequest,
    UnsupportedParameter,
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

impl ErrorKind {
    /// The field of a request that the error is always about.
    const fn param(self) -> Option<&'static str> {
        match self {
            Self::PreviousResponseNotFound => Some("previous_response_id"),
            Self::ModelNotFound => Some("model"),
            Self::ItemNotFound => Some("input"),
            _ => None,
        }
    }

    /// Returns the status, `error.code`, `error.type` and the party at fault.
    const fn describe(self) -> (StatusCode, &'static str, &'static str, Fault) {
        const REQUEST: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            Self::InvalidApiKey | Self::CredentialInUrl => {
                (StatusCode::UNAUTHORIZED, "invalid_api_key", REQUEST, Fault::Client)
            }
            Self::ModelNotAllowed => {
                (StatusCode::FORBIDDEN, "model_not_allowed", REQUEST, Fault::Client)
            }
            Self::UnknownUrl => (StatusCode::NOT_FOUND, "unknown_url", REQUEST, Fault::Client),
            // Codex falls back to HTTP at once and for good. Codex retries any other refusal again
            // and again.
            Self::UpgradeRequired => {
                (StatusCode::UPGRADE_REQUIRED, "websocket_not_supported", REQUEST, Fault::Client)
            }
            // The user's browser may call, but the author of a page in that browser may not.
            Self::OriginNotAllowed => {
                (StatusCode::FORBIDDEN, "origin_not_allowed", REQUEST, Fault::Client)
            }
            Self::PreviousResponseNotFound => {
                (StatusCode::BAD_REQUEST, "previous_response_not_found", REQUEST, Fault::Client)
            }
            Self::ResponseNotFound => {
                (StatusCode::NOT_FOUND, "response_not_found", REQUEST, Fault::Client)
            }
            Self::ModelNotFound => {
                (StatusCode::NOT_FOUND, "model_not_found", REQUEST, Fault::Client)
            }
            Self::ConversationNotFound => {
                (StatusCode::NOT_FOUND, "conversation_not_found", REQUEST, Fault::Client)
            }
            Self::FileNotFound => (StatusCode::NOT_FOUND, "file_not_found", REQUEST, Fault::Client),
            Self::ItemNotFound => (StatusCode::NOT_FOUND, "item_not_found", REQUEST, Fault::Client),
            // The real service's code: Codex always answers this code with a new connection and its
            // full input.
            Self::ConnectionLimit => (
                StatusCode::BAD_REQUEST,
                "websocket_connection_limit_reached",
                REQUEST,
                Fault::Gateway,
            ),
            Self::InvalidJson => (StatusCode::BAD_REQUEST, "invalid_json", REQUEST, Fault::Client),
            Self::InvalidRequest => {
                (StatusCode::BAD_REQUEST, "invalid_request", REQUEST, Fault::Client)
            }
            Self::UnsupportedParameter => {
                (StatusCode::BAD_REQUEST, "unsupported_parameter", REQUEST, Fault::Client)
            }
            Self::RequestTooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", REQUEST, Fault::Client)
            }
            Self::RequestTimeout => {
                (StatusCode::REQUEST_TIMEOUT, "request_timeout", REQUEST, Fault::Client)
            }
            // On this code Codex stops at once and tells its user, as the gateway intends.
            Self::InsufficientQuota => (
                StatusCode::TOO_MANY_REQUESTS,
                "insufficient_quota",
                "insufficient_quota",
                Fault::Upstream,
            ),
            // Codex waits for the stated time, then retries.
            Self::RateLimitExceeded => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_exceeded",
                "rate_limit_error",
                Fault::Upstream,
            ),
            Self::NoKeyAvailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "no_key_available", SERVER, Fault::Gateway)
            }
            // Only operators ask for the ledger.
            Self::LedgerUnavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "ledger_unavailable", SERVER, Fault::Gateway)
            }
            Self::UpstreamUnreachable => {
                (StatusCode::BAD_GATEWAY, "upstream_unreachable", SERVER, Fault::Upstream)
            }
            Self::UpstreamInterrupted => {
                (StatusCode::SERVICE_UNAVAILABLE, "upstream_interrupted", SERVER, Fault::Upstream)
            }
            Self::UpstreamTimeout => {
                (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", SERVER, Fault::Upstream)
            }
            Self::Internal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal_error", SERVER, Fault::Gateway)
            }
        }
    }
}

/// An error that a client sees. `message` is for the client, `cause` is for the log.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
    /// The wait after which a retry can succeed. `None` leaves the schedule to the client.
    pub retry_after: Option<Duration>,
    pub cause: Option<String>,
    /// The field of the request that the error is about (`error.param`).
    pub param: Option<Box<str>>,
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None, cause: None, param: None }
    }

    /// A temporary rate limit. The message repeats the wait in the phrase that clients parse.
    pub fn limited(message: &str, wait: Duration) -> Self {
        let message = format!("{message} Please try again in {}s.", whole_seconds(wait));
        Self::new(ErrorKind::RateLimitExceeded, message).retry_after(wait)
    }

    /// Turns a rate limit into a 503 for a WebSocket handshake. A limited key does not limit
    /// connections, and every client reconnects after a 503.
    pub fn for_handshake(self) -> Self {
        let kind = if self.kind == ErrorKind::RateLimitExceeded {
            ErrorKind::NoKeyAvailable
        } else {
            self.kind
        };
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

    /// Names the field of the request that the error is about.
    pub fn about(mut self, param: &str) -> Self {
        self.param = Some(param.into());
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

    /// The `Retry-After` of the response, if it has one. Every 429 has one, even if its code is
    /// final.
    fn wait(&self) -> Option<Duration> {
        self.retry_after.or((self.kind == ErrorKind::InsufficientQuota).then_some(QUOTA))
    }

    /// Renders the error in OpenAI's shape. A wait is an integer number of seconds, rounded up:
    /// Codex gives up on any other format. The response carries the error's kind as an extension.
    pub fn to_response<B: From<String>>(&self) -> Response<B> {
        let (status, code, class, fault) = self.kind.describe();
        // The fields stand in the real service's order.
        let message = serde_json::Value::from(self.message.as_str());
        let param = serde_json::Value::from(self.param.as_deref().or(self.kind.param()));
        let body = format!(
            r#"{{"error":{{"message":{message},"type":"{class}","param":{param},"code":"{code}"}}}}"#
        );
        let mut response = Response::new(B::from(body));
        *response.status_mut() = status;
        response.extensions_mut().insert(self.kind);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.kind == ErrorKind::UpgradeRequired {
            // RFC 9110, section 15.5.22, and RFC 6455, section 4.2.2.
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        let is_final = fault == Fault::Client && self.kind != ErrorKind::RequestTimeout;
        if is_final || self.kind == ErrorKind::InsufficientQuota {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Some(wait) = self.wait() {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        response
    }

    /// Renders the error as a WebSocket frame on the lane that the error is about. The frame
    /// carries `status`, because Codex ignores error frames without one.
    pub fn to_frame(&self, lane: Option<&str>) -> String {
        let (status, code, class, _) = self.kind.describe();
        let text = |text: &str| serde_json::Value::from(text);
        let mut frame = format!(r#"{{"type":"error","status":{}"#, status.as_u16());
        if let Some(lane) = lane {
            frame.push_str(&format!(r#","stream_id":{}"#, text(lane)));
        }
        frame.push_str(&format!(
            r#","error":{{"type":"{class}","code":"{code}","message":{}"#,
            text(&self.message)
        ));
        if let Some(param) = self.kind.param() {
            frame.push_str(&format!(r#","param":"{param}""#));
        }
        frame.push('}');
        if let Some(wait) = self.wait() {
            frame.push_str(&format!(r#","headers":{{"retry-after":"{}"}}"#, whole_seconds(wait)));
        }
        frame.push('}');
        frame
    }
}

/// Whole seconds, rounded up and at least 1.
fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests;
