//! The metrics of one replica, by topic. Each topic declares its families, with the functions that
//! record into them.
//!
//! [`Metrics`] is passed along and not global, because several replicas may live in one process.
//! Labels are closed sets: no label holds a session, a model or a path.

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

mod label;
mod family;
mod turns;
mod bindings;
mod keys;
mod ledger;
mod store;
mod reloads;
mod traces;
mod pressure;

pub use label::{
    BindingResult, Cache, ColdReason, ConnectionRefusal, Decision, Ending, KeyState, ListenerName,
    Operation, Reason, StoreFailure, StrangerRefusal, Transport,
};

use bindings::BindingMetrics;
use family::Page;
use keys::KeyMetrics;
use ledger::LedgerMetrics;
use pressure::PressureMetrics;
use reloads::ReloadMetrics;
use store::StoreMetrics;
use traces::TraceMetrics;
use turns::TurnMetrics;

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub struct Metrics {
    registry: Registry,
    turns: TurnMetrics,
    bindings: BindingMetrics,
    keys: KeyMetrics,
    ledger: LedgerMetrics,
    store: StoreMetrics,
    reloads: ReloadMetrics,
    traces: TraceMetrics,
    pressure: PressureMetrics,
}

impl Metrics {
    pub fn new() -> Self {
        let mut page = Page::new("warmkey");
        let (turns, bindings) = (TurnMetrics::new(&mut page), BindingMetrics::new(&mut page));
        let (keys, store) = (KeyMetrics::new(&mut page), StoreMetrics::new(&mut page));
        let (ledger, reloads) = (LedgerMetrics::new(&mut page), ReloadMetrics::new(&mut page));
        let (traces, pressure) = (TraceMetrics::new(&mut page), PressureMetrics::new(&mut page));
        page.info("build", "The running version", ("version", env!("CARGO_PKG_VERSION")));
        let registry = page.into_registry();
        Self { registry, turns, bindings, keys, ledger, store, reloads, traces, pressure }
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

#[cfg(test)]
mod tests;
