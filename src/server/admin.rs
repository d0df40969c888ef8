//! What probes and Prometheus ask, on a listener of its own, beside what operators ask there. Never reachable on the clients'
//! port, never a secret in it.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};

use super::drain::Readiness;
use super::ledger::ledger_routes;
use super::operator::{Desk, operator_routes, unknown};
use crate::metrics::{self, Metrics};

pub fn admin_routes(metrics: Arc<Metrics>, readiness: Readiness, desk: Arc<Desk>) -> Router {
    let page = move || async move {
        let mut response = Response::new(axum::body::Body::from(metrics.render()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
        response
    };
    let ready = move || async move {
        match readiness.is_ready() {
            true => (StatusCode::OK, "ready\n"),
            false => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        }
    };
    Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(page))
        .merge(ledger_routes(Arc::clone(&desk)))
        .merge(operator_routes(desk))
        .method_not_allowed_fallback(unknown)
        .fallback(unknown)
}
