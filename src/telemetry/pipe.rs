//! The way of traces to the collector: a bounded queue and one thread that exports.
//!
//! Nothing waits for the collector. A trace that finds no room is dropped and counted, and so is
//! each trace that the collector did not take.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanExporter, SpanProcessor,
};

use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::telemetry::CollectorAddress;

/// Maximum spans that wait: about 16 MB, or seven seconds at 200 turns a second.
const WAITING: usize = 8_192;
/// Maximum spans of one export.
const BATCH: usize = 512;
/// Time after which waiting spans are exported.
const GATHER: Duration = Duration::from_secs(1);
/// Timeout of one export, with all its attempts.
const EXPORT: Duration = Duration::from_secs(3);
/// Timeout for what waits when the replica leaves.
const FAREWELL: Duration = Duration::from_secs(2);
/// Minimum time between two lines that say the same.
const TOLD: Duration = Duration::from_secs(60);

/// The traces of one replica on their way to the collector.
#[derive(Debug)]
pub struct TracePipe {
    processor: BatchSpanProcessor,
    flow: Arc<Flow>,
}

impl TracePipe {
    /// Starts the export to `collector`, within a runtime. The collector need not be there.
    pub fn start(
        collector: &CollectorAddress,
        instance: &str,
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        let mut builder = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(collector.as_str())
            .with_timeout(EXPORT);
        if collector.as_str().starts_with("https:") {
            builder = builder.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
        }
        let mut exporter =
            builder.build().map_err(|error| format!("telemetry.otlp_endpoint: {error}"))?;
        // The environment may add attributes: OTEL_RESOURCE_ATTRIBUTES.
        let resource = Resource::builder()
            .with_service_name("warmkey")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", instance.to_owned()),
            ])
            .build();
        exporter.set_resource(&resource);
        Ok(Self::over(exporter, metrics))
    }

    fn over(exporter: impl SpanExporter + 'static, metrics: Arc<Metrics>) -> Self {
        let flow = Arc::new(Flow {
            metrics,
            waiting: AtomicUsize::new(0),
            is_full: AtomicBool::new(false),
            failing: Mutex::default(),
        });
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(WAITING)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(GATHER)
            .build();
        let counted = CountedExporter { exporter, flow: Arc::clone(&flow) };
        let processor = BatchSpanProcessor::builder(counted).with_batch_config(config).build();
        Self { processor, flow }
    }

    /// Takes the spans of one trace, or drops all of them if there is no room.
    pub fn send(&self, trace: Vec<SpanData>) {
        let (flow, count) = (&self.flow, trace.len());
        let before = flow.waiting.fetch_add(count, Ordering::Relaxed);
        if before + count > WAITING {
            flow.waiting.fetch_sub(count, Ordering::Relaxed);
            flow.metrics.traces_dropped(1);
            if !flow.is_full.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "the collector takes traces too slowly: further ones are dropped, and counted"
                );
            }
            return;
        }
        trace.into_iter().for_each(|span| self.processor.on_end(span));
    }

    /// Exports what waits, within a short timeout, and ends the thread.
    pub async fn close(self: Arc<Self>) {
        let pipe = Arc::clone(&self);
        // Both wait on a thread: this one must not.
        let closing =
            tokio::task::spawn_blocking(move || pipe.processor.shutdown_with_timeout(FAREWELL));
        if !matches!(tokio::time::timeout(FAREWELL * 2, closing).await, Ok(Ok(Ok(())))) {
            let left = self.flow.waiting.load(Ordering::Relaxed);
            tracing::warn!(spans = left, "the replica leaves before all traces are exported");
        }
    }
}

/// What is known of the traces in a pipe.
struct Flow {
    metrics: Arc<Metrics>,
    /// Spans that the processor holds.
    waiting: AtomicUsize,
    /// The last trace found no room.
    is_full: AtomicBool,
    failing: Mutex<Failing>,
}

/// What the log says about failed exports.
#[derive(Debug, Default)]
struct Failing {
    /// The log says that exports fail.
    is_told: bool,
    told: Option<Instant>,
    /// Traces lost since the last line.
    lost: u64,
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flow")
    }
}

impl Flow {
    fn exported(&self, result: &OTelSdkResult, traces: u64, now: Instant) {
        self.is_full.store(false, Ordering::Relaxed);
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => {
                if std::mem::take(&mut failing.is_told) {
                    failing.lost = 0;
                    tracing::info!("the collector takes traces again");
                }
            }
            Err(why) => {
                self.metrics.traces_dropped(traces);
                failing.lost += traces;
                if failing.told.is_none_or(|told| now.duration_since(told) >= TOLD) {
                    let lost = std::mem::take(&mut failing.lost);
                    (failing.told, failing.is_told) = (Some(now), true);
                    tracing::warn!(lost, %why, "the collector did not take traces: they are dropped, and counted");
                }
            }
        }
    }
}

/// An exporter whose failures are counted.
#[derive(Debug)]
struct CountedExporter<E> {
    exporter: E,
    flow: Arc<Flow>,
}

impl<E: SpanExporter> SpanExporter for CountedExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.flow.waiting.fetch_sub(batch.len(), Ordering::Relaxed);
        let traces = batch.iter().filter(|span| is_root(span)).count() as u64;
        let result = self.exporter.export(batch).await;
        self.flow.exported(&result, traces, Instant::now());
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }
}

/// Whether a span is the first one of this process in its trace.
fn is_root(span: &SpanData) -> bool {
    span.span_kind == SpanKind::Server || span.parent_span_id == opentelemetry::SpanId::INVALID
}
