//! How many bindings that others would not expect, rebinds above all, no replica of the store has
//! acknowledged: a failover may lose so many, and hardly more.
//!
//! `WAIT` blocks its connection, so it has some of its own, and nobody's turn waits for it. What
//! comes while it waits is counted together: the queue is a number.

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

/// How long a replica has to acknowledge, and how long finding that out may take.
const ACKNOWLEDGE_MS: u32 = 1_000;
const PATIENCE: Duration = Duration::from_secs(3);
/// Pools of nodes that are gone hold nothing but a dead connection; beyond so many all begin anew.
const POOLS: usize = 100;

pub struct Lag {
    dialer: Arc<Dialer>,
    metrics: Arc<Metrics>,
    pending: Mutex<HashMap<Arc<Host>, Pending>>,
    word: Notify,
}

/// What a node has stored since it was last asked.
struct Pending {
    rebinds: u64,
    /// One of their names: a marker beside it is in a slot of the same node.
    name: String,
}

impl Lag {
    pub fn new(dialer: Arc<Dialer>, metrics: Arc<Metrics>) -> Self {
        Self { dialer, metrics, pending: Mutex::default(), word: Notify::new() }
    }

    /// `host` has stored a rebind under `name`.
    pub fn note(&self, host: Arc<Host>, name: &str) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending
            .entry(host)
            .or_insert_with(|| Pending { rebinds: 0, name: name.to_owned() })
            .rebinds += 1;
        self.word.notify_one();
    }

    /// Asks and counts, for as long as it is polled.
    pub async fn keep(self: Arc<Self>) {
        let mut pools: HashMap<Arc<Host>, Pool> = HashMap::new();
        loop {
            self.word.notified().await;
            let pending =
                std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
            let one = async |(host, pending): (Arc<Host>, Pending), pool: Option<Pool>| {
                let pool = pool.or_else(|| self.pool(&host));
                let waiting =
                    timeout(PATIENCE, self.acknowledgements(pool.as_ref(), &pending.name));
                let acknowledged = waiting.await.ok().flatten();
                if acknowledged.unwrap_or(0) == 0 {
                    self.metrics.rebinds_lag(pending.rebinds);
                }
                // One that failed may hold a password that is no more.
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

    /// How many replicas have what `name`'s node stored until now.
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
        // The usual half a second for an answer is less than what is waited for.
        let settings = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        let makes =
            Manager::new_with_config(client.get_connection_info().clone(), settings).ok()?;
        Pool::builder(makes).max_size(1).runtime(Runtime::Tokio1).build().ok()
    }
}
