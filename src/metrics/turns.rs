//! Metrics of turns: how many are in flight, how they end, how long they take.

use crate::metrics::Metrics;
use crate::metrics::family::{
    Counter, Counters, Gauge, Histogram, OF_STEPS, OF_TURNS, Times, families,
};
use crate::metrics::label::{Ending, Transport};

families! {
    pub struct TurnMetrics {
        active: Gauge = gauge("active_turns", "Turns in flight on this replica"),
        websockets: Gauge = gauge("active_websockets", "Open WebSockets of clients"),
        ended: Counters<(Transport, Ending)> = counters(
            "turns",
            "Finished turns, by transport and outcome",
        ),
        seconds: Times<Transport> = times(
            "turn",
            "Time from the first byte of a request to the last byte of its answer",
            OF_TURNS,
        ),
        overhead: Histogram = time(
            "overhead",
            "Time that the gateway takes from the last byte of a request to its first attempt",
            OF_STEPS,
        ),
        usage_missing: Counter = counter(
            "usage_missing",
            "Answered turns without readable token usage",
        ),
        leaks: Counter = counter(
            "credential_echoes",
            "Answers whose body held the secret of the upstream key",
        ),
        malformed: Counter = counter(
            "malformed_session_signals",
            "Malformed session signals of clients, which the gateway ignored",
        ),
    }
}

impl Metrics {
    pub fn turn_began(&self) {
        self.turns.active.inc();
    }

    pub fn turn_ended(&self, transport: Transport, outcome: Ending, seconds: f64) {
        self.turns.active.dec();
        self.turns.ended.get_or_create(&(transport, outcome)).inc();
        self.turns.seconds.get_or_create(&transport).observe(seconds);
    }

    /// Reverts [`Self::turn_began`] for the handshake of a WebSocket, whose turns come as messages.
    pub fn turn_void(&self) {
        self.turns.active.dec();
    }

    pub fn websocket_opened(&self) {
        self.turns.websockets.inc();
    }

    pub fn websocket_closed(&self) {
        self.turns.websockets.dec();
    }

    pub fn overhead(&self, seconds: f64) {
        self.turns.overhead.observe(seconds);
    }

    pub fn usage_missing(&self) {
        self.turns.usage_missing.inc();
    }

    pub fn credential_leaked(&self) {
        self.turns.leaks.inc();
    }

    pub fn malformed_signals(&self, count: u64) {
        self.turns.malformed.inc_by(count);
    }
}
