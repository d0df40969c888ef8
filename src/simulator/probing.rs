//! Answers `GET /models`, by which a gateway asks whether a key works without paying for an answer.
//!
//! A key that is dead for answers is dead here, too. A key that is only out of quota works here, as
//! in the real service. A probe is checked like any other request.

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use tokio::time::Instant;

use super::caller::{describe, recognize};
use super::fault::{At, Target};
use super::key::Key;
use super::model;
use super::refusal::Refusal;
use super::stream::broken;
use super::world::World;

pub async fn serve(world: &World, headers: &HeaderMap, query: Option<&str>) -> Response<Body> {
    let began = Instant::now();
    // A probe has no body, like a handshake.
    let (key, answer) = match recognize(world, headers, query, true) {
        Ok(key) => {
            let answer = answer(world, &key, query).await;
            (Some(key), answer)
        }
        Err((key, refusal)) => (key, Some(refusal.response())),
    };
    world
        .probes
        .note(key.as_deref(), answer.as_ref().map_or(0, |response| response.status().as_u16()));
    let mut response = answer.unwrap_or_else(|| Response::new(broken()));
    describe(world, began, key.as_deref(), headers, response.headers_mut());
    response
}

/// Answers a probe. `None`: the connection must break.
async fn answer(world: &World, key: &Key, query: Option<&str>) -> Option<Response<Body>> {
    let fault = {
        let mut memory = world.memory();
        let own = memory.faults.strike(Target {
            at: At::Probe,
            key,
            model: None,
            session: None,
            tier: None,
            prewarm: false,
        });
        own.or_else(|| memory.faults.of_key(key))
    };
    if let Some(stall) = fault.as_ref().and_then(|fault| fault.stall) {
        tokio::time::sleep(stall.0).await;
    }
    let status = fault
        .as_ref()
        .and_then(|fault| fault.status)
        .and_then(|status| StatusCode::from_u16(status).ok());
    match (status, &fault) {
        (Some(status), Some(fault)) if status != StatusCode::OK => {
            Some(Refusal { close: None, ..fault.refusal(status, key, "") }.response())
        }
        (_, Some(fault)) if fault.reset => None,
        _ => {
            let is_codex = query.is_some_and(|query| query.contains("client_version="));
            let list = if is_codex { model::codex_list(key) } else { model::list(key) };
            let mut response = Response::new(Body::from(list));
            if is_codex {
                response.headers_mut().insert(header::ETAG, HeaderValue::from_static(model::ETAG));
            }
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
                .headers_mut()
                .extend(fault.map(|fault| fault.answer_headers(None)).unwrap_or_default());
            Some(response)
        }
    }
}
