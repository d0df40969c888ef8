//! What lives where: the state that replicas share, behind a few atomic operations.
//!
//! Bindings are `<prefix>:<session id>` (a 22-character id; a 7-character prefix makes the key 30 bytes, which Redis keeps in
//! 32). Beside them are what was decided about a session, the list `<prefix>:<session id>.trail`, the sessions of threads,
//! `<prefix>:<thread>.thread`, and the owners of stored responses, `<prefix>:<response>.response`; the roll of replicas and their
//! sets of keys is the hash `<prefix>:generations`, their board the hash `<prefix>:board`. The store knows names and values, and
//! of what they mean only this: the second word of a binding is its epoch. "It is down" is a value: [`Unavailable`]. Nothing here
//! is retried: one [`Budget`] covers all operations of a turn together.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::{Metrics, Operation};
use crate::setting::{SecretSource, Span};
use crate::task::Tasks;

#[cfg(test)]
pub mod model;
pub mod board;
pub mod expiring;
pub mod address;
mod breaker;
mod fault;
mod health;
mod dial;
mod sentinel;
mod link;
mod slots;
mod cluster;
mod lag;
pub mod news;
pub mod memory;
pub mod redis;
pub mod trail;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod outage;

use address::Address;
use board::{Board, Word};
use memory::Memory;
use redis::{Change, Merge, Redis};

/// `[store]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub url: SecretSource,
    pub prefix: String,
    pub timeout: Span,
    /// Whom to trust in place of the system's authorities, where the address says TLS.
    pub ca_file: Option<PathBuf>,
}

impl Settings {
    /// Where the Redis is, as it is written now.
    pub fn address(&self) -> Result<Address, String> {
        let text = self.url.read().map_err(|why| format!("store.url: {why}"))?;
        let address = Address::parse(text.expose()).map_err(|why| format!("store.url: {why}"))?;
        match (&self.ca_file, address.is_tls) {
            (Some(_), false) => Err("store.ca_file: is for rediss addresses only".into()),
            _ => Ok(address),
        }
    }

    /// The certificates in `ca_file`, as they are now.
    pub fn authorities(&self) -> Result<Option<Vec<u8>>, String> {
        let Some(path) = &self.ca_file else { return Ok(None) };
        let text = std::fs::read(path).map_err(|error| format!("store.ca_file: cannot read {}: {error}", path.display()))?;
        match memchr::memmem::find(&text, b"-----BEGIN CERTIFICATE-----") {
            Some(_) => Ok(Some(text)),
            None => Err(format!("store.ca_file: no certificate is in {}", path.display())),
        }
    }
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

/// What a replica tells the others about itself.
pub struct Report<'r> {
    /// Its own name, as long as it lives.
    pub replica: &'r str,
    /// The set of keys that it has loaded, by the set's fingerprint and by the tags of its keys, separated by spaces.
    pub fingerprint: &'r str,
    pub keys: &'r str,
    /// The ordinal that this set had when it was last told, 0 before: a store that has lost it takes it from there.
    pub ordinal: u32,
    /// For how long it counts as alive without another word. Nothing: it leaves.
    pub life: Duration,
}

/// What a replica hears about the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roll {
    /// The ordinal of its own set of keys.
    pub ordinal: u32,
    /// Every other set that a live replica has loaded: the tags of its keys, separated by spaces.
    pub others: Vec<String>,
}

/// What is left of the time that all store operations of one turn may take together: waiting for a slow client or upstream
/// between them costs nothing of it, and once it is spent no operation waits at all.
#[derive(Debug)]
pub struct Budget(Duration);

/// See [`Store::patient_budget`].
const PATIENT: Duration = Duration::from_secs(1);

/// Where shared state lives.
pub struct Store {
    backend: Backend,
    prefix: String,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

enum Backend {
    /// What is in the same process always answers, and nobody need be told.
    Memory(Arc<Memory>, watch::Sender<bool>),
    Redis(Box<Redis>),
    #[cfg(test)]
    Model(model::Model),
}

impl Store {
    /// The state of one replica, or of several in one process.
    pub fn in_memory(memory: Arc<Memory>, metrics: Arc<Metrics>) -> Self {
        metrics.store_up(true);
        // A lock in the same process answers at once: the deadline is never met.
        Self {
            backend: Backend::Memory(memory, watch::Sender::new(true)),
            prefix: String::new(),
            timeout: Duration::from_secs(1),
            metrics,
        }
    }

    /// State shared through Redis. Connects in the background: a Redis that is away delays no start.
    pub fn in_redis(settings: &Settings, metrics: Arc<Metrics>, tasks: &Tasks) -> Result<Self, String> {
        let redis = Redis::open(settings, &metrics, tasks)?;
        Ok(Self {
            backend: Backend::Redis(Box::new(redis)),
            prefix: settings.prefix.clone(),
            timeout: settings.timeout.0,
            metrics,
        })
    }

    /// One replica's way to a store whose weather a test makes.
    #[cfg(test)]
    pub fn in_model(model: model::Model, metrics: Arc<Metrics>) -> Self {
        Self { backend: Backend::Model(model), prefix: String::new(), timeout: Duration::from_secs(1), metrics }
    }

    /// Waits until the store can answer, at most `patience`. Returns whether it can.
    pub async fn ready(&self, patience: Duration) -> bool {
        let mut health = self.health();
        tokio::time::timeout(patience, health.wait_for(|up| *up)).await.is_ok_and(|up| up.is_ok())
    }

    /// The last thing that went wrong with the store, in words.
    pub fn fault(&self) -> Option<String> {
        match &self.backend {
            Backend::Memory(..) => None,
            Backend::Redis(redis) => redis.fault(),
            #[cfg(test)]
            Backend::Model(_) => None,
        }
    }

    /// The time of what no turn waits for: a slow answer is as good as a fast one.
    pub const fn patient_budget(&self) -> Budget {
        Budget(PATIENT)
    }

    /// The time that a turn has for all its store operations.
    pub fn budget(&self) -> Budget {
        Budget(self.timeout)
    }

    pub async fn get(&self, id: &str, budget: &mut Budget) -> Result<Option<Held>, Unavailable> {
        match &self.backend {
            Backend::Memory(memory, ..) => Ok(memory.get(id)),
            Backend::Redis(redis) => {
                self.timed(Operation::Get, budget, async |until| redis.get(&self.name(id), until).await).await
            }
            #[cfg(test)]
            Backend::Model(model) => model.get(id).await,
        }
    }

    /// Stores `value` where nothing is stored. `None`: done; otherwise the value that somebody else stored before.
    pub async fn claim(&self, id: &str, value: &str, ttl: Duration, budget: &mut Budget) -> Result<Option<String>, Unavailable> {
        match &self.backend {
            Backend::Memory(memory, ..) => Ok(memory.claim(id, value, ttl)),
            Backend::Redis(redis) => {
                self.timed(Operation::Claim, budget, async |until| redis.claim(&self.name(id), value, ttl, until).await).await
            }
            #[cfg(test)]
            Backend::Model(model) => model.claim(id, value).await,
        }
    }

    /// As [`Self::claim`], for a session's first binding: `value` is of the first epoch, and other replicas hear of it. What they
    /// would not find without the store, and no replica of the store has acknowledged, is counted.
    pub async fn begin(
        &self,
        id: &str,
        value: &str,
        is_expected: bool,
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<Option<String>, Unavailable> {
        let Backend::Redis(redis) = &self.backend else { return self.claim(id, value, ttl, budget).await };
        // No epoch is lower.
        let first = Merge { value, epoch: 1, ttl, is_expected };
        self.timed(Operation::Claim, budget, async |until| redis.merge(&self.name(id), &first, until).await).await
    }

    /// Compare-and-set: stores `new` where `expected` or nothing is stored; other replicas hear of it.
    pub async fn replace(
        &self,
        id: &str,
        expected: &str,
        new: &str,
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<Replaced, Unavailable> {
        self.change(id, &Change { expected, new, ttl, is_move: false }, budget).await
    }

    /// As [`Self::replace`], for a session that moves to another key: what no replica of the store has acknowledged is counted.
    pub async fn rebind(
        &self,
        id: &str,
        expected: &str,
        new: &str,
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<Replaced, Unavailable> {
        self.change(id, &Change { expected, new, ttl, is_move: true }, budget).await
    }

    async fn change(&self, id: &str, change: &Change<'_>, budget: &mut Budget) -> Result<Replaced, Unavailable> {
        match &self.backend {
            Backend::Memory(memory, ..) => Ok(memory.replace(id, change.expected, change.new, change.ttl)),
            Backend::Redis(redis) => {
                self.timed(Operation::Replace, budget, async |until| redis.replace(&self.name(id), change, until).await).await
            }
            #[cfg(test)]
            Backend::Model(model) => model.replace(id, change.expected, change.new).await,
        }
    }

    /// Starts the value's life anew; stores `value` again where it was lost meanwhile.
    pub async fn extend(&self, id: &str, value: &str, ttl: Duration, budget: &mut Budget) -> Result<(), Unavailable> {
        match &self.backend {
            Backend::Memory(memory, ..) => {
                memory.extend(id, value, ttl);
                Ok(())
            }
            Backend::Redis(redis) => {
                self.timed(Operation::Extend, budget, async |until| redis.extend(&self.name(id), value, ttl, until).await).await
            }
            #[cfg(test)]
            Backend::Model(_) => Ok(()),
        }
    }

    /// Stores `value`, whose epoch is `epoch`, where nothing or a lower epoch is stored; other replicas hear of it. `None`: done;
    /// otherwise what stays.
    pub async fn merge(
        &self,
        id: &str,
        value: &str,
        epoch: u32,
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<Option<String>, Unavailable> {
        match &self.backend {
            Backend::Memory(memory, ..) => Ok(memory.merge(id, value, epoch, ttl)),
            Backend::Redis(redis) => {
                let merge = Merge { value, epoch, ttl, is_expected: false };
                self.timed(Operation::Merge, budget, async |until| redis.merge(&self.name(id), &merge, until).await).await
            }
            #[cfg(test)]
            Backend::Model(model) => model.merge(id, value, epoch).await,
        }
    }

    /// Calls the roll of replicas. The first set of keys ever told has the ordinal 1, each new one is one more than the newest;
    /// an older one that all live replicas have gone back to is renewed.
    pub async fn call_roll(&self, report: &Report<'_>, budget: &mut Budget) -> Result<Roll, Unavailable> {
        self.roll(report, false, budget).await
    }

    /// As [`Self::call_roll`], by a replica that may be back before others that live: nothing is renewed.
    pub async fn call_roll_early(&self, report: &Report<'_>, budget: &mut Budget) -> Result<Roll, Unavailable> {
        self.roll(report, true, budget).await
    }

    async fn roll(&self, report: &Report<'_>, is_early: bool, budget: &mut Budget) -> Result<Roll, Unavailable> {
        match &self.backend {
            // Replicas of one process have one configuration.
            Backend::Memory(..) => Ok(Roll { ordinal: 1, others: Vec::new() }),
            Backend::Redis(redis) => {
                self.timed(Operation::Roll, budget, async |until| {
                    redis.call_roll(&self.name("generations"), report, is_early, until).await
                })
                .await
            }
            #[cfg(test)]
            Backend::Model(model) => model.call_roll(report, is_early).await,
        }
    }

    /// Says a word on the board of replicas, and hears what the others said.
    pub async fn hear(&self, word: &Word<'_>, budget: &mut Budget) -> Result<Board, Unavailable> {
        match &self.backend {
            Backend::Memory(memory, ..) => Ok(memory.hear(word)),
            Backend::Redis(redis) => {
                self.timed(Operation::Board, budget, async |until| redis.hear(&self.name("board"), word, until).await).await
            }
            #[cfg(test)]
            Backend::Model(model) => model.hear(word).await,
        }
    }

    /// Whether all of the store answers, now and from now on.
    pub fn health(&self) -> watch::Receiver<bool> {
        match &self.backend {
            Backend::Memory(_, up) => up.subscribe(),
            Backend::Redis(redis) => redis.health(),
            #[cfg(test)]
            Backend::Model(_) => watch::channel(true).1,
        }
    }

    fn name(&self, id: &str) -> String {
        format!("{}:{id}", self.prefix)
    }

    async fn timed<T>(
        &self,
        operation: Operation,
        budget: &mut Budget,
        work: impl AsyncFnOnce(Instant) -> Result<T, Unavailable>,
    ) -> Result<T, Unavailable> {
        if budget.0.is_zero() {
            // Not even begun: a write would leave although nobody waits for it.
            return Err(Unavailable("no time is left".into()));
        }
        let began = Instant::now();
        let result = work(began + budget.0).await;
        let took = began.elapsed();
        budget.0 = budget.0.saturating_sub(took);
        self.metrics.store_took(operation, took.as_secs_f64());
        result
    }
}
