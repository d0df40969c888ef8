//! Tells what was decided about turns whose key could not just serve them: each time one log line and one metric.

use std::sync::Arc;

use crate::key::Key;
use crate::metrics::{Decision, Metrics, Reason};
use crate::session::SessionId;

pub struct Trail {
    metrics: Arc<Metrics>,
}

/// What was decided about a turn.
pub struct Step<'s> {
    pub session: Option<&'s SessionId>,
    pub decision: Decision,
    pub reason: Reason,
    /// The key that the turn had, where it had one.
    pub from: Option<&'s Key>,
    /// The key that it has now.
    pub to: Option<&'s Key>,
}

impl Trail {
    pub const fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics }
    }

    pub fn tell(&self, step: &Step<'_>) {
        let Step { session, decision, reason, from, to } = step;
        self.metrics.decided(*decision, *reason);
        let id = |key: &Option<&Key>| key.map(|key| key.id.clone());
        tracing::info!(
            session = session.map(SessionId::as_str),
            decision = decision.name(),
            reason = reason.name(),
            from = id(from),
            key = id(to),
            "decision"
        );
    }
}
