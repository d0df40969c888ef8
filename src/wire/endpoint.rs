//! Decides which endpoints clients reach: the one list of methods and paths. Pure.
//!
//! Paths are compared byte by byte. A trailing or doubled slash does not matter. No other spelling
//! is normalized: a path that another parser might read differently is unknown. Any unlisted path
//! is unknown too, even if the upstream would serve it: account-wide endpoints would mix clients.
//! Only the name of a model is percent-decoded and may have slashes, because it goes into no other
//! path.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

/// The longest id in a path. OpenAI's own have about 60 characters.
const LONGEST: usize = 256;

/// The endpoint of a request. Each path is served with and without a leading `/v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint<'p> {
    /// `POST /responses`: a turn over HTTP.
    CreateResponse,
    /// `POST /chat/completions`: a turn over HTTP, in the older dialect.
    CreateChatCompletion,
    /// `POST /responses/compact`: a turn whose answer is a shorter history.
    CompactResponse,
    /// `POST /responses/input_tokens`: counts the tokens that a turn would read, and costs nothing.
    CountInputTokens,
    /// `GET /responses`: the handshake of a WebSocket, if the headers ask for one.
    OpenWebSocket,
    /// A request about the stored response with this id.
    Stored(StoredCall, &'p str),
    /// `GET /models`: the models that the client may ask for.
    ListModels,
    /// `GET /models/{id}`: the model with this id, as the path spells it. [`model_name`] reads the
    /// id.
    ShowModel(&'p str),
}

/// The dialect in which a client writes its turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Responses,
    Chat,
}

/// A request that a client may make about a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredCall {
    /// `GET /responses/{id}`, streamed or not.
    Retrieve,
    /// `DELETE /responses/{id}`.
    Delete,
    /// `POST /responses/{id}/cancel`, for a response in the background.
    Cancel,
    /// `GET /responses/{id}/input_items`.
    ListInputItems,
}

impl StoredCall {
    /// The name of the call in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retrieve => "retrieve",
            Self::Delete => "delete",
            Self::Cancel => "cancel",
            Self::ListInputItems => "input_items",
        }
    }

    /// Returns the part of the path after the id.
    const fn behind(self) -> &'static str {
        match self {
            Self::Retrieve | Self::Delete => "",
            Self::Cancel => "/cancel",
            Self::ListInputItems => "/input_items",
        }
    }

    fn parse(method: &Method, behind: &str) -> Option<Self> {
        match (method, behind) {
            (&Method::GET, "") => Some(Self::Retrieve),
            (&Method::DELETE, "") => Some(Self::Delete),
            (&Method::POST, "/cancel") => Some(Self::Cancel),
            (&Method::GET, "/input_items") => Some(Self::ListInputItems),
            _ => None,
        }
    }
}

/// Returns the path with single slashes, and without a slash at its end.
pub fn single_slashes(path: &str) -> Cow<'_, str> {
    if !path.contains("//") && !path.ends_with('/') || !path.starts_with('/') {
        return Cow::Borrowed(path);
    }
    let parts = path.split('/').filter(|part| !part.is_empty());
    Cow::Owned(parts.flat_map(|part| ["/", part]).collect())
}

impl<'p> Endpoint<'p> {
    /// Reads `path`, which has single slashes only and no query. `None`: the path is unknown.
    pub fn parse(method: &Method, path: &'p str) -> Option<Self> {
        let path = path.strip_prefix("/v1").unwrap_or(path);
        match (method, path) {
            (&Method::POST, "/responses") => Some(Self::CreateResponse),
            (&Method::POST, "/responses/compact") => Some(Self::CompactResponse),
            (&Method::POST, "/responses/input_tokens") => Some(Self::CountInputTokens),
            (&Method::POST, "/chat/completions") => Some(Self::CreateChatCompletion),
            (&Method::GET, "/responses") => Some(Self::OpenWebSocket),
            (&Method::GET | &Method::HEAD, "/models") => Some(Self::ListModels),
            _ => Self::of_one(method, path),
        }
    }

    /// Returns the endpoint of a single response or model.
    fn of_one(method: &Method, path: &'p str) -> Option<Self> {
        if let Some(id) = path.strip_prefix("/models/") {
            let is_known = matches!(*method, Method::GET | Method::HEAD);
            return (is_known && model_name(id).is_some()).then_some(Self::ShowModel(id));
        }
        let rest = path.strip_prefix("/responses/")?;
        let (id, behind) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let call = StoredCall::parse(method, behind)?;
        is_id(id).then_some(Self::Stored(call, id))
    }

    /// The dialect of a turn at this endpoint.
    pub const fn dialect(self) -> Dialect {
        match self {
            Self::CreateChatCompletion => Dialect::Chat,
            _ => Dialect::Responses,
        }
    }

    /// Returns the part of the path after the upstream's `/responses`.
    pub fn below(self) -> String {
        match self {
            Self::CompactResponse => "/compact".into(),
            Self::CountInputTokens => "/input_tokens".into(),
            Self::Stored(call, id) => format!("/{id}{}", call.behind()),
            _ => String::new(),
        }
    }
}

/// Whether `id` may name a response: it contains nothing that leads to another path.
fn is_id(id: &str) -> bool {
    (1..=LONGEST).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        && !["compact", "input_tokens"].contains(&id)
}

/// Returns the name of the model that a path spells as `spelled`. `None`: no model has such a name.
///
/// Some hosts of the same API name models with slashes, which SDKs encode. The gateway only
/// compares the name, and puts it into no path.
pub fn model_name(spelled: &str) -> Option<Cow<'_, str>> {
    let is_code = |after: &str| {
        let code = after.as_bytes().get(..2);
        code.is_some_and(|code| code.iter().all(u8::is_ascii_hexdigit))
    };
    let name = percent_decode_str(spelled).decode_utf8().ok()?;
    let is_name = (1..=LONGEST).contains(&name.len())
        && !name.contains(char::is_control)
        && spelled.split('%').skip(1).all(is_code);
    is_name.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<'p>(method: &Method, path: &'p str) -> Option<Endpoint<'p>> {
        // The path is leaked, because a test has few of them.
        Endpoint::parse(method, Box::leak(single_slashes(path).into_owned().into_boxed_str()))
    }

    #[test]
    fn slashes_say_nothing() {
        for path in
            ["/responses/", "//responses", "/v1//responses", "//v1/responses//", "/v1/responses///"]
        {
            let found = parse(&Method::POST, path);
            assert_eq!(found, Some(Endpoint::CreateResponse), "{path}");
        }
        let stored = Endpoint::Stored(StoredCall::Cancel, "resp_1");
        assert_eq!(parse(&Method::POST, "//responses//resp_1/cancel/"), Some(stored));
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
            ("POST", "/models/gpt-5.4"),
            ("DELETE", "/models/gpt-5.4"),
            ("GET", "/models/a%2"),
            ("GET", "/models/%zzb"),
            ("GET", "/models/a%ff"),
            ("GET", "/models/a%0Ab"),
            ("GET", "/models/a%00"),
            ("GET", "/models%2Fa"),
            ("HEAD", "/responses"),
            ("PUT", "/responses"),
            ("post", "/responses"),
            ("get", "/models"),
            ("GET", "/responses/compact"),
            ("DELETE", "/responses/input_tokens"),
            ("HEAD", "/responses/resp_1"),
            ("POST", "/responses/resp_1"),
            ("GET", "/responses/../resp_1"),
            ("GET", "/responses/%2e%2e"),
            ("GET", "/responses/resp.1"),
            ("POST", "/responses/resp_1/input_items"),
            ("GET", "/responses/resp_1/cancel"),
            ("POST", "/responses/compact/cancel"),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(parse(&method, path), None, "{method} {path}");
        }
        let long = format!("/responses/{}", "a".repeat(LONGEST + 1));
        assert_eq!(parse(&Method::GET, &long), None);
    }

    #[test]
    fn model_is_named_in_every_spelling_of_its_path() {
        for (path, expected) in [
            ("/models/gpt-5.4", "gpt-5.4"),
            ("/v1/models/org/model/", "org/model"),
            ("/models/org%2Fmodel", "org/model"),
            ("/models/org%2fa%2F%2Fb", "org/a//b"),
            ("/models/ft:gpt-5:acme::abc", "ft:gpt-5:acme::abc"),
            ("/models/ft%3Agpt-5%3Aacme%3A%3Aabc", "ft:gpt-5:acme::abc"),
            ("/models/a%252Fb", "a%2Fb"),
            ("/models/mod%C3%A8le%20x", "modèle x"),
            ("/models/..", ".."),
            ("/models/responses", "responses"),
        ] {
            let Some(Endpoint::ShowModel(spelled)) = parse(&Method::GET, path) else {
                panic!("{path} shows a model")
            };
            assert_eq!(model_name(spelled).as_deref(), Some(expected), "{path}");
        }
        let long = "a".repeat(LONGEST + 1);
        assert_eq!((model_name(&long), model_name("")), (None, None));
    }

    #[test]
    fn upstream_is_asked_below_its_responses() {
        for (method, path, below) in [
            ("POST", "/v1/responses", ""),
            ("GET", "/responses", ""),
            ("POST", "/responses/compact", "/compact"),
            ("POST", "/v1/responses/input_tokens", "/input_tokens"),
            ("GET", "/responses/resp_1", "/resp_1"),
            ("DELETE", "/v1/responses/resp_1", "/resp_1"),
            ("POST", "/responses/resp_1/cancel", "/resp_1/cancel"),
            ("GET", "/responses/resp_1/input_items", "/resp_1/input_items"),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let found = parse(&method, path).map(Endpoint::below);
            assert_eq!(found.as_deref(), Some(below), "{method} {path}");
        }
    }
}
