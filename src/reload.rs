//! Takes what has changed in the configuration into use while turns go on: keys, upstreams, clients, prices.
//!
//! Decides when to look at the files, and that a set is taken as a whole or not at all: what cannot be used is told once, and
//! the set in use stays. What only a start can change is named, and left as it is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::client::tokens::Roster;
use crate::config::Plan;
use crate::config::fixed::Fixed;
use crate::config::source::{self, Seen};
use crate::current::Current;
use crate::health::membership::Membership;
use crate::health::registry::Registry;
use crate::metrics::Metrics;
use crate::usage::price::Prices;

/// From one look at the files to the next.
const BEAT: Duration = Duration::from_secs(2);
/// From one look to the next, at least, however many turns want one.
const SOONEST: Duration = Duration::from_secs(1);
/// What has changed is taken once it has stayed so for so long: whoever writes a file may not be done with it.
const SETTLED: Duration = Duration::from_millis(200);

/// What a reload changes, and what it must not.
pub struct Reload {
    pub fixed: Fixed,
    pub membership: Arc<Membership>,
    pub registry: Arc<Registry>,
    pub roster: Arc<Roster>,
    pub prices: Arc<Current<Prices>>,
    pub metrics: Arc<Metrics>,
}

impl Reload {
    /// Follows `file`, which held what was `seen`, for as long as the replica lives.
    pub async fn follow(self: Arc<Self>, file: Option<PathBuf>, mut seen: Seen, mut hangup: Signal) {
        loop {
            let is_told = tokio::select! {
                told = hangup.recv() => told.is_some(),
                () = self.wanted() => false,
                () = sleep(BEAT) => false,
            };
            let found = look(&seen).await;
            if found == seen {
                if is_told {
                    tracing::info!("SIGHUP: the configuration has not changed");
                }
                continue;
            }
            if !is_told {
                sleep(SETTLED).await;
                if look(&found).await != found {
                    continue;
                }
            }
            let file = file.clone();
            let Ok((read, plan)) = spawn_blocking(move || source::read(file.as_deref())).await else { continue };
            seen = read;
            match plan {
                Ok(plan) => self.take(plan).await,
                Err(faults) => {
                    self.metrics.reload_failed();
                    tracing::error!(faults = faults.join("; "), "the configuration cannot be used: the one in use stays");
                }
            }
        }
    }

    async fn wanted(&self) {
        sleep(SOONEST).await;
        self.registry.reload_wanted().await;
    }

    async fn take(&self, plan: Plan) {
        let Plan { fixed, table, clients, prices } = plan;
        let restart = self.fixed.differs_from(&fixed);
        if !restart.is_empty() {
            tracing::warn!("needs a restart: {}", restart.into_iter().collect::<Vec<_>>().join(", "));
        }
        let (keys, tokens) = (table.keys().len(), clients.len());
        // First the keys, so that a new client finds those that it may use.
        if let Some(next) = self.registry.prepare(table) {
            self.membership.introduce(next).await;
        }
        // Who is let in without a token depends on where this replica listens.
        self.roster.configure(clients.opened(self.fixed.config.server.open));
        self.prices.set(Arc::new(prices));
        self.metrics.reloaded();
        tracing::info!(keys, tokens, "the configuration is reloaded");
    }
}

/// Reading may wait for a disk, or for a network.
async fn look(seen: &Seen) -> Seen {
    let before = seen.clone();
    spawn_blocking(move || before.again()).await.unwrap_or_else(|_| seen.clone())
}
