//! What lives where: the state that replicas share, behind a few atomic operations.
//!
//! Bindings are `<prefix>:<session id>` (a 22-character id; a 7-character prefix makes the key 30 bytes, which Redis keeps in
//! 32), generations are the hash `<prefix>:generations`. The store knows names and values, not what they mean. "It is down"
//! is a value: [`Unavailable`]. Nothing here is retried: one [`Budget`]
//! covers all operations of a turn together.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use crate::metrics::{Metrics, Operation};
use crate::setting::{SecretSource, Span};
use crate::task::Tasks;

pub mod memory;
pub mod redis;

use memory::Memory;
use redis::Redis;

/// `[store]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub url: SecretSource,
    pub prefix: String,
    pub timeout: Span,
}

/// The store did not answer in time, or not at all. A write that ended so is unknown, not failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store is unavailable: {0}")]
pub struct Unavailable(pub String);

/// A stored value and how long it still lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub value: String,
    pub left: Duration,
}

/// How a compare-and-set ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// The new value is stored.
    Done,
    /// Somebody else's value is stored, and stays.
    Lost(String),
}

/// What is left of the time that all store operations of one turn may take together: waiting for a slow client or upstream
/// between them costs nothing of it, and once it is spent no operation waits at all.
#[derive(Debug)]
pub struct Budget(Duration);

/// Where shared state lives.
pub struct Store {
    backend: Backend,
    prefix: String,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

enum Backend {
    Memory(Arc<Memory>),
    Redis(Redis),
}

impl Store {
    /// The state of one replica, or of several in one process.
    pub fn in_memory(memory: Arc<Memory>, metrics: Arc<Metrics>) -> Self {
        // A lock in the same process answers at once: the deadline is never met.
        Self { backend: Backend::Memory(memory), prefix: String::new(), timeout: Duration::from_secs(1), metrics }
    }

    /// State shared through the Redis at `url`. Connects in the background: a Redis that is away delays no start.
    pub fn in_redis(url: &str, settings: &Settings, metrics: Arc<Metrics>, tasks: &Tasks) -> Result<Self, String> {
        let redis = Redis::open(url, tasks)?;
        Ok(Self { backend: Backend::Redis(redis), prefix: settings.prefix.clone(), timeout: settings.timeout.0, metrics })
    }

    /// Waits until the store can answer, at most `patience`. Returns whether it can.
    pub async fn ready(&self, patience: Duration) -> bool {
        let up = match &self.backend {
            Backend::Memory(_) => true,
            Backend::Redis(redis) => tokio::time::timeout(patience, redis.connected()).await.is_ok(),
        };
        self.metrics.store_up(up);
        up
    }

    /// The time that a turn has for all its store operations.
    pub fn budget(&self) -> Budget {
        Budget(self.timeout)
    }

    pub async fn get(&self, id: &str, budget: &mut Budget) -> Result<Option<Held>, Unavailable> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.get(id)),
            Backend::Redis(redis) => self.timed(Operation::Get, budget, redis.get(&self.name(id))).await,
        }
    }

    /// Stores `value` where nothing is stored. `None`: done; otherwise the value that somebody else stored before.
    pub async fn claim(&self, id: &str, value: &str, ttl: Duration, budget: &mut Budget) -> Result<Option<String>, Unavailable> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.claim(id, value, ttl)),
            Backend::Redis(redis) => self.timed(Operation::Claim, budget, redis.claim(&self.name(id), value, ttl)).await,
        }
    }

    /// Compare-and-set: stores `new` where `expected` or nothing is stored.
    pub async fn replace(
        &self,
        id: &str,
        expected: &str,
        new: &str,
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<Replaced, Unavailable> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.replace(id, expected, new, ttl)),
            Backend::Redis(redis) => {
                self.timed(Operation::Replace, budget, redis.replace(&self.name(id), expected, new, ttl)).await
            }
        }
    }

    /// Starts the value's life anew; stores `value` again where it was lost meanwhile.
    pub async fn extend(&self, id: &str, value: &str, ttl: Duration, budget: &mut Budget) -> Result<(), Unavailable> {
        match &self.backend {
            Backend::Memory(memory) => {
                memory.extend(id, value, ttl);
                Ok(())
            }
            Backend::Redis(redis) => self.timed(Operation::Extend, budget, redis.extend(&self.name(id), value, ttl)).await,
        }
    }

    /// The ordinal of a key set's fingerprint: the first one seen is 1, each new one is one more.
    pub async fn ordinal(&self, fingerprint: &str, budget: &mut Budget) -> Result<u32, Unavailable> {
        match &self.backend {
            Backend::Memory(_) => Ok(1),
            Backend::Redis(redis) => {
                self.timed(Operation::Ordinal, budget, redis.ordinal(&self.name("generations"), fingerprint)).await
            }
        }
    }

    fn name(&self, id: &str) -> String {
        format!("{}:{id}", self.prefix)
    }

    async fn timed<T>(
        &self,
        operation: Operation,
        budget: &mut Budget,
        work: impl Future<Output = Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        let began = Instant::now();
        let result = match tokio::time::timeout(budget.0, work).await {
            Ok(result) => result,
            Err(_) => Err(Unavailable("no answer in time".into())),
        };
        let took = began.elapsed();
        budget.0 = budget.0.saturating_sub(took);
        self.metrics.store_took(operation, took.as_secs_f64());
        self.metrics.store_up(result.is_ok());
        result
    }
}
