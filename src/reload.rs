//! Takes changes of the configuration into use while turns go on: keys, upstreams, clients, prices,
//! the certificate.
//!
//! Decides when to look at the files. A configuration is taken as a whole or not at all: a faulty
//! one is reported once, and the one in use stays. Options that need a restart are named and left
//! as they are.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::time::sleep;
use tracing::{Instrument, info_span};

use crate::client::tokens::Roster;
use crate::config::Plan;
use crate::config::fixed::Fixed;
use crate::config::source::{self, Seen};
use crate::current::Current;
use crate::health::membership::Membership;
use crate::health::registry::Registry;
use crate::metrics::Metrics;
use crate::server::tls::Tls;
use crate::telemetry::work::WORK;
use crate::usage::price::Prices;

/// Time from one look at the files to the next.
const INTERVAL: Duration = Duration::from_secs(2);
/// Minimum time from one look to the next, however many turns ask for one.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Time for which changed files must stay the same before a reload, because their author may still
/// be writing.
const SETTLED: Duration = Duration::from_millis(200);

/// The parts that a reload replaces, and the fixed part that it must not change.
pub struct Reload {
    pub fixed: Fixed,
    pub membership: Arc<Membership>,
    pub registry: Arc<Registry>,
    pub roster: Arc<Roster>,
    pub prices: Arc<Current<Prices>>,
    pub metrics: Arc<Metrics>,
    pub tls: Option<Tls>,
}

impl Reload {
    /// Follows `file`, whose content was `seen`, for as long as the replica lives.
    pub async fn follow(
        self: Arc<Self>,
        file: Option<PathBuf>,
        seen: &mut Seen,
        hangup: &mut Signal,
    ) {
        loop {
            let is_signaled = tokio::select! {
                signal = hangup.recv() => signal.is_some(),
                () = self.wait_until_asked() => false,
                () = sleep(INTERVAL) => false,
            };
            let found = read_files(seen).await;
            if found == *seen {
                if is_signaled {
                    tracing::info!("SIGHUP: the configuration has not changed");
                }
                continue;
            }
            if !is_signaled {
                sleep(SETTLED).await;
                if read_files(&found).await != found {
                    continue;
                }
            }
            let file = file.clone();
            let Some((read, plan)) = on_a_thread(move || source::read(file.as_deref())).await
            else {
                continue;
            };
            *seen = read;
            match plan {
                Ok(plan) => {
                    self.take(plan).instrument(info_span!(target: WORK, "reload")).await;
                }
                Err(faults) => {
                    self.metrics.reload_failed();
                    tracing::error!(
                        faults = faults.join("; "),
                        "the configuration cannot be used: the one in use stays"
                    );
                }
            }
        }
    }

    async fn wait_until_asked(&self) {
        sleep(MIN_INTERVAL).await;
        self.registry.reload_requested().await;
    }

    async fn take(&self, plan: Plan) {
        let Plan { fixed, table, clients, certificate, prices } = plan;
        let restart = self.fixed.differs_from(&fixed);
        if !restart.is_empty() {
            tracing::warn!(
                "needs a restart: {}",
                restart.into_iter().collect::<Vec<_>>().join(", ")
            );
        }
        let (keys, tokens) = (table.keys().len(), clients.len());
        // Keys come first, so that a new client finds the keys that it may use.
        if let Some(next) = self.registry.prepare(table) {
            self.membership.introduce(next).await;
        }
        // `server.open` stays as it was at the start: it depends on where this replica listens.
        self.roster.configure(clients.with_open(self.fixed.config.server.open));
        self.prices.set(Arc::new(prices));
        if let (Some(tls), Some(certificate)) = (&self.tls, certificate) {
            tls.replace(certificate);
        }
        self.metrics.reloaded();
        tracing::info!(keys, tokens, "the configuration is reloaded");
    }
}

async fn read_files(seen: &Seen) -> Seen {
    let before = seen.clone();
    on_a_thread(move || before.look_again()).await.unwrap_or_else(|| seen.clone())
}

/// Reads files on another thread, because reading may wait for a disk or a network. `None`: the
/// reading panicked.
#[expect(clippy::disallowed_methods, reason = "the watch waits for each reading: one at a time")]
async fn on_a_thread<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(read).await.ok()
}
