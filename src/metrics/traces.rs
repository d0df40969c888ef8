//! Metrics of traces: what is lost on the way to the collector.

use crate::metrics::Metrics;
use crate::metrics::family::{Counter, families};

families! {
    pub struct TraceMetrics {
        dropped: Counter = counter("traces_dropped", "Traces that did not reach the collector"),
    }
}

impl Metrics {
    pub fn traces_dropped(&self, traces: u64) {
        self.traces.dropped.inc_by(traces);
    }
}
