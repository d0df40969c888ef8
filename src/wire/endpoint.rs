//! Decides which endpoints clients reach: the one list of methods and paths. Pure.
//!
//! Compares bytes. A trailing or doubled slash says nothing. No other spelling is normalized, so
//! that any path which another parser might read differently is unknown. Any unlisted path is
//! unknown too, even if the upstream would serve it: account-wide endpoints would mix clients.

use std::borrow::Cow;

use http::Method;

/// The endpoint of a request. Each path is served with and without a leading `/v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `POST /responses`: a turn over HTTP.
    CreateResponse,
    /// `POST /chat/completions`: a turn over HTTP, in the older dialect.
    CreateChatCompletion,
    /// `GET /responses`: the handshake of a WebSocket, if the headers ask for one.
    OpenWebSocket,
    /// `GET /models`, with which clients check their token. Warmkey does not serve the list itself.
    ListModels,
}

/// The dialect in which a client writes its turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Responses,
    Chat,
}

impl Endpoint {
    /// `path` is the client's spelling without the query. `None`: the URL is unknown.
    pub fn parse(method: &Method, path: &str) -> Option<Self> {
        let path = single_slashes(path);
        let path = path.strip_prefix("/v1").unwrap_or(&path);
        match (method, path) {
            (&Method::POST, "/responses") => Some(Self::CreateResponse),
            (&Method::POST, "/chat/completions") => Some(Self::CreateChatCompletion),
            (&Method::GET, "/responses") => Some(Self::OpenWebSocket),
            (&Method::GET | &Method::HEAD, "/models") => Some(Self::ListModels),
            _ => None,
        }
    }
}

/// The path without doubled slashes, and without one at its end.
fn single_slashes(path: &str) -> Cow<'_, str> {
    if !path.contains("//") && !path.ends_with('/') || !path.starts_with('/') {
        return Cow::Borrowed(path);
    }
    let parts = path.split('/').filter(|part| !part.is_empty());
    Cow::Owned(parts.flat_map(|part| ["/", part]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_say_nothing() {
        for path in
            ["/responses/", "//responses", "/v1//responses", "//v1/responses//", "/v1/responses///"]
        {
            let found = Endpoint::parse(&Method::POST, path);
            assert_eq!(found, Some(Endpoint::CreateResponse), "{path}");
        }
    }

    #[test]
    fn near_misses_are_unknown() {
        for (method, path) in [
            ("POST", ""),
            ("POST", "/"),
            ("POST", "*"),
            ("POST", "/v1"),
            ("POST", "/v1responses"),
            ("POST", "/v1/v1/responses"),
            ("POST", "/v2/responses"),
            ("POST", "/V1/responses"),
            ("POST", "/Responses"),
            ("POST", "responses"),
            ("POST", "/v1/v1//responses"),
            ("POST", "//"),
            ("POST", "responses/"),
            ("POST", "/./responses"),
            ("POST", "/v1/../responses"),
            ("POST", "/%72esponses"),
            ("POST", "/v1%2Fresponses"),
            ("POST", "/responses?a=b"),
            ("POST", "/responses#a"),
            ("POST", "/responses;a"),
            ("POST", "/models"),
            ("GET", "/models/gpt-5.4"),
            ("HEAD", "/responses"),
            ("PUT", "/responses"),
            ("post", "/responses"),
            ("get", "/models"),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(Endpoint::parse(&method, path), None, "{method} {path}");
        }
    }
}
