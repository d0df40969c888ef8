//! Spans of background work: reloads, probes, merges, and writes of the ledger. Such work is rare,
//! so `tracing` can make its spans.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, Span, SpanData, SpanProcessor};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::telemetry::pipe::TracePipe;

/// The target of spans that are exported. Spans of libraries have other targets, and are not
/// exported.
pub const WORK: &str = "warmkey::work";

/// Connects the process's subscriber with a replica's pipe, which is made later.
#[derive(Clone, Debug, Default)]
pub struct WorkSpans(Arc<OnceLock<Arc<TracePipe>>>);

impl WorkSpans {
    /// Sends spans of work to `pipe` from now on. The first pipe of a process stays.
    pub fn connect(&self, pipe: &Arc<TracePipe>) {
        let _ = self.0.set(Arc::clone(pipe));
    }

    /// The layer of a subscriber that makes spans of work.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'s> LookupSpan<'s>,
    {
        let provider =
            SdkTracerProvider::builder().with_span_processor(WorkProcessor(self.clone())).build();
        let is_work = filter_fn(|span| span.is_span() && span.target() == WORK)
            .with_max_level_hint(LevelFilter::INFO);
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("warmkey"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false)
            .with_filter(is_work)
    }
}

/// Passes ended spans to the pipe.
#[derive(Debug)]
struct WorkProcessor(WorkSpans);

impl SpanProcessor for WorkProcessor {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if let Some(pipe) = self.0.0.get() {
            pipe.send(vec![span]);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}
