//! Metrics of reloads: whether this replica runs the configuration as it is now.

use crate::metrics::Metrics;
use crate::metrics::family::{Counter, families};

families! {
    pub struct ReloadMetrics {
        done: Counter = counter("reloads", "Changed configurations that were taken into use"),
        failed: Counter = counter("reload_failures", "Changed configurations that were refused"),
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
