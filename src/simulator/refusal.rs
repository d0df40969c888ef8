//! Refusals of the service: status, body and headers, in the words of the real service.
//!
//! This file decides wording only; its callers decide which request is refused, and why. Of a
//! secret, a refusal shows only the few characters that the real service shows of a wrong key.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::json;

/// An error answer in the OpenAI shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub status: StatusCode,
    pub kind: &'static str,
    pub code: Option<String>,
    pub param: Option<Box<str>>,
    pub message: String,
    /// Sent as `retry-after` (whole seconds, rounded up) and `retry-after-ms`.
    pub retry_after: Option<Duration>,
    /// Boxed, since few refusals have any.
    pub besides: Option<Box<Besides>>,
    /// Closes the WebSocket that carries the refusal, with this code.
    pub close: Option<u16>,
}

/// Parts of a refusal that come with its error, or replace it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Besides {
    /// Each header replaces another header of its name.
    pub headers: HeaderMap,
    /// Sent instead of the error.
    pub html: Option<String>,
    /// The error's `type`, in place of the usual one.
    pub class: Option<String>,
    /// The coding of the body, as it is spelled.
    pub encoding: Option<String>,
}

/// Whom an error text names.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    pub organization: &'a str,
    pub project: &'a str,
    pub model: &'a str,
    /// The secret as the real service shows it: a few characters at both ends.
    pub masked: &'a str,
}

impl Refusal {
    /// A 400 that is the request's own fault.
    pub fn invalid(code: Option<&str>, param: Option<&str>, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "invalid_request_error",
            code: code.map(str::to_owned),
            param: param.map(Into::into),
            message: message.into(),
            retry_after: None,
            besides: None,
            close: None,
        }
    }

    pub fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// `{"type","code","message","param"}`: the object inside `error`.
    pub fn error(&self) -> serde_json::Value {
        let class = self.besides.as_ref().and_then(|besides| besides.class.as_deref());
        json!({"message": self.message, "type": class.unwrap_or(self.kind), "param": self.param, "code": self.code})
    }

    /// The body of the answer, whose fields stand in the real service's order.
    fn body(&self) -> String {
        let error = self.error();
        let field = |name: &str| format!("\"{name}\":{}", error[name]);
        let fields = ["message", "type", "param", "code"].map(field);
        format!("{{\"error\":{{{}}}}}", fields.join(","))
    }

    pub fn response(&self) -> Response<Body> {
        let (kind, body) = match self.besides.as_ref().and_then(|besides| besides.html.as_ref()) {
            Some(page) => ("text/html; charset=UTF-8", page.clone()),
            None => ("application/json", self.body()),
        };
        let encoding = self.besides.as_ref().and_then(|besides| besides.encoding.as_deref());
        let bytes = encoding.map_or_else(|| body.clone().into(), |coding| encoded(&body, coding));
        let mut response = Response::new(Body::from(bytes));
        *response.status_mut() = self.status;
        if let Some(coding) = encoding.and_then(|coding| HeaderValue::try_from(coding).ok()) {
            response.headers_mut().insert(header::CONTENT_ENCODING, coding);
        }
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        response.headers_mut().extend(self.headers());
        response
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(span) = self.retry_after {
            // The wait is rounded up, because a client that comes back early is refused again.
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from(span.as_millis().div_ceil(1000) as u64),
            );
            headers.insert("retry-after-ms", HeaderValue::from(span.as_millis() as u64));
        }
        headers.extend(
            self.besides.as_ref().map(|besides| besides.headers.clone()).unwrap_or_default(),
        );
        headers
    }

    /// The real service's refusal for this status and code. An unknown code gets the same shape.
    pub fn scripted(
        status: StatusCode,
        code: Option<&str>,
        caller: Caller<'_>,
        retry_after: Option<Duration>,
    ) -> Self {
        let code = code.unwrap_or(usual_code(status));
        let (kind, message) = wording(status, code, caller, retry_after);
        Self {
            status,
            kind,
            code: (!code.is_empty()).then(|| code.to_owned()),
            param: (code == "invalid_prompt").then(|| "input".into()),
            message,
            retry_after,
            besides: None,
            close: None,
        }
    }

    /// An error frame of a WebSocket: one object with everything that an HTTP answer would have.
    /// `lane` is the named lane, if there is one.
    pub fn frame(&self, lane: Option<&str>) -> String {
        let mut frame =
            json!({"type": "error", "status": self.status.as_u16(), "error": self.error()});
        if let Some(lane) = lane {
            frame["stream_id"] = lane.into();
        }
        for (name, value) in &self.headers() {
            frame["headers"][name.as_str()] = String::from_utf8_lossy(value.as_bytes()).into();
        }
        frame.to_string()
    }
}

/// The body in a coding, which may be spelled in any case.
fn encoded(body: &str, coding: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing into memory cannot fail.
    let _ = if coding.eq_ignore_ascii_case("zstd") {
        zstd::stream::copy_encode(body.as_bytes(), &mut bytes, 1)
    } else {
        let level = flate2::Compression::default();
        flate2::write::GzEncoder::new(&mut bytes, level).write_all(body.as_bytes())
    };
    bytes
}

/// The code of a status without an explicit one.
pub fn usual_code(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "invalid_api_key",
        403 => "unsupported_country_region_territory",
        404 => "model_not_found",
        429 => "rate_limit_exceeded",
        503 => "server_is_overloaded",
        500.. => "server_error",
        _ => "",
    }
}

/// Writes a wait as the service does: `11.054s`, `120ms`.
fn wait_text(span: Duration) -> String {
    if span < Duration::from_secs(1) {
        format!("{}ms", span.as_millis())
    } else {
        format!("{}s", span.as_millis() as f64 / 1000.0)
    }
}

fn wording(
    status: StatusCode,
    code: &str,
    caller: Caller<'_>,
    retry_after: Option<Duration>,
) -> (&'static str, String) {
    let Caller { organization, project, model, masked } = caller;
    let invalid = "invalid_request_error";
    match code {
        "invalid_api_key" => (invalid, incorrect_key(masked)),
        "token_revoked" | "key_revoked" => (invalid, "This API key has been revoked.".into()),
        "account_deactivated" => (
            invalid,
            "This key is associated with a deactivated account. If you feel this is an error, contact us through our help center at help.openai.com.".into(),
        ),
        "mismatched_organization" => (invalid, "OpenAI-Organization header should match organization for API key".into()),
        "mismatched_project" => (invalid, "OpenAI-Project header should match project for API key".into()),
        "no_organization" => (invalid, "You must be a member of an organization to use the API".into()),
        "ip_not_authorized" => (invalid, "Your IP address is not authorized to access this project.".into()),
        "unsupported_country_region_territory" => ("request_forbidden", "Country, region, or territory not supported".into()),
        "model_not_found" => (invalid, format!("The model `{model}` does not exist or you do not have access to it.")),
        "context_length_exceeded" => {
            (invalid, "Your input exceeds the context window of this model. Please adjust your input and try again.".into())
        }
        "rate_limit_exceeded" => {
            let mut message = format!("Rate limit reached for {model} in organization {organization}");
            message.push_str(" on tokens per min (TPM): Limit 30000, Used 22999, Requested 12528.");
            if let Some(wait) = retry_after {
                // Writing into a String cannot fail.
                let _ = write!(message, " Please try again in {}.", wait_text(wait));
            }
            message.push_str(" Visit https://platform.openai.com/account/rate-limits to learn more.");
            ("tokens", message)
        }
        "slow_down" if status == StatusCode::SERVICE_UNAVAILABLE => ("service_unavailable_error", "The server is overloaded. Please slow down.".into()),
        "slow_down" => (
            "rate_limit_error",
            "Your traffic grew faster than our systems can scale. Please reduce your request rate, hold it for 15 minutes, then raise it gradually.".into(),
        ),
        "insufficient_quota" => (
            "insufficient_quota",
            "You exceeded your current quota, please check your plan and billing details. For more information on this error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors.".into(),
        ),
        "billing_hard_limit_reached" => ("insufficient_quota", "Billing hard limit has been reached.".into()),
        "credit_balance_exhausted" => {
            ("insufficient_quota", format!("The credit balance of organization {organization} is exhausted. Add credits to continue."))
        }
        "organization_spend_limit_exceeded" | "organization_usage_limit_exceeded" => {
            ("insufficient_quota", format!("Organization {organization} has reached its monthly limit."))
        }
        "project_spend_limit_exceeded" => {
            ("insufficient_quota", format!("Project {project} of organization {organization} has reached its monthly budget."))
        }
        "previous_response_not_found" => (invalid, "Previous response not found.".into()),
        "websocket_connection_limit_reached" => (
            invalid,
            "Responses websocket connection limit reached (60 minutes). Create a new websocket connection to continue.".into(),
        ),
        "server_is_overloaded" => {
            ("service_unavailable_error", "Our servers are currently overloaded. Please try again later.".into())
        }
        "server_error" => (
            "server_error",
            "The server had an error processing your request. Sorry about that! You can retry your request, or contact us through our help center at help.openai.com if you keep seeing this error.".into(),
        ),
        _ if status == StatusCode::TOO_MANY_REQUESTS => ("rate_limit_error", format!("Request refused: {code}.")),
        _ if status.is_server_error() => ("server_error", format!("Request failed: {code}.")),
        _ => (invalid, format!("Request refused: {code}.")),
    }
}

pub fn incorrect_key(masked: &str) -> String {
    format!(
        "Incorrect API key provided: {masked}. You can find your API key at https://platform.openai.com/account/api-keys."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: Caller<'_> =
        Caller { organization: "org-a", project: "proj-1", model: "gpt-5.4", masked: "sk-a***z" };

    #[test]
    fn rate_limit_says_when_to_come_back_in_every_form_that_clients_read() {
        let wait = Duration::from_millis(11_054);
        let refusal = Refusal::scripted(StatusCode::TOO_MANY_REQUESTS, None, CALLER, Some(wait));
        assert!(refusal.message.contains("Please try again in 11.054s."), "{}", refusal.message);
        let response = refusal.response();
        assert_eq!(response.headers()["retry-after"], "12");
        assert_eq!(response.headers()["retry-after-ms"], "11054");
    }

    #[test]
    fn error_frame_says_all_that_a_response_would() {
        let wait = Some(Duration::from_millis(1500));
        let refusal = Refusal::scripted(StatusCode::TOO_MANY_REQUESTS, None, CALLER, wait);
        let frame: serde_json::Value =
            serde_json::from_str(&refusal.frame(Some("side"))).expect("JSON");
        assert_eq!(
            (&frame["type"], &frame["status"], &frame["stream_id"]),
            (&json!("error"), &json!(429), &json!("side"))
        );
        assert_eq!(
            (&frame["headers"]["retry-after"], &frame["error"]["code"]),
            (&json!("2"), &json!("rate_limit_exceeded"))
        );
        let plain: serde_json::Value =
            serde_json::from_str(&Refusal::invalid(None, None, "no").frame(None)).expect("JSON");
        assert!(plain.get("stream_id").is_none() && plain.get("headers").is_none());
    }

    #[test]
    fn type_follows_the_code_and_an_unknown_code_keeps_its_name() {
        let scripted = |status, code| {
            Refusal::scripted(
                StatusCode::from_u16(status).expect("a status"),
                Some(code),
                CALLER,
                None,
            )
        };
        assert_eq!(scripted(429, "credit_balance_exhausted").kind, "insufficient_quota");
        assert_eq!(scripted(429, "slow_down").kind, "rate_limit_error");
        assert_eq!(scripted(503, "slow_down").kind, "service_unavailable_error");
        assert_eq!(scripted(418, "teapot").code.as_deref(), Some("teapot"));
        assert!(
            scripted(401, "invalid_api_key")
                .message
                .starts_with("Incorrect API key provided: sk-a***z. You")
        );
    }
}
