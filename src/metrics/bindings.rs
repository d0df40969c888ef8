//! Metrics of bindings: how turns got their bindings, which decisions followed, and which turns
//! were cold.

use crate::metrics::Metrics;
use crate::metrics::family::{Counter, Counters, families};
use crate::metrics::label::{BindingResult, ColdReason, Decision, Reason};

families! {
    pub struct BindingMetrics {
        bound: Counters<BindingResult> = counters(
            "bindings",
            "Turns that had a key, by how the turn got its binding",
        ),
        decided: Counters<(Decision, Reason)> = counters(
            "decisions",
            "Decisions about turns that the bound key could not serve at once, by decision and reason",
        ),
        cold: Counters<ColdReason> = counters(
            "cold_turns",
            "Turns that read less from the prompt cache than their session's last turn had left, by reason",
        ),
        cold_tokens: Counters<ColdReason> = counters(
            "cold_tokens",
            "Input tokens that cold turns were expected to read from the prompt cache and did not, by reason",
        ),
        expected_turns: Counter = counter(
            "expected_turns",
            "Turns whose session's last turn had left something in the prompt cache",
        ),
        expected_tokens: Counter = counter(
            "expected_tokens",
            "Input tokens that turns were expected to read from the prompt cache",
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

    /// A turn was cold, and read `tokens` fewer than expected.
    pub fn cold_turn(&self, reason: ColdReason, tokens: u64) {
        self.bindings.cold.get_or_create(&reason).inc();
        self.bindings.cold_tokens.get_or_create(&reason).inc_by(tokens);
    }

    /// A turn was expected to read `tokens` from the prompt cache.
    pub fn expected(&self, tokens: u64) {
        self.bindings.expected_turns.inc();
        self.bindings.expected_tokens.inc_by(tokens);
    }
}
