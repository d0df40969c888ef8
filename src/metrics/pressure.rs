//! Metrics of pressure on a replica: connections, refused callers without a valid token, memory for
//! bodies, lost log lines, and tasks that panicked.

use std::sync::atomic::Ordering;

use crate::metrics::Metrics;
use crate::metrics::family::{Counter, Counters, Gauge, Gauges, families};
use crate::metrics::label::{ConnectionRefusal, ListenerName, StrangerRefusal};

families! {
    pub struct PressureMetrics {
        connections: Gauges<ListenerName> = gauges("connections", "Open connections, by listener"),
        limit: Gauge = gauge(
            "connections_limit",
            "Connections of clients that this replica holds at the most",
        ),
        not_taken: Counters<ConnectionRefusal> = counters(
            "connections_refused",
            "Connections that were ended or not accepted, and requests that were refused, because there were too many, by reason",
        ),
        refused: Counters<StrangerRefusal> = counters(
            "refused",
            "Refused requests of callers without a valid token, by reason",
        ),
        slowed: Counter = counter(
            "refusals_slowed",
            "Refusals that were delayed because their address had shown many wrong tokens",
        ),
        body_memory: Gauge = gauge(
            "body_memory_bytes",
            "Memory that bodies and WebSocket messages take up, those of clients and those of answers",
        ),
        body_memory_limit: Gauge = gauge(
            "body_memory_limit_bytes",
            "Memory that bodies and WebSocket messages of clients may take up at the most; answers may take a quarter more",
        ),
        log_dropped: Counter = counter(
            "log_lines_dropped",
            "Lines of the log that standard error did not take in time",
        ),
        restarts: Counter = counter(
            "task_restarts",
            "Tasks that panicked and began again",
        ),
    }
}

impl Metrics {
    pub fn connection_opened(&self, listener: ListenerName) {
        self.pressure.connections.get_or_create(&listener).inc();
    }

    pub fn connection_closed(&self, listener: ListenerName) {
        self.pressure.connections.get_or_create(&listener).dec();
    }

    pub fn connections_limit(&self, limit: usize) {
        self.pressure.limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
    }

    pub fn connection_refused(&self, reason: ConnectionRefusal) {
        self.pressure.not_taken.get_or_create(&reason).inc();
    }

    pub fn stranger_refused(&self, reason: StrangerRefusal) {
        self.pressure.refused.get_or_create(&reason).inc();
    }

    pub fn refusal_slowed(&self) {
        self.pressure.slowed.inc();
    }

    /// Takes how many bytes the memory for bodies holds now, and how many it may hold.
    pub fn body_memory(&self, used: usize, limit: usize) {
        self.pressure.body_memory.set(i64::try_from(used).unwrap_or(i64::MAX));
        self.pressure.body_memory_limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
    }

    /// Takes the number of all log lines that the process has dropped so far.
    pub fn log_lines_dropped(&self, all: u64) {
        self.pressure.log_dropped.inner().fetch_max(all, Ordering::Relaxed);
    }

    /// Takes the number of all tasks that have begun again so far.
    pub fn task_restarts(&self, all: u64) {
        self.pressure.restarts.inner().fetch_max(all, Ordering::Relaxed);
    }
}
