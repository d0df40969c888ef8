//! Serves a turn over HTTP: reads it, recognizes its key, and answers with a stream or in one
//! piece.
//!
//! The order is the real service's, with the judge's checks before it. Headers that must never
//! reach an upstream are refused even without a known key. The turn is on record from its first
//! header on. The part that holds the turn's entry in the record notices if the client leaves.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderValue, Request, Response, header};
use tokio::time::Instant;

use super::archive::Archived;
use super::body::{self, WireFault};
use super::caller::{TURN_STATE, describe, name, recognize};
use super::form::Form;
use super::judge::{Entry, Outcome, Turn};
use super::key::Key;
use super::leak;
use super::refusal::Refusal;
use super::request::Transport;
use super::stream::{self, End, Play, broken};
use super::turn::{self, Reply};
use super::world::World;

pub async fn serve(world: &World, form: Form, request: Request<Body>) -> Response<Body> {
    let began = Instant::now();
    let (parts, body) = request.into_parts();
    let text = |name: &str| {
        parts.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let entry = world.judge.open(Turn {
        transport: Transport::Http.name().into(),
        method_path: format!("{} {}", parts.method, parts.uri.path()),
        session: text("session-id"),
        content_length: text("content-length"),
        turn_state: text(TURN_STATE),
        headers: leak::names(&parts.headers).into(),
        ..Turn::default()
    });
    // The headers alone decide the key. From then on the turn is in flight at that key.
    let known = recognize(world, &parts.headers, parts.uri.query(), false);
    let key = known.as_ref().map_or_else(|(key, _)| key.clone(), |key| Some(Arc::clone(key)));
    entry.note(|turn| key.iter().for_each(|key| name(turn, key)));
    let wire = body::read(body, &parts.headers).await;
    entry.note(|turn| turn.body_sha256.clone_from(&wire.sha256));
    let outcome = match (wire.fault, known) {
        // The client has left, so no answer is sent.
        (Some(WireFault::Incomplete), _) => {
            return Refusal::invalid(None, None, "The request body ended early.").response();
        }
        (Some(WireFault::TooLarge), _) => Err(body::too_large()),
        (None, Ok(key)) => match body::decode(wire.bytes, &parts.headers) {
            Ok(bytes) => turn::answer(&asked(world, &key, &bytes, form), &entry).await,
            Err(refusal) => Err(refusal),
        },
        (None, Err((_, refusal))) => Err(refusal),
    };
    let mut response = match outcome {
        Ok(reply) => {
            if let Some(key) = key.as_ref().filter(|_| reply.store) {
                keep(world, key, &reply);
            }
            respond(reply, form, entry)
        }
        Err(refusal) => refuse(&refusal, entry),
    };
    describe(world, began, key.as_deref(), &parts.headers, response.headers_mut());
    response
}

fn asked<'a>(world: &'a World, key: &'a Key, bytes: &'a [u8], form: Form) -> turn::Request<'a> {
    turn::Request { world, key, bytes, transport: Transport::Http, form, recall: &|_| None }
}

/// Stores an answer for its project.
fn keep(world: &World, key: &Key, reply: &Reply) {
    let Reply { answer, pause, stream, past, input, .. } = reply;
    let past = past.clone().followed_by(&answer.items);
    let pause = pause.text.unwrap_or(pause.event);
    let archived = Archived::new(answer.clone(), input.clone(), *stream, pause);
    let mut memory = world.memory();
    memory.stored.keep(&answer.id, &key.place(), past);
    memory.items.keep(&key.place(), &answer.id, &answer.items);
    memory.archive.keep(&key.place(), archived);
}

/// Answers with an error, and records it.
pub fn refuse(refusal: &Refusal, mut entry: Entry) -> Response<Body> {
    entry.note(|turn| (turn.status, turn.code) = (refusal.status.as_u16(), refusal.code.clone()));
    entry.became(Outcome::Refused);
    refusal.response()
}

fn respond(reply: Reply, form: Form, mut entry: Entry) -> Response<Body> {
    let Reply { answer, pause, stream, headers, cut, spelling, .. } = reply;
    if cut.as_ref().is_some_and(|cut| matches!(cut.end, End::Broken) && cut.after == 0) {
        entry.became(Outcome::Cut);
        return Response::new(broken());
    }
    entry.note(|turn| turn.status = 200);
    let kind = if stream { "text/event-stream; charset=utf-8" } else { "application/json" };
    let body = if stream {
        stream::body(Play::new(answer, pause, cut, Arc::default(), entry), spelling)
    } else if cut.is_some() {
        entry.became(Outcome::Cut);
        broken()
    } else {
        entry.became(Outcome::Completed);
        Body::from(match (form, spelling) {
            (_, Some(spelling)) => spelling.document(&answer),
            (Form::Compaction, None) => answer.compaction(),
            _ if answer.background => answer.unfinished("queued"),
            _ => answer.object(),
        })
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().extend(headers);
    response
}
