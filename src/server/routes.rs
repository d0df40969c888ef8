//! Hands each request of a client to the transport of its endpoint, and refuses all others.
//!
//! `wire::endpoint` decides which endpoints exist.

use std::borrow::Cow;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::header::{CONTENT_LENGTH, HOST, HeaderName};
use ::http::uri::Authority;
use ::http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use axum::body::Body;
use http_body::Body as _;
use tower_service::Service;

use crate::error::{Error, ErrorKind};
use crate::server::connection::OneTooMany;
use crate::server::pages::may_be_of_a_page;
use crate::server::slowing::Slowing;
use crate::server::unreadable;
use crate::server::watched::Watched;
use crate::turn::Gateway;
use crate::turn::http::exchange::{self as http, HttpTurns};
use crate::turn::http::models::{self, ModelRoutes};
use crate::turn::http::relay::Outgoing;
use crate::turn::http::stored;
use crate::turn::websocket::handshake as websocket;
use crate::turn::websocket::sockets::WebSocketTurns;
use crate::wire::endpoint::{Endpoint, model_name, single_slashes};

/// Largest head of a request over HTTP/2, because a connection may have many at once. Over
/// HTTP/1.1, the connection's buffer is the limit.
const HEAD: usize = 16 * 1024;
/// Size that each header counts beyond its name and value (RFC 9113, section 6.5.2).
const HEADER: usize = 32;
/// `Retry-After` of a request beyond the limit of requests in flight.
const SOON: Duration = Duration::from_secs(1);

/// The clients' endpoints. Answers are not axum's own: axum boxes each answer's body, and every
/// event would pay for the box.
#[derive(Clone)]
pub struct ClientRoutes {
    pub http: Arc<HttpTurns>,
    pub websocket: Arc<WebSocketTurns>,
    pub models: Arc<ModelRoutes>,
    pub slowing: Arc<Slowing>,
}

impl Service<Request<Watched>> for ClientRoutes {
    type Response = Response<Outgoing>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Outgoing>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Watched>) -> Self::Future {
        let (routes, caller) = (self.clone(), self.slowing.caller(&request));
        Box::pin(async move {
            let response = answer(routes, request.map(Body::new)).await;
            caller.delay_refusal(response.extensions()).await;
            Ok(response)
        })
    }
}

/// Answers HEAD with the length of the body, which is not sent. hyper itself does so only over
/// HTTP/1.1.
fn without_body(mut response: Response<Outgoing>) -> Response<Outgoing> {
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    response.map(|_| Outgoing::Own(Body::empty()))
}

async fn answer(routes: ClientRoutes, request: Request<Body>) -> Response<Outgoing> {
    let ClientRoutes { http: turns, websocket: sockets, models, .. } = routes;
    let gateway = &turns.gateway;
    if request.extensions().get::<OneTooMany>().is_some() {
        const FULL: &str = "This replica has no room for another request. Please try again.";
        let error = Error::new(ErrorKind::NoKeyAvailable, FULL).retry_after(SOON);
        return refuse(gateway, &request, &error);
    }
    if is_too_large(&request) {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        let mut response = refuse(gateway, &request, &unreadable::error(status));
        *response.status_mut() = status;
        return response;
    }
    if let Err(error) = has_one_host(&request) {
        return refuse(gateway, &request, &error);
    }
    if gateway.entry.clients.get().is_open() && may_be_of_a_page(&request) {
        let error = Error::new(ErrorKind::OriginNotAllowed, "Pages may not call this gateway.");
        return refuse(gateway, &request, &error);
    }
    let path = single_slashes(request.uri().path()).into_owned();
    match Endpoint::parse(request.method(), &path) {
        Some(Endpoint::CreateResponse) => {
            http::serve(turns, Endpoint::CreateResponse, request).await
        }
        Some(Endpoint::CreateChatCompletion) => {
            http::serve(turns, Endpoint::CreateChatCompletion, request).await
        }
        Some(Endpoint::CompactResponse) => {
            http::serve(turns, Endpoint::CompactResponse, request).await
        }
        Some(Endpoint::CountInputTokens) => {
            http::serve(turns, Endpoint::CountInputTokens, request).await
        }
        Some(Endpoint::Stored(call, id)) => {
            let id = id.to_owned();
            stored::serve(turns, call, id, request).await
        }
        Some(Endpoint::OpenWebSocket) if websocket::is_upgrade_request(request.headers()) => {
            websocket::serve(sockets, request).await
        }
        Some(Endpoint::OpenWebSocket) | None => refuse(gateway, &request, &unknown(&request)),
        Some(Endpoint::ListModels) => list(models, None, request).await,
        Some(Endpoint::ShowModel(id)) => {
            let id = model_name(id).map(Cow::into_owned);
            list(models, id, request).await
        }
    }
}

/// Whether the head of a request over HTTP/2 is too large.
fn is_too_large(request: &Request<Body>) -> bool {
    let size =
        |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + HEADER;
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    request.version() == Version::HTTP_2
        && target + request.headers().iter().map(size).sum::<usize>() > HEAD
}

/// Checks that a request over HTTP/1.1 has exactly one `Host`, with a valid value (RFC 9112,
/// section 3.2).
fn has_one_host(request: &Request<Body>) -> Result<(), Error> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    let is_valid = match first {
        Some(host) => second.is_none() && is_host(host.as_bytes()),
        None => request.version() != Version::HTTP_11,
    };
    is_valid.then_some(()).ok_or_else(|| {
        Error::new(ErrorKind::InvalidRequest, "A request must have one valid Host header.")
    })
}

/// A host and perhaps a port. A target without a host has an empty one.
fn is_host(value: &[u8]) -> bool {
    let is_authority = || Authority::try_from(value).is_ok_and(|host| !host.as_str().contains('@'));
    value.is_empty() || is_authority()
}

async fn list(
    lists: Arc<ModelRoutes>,
    id: Option<String>,
    request: Request<Body>,
) -> Response<Outgoing> {
    let is_head = request.method() == Method::HEAD;
    let response = models::serve(lists, id, request).await;
    if is_head { without_body(response) } else { response }
}

fn unknown(request: &Request<Body>) -> Error {
    let (method, path) = (request.method(), request.uri().path());
    Error::new(ErrorKind::UnknownUrl, format!("Unknown request URL: {method} {path}."))
}

fn refuse(gateway: &Gateway, request: &Request<Body>, error: &Error) -> Response<Outgoing> {
    let response = http::refuse(gateway, request, error);
    if request.method() == Method::HEAD { without_body(response) } else { response }
}
