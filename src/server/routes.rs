//! What clients may ask for. Everything else is answered as an unknown URL, whatever the upstream would make of it: its
//! account-wide endpoints would cross clients.

use std::sync::Arc;

use ::http::header::UPGRADE;
use ::http::{HeaderValue, Request, Response};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::post;

use crate::error::{Error, Kind};
use crate::turn::{Gateway, http};

type Shared = State<Arc<Gateway>>;

pub fn client_routes(gateway: Arc<Gateway>) -> Router {
    let responses = || post(serve).get(upgrade).fallback(unknown);
    Router::new().route("/responses", responses()).route("/v1/responses", responses()).fallback(unknown).with_state(gateway)
}

async fn serve(State(gateway): Shared, request: Request<Body>) -> Response<Body> {
    http::serve(gateway, request).await
}

/// Codex asks for a WebSocket here, and takes a 426 as word to go on over HTTP at once.
async fn upgrade(State(gateway): Shared, request: Request<Body>) -> Response<Body> {
    let is_websocket = |protocol: &HeaderValue| protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
    if request.headers().get(UPGRADE).is_some_and(is_websocket) {
        return http::refuse(&gateway, &request, &Error::new(Kind::UpgradeRequired, "WebSocket is not served here: use HTTP."));
    }
    unknown(State(gateway), request).await
}

async fn unknown(State(gateway): Shared, request: Request<Body>) -> Response<Body> {
    let message = format!("Unknown request URL: {} {}.", request.method(), request.uri().path());
    http::refuse(&gateway, &request, &Error::new(Kind::UnknownUrl, message))
}
