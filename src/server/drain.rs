//! How a replica leaves. First it is not ready but still serves, until balancers look away; then
//! turns in flight finish.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::server::Settings;
use crate::task::Tasks;

/// Whether balancers should send turns to this replica. Depends only on whether the replica is
/// leaving: a store or an upstream that is away is away for all replicas alike.
#[derive(Clone)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    pub fn ready() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The parts that end in a drain, in this order, and their times.
pub struct Drain {
    pub readiness: Readiness,
    /// Once cancelled, no connection and no further request is accepted.
    pub closing: CancellationToken,
    pub connections: Tasks,
    pub delay: Duration,
    pub grace: Duration,
}

impl Drain {
    pub fn new(settings: &Settings) -> Self {
        Self {
            readiness: Readiness::ready(),
            closing: CancellationToken::new(),
            connections: Tasks::new(),
            delay: settings.drain_delay.0,
            grace: settings.drain.0,
        }
    }

    /// Drains. Returns true if every turn in flight came to its end; `hurry` ends the wait for
    /// them.
    pub async fn run(self, hurry: impl Future<Output = ()>) -> bool {
        let gently = async {
            self.readiness.0.store(false, Ordering::Relaxed);
            tracing::info!(
                seconds = self.delay.as_secs_f64(),
                "draining: not ready, still serving"
            );
            tokio::time::sleep(self.delay).await;
            self.closing.cancel();
            tracing::info!(
                seconds = self.grace.as_secs_f64(),
                "draining: waiting for turns in flight"
            );
            let is_done = self.connections.join(self.grace).await;
            if !is_done {
                tracing::warn!("draining: time is up, cutting the turns in flight");
            }
            is_done
        };
        tokio::select! {
            is_done = gently => is_done,
            () = hurry => {
                tracing::warn!("told twice to stop: cutting the turns in flight");
                false
            }
        }
    }
}
