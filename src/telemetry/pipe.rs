//! Exports traces to the collector: a bounded queue, and one thread that exports.
//!
//! No turn waits for the collector. A trace is dropped and counted if the queue is full, or if its
//! export to the collector fails.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanExporter, SpanProcessor,
};

use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::task::{Tasks, must_panic};
use crate::telemetry::CollectorAddress;
use crate::telemetry::collector::Collector;

/// The name under which panics of the export are counted.
const NAME: &str = "traces";
/// Most spans that wait for their export: about 16 MB, or seven seconds at 200 turns a second.
const WAITING: usize = 8_192;
/// Most spans of one export.
const BATCH: usize = 512;
/// Time after which waiting spans are exported.
const GATHER: Duration = Duration::from_secs(1);
/// Longest time to export the waiting spans when the replica leaves.
const FAREWELL: Duration = Duration::from_secs(2);
/// Minimum time between two log lines with the same message.
const TOLD: Duration = Duration::from_secs(60);

/// The traces of one replica on their way to the collector.
#[derive(Debug)]
pub struct TracePipe {
    processor: BatchSpanProcessor,
    flow: Arc<Flow>,
}

impl TracePipe {
    /// Starts the export to `collector`. Must be called within a runtime. The collector need not be
    /// reachable.
    pub fn start(
        collector: &CollectorAddress,
        instance: &str,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Result<Self, String> {
        // The environment may add attributes, by OTEL_RESOURCE_ATTRIBUTES.
        let resource = Resource::builder()
            .with_service_name("warmkey")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", instance.to_owned()),
            ])
            .build();
        Ok(Self::over(Collector::at(collector, &resource)?, metrics, tasks))
    }

    fn over(exporter: impl SpanExporter + 'static, metrics: Arc<Metrics>, tasks: &Tasks) -> Self {
        let flow = Arc::new(Flow {
            metrics,
            waiting: AtomicUsize::new(0),
            is_full: AtomicBool::new(false),
            failing: Mutex::default(),
            tasks: tasks.clone(),
            must_panic: AtomicBool::new(must_panic(NAME)),
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

    /// Queues the spans of one trace, or drops all of them if the queue is full.
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

    /// Exports the waiting spans, within a short timeout, and ends the thread.
    #[expect(clippy::disallowed_methods, reason = "runs once, at the end, for `FAREWELL`")]
    pub async fn close(self: Arc<Self>) {
        let pipe = Arc::clone(&self);
        // The shutdown blocks its thread until the exporting thread is done. This thread serves
        // turns and must not block.
        let closing =
            tokio::task::spawn_blocking(move || pipe.processor.shutdown_with_timeout(FAREWELL));
        if !matches!(tokio::time::timeout(FAREWELL * 2, closing).await, Ok(Ok(Ok(())))) {
            let left = self.flow.waiting.load(Ordering::Relaxed);
            tracing::warn!(spans = left, "the replica leaves before all traces are exported");
        }
    }
}

/// The state of the traces in a pipe.
struct Flow {
    metrics: Arc<Metrics>,
    /// Spans that wait in the processor.
    waiting: AtomicUsize,
    /// Whether the queue was full when the last trace came.
    is_full: AtomicBool,
    failing: Mutex<Failing>,
    /// Counts panics.
    tasks: Tasks,
    /// Whether a test has ordered a panic in the middle of the work.
    must_panic: AtomicBool,
}

/// The state of the log about failed exports.
#[derive(Debug, Default)]
struct Failing {
    /// Whether the log has said that exports fail.
    is_told: bool,
    told: Option<Instant>,
    /// Traces lost since the last log line about them.
    lost: u64,
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flow")
    }
}

impl Flow {
    fn count_export(&self, result: &OTelSdkResult, traces: u64, now: Instant) {
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
        let exporting = async {
            let result = self.exporter.export(batch).await;
            let must_panic = self.flow.must_panic.swap(false, Ordering::Relaxed);
            assert!(!must_panic, "a test ordered this panic");
            result
        };
        // A panic would end the exporting thread for good, because the library does not catch one.
        let result = AssertUnwindSafe(exporting).catch_unwind().await.unwrap_or_else(|_| {
            self.flow.tasks.note_panic(NAME);
            Err(OTelSdkError::InternalFailure("the export panicked".into()))
        });
        self.flow.count_export(&result, traces, Instant::now());
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

#[cfg(test)]
mod tests {
    use opentelemetry::InstrumentationScope;
    use opentelemetry::trace::{SpanContext, Status, TraceFlags, TraceState};
    use opentelemetry::{SpanId, TraceId};
    use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::SystemTime;

    use super::*;

    /// An exporter that waits for an order before each export, and follows it.
    #[derive(Debug)]
    struct Puppet {
        orders: Mutex<Receiver<OTelSdkResult>>,
        exported: Arc<AtomicUsize>,
    }

    impl SpanExporter for Puppet {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let order = self.orders.lock().expect("no panic").recv();
            // If the test gives no more orders, exports succeed.
            let result = order.unwrap_or(Ok(()));
            self.exported
                .fetch_add(if result.is_ok() { batch.len() } else { 0 }, Ordering::Relaxed);
            result
        }
    }

    struct Stage {
        pipe: Arc<TracePipe>,
        metrics: Arc<Metrics>,
        orders: Sender<OTelSdkResult>,
        exported: Arc<AtomicUsize>,
    }

    impl Stage {
        fn new() -> Self {
            let (orders, ordered) = channel();
            let (metrics, exported) = (Arc::new(Metrics::new()), Arc::default());
            let puppet = Puppet { orders: Mutex::new(ordered), exported: Arc::clone(&exported) };
            let pipe = Arc::new(TracePipe::over(puppet, Arc::clone(&metrics), &Tasks::new()));
            Self { pipe, metrics, orders, exported }
        }

        fn dropped(&self) -> u64 {
            let page = self.metrics.render();
            let line = page.lines().find_map(|l| l.strip_prefix("warmkey_traces_dropped_total "));
            line.expect("the metric is there from the start").parse().expect("a number")
        }
    }

    /// Returns a trace of a turn and a child.
    fn trace() -> Vec<SpanData> {
        [(2, 1, SpanKind::Internal), (1, 9, SpanKind::Server)]
            .map(|(id, parent, span_kind)| SpanData {
                span_context: SpanContext::new(
                    TraceId::from(7),
                    SpanId::from(id),
                    TraceFlags::SAMPLED,
                    false,
                    TraceState::NONE,
                ),
                parent_span_id: SpanId::from(parent),
                parent_span_is_remote: false,
                span_kind,
                name: "s".into(),
                start_time: SystemTime::UNIX_EPOCH,
                end_time: SystemTime::UNIX_EPOCH,
                attributes: Vec::new(),
                dropped_attributes_count: 0,
                events: SpanEvents::default(),
                links: SpanLinks::default(),
                status: Status::Unset,
                instrumentation_scope: InstrumentationScope::default(),
            })
            .into()
    }

    fn failed() -> OTelSdkResult {
        Err(OTelSdkError::InternalFailure("a failure of a test".into()))
    }

    #[tokio::test]
    async fn trace_that_the_collector_does_not_take_is_counted() {
        let stage = Stage::new();
        stage.orders.send(failed()).unwrap();
        (0..3).for_each(|_| stage.pipe.send(trace()));
        Arc::clone(&stage.pipe).close().await;
        assert_eq!((stage.dropped(), stage.exported.load(Ordering::Relaxed)), (3, 0));
    }

    #[tokio::test]
    async fn panic_of_an_export_costs_its_traces_and_no_later_ones() {
        let stage = Stage::new();
        stage.pipe.flow.must_panic.store(true, Ordering::Relaxed);
        stage.orders.send(Ok(())).unwrap();
        (0..3).for_each(|_| stage.pipe.send(trace()));
        let (deadline, flow) = (Instant::now() + GATHER * 10, &stage.pipe.flow);
        while flow.tasks.restarts() == 0 {
            assert!(Instant::now() < deadline, "it panics");
            tokio::time::sleep(GATHER / 100).await;
        }
        (0..2).for_each(|_| stage.pipe.send(trace()));
        let Stage { pipe, exported, orders, .. } = stage;
        drop(orders);
        Arc::clone(&pipe).close().await;
        assert_eq!(exported.load(Ordering::Relaxed), 2 * 5, "all have left the process");
        assert_eq!(pipe.flow.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn trace_that_finds_no_room_is_counted_and_nobody_waits() {
        let stage = Stage::new();
        let sent = WAITING / 2 + BATCH / 2;
        (0..sent + 10).for_each(|_| stage.pipe.send(trace()));
        let dropped = stage.dropped();
        // The thread may have taken one batch by now, or none yet.
        let fewest = 10;
        assert!((fewest..=fewest + BATCH as u64 / 2).contains(&dropped), "{dropped}");
        let Stage { pipe, exported, orders, .. } = stage;
        drop(orders);
        pipe.close().await;
        let kept = 2 * (sent + 10 - usize::try_from(dropped).unwrap());
        assert_eq!(exported.load(Ordering::Relaxed), kept, "everything else arrives");
    }

    #[tokio::test]
    async fn end_waits_for_a_hanging_collector_only_for_a_time() {
        let stage = Stage::new();
        stage.pipe.send(trace());
        let closing = tokio::time::timeout(FAREWELL * 3, Arc::clone(&stage.pipe).close());
        assert!(closing.await.is_ok(), "nobody lets the exporter go on");
        assert_eq!(stage.exported.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn failure_is_told_once_a_minute_and_every_loss_is_counted() {
        let stage = Stage::new();
        let flow = &stage.pipe.flow;
        let told = || {
            let failing = flow.failing.lock().unwrap();
            (failing.is_told, failing.lost)
        };
        let now = Instant::now();
        flow.count_export(&failed(), 5, now);
        assert_eq!(told(), (true, 0));
        flow.count_export(&failed(), 7, now + TOLD / 2);
        assert_eq!(told(), (true, 7), "kept for the next line");
        flow.count_export(&failed(), 1, now + TOLD);
        assert_eq!(told(), (true, 0));
        flow.count_export(&Ok(()), 0, now + TOLD);
        assert_eq!(told(), (false, 0));
        assert_eq!(stage.dropped(), 13);
    }
}
