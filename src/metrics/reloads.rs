//! Metrics of reloads: whether this replica runs the current configuration.

use crate::metrics::Metrics;
use crate::metrics::family::{Counter, families};

families! {
    pub struct ReloadMetrics {
        done: Counter = counter("reloads", "Changed configurations that this replica loaded"),
        failed: Counter = counter(
            "reload_failures",
            "Changed configurations that this replica refused",
        ),
    }
}

impl Metrics {
    pub fn reloaded(&self) {
        self.reloads.done.inc();
    }

    pub fn reload_failed(&self) {
        self.reloads.failed.inc();
    }
}
