//! One turn, over either transport: its body is read, checked and served from the cache, and its
//! answer is decided.
//!
//! The order is the real service's. `caller` finds the key first, and `http` or `connection` sends
//! the answer.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::answer::{Answer, Usage};
use super::archive;
use super::caller::check_turn_state;
use super::chat;
use super::chat::spelling::Spelling;
use super::diagnosis::Trace;
use super::fault::{At, Fault, Target};
use super::form::Form;
use super::json::{Document, Value};
use super::judge::{Entry, now_millis};
use super::key::Key;
use super::limits::{Limited, Standing, go_text};
use super::prefix::{History, Prefix};
use super::refusal::{Besides, Refusal};
use super::reply::{self, Prompt};
use super::request::{Ask, Caching, OpenCalls, Transport};
use super::stored::Past;
use super::stream::{Cut, End, Pause};
use super::world::World;

/// One request whose key is known.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub world: &'a World,
    pub key: &'a Key,
    pub bytes: &'a [u8],
    pub transport: Transport,
    pub form: Form,
    /// Responses that a response id may name besides the stored ones.
    pub recall: &'a (dyn Fn(&str) -> Option<Past> + Sync),
}

/// The answer to one request, before a fault decides how it ends.
pub struct Reply {
    pub model: String,
    pub answer: Answer,
    pub pause: Pause,
    pub stream: bool,
    pub store: bool,
    /// The history that the answer ends.
    pub past: Past,
    /// The items of the input, as they came.
    pub input: Vec<String>,
    /// Headers of the answer besides the usual ones.
    pub headers: HeaderMap,
    pub cut: Option<Cut>,
    /// How chat spells the answer. `None`: the answer is a response.
    pub spelling: Option<Spelling>,
}

pub async fn answer(request: &Request<'_>, entry: &Entry) -> Result<Reply, Refusal> {
    let Request { world, key, bytes, transport, .. } = *request;
    let document = Document::read(bytes).map_err(|at| {
        let message = format!(
            "We could not parse the JSON body of your request: it stops being JSON at byte {at}."
        );
        Refusal::invalid(None, None, message)
    })?;
    let body = document.root();
    let model = body.get("model").and_then(Value::text);
    let cache_key = body.get("prompt_cache_key").and_then(Value::text);
    let state = body
        .get("client_metadata")
        .and_then(|data| data.get("x-codex-turn-state"))
        .and_then(Value::text);
    let previous = body.get("previous_response_id").and_then(Value::text);
    let tier = body.get("service_tier").and_then(Value::text);
    let mut session = None;
    entry.note(|turn| {
        turn.model = model.as_deref().map(str::to_owned);
        turn.previous_response_id = previous.as_deref().map(str::to_owned);
        if turn.turn_state.is_none() {
            turn.turn_state = state.as_deref().map(str::to_owned);
        }
        if turn.session.is_none() {
            turn.session = cache_key.as_deref().map(str::to_owned);
        }
        session.clone_from(&turn.session);
    });
    if let Some(state) = &state {
        check_turn_state(world, key, state)?;
    }
    let target = Target {
        at: At::Turn,
        key,
        model: model.as_deref(),
        session: session.as_deref(),
        tier: tier.as_deref(),
        prewarm: body.get("generate").and_then(Value::truth) == Some(false),
    };
    let fault = world.memory().faults.strike(target);
    let mut cut = None;
    if let Some(fault) = &fault {
        let struck = strike(fault, request, model.as_deref().unwrap_or("")).await;
        // A scripted refusal has exactly the headers that its script names.
        cut = struck.inspect_err(|_| {
            count(request, model.as_deref());
        })?;
    }
    let resolved = world.memory().items.resolve(body, &key.place());
    let resolved = resolved.as_deref().and_then(|bytes| Document::read(bytes).ok());
    let body = resolved.as_ref().map_or(body, Document::root);
    let asked = match request.form {
        Form::Chat => chat::read(body),
        form => Ask::read(body, transport, form),
    };
    let mut reply = asked.and_then(|ask| read(request, &ask, entry)).map_err(|refusal| {
        if refusal.besides.is_none() {
            with_limits(refusal, request, model.as_deref())
        } else {
            refusal
        }
    })?;
    reply.cut = cut;
    reply.headers.extend(fault.map(|fault| fault.answer_headers(None)).unwrap_or_default());
    let usage = &reply.answer.usage;
    let prefill = world.config.prefill.0.mul_f64((usage.input - usage.cached) as f64 / 1000.0);
    if !prefill.is_zero() {
        tokio::time::sleep(prefill).await;
    }
    let pause = reply.pause.text.unwrap_or(reply.pause.event);
    let waits = !reply.stream && !reply.answer.background;
    if transport == Transport::Http && waits && !pause.is_zero() {
        // An unstreamed answer is sent when the whole of it is ready.
        tokio::time::sleep(pause * reply.answer.steps().len() as u32).await;
    }
    Ok(reply)
}

/// Plays the part of a fault that comes before any answer. Returns the part that cuts the answer.
async fn strike(fault: &Fault, request: &Request<'_>, model: &str) -> Result<Option<Cut>, Refusal> {
    if let Some(stall) = fault.stall
        && fault.cut_after_events.is_none()
    {
        tokio::time::sleep(stall.0).await;
    }
    let is_websocket = request.transport == Transport::WebSocket;
    let end = match fault.status.and_then(|status| StatusCode::from_u16(status).ok()) {
        Some(status) if status != StatusCode::OK => {
            let refusal = fault.refusal(status, request.key, model);
            // Once an answer has begun, a refusal can only come as a frame.
            if !is_websocket || fault.cut_after_events.is_none() {
                return Err(refusal);
            }
            End::Frame(refusal)
        }
        _ if fault.reset => End::Broken,
        Some(status) if fault.code.is_some() => {
            let refusal = fault.refusal(status, request.key, model);
            if fault.error_event { End::Error(refusal) } else { End::Failed(refusal) }
        }
        _ if fault.cut_after_events.is_some() || (is_websocket && fault.close.is_some()) => {
            End::Clean
        }
        _ => return Ok(None),
    };
    // A stream that fails has begun before. One that breaks or is closed may not have begun.
    let usual = if matches!(end, End::Failed(_) | End::Error(_)) { 2 } else { 0 };
    let stall = fault.cut_after_events.and(fault.stall).map_or(Duration::ZERO, |stall| stall.0);
    Ok(Some(Cut { after: fault.cut_after_events.unwrap_or(usual), stall, end, close: fault.close }))
}

/// Returns the tokens of a history without answering it.
pub fn count_tokens(request: &Request<'_>) -> Result<u64, Refusal> {
    let document = Document::read(request.bytes)
        .map_err(|_| Refusal::invalid(None, None, "We could not parse the JSON body."))?;
    let resolved = request.world.memory().items.resolve(document.root(), &request.key.place());
    let resolved = resolved.as_deref().and_then(|bytes| Document::read(bytes).ok());
    let body = resolved.as_ref().unwrap_or(&document).root();
    let ask = Ask::read(body, request.transport, request.form)?;
    let past = history(request, &ask)?;
    let steps = if let Caching::Steps { tokens, .. } = ask.caching { Some(tokens) } else { None };
    Ok(Prefix::new(&ask, &past.history, steps).tokens)
}

/// Returns the whole history that a request names and carries, checked.
fn history(request: &Request<'_>, ask: &Ask<'_>) -> Result<Past, Refusal> {
    let Request { world, key, .. } = *request;
    key.check_model(&ask.model)?;
    let mut past = match &ask.previous {
        Some(id) => {
            (request.recall)(id).map_or_else(|| world.memory().stored.find(id, &key.place()), Ok)?
        }
        None => Past::default(),
    };
    ask.tools
        .into_iter()
        .flat_map(Value::items)
        .try_for_each(|tool| reply::check_tool(key, tool))?;
    match request.form {
        Form::Chat => chat::take(key, ask.input, &mut past.history)?,
        _ => {
            take(world, key, ask.input, &mut past.history, &mut past.calls)?;
            past.calls.finish()?;
        }
    }
    Ok(past)
}

/// Reads the history, serves it from the cache and decides the answer.
fn read(request: &Request<'_>, ask: &Ask<'_>, entry: &Entry) -> Result<Reply, Refusal> {
    let Request { world, key, .. } = *request;
    let project = key.place();
    let past = history(request, ask)?;

    let steps = if let Caching::Steps { tokens, .. } = ask.caching { Some(tokens) } else { None };
    let prefix = Prefix::new(ask, &past.history, steps);
    let now = world.clock.now();
    let (standing, reading) = {
        let mut memory = world.memory();
        let standing = memory.limits.take(now, &project, &ask.model, prefix.tokens);
        if let Some(limited) = standing.refused {
            return Err(over_limit(world, key, &ask.model, prefix.tokens, &standing, limited));
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
        background: ask.background,
        lane: ask.lane.as_deref().map(str::to_owned),
    };
    if steps.is_none() {
        let trace = Trace::new(ask, &prefix, past.history.compacted);
        let (compared, cached) = (ask.comparison.as_deref(), reading.served.cached);
        let diagnosis = world.memory().traces.diagnose(
            &key.organization,
            &answer.id,
            trace,
            compared,
            cached,
            prefix.tokens,
        );
        answer.echo.push_str(&format!(r#","prompt_cache_diagnostics":{diagnosis}"#));
    }
    entry.note(|turn| {
        turn.input_tokens = answer.usage.input;
        turn.cached_tokens = answer.usage.cached;
        turn.cache_write_tokens = answer.usage.written;
        turn.ideal_cached_tokens = reading.ideal;
        turn.output_tokens = answer.output_tokens(answer.items.len());
        turn.response_id = Some(answer.id.clone());
        turn.prewarm = ask.prewarm;
    });
    let pause = Pause { event: world.config.event_delay.0, text: prompt.directive.pause };
    let (model, headers) = (ask.model.to_string(), standing.headers(|span| world.clock.real(span)));
    Ok(Reply {
        model,
        answer,
        pause,
        stream: ask.stream,
        store: ask.store && request.form == Form::Response,
        input: if ask.store { archive::input(ask.input) } else { Vec::new() },
        past,
        headers,
        cut: None,
        spelling: (request.form == Form::Chat)
            .then(|| Spelling::new(chat::includes_usage(ask.body))),
    })
}

fn take(
    world: &World,
    key: &Key,
    input: Value<'_>,
    history: &mut History,
    calls: &mut OpenCalls,
) -> Result<(), Refusal> {
    if input.text().is_some() {
        history.take_text(input);
    }
    input.items().try_for_each(|item| {
        reply::check(world, key, item)?;
        calls.take(item)?;
        history.take(item);
        Ok(())
    })
}

/// Counts a request that is refused for another reason like any other request.
fn count(request: &Request<'_>, model: Option<&str>) -> Option<Standing> {
    let Request { world, key, .. } = *request;
    Some(world.memory().limits.take(world.clock.now(), &key.place(), model?, 0))
}

/// Adds what is left of the limits of the request's project, if the project is known.
fn with_limits(refusal: Refusal, request: &Request<'_>, model: Option<&str>) -> Refusal {
    let besides = count(request, model).map(|standing| besides(request.world, &standing));
    Refusal { besides, ..refusal }
}

fn besides(world: &World, standing: &Standing) -> Box<Besides> {
    let headers = standing.headers(|span| world.clock.real(span));
    Box::new(Besides { headers, ..Besides::default() })
}

fn over_limit(
    world: &World,
    key: &Key,
    model: &str,
    tokens: u64,
    standing: &Standing,
    limited: Limited,
) -> Refusal {
    let (kind, name, limit, requested, wait) = match limited {
        Limited::Requests(wait) => {
            ("requests", "requests per min (RPM)", standing.limit.requests, 1, Some(wait))
        }
        Limited::Tokens(wait) => {
            ("tokens", "tokens per min (TPM)", standing.limit.tokens, tokens, Some(wait))
        }
        Limited::TooLarge => {
            ("tokens", "tokens per min (TPM)", standing.limit.tokens, tokens, None)
        }
    };
    let retry_after = wait.map(|wait| world.clock.real(wait));
    let place =
        format!("for {model} in organization {} on {name}: Limit {limit}", key.organization);
    let message = match retry_after {
        Some(wait) => {
            format!(
                "Rate limit reached {place}, Used {limit}, Requested {requested}. Please try again in {}.",
                go_text(wait)
            )
        }
        None => {
            format!(
                "Request too large {place}, Requested {requested}. The input or output tokens must be reduced in order to run successfully."
            )
        }
    };
    Refusal {
        status: StatusCode::TOO_MANY_REQUESTS,
        kind,
        code: Some("rate_limit_exceeded".into()),
        param: None,
        message: format!(
            "{message} Visit https://platform.openai.com/account/rate-limits to learn more."
        ),
        retry_after,
        besides: Some(besides(world, standing)),
        close: None,
    }
}
