//! Makes the answer to a request whose head cannot be read, or is too large.
//!
//! hyper answers such a request by itself, before any service sees the request, and hyper's answer
//! has no body. This module replaces it by the gateway's own error.

use http::StatusCode;
use http::header::CONTENT_LENGTH;

use crate::error::{Error, ErrorKind};

/// The text that hyper writes between its status line and its date.
const REST: &str = "\r\nconnection: close\r\ncontent-length: 0\r\ndate: ";
/// Length of a date and of the end of a head, as hyper writes them.
const DATE: usize = "Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n".len();
/// Length that none of hyper's own answers reaches.
const LONGEST: usize = 160;
const VERSION: usize = "HTTP/1.1 ".len();

/// The statuses with which hyper refuses a head.
const STATUSES: [StatusCode; 3] = [
    StatusCode::BAD_REQUEST,
    StatusCode::URI_TOO_LONG,
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
];

/// Returns the error for a head that hyper refuses with `status`.
pub fn error(status: StatusCode) -> Error {
    match status {
        StatusCode::URI_TOO_LONG => {
            Error::new(ErrorKind::RequestTooLarge, "The URL of the request is too long.")
        }
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Error::new(
            ErrorKind::RequestTooLarge,
            "The headers of the request are too large. Please send fewer or shorter headers.",
        ),
        _ => Error::new(ErrorKind::InvalidRequest, "The request is not valid HTTP."),
    }
}

/// Returns the gateway's answer if `written` is exactly one of hyper's own answers.
pub fn in_place_of(written: &[u8]) -> Option<Vec<u8>> {
    let status = STATUSES.into_iter().find(|status| is_automatic(written, *status))?;
    let response = error(status).to_response::<String>();
    let mut answer = written[..written.len() - DATE - "date: ".len()].to_vec();
    // hyper writes `content-length: 0`, and the gateway's answer has a body.
    answer.truncate(answer.len() - "content-length: 0\r\n".len());
    for (name, value) in response.headers().iter().filter(|(name, _)| *name != CONTENT_LENGTH) {
        answer.extend_from_slice(name.as_str().as_bytes());
        answer.extend_from_slice(b": ");
        answer.extend_from_slice(value.as_bytes());
        answer.extend_from_slice(b"\r\n");
    }
    let body = response.into_body();
    answer.extend_from_slice(format!("content-length: {}\r\ndate: ", body.len()).as_bytes());
    answer.extend_from_slice(&written[written.len() - DATE..]);
    answer.extend_from_slice(body.as_bytes());
    Some(answer)
}

/// Whether `written` has the form of hyper's own answers. This cheap test comes first.
pub fn may_be_automatic(written: &[u8]) -> bool {
    written.len() < LONGEST && written.starts_with(b"HTTP/1.")
}

fn is_automatic(written: &[u8], status: StatusCode) -> bool {
    let Some(rest) = written.strip_prefix(b"HTTP/1.") else { return false };
    let line = format!(" {} {}{REST}", status.as_str(), status.canonical_reason().unwrap_or(""));
    rest.get(1..).is_some_and(|rest| rest.starts_with(line.as_bytes()))
        && written.len() == VERSION - 1 + line.len() + DATE
        && written.ends_with(b"\r\n\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn automatic(status: &str) -> String {
        format!("HTTP/1.1 {status}{REST}Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n")
    }

    #[test]
    fn answer_to_an_unreadable_head_has_a_body() {
        for (status, code) in [
            ("400 Bad Request", "invalid_request"),
            ("414 URI Too Long", "request_too_large"),
            ("431 Request Header Fields Too Large", "request_too_large"),
        ] {
            assert!(may_be_automatic(automatic(status).as_bytes()));
            let answer = in_place_of(automatic(status).as_bytes()).expect("it is hyper's own");
            let answer = String::from_utf8(answer).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\nconnection: close\r\n")));
            assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())), "{head}");
            assert_eq!(head.matches("content-length").count(), 1, "{head}");
            assert!(head.ends_with("\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT"), "{head}");
            let json: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(json["error"]["code"], code);
        }
    }

    #[test]
    fn other_bytes_stay_as_they_are() {
        let own = automatic("431 Request Header Fields Too Large");
        for other in [
            String::new(),
            automatic("404 Not Found"),
            automatic("200 OK"),
            own[..own.len() - 1].to_owned(),
            format!("{own}x"),
            format!("x{own}"),
            own.replace("content-length: 0", "content-length: 1"),
        ] {
            assert_eq!(in_place_of(other.as_bytes()), None, "{other}");
        }
    }
}
