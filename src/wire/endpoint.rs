//! Decides what a request may ask for: the one list of methods and paths that clients reach. Pure.
//!
//! Compares bytes and normalizes nothing, so a path that another party might read differently is
//! unknown. Everything that is not listed is unknown, too, whatever the upstream would make of it:
//! its account-wide endpoints would cross clients.

use http::Method;

/// What a request asks for. Each path is served with and without `/v1` before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `POST /responses`: a turn over HTTP.
    CreateResponse,
    /// `GET /responses`: the handshake of a WebSocket, if the headers ask for one.
    OpenWebSocket,
    /// `GET /models`, by which clients find out whether their token is accepted. The list itself is
    /// not served.
    ListModels,
}

impl Endpoint {
    /// `path`: as the client wrote it, without the query. `None`: the URL is unknown.
    pub fn parse(method: &Method, path: &str) -> Option<Self> {
        let path = path.strip_prefix("/v1").unwrap_or(path);
        match (method, path) {
            (&Method::POST, "/responses") => Some(Self::CreateResponse),
            (&Method::GET, "/responses") => Some(Self::OpenWebSocket),
            (&Method::GET | &Method::HEAD, "/models") => Some(Self::ListModels),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("POST", "/responses/"),
            ("POST", "//responses"),
            ("POST", "/v1//responses"),
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
