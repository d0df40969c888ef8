//! One turn, from the first header to the last event: read, recognized, checked, served from the cache, answered.
//!
//! The order is the real service's, with the judge's checks before it: what must never reach an upstream is refused even from
//! nobody. Whatever happens, the turn is on record from its first header on, and a client that leaves is noticed by whoever
//! holds the record's entry at that moment.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use tokio::time::Instant;

use super::answer::{Answer, Usage};
use super::body::{self, WireFault};
use super::diagnosis::Trace;
use super::fault::Fault;
use super::json::{Document, Value};
use super::judge::{Entry, Outcome, Turn, now_millis};
use super::key::Key;
use super::leak;
use super::limits::{Limited, Standing, go_text};
use super::prefix::{History, Prefix};
use super::refusal::{Caller, Refusal};
use super::reply::{self, Prompt};
use super::request::{Ask, Caching, OpenCalls};
use super::seal::Broken;
use super::stored::Past;
use super::stream::{Cut, End, Pause, broken, play};
use super::world::World;

const TURN_STATE: &str = "x-codex-turn-state";
const SEALED_TURN: &str = "turn";

/// What one request is answered with, before it is decided how well the sending goes.
struct Reply {
    answer: Answer,
    pause: Pause,
    stream: bool,
    standing: Standing,
}

pub async fn serve(world: &World, request: Request<Body>) -> Response<Body> {
    let began = Instant::now();
    let (parts, body) = request.into_parts();
    let text = |name: &str| parts.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let mut entry = world.judge.open(Turn {
        transport: "http".into(),
        method_path: format!("{} {}", parts.method, parts.uri.path()),
        session: text("session-id"),
        content_length: text("content-length"),
        turn_state: text(TURN_STATE),
        headers: leak::names(&parts.headers).into(),
        ..Turn::default()
    });
    let wire = body::read(body, &parts.headers).await;
    entry.note(|turn| turn.body_sha256.clone_from(&wire.sha256));

    let mut key = None;
    let outcome = match wire.fault {
        // Nobody is there to be told.
        Some(WireFault::Incomplete) => return Refusal::invalid(None, None, "The request body ended early.").response(),
        Some(WireFault::TooLarge) => Err(body::too_large()),
        None => match recognize(world, &parts.headers, &entry) {
            Ok(known) => {
                let key = key.insert(known);
                match body::decode(wire.bytes, &parts.headers) {
                    Ok(bytes) => answer(world, key, &bytes, &mut entry).await,
                    Err(refusal) => Err(refusal),
                }
            }
            Err(refusal) => Err(refusal),
        },
    };
    let mut response = match outcome {
        Ok((reply, fault)) => respond(reply, fault, entry),
        Err(refusal) => refuse(&refusal, entry),
    };
    let headers = response.headers_mut();
    let processing = began.elapsed().as_millis() as u64;
    headers.insert("openai-processing-ms", HeaderValue::from(processing));
    // What stands in front of the real service sets one; a gateway keeps it to itself.
    headers.insert(header::SET_COOKIE, HeaderValue::from_static("__cf_bm=simulated; path=/; HttpOnly; Secure; SameSite=None"));
    if let Some(key) = key {
        describe(world, &key, parts.headers.contains_key(TURN_STATE), headers);
    }
    put(headers, "x-request-id", &world.id("req"));
    response
}

fn put(headers: &mut HeaderMap, name: &'static str, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

/// Headers that every answer to a known key carries.
fn describe(world: &World, key: &Key, continued: bool, headers: &mut HeaderMap) {
    put(headers, "openai-organization", &key.organization);
    put(headers, "openai-project", &key.project);
    put(headers, "openai-version", "2020-10-01");
    if !continued {
        put(headers, TURN_STATE, &world.seal(SEALED_TURN, &key.id, 8));
    }
}

/// Whose request it is, if nothing about its headers is wrong.
fn recognize(world: &World, headers: &HeaderMap, entry: &Entry) -> Result<Arc<Key>, Refusal> {
    let known = world.keys.authenticate(headers);
    if let Ok(key) | Err((Some(key), _)) = &known {
        entry.note(|turn| (turn.key, turn.organization) = (Some(key.id.clone()), Some(key.organization.clone())));
    }
    leak::check(headers)?;
    let key = known.map_err(|(_, refusal)| refusal)?;
    if let Some(state) = headers.get(TURN_STATE) {
        let opened = world.sealer.open(SEALED_TURN, &key.id, &String::from_utf8_lossy(state.as_bytes()));
        let message = match opened {
            Ok(()) => return Ok(key),
            Err(Broken::Foreign) => "This x-codex-turn-state was issued for another key.",
            Err(Broken::Garbage) => "This x-codex-turn-state was never issued here, or was changed on its way.",
        };
        return Err(Refusal::invalid(Some("simulator_foreign_turn_state"), None, message));
    }
    Ok(key)
}

async fn answer(world: &World, key: &Key, bytes: &[u8], entry: &mut Entry) -> Result<(Reply, Option<Fault>), Refusal> {
    let document = Document::read(bytes).map_err(|at| {
        let message = format!("We could not parse the JSON body of your request: it stops being JSON at byte {at}.");
        Refusal::invalid(None, None, message)
    })?;
    let body = document.root();
    let model = body.get("model").and_then(Value::text);
    let cache_key = body.get("prompt_cache_key").and_then(Value::text);
    let mut session = None;
    entry.note(|turn| {
        turn.model = model.as_deref().map(str::to_owned);
        if turn.session.is_none() {
            turn.session = cache_key.as_deref().map(str::to_owned);
        }
        session.clone_from(&turn.session);
    });
    let fault = world.memory().faults.strike(key, model.as_deref(), session.as_deref());
    if let Some(fault) = &fault {
        strike(fault, key, model.as_deref().unwrap_or("")).await?;
    }
    let ask = Ask::read(body)?;
    let reply = read(world, key, &ask, entry)?;
    let usage = &reply.answer.usage;
    let prefill = world.config.prefill.0.mul_f64((usage.input - usage.cached) as f64 / 1000.0);
    if !prefill.is_zero() {
        tokio::time::sleep(prefill).await;
    }
    let pause = reply.pause.text.unwrap_or(reply.pause.event);
    if !reply.stream && !pause.is_zero() {
        // Unstreamed, the whole of it is waited for.
        tokio::time::sleep(pause * reply.answer.steps().len() as u32).await;
    }
    Ok((reply, fault))
}

/// The part of a fault that comes before any answer.
async fn strike(fault: &Fault, key: &Key, model: &str) -> Result<(), Refusal> {
    if let Some(stall) = fault.stall
        && fault.cut_after_events.is_none()
    {
        tokio::time::sleep(stall.0).await;
    }
    match fault.status.and_then(|status| StatusCode::from_u16(status).ok()) {
        Some(status) if status != StatusCode::OK => Err(scripted(fault, key, model, status)),
        _ => Ok(()),
    }
}

fn scripted(fault: &Fault, key: &Key, model: &str, status: StatusCode) -> Refusal {
    let caller = Caller { organization: &key.organization, project: &key.project, model, masked: &key.masked };
    // A rate limit without a wait is terminal for Codex: the real one always names it.
    let usual = (status == StatusCode::TOO_MANY_REQUESTS
        && fault.code.as_deref().is_none_or(|code| code == "rate_limit_exceeded"))
    .then_some(Duration::from_secs(1));
    Refusal::scripted(status, fault.code.as_deref(), caller, fault.retry_after.or(usual))
}

/// Reads the history, serves it from the cache and decides the answer.
fn read(world: &World, key: &Key, ask: &Ask<'_>, entry: &Entry) -> Result<Reply, Refusal> {
    let project = format!("{}/{}", key.organization, key.project);
    let mut past = match &ask.previous {
        Some(id) => world.memory().stored.find(id, &project)?,
        None => Past::default(),
    };
    take(world, key, ask.input, &mut past.history, &mut past.calls)?;
    past.calls.finish()?;

    let steps = if let Caching::Steps { tokens, .. } = ask.caching { Some(tokens) } else { None };
    let prefix = Prefix::new(ask, &past.history, steps);
    let now = world.clock.now();
    let (standing, reading) = {
        let mut memory = world.memory();
        let standing = memory.limits.take(now, &format!("{project}/{}", ask.model), prefix.tokens);
        if let Some((limited, wait)) = standing.refused {
            return Err(over_limit(world, key, &ask.model, prefix.tokens, limited, wait));
        }
        (standing, memory.serve(now, world.config.machines, key, ask, &prefix))
    };

    let prompt = Prompt::read(ask.input);
    let mut answer = Answer {
        id: world.id("resp"),
        created_at: now_millis() / 1000,
        items: reply::items(world, &key.organization, ask, &prompt),
        usage: Usage {
            input: prefix.tokens,
            cached: reading.served.cached,
            written: reading.served.written,
            written_half_day: steps.is_none().then_some(reading.served.written_half_day),
        },
        echo: reply::echo(ask),
        obfuscate: ask.obfuscate,
    };
    if steps.is_none() {
        let trace = Trace::new(ask, &prefix, past.history.compacted);
        let (compared, cached) = (ask.comparison.as_deref(), reading.served.cached);
        let diagnosis = world.memory().traces.diagnose(&key.organization, &answer.id, trace, compared, cached, prefix.tokens);
        answer.echo.push_str(&format!(r#","prompt_cache_diagnostics":{diagnosis}"#));
    }
    if ask.store {
        for item in &answer.items {
            let json = item.json();
            if let Ok(document) = Document::read(json.as_bytes()) {
                past.history.take(document.root());
                past.calls.take(document.root())?;
            }
        }
        world.memory().stored.keep(&answer.id, &project, past);
    }
    entry.note(|turn| {
        turn.input_tokens = answer.usage.input;
        turn.cached_tokens = answer.usage.cached;
        turn.cache_write_tokens = answer.usage.written;
        turn.ideal_cached_tokens = reading.ideal;
        turn.output_tokens = answer.output_tokens();
        turn.response_id = Some(answer.id.clone());
    });
    let pause = Pause { event: world.config.event_delay.0, text: prompt.directive.pause };
    Ok(Reply { answer, pause, stream: ask.stream, standing })
}

fn take(world: &World, key: &Key, input: Value<'_>, history: &mut History, calls: &mut OpenCalls) -> Result<(), Refusal> {
    if input.text().is_some() {
        history.take_text(input);
    }
    input.items().try_for_each(|item| {
        reply::check(world, &key.organization, item)?;
        calls.take(item)?;
        history.take(item);
        Ok(())
    })
}

fn over_limit(world: &World, key: &Key, model: &str, tokens: u64, limited: Limited, wait: Duration) -> Refusal {
    let wait = world.clock.real(wait);
    let (kind, name, limit) = match limited {
        Limited::Requests => ("requests", "requests per min (RPM)", world.config.requests_per_minute),
        Limited::Tokens => ("tokens", "tokens per min (TPM)", world.config.tokens_per_minute),
    };
    let message = format!(
        "Rate limit reached for {model} in organization {} on {name}: Limit {limit}, Used {limit}, Requested {tokens}. Please try again in {}. Visit https://platform.openai.com/account/rate-limits to learn more.",
        key.organization,
        go_text(wait)
    );
    Refusal {
        status: StatusCode::TOO_MANY_REQUESTS,
        kind,
        code: Some("rate_limit_exceeded".into()),
        param: None,
        message,
        retry_after: Some(wait),
    }
}

fn refuse(refusal: &Refusal, mut entry: Entry) -> Response<Body> {
    entry.note(|turn| (turn.status, turn.code) = (refusal.status.as_u16(), refusal.code.clone()));
    entry.became(Outcome::Refused);
    refusal.response()
}

fn respond(reply: Reply, fault: Option<Fault>, mut entry: Entry) -> Response<Body> {
    let Reply { answer, pause, stream, standing } = reply;
    let cut = fault.and_then(|fault| cut(&fault));
    if cut.as_ref().is_some_and(|cut| matches!(cut.end, End::Broken) && cut.after == 0) {
        entry.became(Outcome::Cut);
        return Response::new(broken());
    }
    entry.note(|turn| turn.status = 200);
    let kind = if stream { "text/event-stream; charset=utf-8" } else { "application/json" };
    let body = if stream {
        play(answer, pause, cut, entry)
    } else if cut.is_some() {
        entry.became(Outcome::Cut);
        broken()
    } else {
        entry.became(Outcome::Completed);
        Body::from(answer.object())
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert("x-ratelimit-remaining-requests", HeaderValue::from(standing.requests_left));
    headers.insert("x-ratelimit-remaining-tokens", HeaderValue::from(standing.tokens_left));
    headers.insert("x-ratelimit-limit-requests", HeaderValue::from(standing.requests_limit));
    headers.insert("x-ratelimit-limit-tokens", HeaderValue::from(standing.tokens_limit));
    put(headers, "x-ratelimit-reset-requests", &go_text(standing.requests_reset));
    put(headers, "x-ratelimit-reset-tokens", &go_text(standing.tokens_reset));
    response
}

/// How a fault ends the stream, if it does.
fn cut(fault: &Fault) -> Option<Cut> {
    let stall = fault.cut_after_events.and(fault.stall).map_or(Duration::ZERO, |stall| stall.0);
    let end = if fault.reset {
        End::Broken
    } else if let (Some(200), Some(code)) = (fault.status, fault.code.as_deref()) {
        let caller =
            Caller { organization: "org", project: "project", model: fault.model.as_deref().unwrap_or("this model"), masked: "" };
        let refusal = Refusal::scripted(StatusCode::OK, Some(code), caller, fault.retry_after);
        if fault.error_event { End::Error(refusal) } else { End::Failed(refusal) }
    } else {
        fault.cut_after_events?;
        End::Clean
    };
    // A stream that fails has begun; one that breaks need not have.
    let usual = if fault.reset { 0 } else { 2 };
    Some(Cut { after: fault.cut_after_events.unwrap_or(usual), stall, end })
}
