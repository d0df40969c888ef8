//! Counts bindings that no replica of the store has acknowledged and that no other Warmkey replica
//! could compute: mainly rebinds. A failover of the store may lose about as many bindings.
//!
//! `WAIT` blocks its connection, so this module has connections of its own, and no turn waits for
//! them. Writes during a `WAIT` are counted together: the queue is a number.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool_redis::{Manager, Pool, Runtime};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{AsyncConnectionConfig, pipe};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::address::Host;
use super::dial::{Dialer, Shown};
use super::name::Name;
use crate::metrics::Metrics;

/// Time for a replica of the store to acknowledge, and time for the whole check.
const ACKNOWLEDGE_MS: u32 = 1_000;
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// Most pools. A pool of a former node holds only a dead connection, so above this number all pools
/// are dropped.
const POOLS: usize = 100;

/// Counts lagging writes in the background.
pub struct Lag {
    dialer: Arc<Dialer>,
    metrics: Arc<Metrics>,
    pending: Mutex<HashMap<Arc<Host>, Pending>>,
    wake: Notify,
}

/// The number of writes that a node has stored since the last check.
struct Pending {
    rebinds: u64,
    /// The name of one of these bindings. The check writes a marker with a name in the same slot,
    /// and so to the same node.
    name: String,
}

impl Lag {
    pub fn new(dialer: Arc<Dialer>, metrics: Arc<Metrics>) -> Self {
        Self { dialer, metrics, pending: Mutex::default(), wake: Notify::new() }
    }

    /// Records that `host` has stored a rebind under `name`.
    pub fn note(&self, host: Arc<Host>, name: &str) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending
            .entry(host)
            .or_insert_with(|| Pending { rebinds: 0, name: name.to_owned() })
            .rebinds += 1;
        self.wake.notify_one();
    }

    /// Checks and counts for as long as the future is polled.
    pub async fn keep(self: Arc<Self>) {
        let mut pools: HashMap<Arc<Host>, Pool> = HashMap::new();
        loop {
            self.wake.notified().await;
            let pending =
                std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
            let one = async |(host, pending): (Arc<Host>, Pending), pool: Option<Pool>| {
                let pool = pool.or_else(|| self.pool(&host));
                let waiting =
                    timeout(CHECK_TIMEOUT, self.acknowledgements(pool.as_ref(), &pending.name));
                let acknowledged = waiting.await.ok().flatten();
                if acknowledged.unwrap_or(0) == 0 {
                    self.metrics.rebinds_lag(pending.rebinds);
                }
                // A pool that failed may hold an outdated password, so it is dropped.
                (host, pool.filter(|_| acknowledged.is_some()))
            };
            if pools.len() > POOLS {
                pools.clear();
            }
            let mut waiting: FuturesUnordered<_> = pending
                .into_iter()
                .map(|entry| {
                    let pool = pools.remove(&entry.0);
                    one(entry, pool)
                })
                .collect();
            let mut kept = Vec::new();
            while let Some((host, pool)) = waiting.next().await {
                kept.extend(pool.map(|pool| (host, pool)));
            }
            drop(waiting);
            pools.extend(kept);
        }
    }

    /// Returns the number of replicas that have everything which the node of `name` has stored so
    /// far.
    async fn acknowledgements(&self, pool: Option<&Pool>, name: &str) -> Option<u64> {
        let mut connection = pool?.get().await.ok()?;
        let mut question = pipe();
        question
            .cmd("SET")
            .arg(self.dialer.name(Name::Lag(name)))
            .arg("")
            .arg("PX")
            .arg(ACKNOWLEDGE_MS)
            .ignore();
        question.cmd("WAIT").arg(1).arg(ACKNOWLEDGE_MS);
        let (replicas,) = question.query_async(&mut connection).await.ok()?;
        Some(replicas)
    }

    fn pool(&self, host: &Host) -> Option<Pool> {
        let client =
            self.dialer.client(&self.dialer.address().ok()?, host, Shown::Everything).ok()?;
        // The library's default timeout of half a second is shorter than the `WAIT`.
        let settings = AsyncConnectionConfig::new().set_response_timeout(Some(CHECK_TIMEOUT));
        let makes =
            Manager::new_with_config(client.get_connection_info().clone(), settings).ok()?;
        Pool::builder(makes).max_size(1).runtime(Runtime::Tokio1).build().ok()
    }
}
