//! What lives where: the state that replicas share, behind a few atomic operations.
//!
//! Bindings are `<prefix>:<session id>` (a 22-character id; a 7-character prefix makes the key 30 bytes, which Redis keeps in
//! 32), the roll of replicas and their sets of keys is the hash `<prefix>:generations`. The store knows names and values, and
//! of what they mean only this: the second word of a binding is its epoch. "It is down" is a value: [`Unavailable`]. Nothing
//! here is retried: one [`Budget`] covers all operations of a turn together.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::{Metrics, Operation};
use crate::setting::{SecretSource, Span};
use crate::task::Tasks;

#[cfg(test)]
mod fake;
#[cfg(test)]
pub mod model;
pub mod expiring;
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
    #[cfg(test)]
    Model(model::Model),
}

impl Store {
    /// The state of one replica, or of several in one process.
    pub fn in_memory(memory: Arc<Memory>, metrics: Arc<Metrics>) -> Self {
        metrics.store_up(true);
        // A lock in the same process answers at once: the deadline is never met.
        Self { backend: Backend::Memory(memory), prefix: String::new(), timeout: Duration::from_secs(1), metrics }
    }

    /// State shared through the Redis at `url`. Connects in the background: a Redis that is away delays no start.
    pub fn in_redis(url: &str, settings: &Settings, metrics: Arc<Metrics>, tasks: &Tasks) -> Result<Self, String> {
        let redis = Redis::open(url, Arc::clone(&metrics), tasks)?;
        Ok(Self { backend: Backend::Redis(redis), prefix: settings.prefix.clone(), timeout: settings.timeout.0, metrics })
    }

    /// One replica's way to a store whose weather a test makes.
    #[cfg(test)]
    pub fn in_model(model: model::Model, metrics: Arc<Metrics>) -> Self {
        Self { backend: Backend::Model(model), prefix: String::new(), timeout: Duration::from_secs(1), metrics }
    }

    /// Waits until the store can answer, at most `patience`. Returns whether it can.
    pub async fn ready(&self, patience: Duration) -> bool {
        match &self.backend {
            Backend::Memory(_) => true,
            Backend::Redis(redis) => tokio::time::timeout(patience, redis.connected()).await.is_ok(),
            #[cfg(test)]
            Backend::Model(_) => true,
        }
    }

    /// The time that a turn has for all its store operations.
    pub fn budget(&self) -> Budget {
        Budget(self.timeout)
    }

    pub async fn get(&self, id: &str, budget: &mut Budget) -> Result<Option<Held>, Unavailable> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.get(id)),
            Backend::Redis(redis) => self.timed(redis, Operation::Get, budget, redis.get(&self.name(id))).await,
            #[cfg(test)]
            Backend::Model(model) => model.get(id).await,
        }
    }

    /// Stores `value` where nothing is stored. `None`: done; otherwise the value that somebody else stored before.
    pub async fn claim(&self, id: &str, value: &str, ttl: Duration, budget: &mut Budget) -> Result<Option<String>, Unavailable> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.claim(id, value, ttl)),
            Backend::Redis(redis) => self.timed(redis, Operation::Claim, budget, redis.claim(&self.name(id), value, ttl)).await,
            #[cfg(test)]
            Backend::Model(model) => model.claim(id, value).await,
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
                self.timed(redis, Operation::Replace, budget, redis.replace(&self.name(id), expected, new, ttl)).await
            }
            #[cfg(test)]
            Backend::Model(model) => model.replace(id, expected, new).await,
        }
    }

    /// Starts the value's life anew; stores `value` again where it was lost meanwhile.
    pub async fn extend(&self, id: &str, value: &str, ttl: Duration, budget: &mut Budget) -> Result<(), Unavailable> {
        match &self.backend {
            Backend::Memory(memory) => {
                memory.extend(id, value, ttl);
                Ok(())
            }
            Backend::Redis(redis) => self.timed(redis, Operation::Extend, budget, redis.extend(&self.name(id), value, ttl)).await,
            #[cfg(test)]
            Backend::Model(_) => Ok(()),
        }
    }

    /// Stores `value`, whose epoch is `epoch`, where nothing or a lower epoch is stored. `None`: done; otherwise what stays.
    pub async fn merge(
        &self,
        id: &str,
        value: &str,
        epoch: u32,
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<Option<String>, Unavailable> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.merge(id, value, epoch, ttl)),
            Backend::Redis(redis) => {
                self.timed(redis, Operation::Merge, budget, redis.merge(&self.name(id), value, epoch, ttl)).await
            }
            #[cfg(test)]
            Backend::Model(model) => model.merge(id, value, epoch).await,
        }
    }

    /// Calls the roll of replicas. The first set of keys ever told has the ordinal 1, each new one is one more than the newest;
    /// an older one that all live replicas have gone back to is renewed.
    pub async fn call_roll(&self, report: &Report<'_>, budget: &mut Budget) -> Result<Roll, Unavailable> {
        match &self.backend {
            // Replicas of one process have one configuration.
            Backend::Memory(_) => Ok(Roll { ordinal: 1, others: Vec::new() }),
            Backend::Redis(redis) => {
                self.timed(redis, Operation::Roll, budget, redis.call_roll(&self.name("generations"), report)).await
            }
            #[cfg(test)]
            Backend::Model(model) => model.call_roll(report).await,
        }
    }

    /// Whether all of the store answers, now and from now on.
    pub fn health(&self) -> watch::Receiver<bool> {
        match &self.backend {
            Backend::Memory(_) => watch::channel(true).1,
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
        redis: &Redis,
        operation: Operation,
        budget: &mut Budget,
        work: impl Future<Output = Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        if budget.0.is_zero() {
            // Not even begun: a write would leave although nobody waits for it.
            return Err(Unavailable("no time is left".into()));
        }
        let asked = redis.asking();
        let began = Instant::now();
        let result = tokio::time::timeout(budget.0, work).await.unwrap_or_else(|_| {
            // A turn that has little time left says nothing about the store.
            if budget.0 == self.timeout {
                redis.unanswered(&asked);
            }
            Err(Unavailable("no answer in time".into()))
        });
        let took = began.elapsed();
        budget.0 = budget.0.saturating_sub(took);
        self.metrics.store_took(operation, took.as_secs_f64());
        result
    }
}

#[cfg(test)]
mod tests {
    use super::fake::Fake;
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(20);

    async fn store(fake: &Fake) -> (Store, Tasks) {
        let (metrics, tasks) = (Arc::new(Metrics::new()), Tasks::new());
        let settings = Settings { url: SecretSource::Env("UNUSED".into()), prefix: "w".into(), timeout: Span(TIMEOUT) };
        let store = Store::in_redis(&fake.url(), &settings, metrics, &tasks).unwrap();
        assert!(store.ready(LONG).await);
        (store, tasks)
    }

    fn is_up(store: &Store) -> bool {
        store.metrics.render().contains("\nwarmkey_store_up 1\n")
    }

    #[tokio::test]
    async fn without_time_nothing_leaves_and_nothing_is_said_of_the_store() {
        let fake = Fake::answering(|_, command| Some(if command == "PTTL" { ":5" } else { "$-1" })).await;
        let (store, _tasks) = store(&fake).await;
        assert!(store.claim("s", "v", LONG, &mut Budget(Duration::ZERO)).await.is_err());
        assert!(is_up(&store));
        assert_eq!(store.get("s", &mut Budget(LONG)).await.unwrap(), None);
        assert!(!fake.asked().contains(&"SET".to_owned()), "{:?}", fake.asked());
    }

    #[tokio::test]
    async fn an_error_for_one_command_is_an_answer() {
        let fake = Fake::answering(|_, _| Some("-OOM command not allowed when used memory > 'maxmemory'.")).await;
        let (store, _tasks) = store(&fake).await;
        for _ in 0..5 {
            assert!(store.claim("s", "v", LONG, &mut Budget(LONG)).await.is_err());
        }
        assert!(is_up(&store) && fake.connections() == 1);
    }

    #[tokio::test]
    async fn a_turn_that_has_used_its_time_says_nothing_of_the_store() {
        let fake = Fake::answering(|_, _| None).await;
        let (store, _tasks) = store(&fake).await;
        for _ in 0..5 {
            assert!(store.get("s", &mut Budget(TIMEOUT / 10)).await.is_err());
        }
        assert!(is_up(&store) && fake.connections() == 1);
    }

    #[tokio::test]
    async fn turns_that_wait_together_are_one_silence() {
        let fake = Fake::answering(|_, _| None).await;
        let (store, _tasks) = store(&fake).await;
        let (mut first, mut second, mut third) = (store.budget(), store.budget(), store.budget());
        let all = tokio::join!(store.get("a", &mut first), store.get("b", &mut second), store.get("c", &mut third));
        assert!(all.0.is_err() && all.1.is_err() && all.2.is_err());
        assert!(is_up(&store) && fake.connections() == 1);
    }

    #[tokio::test]
    async fn a_silent_connection_is_remade_and_its_late_error_harms_no_other() {
        let fake = Fake::answering(|connection, command| match command {
            _ if connection == 1 => None,
            "PTTL" => Some(":5"),
            _ => Some("$-1"),
        })
        .await;
        let (store, _tasks) = store(&fake).await;
        let mut patient = Budget(LONG);
        let late = store.get("late", &mut patient);
        let others = async {
            for _ in 0..3 {
                assert!(store.get("s", &mut store.budget()).await.is_err());
            }
            assert!(!is_up(&store));
            assert!(store.ready(LONG).await);
            assert_eq!(store.get("s", &mut Budget(LONG)).await.unwrap(), None);
            fake.cut(1);
        };
        let (late, ()) = tokio::join!(late, others);
        assert!(late.is_err(), "its connection was cut: {late:?}");
        assert!(is_up(&store));
        assert_eq!(store.get("s", &mut Budget(LONG)).await.unwrap(), None);
        assert_eq!(fake.connections(), 2);
    }
    #[tokio::test]
    async fn the_first_attempt_after_a_loss_is_made_at_once() {
        let fake = Fake::answering(|_, command| Some(if command == "PTTL" { ":5" } else { "$-1" })).await;
        let (store, _tasks) = store(&fake).await;
        let mut fastest = LONG;
        for number in 1..=4 {
            // So long ago that the next attempt may be made.
            tokio::time::sleep(Duration::from_millis(300)).await;
            fake.cut(number);
            let began = Instant::now();
            assert!(store.get("s", &mut Budget(LONG)).await.is_err());
            assert!(store.ready(LONG).await);
            fastest = fastest.min(began.elapsed());
        }
        assert!(fastest < Duration::from_millis(200), "{fastest:?}");
    }
}
