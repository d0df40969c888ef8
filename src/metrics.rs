//! Every metric: name, unit, labels, help.
//!
//! A registry that is passed, not a global recorder: several replicas may live in one process. Labels are closed sets; no
//! session, model or path is ever one.

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

mod label;

pub use label::{BindingResult, Cache, ColdReason, Decision, Ending, KeyState, Operation, Reason, StoreFailure, Transport};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TurnLabels {
    transport: Transport,
    outcome: Ending,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TransportLabel {
    transport: Transport,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BindingLabel {
    result: BindingResult,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ColdLabel {
    reason: ColdReason,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KeyLabel {
    key: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct InputLabels {
    key: String,
    cache: Cache,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    key: String,
    state: KeyState,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DecisionLabels {
    decision: Decision,
    reason: Reason,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OperationLabel {
    operation: Operation,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FailureLabel {
    reason: StoreFailure,
}

type TimeFamily<L> = Family<L, Histogram, fn() -> Histogram>;

/// Turns last from a tenth of a second to half an hour.
fn turn_times() -> Histogram {
    Histogram::new([0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0])
}

/// What the gateway and the store add is counted in milliseconds.
fn short_times() -> Histogram {
    Histogram::new([0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0])
}

/// The metrics of one replica.
pub struct Metrics {
    registry: Registry,
    turns: Family<TurnLabels, Counter>,
    turn_seconds: TimeFamily<TransportLabel>,
    overhead_seconds: Histogram,
    input_tokens: Family<InputLabels, Counter>,
    output_tokens: Family<KeyLabel, Counter>,
    usage_missing: Counter,
    credential_echoes: Counter,
    bindings: Family<BindingLabel, Counter>,
    malformed_signals: Counter,
    cold_turns: Family<ColdLabel, Counter>,
    key_state: Family<StateLabels, Gauge>,
    decisions: Family<DecisionLabels, Counter>,
    keys_waiting: Gauge,
    reloads: Counter,
    reload_failures: Counter,
    active_turns: Gauge,
    active_websockets: Gauge,
    store_up: Gauge,
    store_seconds: TimeFamily<OperationLabel>,
    store_failures: Family<FailureLabel, Counter>,
    lagging_rebinds: Counter,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("warmkey");
        let turns = Family::default();
        registry.register("turns", "Turns by how they ended", turns.clone());
        let turn_seconds: TimeFamily<TransportLabel> = Family::new_with_constructor(turn_times);
        registry.register_with_unit(
            "turn",
            "From a turn's first byte in to its last byte out",
            Unit::Seconds,
            turn_seconds.clone(),
        );
        let overhead_seconds = short_times();
        let help = "What the gateway itself adds before the upstream request starts";
        registry.register_with_unit("overhead", help, Unit::Seconds, overhead_seconds.clone());
        let input_tokens = Family::default();
        registry.register("input_tokens", "Input tokens by what the upstream's cache did with them", input_tokens.clone());
        let output_tokens = Family::default();
        registry.register("output_tokens", "Output tokens", output_tokens.clone());
        let usage_missing = Counter::default();
        registry.register("usage_missing", "Answered turns whose usage could not be read", usage_missing.clone());
        let credential_echoes = Counter::default();
        let help = "Answers whose body held the secret of the key that their upstream was shown";
        registry.register("credential_echoes", help, credential_echoes.clone());
        let bindings = Family::default();
        registry.register("bindings", "Turns by where their binding came from", bindings.clone());
        let malformed_signals = Counter::default();
        registry.register("malformed_session_signals", "Session signals skipped as malformed", malformed_signals.clone());
        let cold_turns = Family::default();
        registry.register("cold_turns", "Turns that read nothing from the cache, by reason", cold_turns.clone());
        let key_state = Family::default();
        registry.register("key_state", "1 for the state that a key is in on this replica", key_state.clone());
        let decisions = Family::default();
        let help = "What was decided about turns whose key could not just serve them";
        registry.register("decisions", help, decisions.clone());
        let keys_waiting = Gauge::default();
        registry.register("keys_waiting", "Keys that take no session until every live replica has them", keys_waiting.clone());
        let reloads = Counter::default();
        registry.register("reloads", "Times that a changed configuration was taken into use", reloads.clone());
        let reload_failures = Counter::default();
        registry.register("reload_failures", "Times that a changed configuration was refused", reload_failures.clone());
        let active_turns = Gauge::default();
        registry.register("active_turns", "Turns in flight", active_turns.clone());
        let active_websockets = Gauge::default();
        registry.register("active_websockets", "WebSockets of clients that are open", active_websockets.clone());
        let store_up = Gauge::default();
        registry.register("store_up", "1 while the store answers", store_up.clone());
        let store_seconds: TimeFamily<OperationLabel> = Family::new_with_constructor(short_times);
        registry.register_with_unit("store", "Time a store operation took", Unit::Seconds, store_seconds.clone());
        let store_failures = Family::default();
        registry.register("store_failures", "Failed questions to the store and attempts to connect", store_failures.clone());
        let lagging_rebinds = Counter::default();
        let help = "Bindings, but for first ones to the default key, that no replica of the store acknowledged in time";
        registry.register("lagging_rebinds", help, lagging_rebinds.clone());
        registry.register("build", "The running version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self {
            registry,
            turns,
            turn_seconds,
            overhead_seconds,
            input_tokens,
            output_tokens,
            usage_missing,
            credential_echoes,
            bindings,
            malformed_signals,
            cold_turns,
            key_state,
            decisions,
            keys_waiting,
            reloads,
            reload_failures,
            active_turns,
            active_websockets,
            store_up,
            store_seconds,
            store_failures,
            lagging_rebinds,
        }
    }

    pub fn turn_began(&self) {
        self.active_turns.inc();
    }

    pub fn turn_ended(&self, transport: Transport, outcome: Ending, seconds: f64) {
        self.active_turns.dec();
        self.turns.get_or_create(&TurnLabels { transport, outcome }).inc();
        self.turn_seconds.get_or_create(&TransportLabel { transport }).observe(seconds);
    }

    /// What began as a turn is none: the handshake of a WebSocket, on which the turns come.
    pub fn turn_void(&self) {
        self.active_turns.dec();
    }

    pub fn websocket_opened(&self) {
        self.active_websockets.inc();
    }

    pub fn websocket_closed(&self) {
        self.active_websockets.dec();
    }

    pub fn overhead(&self, seconds: f64) {
        self.overhead_seconds.observe(seconds);
    }

    pub fn input_tokens(&self, key: &str, cache: Cache, tokens: u64) {
        self.input_tokens.get_or_create(&InputLabels { key: key.to_owned(), cache }).inc_by(tokens);
    }

    pub fn output_tokens(&self, key: &str, tokens: u64) {
        self.output_tokens.get_or_create(&KeyLabel { key: key.to_owned() }).inc_by(tokens);
    }

    pub fn usage_missing(&self) {
        self.usage_missing.inc();
    }

    pub fn credential_echoed(&self) {
        self.credential_echoes.inc();
    }

    pub fn bound(&self, result: BindingResult) {
        self.bindings.get_or_create(&BindingLabel { result }).inc();
    }

    pub fn malformed_signals(&self, count: u64) {
        self.malformed_signals.inc_by(count);
    }

    pub fn cold_turn(&self, reason: ColdReason) {
        self.cold_turns.get_or_create(&ColdLabel { reason }).inc();
    }

    pub fn key_state(&self, key: &str, now: KeyState) {
        for &state in KeyState::ALL {
            self.key_state.get_or_create(&StateLabels { key: key.to_owned(), state }).set(i64::from(state == now));
        }
    }

    /// A key that is configured no more has no state.
    pub fn key_removed(&self, key: &str) {
        for &state in KeyState::ALL {
            self.key_state.remove(&StateLabels { key: key.to_owned(), state });
        }
    }

    pub fn decided(&self, decision: Decision, reason: Reason) {
        self.decisions.get_or_create(&DecisionLabels { decision, reason }).inc();
    }

    pub fn reloaded(&self) {
        self.reloads.inc();
    }

    pub fn reload_failed(&self) {
        self.reload_failures.inc();
    }

    pub fn keys_waiting(&self, count: usize) {
        self.keys_waiting.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub fn store_up(&self, up: bool) {
        self.store_up.set(i64::from(up));
    }

    pub fn store_took(&self, operation: Operation, seconds: f64) {
        self.store_seconds.get_or_create(&OperationLabel { operation }).observe(seconds);
    }

    pub fn store_failed(&self, reason: StoreFailure) {
        self.store_failures.get_or_create(&FailureLabel { reason }).inc();
    }

    pub fn rebinds_lag(&self, count: u64) {
        self.lagging_rebinds.inc_by(count);
    }

    /// The text that Prometheus scrapes (OpenMetrics 1.0).
    pub fn render(&self) -> String {
        let mut page = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut page, &self.registry);
        page
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests;
