//! Makes the spans of a turn from its record, after its end.
//!
//! `turn` has these children, each of them direct: `authenticate`, `identify`, `bind`, one attempt
//! for each try at an upstream, and `relay`. A turn that ended early lacks the stages that it did
//! not reach. No span holds a prompt, a body or a secret.

use std::borrow::Cow;
use std::time::SystemTime;

use opentelemetry::trace::{Event, SpanContext, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{Array, InstrumentationScope, KeyValue, SpanId, StringValue, TraceId, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::time::Instant;

use crate::client::ClientId;
use crate::metrics::{ColdReason, Transport};
use crate::session::SessionId;
use crate::telemetry::name;
use crate::usage::record::Record;
use crate::usage::timeline::{Sending, Timeline};
use crate::wire::terminal::{Terminal, Usage};

/// Longest model name in a span, because clients choose the names.
const LONGEST: usize = 128;
/// Initial room for the attributes of a span.
const MOST: usize = 24;
/// First number of the child spans that are no attempts. Attempts count from 0.
const STAGES: u64 = 1 << 32;

/// Returns all spans of a turn. The last one is `turn`.
pub fn spans(record: &Record) -> Vec<SpanData> {
    let timeline = &record.timeline;
    let draft = Draft { record, end: timeline.began + record.duration };
    let mut spans = Vec::with_capacity(6);
    draft.stages(&mut spans);
    let count = timeline.sendings().count();
    for (number, sending) in timeline.sendings().enumerate() {
        spans.push(draft.attempt(sending, number as u64, number + 1 == count));
    }
    if let Some(answered) = timeline.answered {
        spans.push(draft.stage(name::RELAY, 3, answered, draft.end, record.has_failed()));
    }
    spans.push(draft.turn(count));
    spans
}

struct Draft<'r> {
    record: &'r Record,
    end: Instant,
}

impl Draft<'_> {
    /// Adds the stages up to the first attempt. Each begins at the end of the stage before. The
    /// stage in which the turn ended ends with the turn.
    fn stages(&self, spans: &mut Vec<SpanData>) {
        let Timeline { began, authenticated, identified, bound, answered, .. } =
            self.record.timeline;
        let [authenticate, identify] =
            [(name::AUTHENTICATE, 0, authenticated), (name::IDENTIFY, 1, identified)];
        // A message on a WebSocket is read before the gateway checks its client again.
        let is_message =
            identified.is_some_and(|read| authenticated.is_none_or(|permitted| read <= permitted));
        let order = match self.record.transport {
            Transport::Websocket if is_message => [identify, authenticate, (name::BIND, 2, bound)],
            _ => [authenticate, identify, (name::BIND, 2, bound)],
        };
        let mut from = began;
        for (name, number, passed) in order {
            // Some turns skip stages: a refused handshake, and an answer without a request.
            if passed.is_none() && (bound.is_some() || answered.is_some()) {
                continue;
            }
            let to = passed.unwrap_or(self.end);
            spans.push(self.stage(name, number, from, to, passed.is_none()));
            if passed.is_none() {
                return;
            }
            from = to;
        }
    }

    fn stage(
        &self,
        name: &'static str,
        number: u64,
        from: Instant,
        to: Instant,
        has_failed: bool,
    ) -> SpanData {
        let mut attributes = Vec::new();
        let status = if has_failed { self.failure(&mut attributes) } else { Status::Unset };
        SpanData {
            attributes,
            status,
            ..self.child(name.into(), STAGES + number, SpanKind::Internal, from, to)
        }
    }

    fn child(
        &self,
        name: Cow<'static, str>,
        number: u64,
        kind: SpanKind,
        from: Instant,
        to: Instant,
    ) -> SpanData {
        let id = self.record.id;
        SpanData {
            span_context: self.context(id.child(number)),
            parent_span_id: SpanId::from(id.span),
            parent_span_is_remote: false,
            span_kind: kind,
            name,
            start_time: self.clock(from),
            end_time: self.clock(to.max(from)),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            // The exporter never reads this field: all spans are Warmkey's.
            instrumentation_scope: InstrumentationScope::default(),
        }
    }

    fn context(&self, span: u64) -> SpanContext {
        let (trace, span) = (TraceId::from(self.record.id.trace), SpanId::from(span));
        SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE)
    }

    fn clock(&self, instant: Instant) -> SystemTime {
        self.record.at + instant.duration_since(self.record.timeline.began)
    }

    /// Returns the failed status of a span that ended with the turn, and adds the turn's ending.
    fn failure(&self, attributes: &mut Vec<KeyValue>) -> Status {
        let ending = self.record.ending.name();
        attributes.push(KeyValue::new(name::ERROR_TYPE, ending));
        Status::error(ending)
    }

    fn attempt(&self, sending: &Sending, number: u64, is_last: bool) -> SpanData {
        let record = self.record;
        // The attempt that serves the turn lasts as long as its answer.
        let is_served = is_last && record.timeline.answered.is_some();
        let to = sending.ended.filter(|_| !is_served).unwrap_or(self.end);
        let model = cut(&record.model);
        let span_name = match model.is_empty() {
            true => Cow::Borrowed(name::CHAT),
            false => Cow::Owned(format!("{} {model}", name::CHAT)),
        };
        let (address, port) = sending.key.upstream.host.server();
        let mut attributes = Vec::with_capacity(MOST);
        attributes.extend([
            KeyValue::new(name::OPERATION, "chat"),
            KeyValue::new(name::PROVIDER, "openai"),
            KeyValue::new(name::API_TYPE, self.api_type(sending)),
            KeyValue::new(name::KEY, sending.key.id.clone()),
            KeyValue::new(name::ORGANIZATION, sending.key.organization.clone()),
            KeyValue::new(name::SERVER_ADDRESS, address.to_owned()),
        ]);
        if let Some(port) = port {
            attributes.push(KeyValue::new(name::SERVER_PORT, i64::from(port)));
        }
        self.add_request(model, &mut attributes);
        if let Some(status) = sending.status {
            attributes.push(KeyValue::new(name::STATUS_CODE, i64::from(status.as_u16())));
        }
        if let Some(reason) = sending.reason {
            attributes.push(KeyValue::new(name::REASON, reason.name()));
        }
        if is_served {
            self.answer(sending, &mut attributes);
        }
        let status = self.outcome(sending, is_last, &mut attributes);
        SpanData {
            attributes,
            status,
            ..self.child(span_name, number, SpanKind::Client, sending.began, to)
        }
    }

    /// Returns the status of an attempt: its own failure, or the failure of the turn that it
    /// served.
    fn outcome(&self, sending: &Sending, is_last: bool, attributes: &mut Vec<KeyValue>) -> Status {
        let why: Cow<'static, str> = match (sending.failure, sending.status) {
            (Some(failure), _) => failure.into(),
            (None, Some(status)) if status.as_u16() >= 400 => {
                Cow::Owned(status.as_u16().to_string())
            }
            (None, Some(_)) if !is_last || !self.record.has_failed() => {
                return Status::Unset;
            }
            _ => self.record.ending.name().into(),
        };
        attributes.push(KeyValue::new(name::ERROR_TYPE, why.clone()));
        Status::error(why)
    }

    /// Returns the dialect in which the upstream was asked. A chat turn may be translated for the
    /// upstream.
    fn api_type(&self, sending: &Sending) -> &'static str {
        match self.record.by_chat && sending.key.upstream.speaks_chat {
            true => "chat_completions",
            false => "responses",
        }
    }

    fn add_request(&self, model: &str, attributes: &mut Vec<KeyValue>) {
        if !model.is_empty() {
            attributes.push(KeyValue::new(name::REQUEST_MODEL, model.to_owned()));
        }
        if self.record.timeline.is_stream {
            attributes.push(KeyValue::new(name::REQUEST_STREAM, true));
        }
        if let Some(tier) = &self.record.asked_tier {
            attributes.push(KeyValue::new(name::REQUEST_TIER, cut(tier).to_owned()));
        }
    }

    /// Adds the attributes of the upstream's answer.
    fn answer(&self, sending: &Sending, attributes: &mut Vec<KeyValue>) {
        let record = self.record;
        if let Some(first) = record.timeline.first_byte {
            let seconds = first.duration_since(sending.began).as_secs_f64();
            attributes.push(KeyValue::new(name::TIME_TO_FIRST_CHUNK, seconds));
        }
        if let Some(terminal) = record.terminal {
            let reason = StringValue::from(match terminal {
                Terminal::Completed => "completed",
                Terminal::Incomplete => "incomplete",
                Terminal::Failed => "failed",
            });
            let reasons = Value::Array(Array::String(vec![reason]));
            attributes.push(KeyValue::new(name::FINISH_REASONS, reasons));
        }
        self.usage(attributes);
        let Some(usage) = &record.usage else { return };
        if let Some(id) = &usage.id {
            attributes.push(KeyValue::new(name::RESPONSE_ID, cut(id).to_owned()));
        }
    }

    /// Adds the attributes of the turn's usage. An unknown usage adds none, because it is not 0.
    fn usage(&self, attributes: &mut Vec<KeyValue>) {
        let Some(usage) = &self.record.usage else { return };
        let Usage { input, cached, written, output, reasoning, .. } = *usage;
        attributes.extend(
            [
                (name::INPUT_TOKENS, input),
                (name::CACHE_READ_TOKENS, cached),
                (name::CACHE_WRITE_TOKENS, written),
                (name::OUTPUT_TOKENS, output),
                (name::REASONING_TOKENS, reasoning),
            ]
            .map(|(name, tokens)| KeyValue::new(name, i64::try_from(tokens).unwrap_or(i64::MAX))),
        );
        if let Some(model) = &usage.model {
            attributes.push(KeyValue::new(name::RESPONSE_MODEL, cut(model).to_owned()));
        }
        if let Some(tier) = &usage.tier {
            attributes.push(KeyValue::new(name::RESPONSE_TIER, cut(tier).to_owned()));
        }
    }

    fn turn(&self, attempts: usize) -> SpanData {
        let (record, id) = (self.record, self.record.id);
        let mut attributes = Vec::with_capacity(MOST);
        attributes.extend([
            KeyValue::new(name::TRANSPORT, record.transport.name()),
            KeyValue::new(name::OUTCOME, record.ending.name()),
            KeyValue::new(name::ATTEMPTS, i64::try_from(attempts).unwrap_or(i64::MAX)),
        ]);
        let mut add = |name: &'static str, value: Option<String>| {
            attributes.extend(value.map(|value| KeyValue::new(name, value)));
        };
        let service = record.service.as_ref();
        add(name::CLIENT, record.client.as_ref().map(|id| ClientId::as_str(id).to_owned()));
        add(name::SESSION, record.session.as_ref().map(|id| SessionId::as_str(id).to_owned()));
        add(name::KEY, service.map(|service| service.key.id.clone()));
        add(name::ORGANIZATION, service.map(|service| service.key.organization.clone()));
        let binding = service.map(|service| service.result.name());
        let cold = record.cold_reason().map(ColdReason::name);
        let told = [(name::BINDING, binding), (name::COLD_REASON, cold)];
        let told = told.into_iter().filter_map(|(name, value)| Some(KeyValue::new(name, value?)));
        attributes.extend(told);
        self.add_request(cut(&record.model), &mut attributes);
        self.usage(&mut attributes);
        if let Some(status) = record.status {
            attributes.push(KeyValue::new(name::STATUS_CODE, i64::from(status.as_u16())));
        }
        if let Some(overhead) = record.timeline.overhead(record.transport) {
            attributes.push(KeyValue::new(name::OVERHEAD, overhead.as_secs_f64()));
        }
        let status = match record.has_failed() {
            true => self.failure(&mut attributes),
            false => Status::Unset,
        };
        let began = record.timeline.began;
        SpanData {
            span_context: self.context(id.span),
            parent_span_id: id.parent.map_or(SpanId::INVALID, SpanId::from),
            parent_span_is_remote: id.parent.is_some(),
            attributes,
            status,
            events: self.events(),
            ..self.child(name::TURN.into(), 0, SpanKind::Server, began, self.end)
        }
    }

    fn events(&self) -> SpanEvents {
        let timeline = &self.record.timeline;
        let received =
            timeline.received.map(|at| Event::new(name::RECEIVED, self.clock(at), Vec::new(), 0));
        let waits = timeline.waits.iter().map(|wait| {
            let attributes = vec![
                KeyValue::new(name::KEY, wait.key.id.clone()),
                KeyValue::new(name::WAITED, wait.pause.as_secs_f64()),
            ];
            Event::new(name::WAIT, self.clock(wait.began), attributes, 0)
        });
        let mut events = SpanEvents::default();
        events.events = received.into_iter().chain(waits).collect();
        events
    }
}

/// Returns at most the first `LONGEST` bytes of a name.
fn cut(name: &str) -> &str {
    let mut end = name.len().min(LONGEST);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

#[cfg(test)]
pub mod tests;
