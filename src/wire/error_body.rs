//! Reads OpenAI's errors: the body of an answer, the data of an event, and a WebSocket's `error`
//! frame. Pure.
//!
//! No error is refused: if its text is unreadable, its status alone decides.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::limit;
use crate::limit::{NamedLimit, is_same_model, named_model};
use crate::wire::peek::fields;

/// The fields of an OpenAI error body that decisions use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorBody {
    pub code: Option<String>,
    pub class: Option<String>,
    /// The request is larger than the limit that refused it.
    pub is_beyond_limit: bool,
    /// The wait that the message states.
    pub wait: Option<Duration>,
    /// The message says that the credential lacks a scope or a permission for what was asked.
    pub lacks_right: bool,
    /// `param`: the part of the request that the error is about.
    pub param: Option<String>,
    /// The limit that the message names.
    pub limit: NamedLimit,
    /// The model that the message names, if it is about a model: `The model 'x' does not exist`.
    pub model: Option<String>,
    /// Whether the body has text that is not in OpenAI's shape: a page, or another service's words.
    pub is_page: bool,
}

#[derive(Deserialize)]
struct Envelope<'e> {
    #[serde(borrow)]
    error: &'e RawValue,
}

#[derive(Default, Deserialize)]
struct Fields {
    code: Option<serde_json::Value>,
    r#type: Option<serde_json::Value>,
    message: Option<serde_json::Value>,
    param: Option<serde_json::Value>,
    /// The error of an event, nested as some upstreams write it.
    #[serde(default)]
    error: Option<serde_json::Value>,
}

impl ErrorBody {
    /// Reads `{"error":{"code","type"}}`. Any other body gives an error without a code.
    pub fn parse(body: &[u8]) -> Self {
        match serde_json::from_slice::<Envelope<'_>>(body) {
            Ok(Envelope { error }) => Self::of_object(error.get().as_bytes()),
            Err(_) => Self { is_page: !body.trim_ascii().is_empty(), ..Self::default() },
        }
    }

    /// Reads an error object. Anything else is a page.
    fn of_object(raw: &[u8]) -> Self {
        let read = |raw: &[u8]| match raw {
            [b'{', ..] => serde_json::from_slice::<Fields>(raw).ok(),
            _ => None,
        };
        let nested = |outer: Fields| match outer.error {
            Some(nested @ serde_json::Value::Object(_)) => serde_json::from_value(nested).ok(),
            _ => Some(outer),
        };
        read(raw)
            .and_then(nested)
            .map_or_else(|| Self { is_page: true, ..Self::default() }, Self::of)
    }

    /// If the error names the model `sent`, replaces that by `asked`, the name that the client
    /// used.
    pub fn rename_model(&mut self, asked: &str, sent: Option<&str>) {
        let Some(sent) = sent else { return };
        for named in [&mut self.model, &mut self.limit.model].into_iter().flatten() {
            if is_same_model(named, sent) {
                asked.clone_into(named);
            }
        }
    }

    fn of(error: Fields) -> Self {
        let text = |value: Option<serde_json::Value>| {
            value.as_ref().and_then(|v| v.as_str()).map(str::to_owned)
        };
        let message = text(error.message).unwrap_or_default();
        Self {
            code: text(error.code),
            class: text(error.r#type),
            is_beyond_limit: limit::is_beyond_limit(&message),
            wait: limit::wait_in(&message),
            lacks_right: lacks_right(&message),
            param: text(error.param),
            limit: NamedLimit::read(&message),
            model: named_model(&message),
            is_page: false,
        }
    }

    /// Reads the error in a stream's `response.failed` or `error` event, or in an `error` frame. An
    /// unreadable error counts as a page, as over HTTP. Returns `None` if the event is no JSON.
    pub fn of_event(data: &[u8]) -> Option<Self> {
        let [response, own] = fields(data, ["response", "error"]).ok()?;
        let inside = response.and_then(|raw| fields(raw, ["error"]).ok()).and_then(|[error]| error);
        let mut stated = [inside, own].into_iter().flatten().filter(|raw| *raw != b"null");
        Some(stated.next().map_or_else(|| Self::of_bare(data), Self::of_object))
    }

    /// Reads an event that has the fields of an error at its top level.
    fn of_bare(data: &[u8]) -> Self {
        let page = Self { is_page: true, ..Self::default() };
        let Ok(mut own) = serde_json::from_slice::<Fields>(data) else { return page };
        // The `type` of such an event is the event's own, and no type of an error.
        own.r#type = own.r#type.filter(|class| {
            class.as_str().is_none_or(|class| class != "error" && !class.starts_with("response."))
        });
        let is_stated =
            [&own.code, &own.message].into_iter().flatten().any(serde_json::Value::is_string);
        let read = Self::of(own);
        if !is_stated && read == Self::default() && has_other_words(data) { page } else { read }
    }
}

/// Whether an event without an error says something in a service's own words, such as `detail`.
fn has_other_words(event: &[u8]) -> bool {
    const KNOWN: [&str; 13] = [
        "type",
        "code",
        "message",
        "param",
        "error",
        "response",
        "status",
        "status_code",
        "headers",
        "stream_id",
        "sequence_number",
        "event_id",
        "response_id",
    ];
    serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(event)
        .is_ok_and(|all| all.keys().any(|name| !KNOWN.contains(&&**name)))
}

/// Whether a message says that the credential is known, but lacks a right: `Missing scopes: ..`,
/// `You have insufficient permissions for this operation.`
fn lacks_right(message: &str) -> bool {
    let lower = message.to_ascii_lowercase();
    let mut words = lower.split(|one: char| !one.is_ascii_alphanumeric());
    words.any(|word| matches!(word, "scope" | "scopes" | "permission" | "permissions"))
}

/// Returns the HTTP status of a WebSocket's `error` frame: its `status`, or its `status_code` as
/// some upstreams write it. A frame without either is a 400, because its error did not come from
/// HTTP.
pub fn frame_status(text: &[u8]) -> StatusCode {
    let found = fields(text, ["status", "status_code"]).unwrap_or_default();
    let number =
        found.into_iter().flatten().find_map(|raw| std::str::from_utf8(raw).ok()?.parse().ok());
    number
        .and_then(|number: u16| StatusCode::from_u16(number).ok())
        .unwrap_or(StatusCode::BAD_REQUEST)
}

/// Returns the headers in an `error` frame, which state when the client may retry. Headers at the
/// top of the frame win over headers inside its `error`.
pub fn frame_headers(text: &[u8]) -> HeaderMap {
    let [own, error] = fields(text, ["headers", "error"]).unwrap_or_default();
    let inside = error.and_then(|raw| fields(raw, ["headers"]).ok()).and_then(|[inside]| inside);
    let mut headers = HeaderMap::new();
    for raw in [inside, own].into_iter().flatten() {
        let Ok(pairs) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(raw)
        else {
            continue;
        };
        for (name, value) in pairs {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if let (Ok(name), Ok(value)) =
                (HeaderName::try_from(name), HeaderValue::try_from(value))
            {
                headers.insert(name, value);
            }
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_error_is_read() {
        let code = |data: &str| ErrorBody::of_event(data.as_bytes()).and_then(|error| error.code);
        let failed = r#"{"type":"response.failed","response":{"id":"r","error":{"code":"rate_limit_exceeded","message":"m"}}}"#;
        assert_eq!(code(failed).as_deref(), Some("rate_limit_exceeded"));
        assert_eq!(
            code(r#"{"type":"error","code":"insufficient_quota","message":"m"}"#).as_deref(),
            Some("insufficient_quota")
        );
        assert_eq!(
            (code("{}"), code(r#"{"response":{"error":null}}"#), code("text")),
            (None, None, None)
        );
    }

    #[test]
    fn frame_status_wins_over_status_code_and_outer_headers_over_inner() {
        for (frame, status) in [
            (r#"{"status":401,"status_code":429}"#, 401),
            (r#"{"status_code":429,"status":401}"#, 401),
            (r#"{"status":"x","status_code":429}"#, 429),
            (r#"{"status":7,"status_code":429}"#, 400),
            ("no JSON", 400),
        ] {
            assert_eq!(frame_status(frame.as_bytes()), status, "{frame}");
        }
        let frame =
            br#"{"error":{"headers":{"a":"1","b":2}},"headers":{"a":"3","not a name":"x"}}"#;
        let headers = frame_headers(frame);
        assert_eq!(
            (headers.len(), &headers["a"], &headers["b"]),
            (2, &"3".parse().unwrap(), &"2".parse().unwrap())
        );
    }

    #[test]
    fn message_states_a_wait_or_that_no_wait_helps() {
        let message = |text: &str| {
            format!(r#"{{"error":{{"code":"rate_limit_exceeded","message":"{text}"}}}}"#)
        };
        let event =
            |text: &str| format!(r#"{{"type":"response.failed","response":{}}}"#, message(text));
        for (text, wait, is_beyond_limit) in [
            (
                "Limit 30000, Used 22999, Requested 12528. Please try again in 11.054s.",
                Some(11_054),
                false,
            ),
            ("Limit 30000, Requested 40000.", None, true),
            ("Slow down.", None, false),
        ] {
            for read in [
                ErrorBody::parse(message(text).as_bytes()),
                ErrorBody::of_event(event(text).as_bytes()).unwrap(),
            ] {
                let found = (read.wait.map(|wait| wait.as_millis()), read.is_beyond_limit);
                assert_eq!(found, (wait, is_beyond_limit), "{text}");
            }
        }
    }

    #[test]
    fn error_body_is_read_with_tolerance() {
        let read = |body: &str| ErrorBody::parse(body.as_bytes());
        let both = read(
            r#"{"error":{"message":"m","type":"insufficient_quota","param":null,"code":"credit_balance_exhausted"}}"#,
        );
        assert_eq!(both.code.as_deref(), Some("credit_balance_exhausted"));
        assert_eq!(both.class.as_deref(), Some("insufficient_quota"));
        for nothing in ["", " \n", r#"{"error":{"code":429,"type":null}}"#] {
            assert_eq!(read(nothing), ErrorBody::default(), "{nothing}");
        }
        for page in ["<html>", "{}", r#"{"error":"text"}"#, r#"{"error":null}"#] {
            assert_eq!(read(page), ErrorBody { is_page: true, ..ErrorBody::default() }, "{page}");
        }
    }

    /// An error in a frame means the same as over HTTP.
    #[test]
    fn unreadable_error_of_an_event_is_a_page() {
        let read = |text: &str| ErrorBody::of_event(text.as_bytes()).unwrap();
        let page = ErrorBody { is_page: true, ..ErrorBody::default() };
        for error in [
            r#""edge busy""#,
            "7",
            "[]",
            "false",
            r#"{"code":"rate_limit_exceeded","code":"rate_limit_exceeded"}"#,
            r#"{"message":"a","message":"b"}"#,
        ] {
            assert_eq!(ErrorBody::parse(format!(r#"{{"error":{error}}}"#).as_bytes()), page);
            let frame = format!(r#"{{"type":"error","status":429,"error":{error}}}"#);
            assert_eq!(read(&frame), page, "{frame}");
            let event = format!(r#"{{"type":"response.failed","response":{{"error":{error}}}}}"#);
            assert_eq!(read(&event), page, "{event}");
        }
        for words in [
            r#"{"type":"error","status":429,"detail":"Too many requests"}"#,
            r#"{"type":"error","code":"a","code":"b"}"#,
        ] {
            assert_eq!(read(words), page, "{words}");
        }
        let told =
            r#"{"type":"error","status":429,"message":"Too many requests","request_id":"r"}"#;
        assert!(!read(told).is_page, "it says so in the usual words");
        let found = ErrorBody { code: Some("c".into()), ..ErrorBody::default() };
        for beside in [
            r#"{"type":"error","response":{"id":"r"},"error":{"code":"c"}}"#,
            r#"{"type":"error","response":null,"error":{"code":"c"}}"#,
            r#"{"type":"error","response":"r","error":{"code":"c"}}"#,
            r#"{"type":"error","response":{"error":null},"error":{"error":{"code":"c"}}}"#,
            r#"{"type":"error","response":{"error":{"code":"c"}},"error":{"code":"d"}}"#,
            r#"{"type":"error","code":"c","response":{"id":"r"}}"#,
        ] {
            assert_eq!(read(beside), found, "{beside}");
        }
        for nothing in [
            r#"{"type":"error","status":429}"#,
            r#"{"type":"error","status":429,"stream_id":"a","headers":{"a":"b"},"error":null}"#,
        ] {
            assert_eq!(read(nothing), ErrorBody::default(), "{nothing}");
        }
    }
}
