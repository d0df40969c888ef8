//! Drains a replica. First the replica reports that it is not ready but still serves, until load
//! balancers send turns to other replicas. Then it accepts no connection, and turns in flight
//! finish.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::server::ServerSettings;
use crate::server::connection::{Ending, MOMENT};
use crate::task::Tasks;

/// Longest time for cutting the turns that outlast the grace.
const CUT: Duration = Duration::from_millis(500);

/// Whether load balancers should send turns to this replica. This depends only on whether the
/// replica is leaving. A store or an upstream that fails does so for all replicas alike.
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

/// The parts of a replica that a drain ends, in this order, and their times.
pub struct Drain {
    pub readiness: Readiness,
    /// Its token `closing`, once cancelled: no connection is accepted, and open ones end after a
    /// moment.
    pub ending: Ending,
    pub connections: Tasks,
    pub delay: Duration,
    pub grace: Duration,
}

impl Drain {
    /// Once `cutting` is cancelled, turns in flight are cut.
    pub fn new(settings: &ServerSettings, cutting: CancellationToken) -> Self {
        let ending = Ending { cutting, moment: MOMENT.min(settings.drain.0), ..Ending::replica() };
        Self {
            readiness: Readiness::ready(),
            ending,
            connections: Tasks::new(),
            delay: settings.drain_delay.0,
            grace: settings.drain.0,
        }
    }

    /// Drains. Returns true if every turn in flight has finished. `hurry` ends the wait for them.
    pub async fn run(self, hurry: impl Future<Output = ()>) -> bool {
        let gently = async {
            self.readiness.0.store(false, Ordering::Relaxed);
            self.ending.leaving.cancel();
            tracing::info!(
                seconds = self.delay.as_secs_f64(),
                "draining: not ready, still serving"
            );
            tokio::time::sleep(self.delay).await;
            self.ending.closing.cancel();
            tracing::info!(
                seconds = self.grace.as_secs_f64(),
                "draining: waiting for turns in flight"
            );
            // Clients that a load balancer sent here during the delay may only connect now.
            let moment = if self.delay.is_zero() { Duration::ZERO } else { self.ending.moment };
            let moment = moment.min(self.grace);
            tokio::time::sleep(moment).await;
            let is_done = self.connections.join(self.grace - moment).await;
            if !is_done {
                tracing::warn!("draining: time is up, cutting the turns in flight");
            }
            is_done
        };
        let is_done = tokio::select! {
            is_done = gently => is_done,
            () = hurry => {
                tracing::warn!("stopped twice: cutting the turns in flight");
                false
            }
        };
        if !is_done {
            // Clients of WebSockets receive a close frame, and every turn is recorded.
            self.ending.cutting.cancel();
            self.connections.join(CUT).await;
        }
        is_done
    }
}
