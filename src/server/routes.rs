//! What clients may ask for. Everything else is answered as an unknown URL, whatever the upstream would make of it: its
//! account-wide endpoints would cross clients.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use http::Request;

use crate::error::{Error, Kind};
use crate::turn::{self, Gateway};

pub fn client_routes(gateway: &Arc<Gateway>) -> Router {
    let serve = |gateway: Arc<Gateway>| move |request: Request<Body>| turn::http::serve(gateway, request);
    let refuse = |gateway: Arc<Gateway>| {
        move |request: Request<Body>| async move {
            let message = format!("Unknown request URL: {} {}.", request.method(), request.uri().path());
            turn::http::refuse(&gateway, &request, &Error::new(Kind::UnknownUrl, message))
        }
    };
    let responses = || post(serve(Arc::clone(gateway))).fallback(refuse(Arc::clone(gateway)));
    Router::new().route("/responses", responses()).route("/v1/responses", responses()).fallback(refuse(Arc::clone(gateway)))
}
