//! The routes of the admin listener: probes, Prometheus, and the operator's API. They are never
//! reachable on the clients' port and never show a secret.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::routing::get;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};

use super::drain::Readiness;
use super::ledger::ledger_routes;
use super::operator::{AdminApi, operator_routes, unknown};
use super::slowing::Slowing;
use crate::metrics::{self, Metrics};
use crate::process::Descriptors;
use crate::task::Tasks;
use crate::telemetry::log;

pub fn admin_routes(
    metrics: Arc<Metrics>,
    readiness: Readiness,
    api: Arc<AdminApi>,
    tasks: Tasks,
) -> Router {
    let slowing = Arc::new(Slowing::new(Arc::clone(&metrics), Descriptors::of_process().admin));
    let memory = api.memory.clone();
    let page = move || async move {
        metrics.body_memory(memory.used(), memory.limit());
        metrics.log_lines_dropped(log::dropped());
        metrics.task_restarts(tasks.restarts() + log::restarts());
        let mut response = Response::new(axum::body::Body::from(metrics.render()));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
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
        .merge(ledger_routes(Arc::clone(&api)))
        .merge(operator_routes(api))
        .method_not_allowed_fallback(unknown)
        .fallback(unknown)
        .layer(from_fn(move |request: Request, next: Next| {
            let caller = slowing.caller(&request);
            async move {
                let response = next.run(request).await;
                caller.delay_refusal(response.extensions()).await;
                response
            }
        }))
}
