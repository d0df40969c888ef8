//! A collector of traces: a real OTLP receiver over gRPC, which keeps everything that it receives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1 as proto;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::world::certificates::Certificates;
use crate::world::cluster::Running;
use crate::world::waiting::{SOON, eventually};

/// One span, as the collector received it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub trace: String,
    pub id: String,
    /// The id of the parent span. Empty: there is none.
    pub parent: String,
    pub name: String,
    pub kind: proto::span::SpanKind,
    /// Nanoseconds since 1970.
    pub time: (u64, u64),
    pub attributes: BTreeMap<String, String>,
    pub events: Vec<String>,
    pub is_error: bool,
    /// Attributes of the process.
    pub resource: BTreeMap<String, String>,
    /// Everything that the span says, as text.
    pub text: String,
}

impl Seen {
    /// An attribute as text; empty if there is none.
    pub fn said(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

/// A collector that runs until dropped.
pub struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Seen>>>,
    shown: Arc<Mutex<Option<String>>>,
    server: JoinHandle<()>,
}

struct Receiver {
    spans: Arc<Mutex<Vec<Seen>>>,
    /// The `authorization` of the last export.
    shown: Arc<Mutex<Option<String>>>,
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let shown = request.metadata().get("authorization");
        let shown = shown.and_then(|shown| shown.to_str().ok()).map(str::to_owned);
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        for of_resource in request.into_inner().resource_spans {
            let resource = of_resource.resource.map(|resource| read(&resource.attributes));
            let resource = resource.unwrap_or_default();
            let all = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(all.map(|span| seen(&span, &resource)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    pub async fn start() -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into()).await
    }

    /// Starts at an address, where there was none before.
    pub async fn start_at(address: SocketAddr) -> Self {
        Self::serving(address, Server::builder())
    }

    /// Starts with this certificate, and speaks TLS only.
    pub async fn start_with(made: &Certificates) -> Self {
        let file = |name: &str| std::fs::read(made.path(name)).expect("the file is there");
        let identity = Identity::from_pem(file("server.pem"), file("server.key"));
        let server = Server::builder().tls_config(ServerTlsConfig::new().identity(identity));
        Self::serving(([127, 0, 0, 1], 0).into(), server.expect("the certificate can be used"))
    }

    fn serving(address: SocketAddr, mut server: Server) -> Self {
        let incoming = TcpIncoming::bind(address).expect("the address is free");
        let address = incoming.local_addr().expect("it listens");
        let (spans, shown) = (Arc::default(), Arc::default());
        let receiver = Receiver { spans: Arc::clone(&spans), shown: Arc::clone(&shown) };
        let service = TraceServiceServer::new(receiver);
        let serving = server.add_service(service).serve_with_incoming(incoming);
        let server = tokio::spawn(async move { serving.await.expect("the collector serves") });
        Self { address, spans, shown, server }
    }

    /// The options of a replica whose traces come here.
    pub fn options(&self) -> String {
        options(self.address)
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The `authorization` that came with the last export.
    pub fn shown(&self) -> Option<String> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everything that came so far.
    pub fn spans(&self) -> Vec<Seen> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The spans of turns.
    pub fn turns(&self) -> Vec<Seen> {
        let mut turns = self.spans();
        turns.retain(|span| span.name == "turn");
        turns
    }

    /// Ends the cluster's replicas, which export the waiting spans, and then reads all spans that
    /// came. Checks that no turn was sent twice, and that each span of a turn's trace is the turn
    /// or a child of one.
    pub async fn traced_in_all(&self, cluster: &mut Running, count: usize) -> Vec<Trace> {
        for replica in &mut cluster.replicas {
            replica.terminate().await;
            assert!(replica.exit(SOON).await.success(), "it exports what waits");
        }
        let (traces, spans) = (self.traced(count).await, self.spans());
        let ids: BTreeSet<_> = spans.iter().map(|span| (&span.trace, &span.id)).collect();
        assert_eq!(ids.len(), spans.len(), "each span came once: {spans:#?}");
        let own = |span: &&Seen| traces.iter().any(|trace| trace.turn.trace == span.trace);
        for span in spans.iter().filter(own) {
            let is_child = traces.iter().any(|trace| {
                trace.turn.trace == span.trace && [&span.id, &span.parent].contains(&&trace.turn.id)
            });
            assert!(is_child, "a span of no turn: {span:#?}");
        }
        traces
    }

    /// Waits for so many turns, and returns them in the order of their beginnings. Checks that
    /// there are no more.
    pub async fn traced(&self, count: usize) -> Vec<Trace> {
        let turns = eventually(SOON, &format!("{count} turns are traced"), async || {
            let turns = self.turns();
            (turns.len() >= count).then_some(turns)
        })
        .await;
        let spans = self.spans();
        let mut traces: Vec<_> = turns.into_iter().map(|turn| Trace::of(turn, &spans)).collect();
        traces.sort_by_key(|trace| trace.turn.time);
        assert_eq!(traces.len(), count, "{traces:#?}");
        traces
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The options of a replica whose traces go to this address.
pub fn options(address: SocketAddr) -> String {
    format!("otlp_endpoint = \"http://{address}\"\n")
}

/// The trace of a turn.
#[derive(Debug)]
pub struct Trace {
    pub turn: Seen,
    /// Its direct children, in the order of their begin.
    pub children: Vec<Seen>,
}

impl Trace {
    fn of(turn: Seen, spans: &[Seen]) -> Self {
        let is_child = |span: &&Seen| span.parent == turn.id && span.trace == turn.trace;
        let mut children: Vec<_> = spans.iter().filter(is_child).cloned().collect();
        children.sort_by_key(|span| span.time.0);
        for child in &children {
            assert!(child.time.0 >= turn.time.0 && child.time.1 <= turn.time.1, "{child:?}");
            assert!(child.time.0 <= child.time.1, "{child:?}");
        }
        Self { turn, children }
    }

    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.children.iter().map(|span| span.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    pub fn attempts(&self) -> Vec<&Seen> {
        let is_attempt = |span: &&Seen| span.kind == proto::span::SpanKind::Client;
        self.children.iter().filter(is_attempt).collect()
    }
}

fn seen(span: &proto::Span, resource: &BTreeMap<String, String>) -> Seen {
    let status = span.status.as_ref().map(proto::Status::code);
    Seen {
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        name: span.name.clone(),
        kind: span.kind(),
        time: (span.start_time_unix_nano, span.end_time_unix_nano),
        attributes: read(&span.attributes),
        events: span.events.iter().map(|event| event.name.clone()).collect(),
        is_error: status == Some(proto::status::StatusCode::Error),
        resource: resource.clone(),
        text: format!("{span:?}"),
    }
}

fn read(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let count = attributes.len();
    let read: BTreeMap<_, _> =
        attributes.iter().map(|one| (one.key.clone(), text(one.value.as_ref()))).collect();
    assert_eq!(read.len(), count, "each attribute is there once: {attributes:?}");
    read
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::BoolValue(value)) => value.to_string(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::DoubleValue(number)) => number.to_string(),
        Some(any_value::Value::ArrayValue(list)) => {
            list.values.iter().map(|value| text(Some(value))).collect::<Vec<_>>().join(",")
        }
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
