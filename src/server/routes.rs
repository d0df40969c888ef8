//! What clients may ask for. Everything else is answered as an unknown URL, whatever the upstream would make of it: its
//! account-wide endpoints would cross clients.

use std::sync::Arc;

use ::http::{Request, Response};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::post;

use crate::error::{Error, Kind};
use crate::turn::{Gateway, http, websocket};

type Shared = State<Arc<Gateway>>;

pub fn client_routes(gateway: Arc<Gateway>) -> Router {
    let responses = || post(serve).get(upgrade).fallback(unknown);
    Router::new().route("/responses", responses()).route("/v1/responses", responses()).fallback(unknown).with_state(gateway)
}

async fn serve(State(gateway): Shared, request: Request<Body>) -> Response<Body> {
    http::serve(gateway, request).await
}

async fn upgrade(State(gateway): Shared, request: Request<Body>) -> Response<Body> {
    match websocket::is_wanted(request.headers()) {
        true => websocket::serve(gateway, request).await,
        false => unknown(State(gateway), request).await,
    }
}

async fn unknown(State(gateway): Shared, request: Request<Body>) -> Response<Body> {
    let message = format!("Unknown request URL: {} {}.", request.method(), request.uri().path());
    http::refuse(&gateway, &request, &Error::new(Kind::UnknownUrl, message))
}
