//! The usual gateways: proxies that pass everything on and pick a key without knowing the session.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, to_bytes};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio_util::sync::CancellationToken;

use super::{KEYS, bind, secret};
use crate::task::Tasks;

/// How the proxy picks a key.
#[derive(Clone, Copy, Debug)]
pub enum Routing {
    /// The only key.
    Single,
    /// The next key for each request.
    RoundRobin,
    /// One key for each user.
    UserSticky,
}

struct Peer {
    routing: Routing,
    upstream: SocketAddr,
    client: reqwest::Client,
    next: AtomicUsize,
}

pub fn start(routing: Routing, upstream: SocketAddr, tasks: &Tasks) -> std::io::Result<SocketAddr> {
    let client = reqwest::Client::builder().no_proxy().build().map_err(std::io::Error::other)?;
    let peer = Arc::new(Peer { routing, upstream, client, next: AtomicUsize::new(0) });
    let listener = bind()?;
    let address = listener.address()?;
    let router =
        Router::new().fallback(move |request: Request<Body>| pass(Arc::clone(&peer), request));
    let owned = tasks.clone();
    tasks.spawn_until_stopped(async move {
        listener.serve(router, owned, CancellationToken::new()).await;
    });
    Ok(address)
}

impl Peer {
    fn key(&self, headers: &HeaderMap) -> &'static str {
        let number = match self.routing {
            Routing::Single => 0,
            Routing::RoundRobin => self.next.fetch_add(1, Ordering::Relaxed),
            Routing::UserSticky => {
                let mut hasher = DefaultHasher::new();
                headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).hash(&mut hasher);
                hasher.finish() as usize
            }
        };
        KEYS[number % KEYS.len()].0
    }
}

async fn pass(peer: Arc<Peer>, request: Request<Body>) -> Response<Body> {
    forward(&peer, request).await.unwrap_or_else(|error| {
        let mut response = Response::new(Body::from(error));
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        response
    })
}

async fn forward(peer: &Peer, request: Request<Body>) -> Result<Response<Body>, String> {
    let (mut head, body) = request.into_parts();
    let key = secret(peer.key(&head.headers));
    let body = to_bytes(body, usize::MAX).await.map_err(|error| error.to_string())?;
    for name in [HOST, CONTENT_LENGTH] {
        head.headers.remove(name);
    }
    head.headers.insert(
        AUTHORIZATION,
        HeaderValue::try_from(format!("Bearer {key}")).map_err(|error| error.to_string())?,
    );
    let url = format!("http://{}{}", peer.upstream, head.uri.path());
    let response =
        peer.client.request(head.method, url).headers(head.headers).body(body).send().await;
    let (mut head, body) =
        Response::<reqwest::Body>::from(response.map_err(|error| error.to_string())?).into_parts();
    head.headers.remove(http::header::TRANSFER_ENCODING);
    Ok(Response::from_parts(head, Body::new(body)))
}
