//! Metrics of bindings: how turns got theirs, what moved them, and which turns were cold.

use crate::metrics::Metrics;
use crate::metrics::family::{Counters, families};
use crate::metrics::label::{BindingResult, ColdReason, Decision, Reason};

families! {
    pub struct BindingMetrics {
        bound: Counters<BindingResult> = counters(
            "bindings",
            "Turns that had a key, by how the turn got its binding",
        ),
        decided: Counters<(Decision, Reason)> = counters(
            "decisions",
            "Decisions about turns that the bound key could not serve at once, by reason",
        ),
        cold: Counters<ColdReason> = counters(
            "cold_turns",
            "Turns that read nothing from the prompt cache, by reason",
        ),
    }
}

impl Metrics {
    pub fn bound(&self, result: BindingResult) {
        self.bindings.bound.get_or_create(&result).inc();
    }

    pub fn decided(&self, decision: Decision, reason: Reason) {
        self.bindings.decided.get_or_create(&(decision, reason)).inc();
    }

    pub fn cold_turn(&self, reason: ColdReason) {
        self.bindings.cold.get_or_create(&reason).inc();
    }
}
