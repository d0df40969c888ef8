//! Writes spans as OTLP's protobuf, straight into one buffer. Pure.
//!
//! The exporter of OpenTelemetry copies each span, makes a tree of messages from it, measures the
//! tree and then writes it. Writing in one pass costs a quarter of that.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanKind, Status};
use opentelemetry::{Array, KeyValue, SpanId, StringValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;

/// A flag of a span: whether its parent is remote is known, so the next flag counts.
const REMOTE_IS_KNOWN: u32 = 0x100;
/// A flag of a span: its parent is another process's.
const PARENT_IS_REMOTE: u32 = 0x200;
/// Initial size of a span's buffer, in bytes. Most spans need less.
const SPAN: usize = 512;

/// The bytes before the spans of each export, which name the sender.
pub struct Sender(Vec<u8>);

impl Sender {
    pub fn new(resource: &Resource) -> Self {
        let mut message = Message::default();
        message.write_message(1, |message| {
            for (key, value) in resource {
                message.attribute(1, key.as_str(), value);
            }
        });
        Self(message.0)
    }

    /// Returns an `ExportTraceServiceRequest` with `spans`.
    pub fn request(&self, spans: &[SpanData]) -> Vec<u8> {
        let mut request = Message(Vec::with_capacity(self.0.len() + spans.len() * SPAN));
        request.write_message(1, |resource_spans| {
            resource_spans.0.extend_from_slice(&self.0);
            resource_spans.write_message(2, |scope_spans| {
                scope_spans.write_message(1, |scope| {
                    scope.text(1, "warmkey");
                    scope.text(2, env!("CARGO_PKG_VERSION"));
                });
                for span in spans {
                    scope_spans.write_message(2, |message| message.span(span));
                }
            });
        });
        request.0
    }
}

/// A protobuf message that is being written. A field with its default value is left out.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn span(&mut self, span: &SpanData) {
        let context = &span.span_context;
        self.bytes(1, &context.trace_id().to_bytes());
        self.bytes(2, &context.span_id().to_bytes());
        self.text(3, &context.trace_state().header());
        let mut flags = u32::from(context.trace_flags().to_u8()) | REMOTE_IS_KNOWN;
        if span.parent_span_id != SpanId::INVALID {
            self.bytes(4, &span.parent_span_id.to_bytes());
        }
        if span.parent_span_is_remote {
            flags |= PARENT_IS_REMOTE;
        }
        self.text(5, &span.name);
        self.number(6, kind(&span.span_kind));
        self.time(7, span.start_time);
        self.time(8, span.end_time);
        self.attributes(9, &span.attributes);
        self.number(10, span.dropped_attributes_count.into());
        for event in &span.events.events {
            self.write_message(11, |message| {
                message.time(1, event.timestamp);
                message.text(2, &event.name);
                message.attributes(3, &event.attributes);
            });
        }
        self.write_message(15, |message| match &span.status {
            Status::Unset => {}
            Status::Ok => message.number(3, 1),
            Status::Error { description } => {
                message.text(2, description);
                message.number(3, 2);
            }
        });
        self.tag(16, 5);
        self.0.extend_from_slice(&flags.to_le_bytes());
    }

    fn attributes(&mut self, field: u8, attributes: &[KeyValue]) {
        for attribute in attributes {
            self.attribute(field, attribute.key.as_str(), &attribute.value);
        }
    }

    fn attribute(&mut self, field: u8, key: &str, value: &Value) {
        self.write_message(field, |message| {
            message.text(1, key);
            message.write_message(2, |message| message.value(value));
        });
    }

    /// Writes an `AnyValue`. It names its type, so a default value is written, too.
    fn value(&mut self, value: &Value) {
        match value {
            Value::Bool(value) => self.varint(2, (*value).into()),
            Value::I64(value) => self.varint(3, value.cast_unsigned()),
            Value::F64(value) => self.fixed(4, value.to_bits()),
            Value::String(value) => self.blob(1, value.as_str().as_bytes()),
            Value::Array(array) => self.write_message(5, |message| message.array(array)),
            // A later release of OpenTelemetry may have more types.
            other => self.blob(1, other.as_str().as_bytes()),
        }
    }

    fn array(&mut self, array: &Array) {
        let mut each = |value: Value| self.write_message(1, |message| message.value(&value));
        match array {
            Array::Bool(values) => values.iter().for_each(|value| each(Value::Bool(*value))),
            Array::I64(values) => values.iter().for_each(|value| each(Value::I64(*value))),
            Array::F64(values) => values.iter().for_each(|value| each(Value::F64(*value))),
            Array::String(values) => values.iter().for_each(|value| each(value.clone().into())),
            other => each(StringValue::from(other.to_string()).into()),
        }
    }

    fn text(&mut self, field: u8, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn bytes(&mut self, field: u8, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.blob(field, bytes);
        }
    }

    fn number(&mut self, field: u8, number: u64) {
        if number != 0 {
            self.varint(field, number);
        }
    }

    /// Nanoseconds since 1970.
    fn time(&mut self, field: u8, time: SystemTime) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.fixed(field, u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
    }

    fn blob(&mut self, field: u8, bytes: &[u8]) {
        self.tag(field, 2);
        self.push(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn varint(&mut self, field: u8, number: u64) {
        self.tag(field, 0);
        self.push(number);
    }

    fn fixed(&mut self, field: u8, number: u64) {
        self.tag(field, 1);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    /// Writes a message within this one. Its length is known only at its end. Most messages are
    /// short, so one byte is left free for the length.
    fn write_message(&mut self, field: u8, write: impl FnOnce(&mut Self)) {
        self.tag(field, 2);
        let at = self.0.len();
        self.0.push(0);
        write(self);
        let length = self.0.len() - at - 1;
        match u8::try_from(length) {
            Ok(short @ ..0x80) => self.0[at] = short,
            _ => {
                let mut prefix = Self::default();
                prefix.push(length as u64);
                self.0.splice(at..=at, prefix.0);
            }
        }
    }

    fn tag(&mut self, field: u8, wire_type: u8) {
        self.push(u64::from(field) << 3 | u64::from(wire_type));
    }

    fn push(&mut self, mut number: u64) {
        loop {
            let [low, ..] = number.to_le_bytes();
            number >>= 7;
            if number == 0 {
                return self.0.push(low);
            }
            self.0.push(low | 0x80);
        }
    }
}

const fn kind(kind: &SpanKind) -> u64 {
    match kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
        SpanKind::Client => 3,
        SpanKind::Producer => 4,
        SpanKind::Consumer => 5,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use opentelemetry::trace::{Event, SpanContext, TraceFlags, TraceState};
    use opentelemetry::{InstrumentationScope, TraceId};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
    use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};
    use prost::Message as _;

    use super::*;

    /// A span with every type of value, and values that are long, empty, 0 or negative.
    fn span(id: u64, status: Status, kind: SpanKind, parent: SpanId) -> SpanData {
        let at = |nanos| UNIX_EPOCH + Duration::from_nanos(nanos);
        let text = |length: usize| "\u{e9}".repeat(length);
        let attributes: Vec<_> = [
            Value::from(text(70)),
            "".into(),
            true.into(),
            false.into(),
            0.into(),
            (-1).into(),
            i64::MAX.into(),
            0.0.into(),
            (-0.25).into(),
            Value::Array(Array::String(vec![text(9_000).into(), "".into()])),
            Value::Array(Array::I64(vec![0, -7])),
            Value::Array(Array::F64(vec![1.5])),
            Value::Array(Array::Bool(vec![true, false])),
            Value::Array(Array::String(Vec::new())),
        ]
        .into_iter()
        .map(|value| KeyValue::new("a.key", value))
        .collect();
        let mut events = SpanEvents::default();
        events.events = vec![
            Event::new("e", at(5), attributes[..3].to_vec(), 0),
            Event::new(text(200), at(6), Vec::new(), 0),
        ];
        SpanData {
            span_context: SpanContext::new(
                TraceId::from(7 << 90),
                SpanId::from(id),
                TraceFlags::SAMPLED,
                false,
                TraceState::NONE,
            ),
            parent_span_id: parent,
            parent_span_is_remote: kind == SpanKind::Server,
            span_kind: kind,
            name: text(3).into(),
            start_time: at(0),
            end_time: at(1_800_000_000_000_000_001),
            attributes,
            dropped_attributes_count: 3,
            events,
            links: SpanLinks::default(),
            status,
            instrumentation_scope: InstrumentationScope::builder("warmkey")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
        }
    }

    #[test]
    fn request_is_what_the_exporter_of_opentelemetry_writes() {
        let resource = Resource::builder_empty()
            .with_attributes([KeyValue::new("service.name", "w"), KeyValue::new("n", 5)])
            .build();
        let (root, parent) = (SpanId::INVALID, SpanId::from(1));
        let spans = [
            span(1, Status::Unset, SpanKind::Server, root),
            span(2, Status::Ok, SpanKind::Internal, parent),
            span(3, Status::error("why"), SpanKind::Client, parent),
            span(4, Status::error(""), SpanKind::Producer, parent),
            span(5, Status::Unset, SpanKind::Consumer, root),
        ];
        for count in 1..=spans.len() {
            let written = Sender::new(&resource).request(&spans[..count]);
            let read = ExportTraceServiceRequest::decode(&*written).expect("protobuf");
            let expected =
                group_spans_by_resource_and_scope(spans[..count].to_vec(), &(&resource).into());
            assert_eq!(read.resource_spans, expected, "{count}");
        }
    }
}
