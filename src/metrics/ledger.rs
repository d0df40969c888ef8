//! Metrics of the ledger: whether its database answers, dropped rows, and turns without a price.

use crate::metrics::Metrics;
use crate::metrics::family::{Counter, Gauge, families};

families! {
    pub struct LedgerMetrics {
        up: Gauge = gauge("ledger_up", "1 while the ledger's database answers, 0 otherwise and where there is none"),
        dropped: Counter = counter("ledger_dropped", "Turns that could not be written to the ledger"),
        unpriced: Counter = counter(
            "unpriced_turns",
            "Turns whose usage is known, and whose model, tier or rate has no price",
        ),
    }
}

impl Metrics {
    pub fn ledger_up(&self, up: bool) {
        self.ledger.up.set(i64::from(up));
    }

    pub fn ledger_dropped(&self, turns: u64) {
        self.ledger.dropped.inc_by(turns);
    }

    pub fn unpriced(&self) {
        self.ledger.unpriced.inc();
    }
}
