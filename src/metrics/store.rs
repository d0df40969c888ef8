//! Metrics of the store: whether it answers, how fast, and which writes may be lost.

use crate::metrics::Metrics;
use crate::metrics::family::{Counter, Counters, Gauge, OF_STEPS, Times, families};
use crate::metrics::label::{Operation, StoreFailure};

families! {
    pub struct StoreMetrics {
        up: Gauge = gauge("store_up", "1 while every part of the store answers, 0 otherwise"),
        seconds: Times<Operation> = times("store", "Duration of a store operation", OF_STEPS),
        failures: Counters<StoreFailure> = counters(
            "store_failures",
            "Failed store operations and connection attempts, by reason",
        ),
        lagging_rebinds: Counter = counter(
            "lagging_rebinds",
            "Bindings that no replica of the store acknowledged in time; \
             first bindings to the default key are not counted",
        ),
    }
}

impl Metrics {
    pub fn store_up(&self, up: bool) {
        self.store.up.set(i64::from(up));
    }

    pub fn store_took(&self, operation: Operation, seconds: f64) {
        self.store.seconds.get_or_create(&operation).observe(seconds);
    }

    pub fn store_failed(&self, reason: StoreFailure) {
        self.store.failures.get_or_create(&reason).inc();
    }

    pub fn rebinds_lag(&self, count: u64) {
        self.store.lagging_rebinds.inc_by(count);
    }
}
