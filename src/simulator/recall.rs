//! Serves requests about stored responses and single models, and counts of tokens.
//!
//! They are checked like turns: headers first, then the key, which must be of the response's
//! project.

use axum::body::Body;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tokio::time::Instant;

use super::body;
use super::caller::{describe, recognize};
use super::form::Form;
use super::key::Key;
use super::model;
use super::refusal::Refusal;
use super::request::Transport;
use super::turn;
use super::world::World;

/// Number of items in a list, if the request names no limit.
const USUAL_LIMIT: usize = 20;

/// Serves a request about a stored response or a model, or a count of tokens.
pub async fn serve(world: &World, request: Request<Body>) -> Response<Body> {
    let began = Instant::now();
    let (head, body) = request.into_parts();
    let has_body = head.method == Method::POST;
    let (key, answer) = match recognize(world, &head.headers, head.uri.query(), !has_body) {
        Ok(key) => {
            let answer = answer(world, &key, &head, body).await;
            (Some(key), answer.unwrap_or_else(|refusal| refusal.response()))
        }
        Err((key, refusal)) => (key, refusal.response()),
    };
    world.calls.note(&head, key.as_deref(), answer.status().as_u16());
    let mut answer = answer;
    describe(world, began, key.as_deref(), &head.headers, answer.headers_mut());
    answer
}

async fn answer(
    world: &World,
    key: &Key,
    head: &Parts,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    if let Some(fault) = world.memory().faults.of_key(key)
        && let Some(status) = fault.status.and_then(|status| StatusCode::from_u16(status).ok())
    {
        return Err(fault.refusal(status, key, ""));
    }
    let wire = body::read(body, &head.headers).await;
    let path = head.uri.path();
    let path = path.strip_prefix("/v1").unwrap_or(path);
    let parts: Vec<&str> = path.split('/').collect();
    match (&head.method, parts.as_slice()) {
        (&Method::POST, ["", "responses", "input_tokens"]) => {
            let bytes = body::decode(wire.bytes, &head.headers)?;
            let (transport, form) = (Transport::Http, Form::Count);
            let request =
                turn::Request { world, key, bytes: &bytes, transport, form, recall: &|_| None };
            let tokens = turn::count_tokens(&request)?;
            Ok(json(format!(r#"{{"object":"response.input_tokens","input_tokens":{tokens}}}"#)))
        }
        (&Method::GET, ["", "models", ..]) => {
            Ok(json(model::one(key, path.strip_prefix("/models/").unwrap_or_default())?))
        }
        (&Method::GET, ["", "responses", id]) => retrieve(world, key, id, head.uri.query()),
        (&Method::DELETE, ["", "responses", id]) => {
            let mut memory = world.memory();
            let deleted = memory.archive.delete(id, &key.place())?;
            memory.stored.forget(id);
            memory.items.forget(id);
            Ok(json(deleted))
        }
        (&Method::POST, ["", "responses", id, "cancel"]) => {
            Ok(json(world.memory().archive.cancel(id, &key.place())?))
        }
        (&Method::GET, ["", "responses", id, "input_items"]) => {
            let query = head.uri.query();
            let limit = parameter(query, "limit").and_then(|limit| limit.parse().ok());
            let is_ascending = parameter(query, "order") == Some("asc");
            let mut memory = world.memory();
            let archived = memory.archive.find(id, &key.place())?;
            Ok(json(archived.items(is_ascending, limit.unwrap_or(USUAL_LIMIT))))
        }
        _ => Err(Refusal::invalid(None, None, "Invalid URL").with_status(StatusCode::NOT_FOUND)),
    }
}

fn retrieve(
    world: &World,
    key: &Key,
    id: &str,
    query: Option<&str>,
) -> Result<Response<Body>, Refusal> {
    let archived = world.memory().archive.find(id, &key.place())?.clone();
    if parameter(query, "stream") != Some("true") {
        if parameter(query, "starting_after").is_some() {
            let message = "starting_after is for streams.";
            return Err(Refusal::invalid(None, Some("starting_after"), message));
        }
        return Ok(json(archived.object()));
    }
    if !archived.streamed {
        let message = "This response was not created as a stream.";
        return Err(Refusal::invalid(None, Some("stream"), message));
    }
    let after = match parameter(query, "starting_after").map(str::parse) {
        None => None,
        Some(Ok(after)) => Some(after),
        Some(Err(_)) => {
            let message = "starting_after is no number.";
            return Err(Refusal::invalid(None, Some("starting_after"), message));
        }
    };
    let mut response = Response::new(archived.stream(after));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    Ok(response)
}

fn parameter<'q>(query: Option<&'q str>, name: &str) -> Option<&'q str> {
    let mut pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(own, _)| *own == name).map(|(_, value)| value)
}

fn json(text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
