//! The state that replicas share, behind a few atomic operations.
//!
//! The store knows names ([`name::Name`]) and values. Of what values mean it knows one thing: the
//! second word of a binding is its epoch. "The store is down" is a value, [`Unavailable`]. Nothing
//! here is retried: one [`Budget`] covers all operations of a turn together.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{broadcast, watch};

use crate::metrics::Metrics;
use crate::setting::{SecretSource, Span};
use crate::task::Tasks;

#[cfg(test)]
pub mod model;
pub mod name;
pub mod backend;
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
pub mod announcement;
pub mod memory;
pub mod redis;
pub mod shared;
pub mod trail;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod outage;

use address::Address;
use announcement::{Announcement, Scan};
use backend::{Backend, Change, Merge};
use board::{Board, BoardReport};
use memory::{InProcess, Memory};
use name::Name;
use redis::Redis;
use shared::Shared;

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
        let text = std::fs::read(path)
            .map_err(|error| format!("store.ca_file: cannot read {}: {error}", path.display()))?;
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
pub struct MemberReport<'r> {
    /// Its own name, as long as it lives.
    pub replica: &'r str,
    /// The set of keys that it has loaded, by the set's fingerprint and by the tags of its keys,
    /// separated by spaces.
    pub fingerprint: &'r str,
    pub keys: &'r str,
    /// The ordinal that this set had when it was last told, 0 before: a store that has lost it
    /// takes it from there.
    pub ordinal: u32,
    /// For how long it counts as alive without another word. Nothing: it leaves.
    pub life: Duration,
}

/// What a replica hears about the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipReply {
    /// The ordinal of its own set of keys.
    pub ordinal: u32,
    /// Every other set that a live replica has loaded: the tags of its keys, separated by spaces.
    pub others: Vec<String>,
}

/// What is left of the time that all store operations of one turn may take together: waiting for a
/// slow client or upstream between them costs nothing of it, and once it is spent no operation
/// waits at all.
#[derive(Debug)]
pub struct Budget(Duration);

/// See [`Store::patient_budget`].
const PATIENT: Duration = Duration::from_secs(1);

/// Where shared state lives.
pub struct Store {
    backend: Box<dyn Backend>,
    timeout: Duration,
    #[cfg(test)]
    metrics: Arc<Metrics>,
}

/// In the same process a lock answers at once: no deadline is ever met.
const IN_PROCESS: Duration = Duration::from_secs(1);

impl Store {
    /// The state of one replica, or of several in one process.
    pub fn in_memory(memory: Arc<Memory>, metrics: Arc<Metrics>) -> Self {
        metrics.store_up(true);
        Self::over(InProcess::new(memory), IN_PROCESS, metrics)
    }

    /// State shared through Redis. Connects in the background: a Redis that is away delays no
    /// start.
    pub fn in_redis(
        settings: &Settings,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Result<Self, String> {
        let redis = Redis::open(settings, &metrics, tasks)?;
        let shared = Shared::new(redis, settings.prefix.clone(), Arc::clone(&metrics));
        Ok(Self::over(shared, settings.timeout.0, metrics))
    }

    /// One replica's way to a store whose weather a test makes.
    #[cfg(test)]
    pub fn in_model(model: model::Model, metrics: Arc<Metrics>) -> Self {
        Self::over(model, IN_PROCESS, metrics)
    }

    #[cfg_attr(
        not(test),
        expect(unused_variables, reason = "only tests look at a store's metrics")
    )]
    fn over(backend: impl Backend + 'static, timeout: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            backend: Box::new(backend),
            timeout,
            #[cfg(test)]
            metrics,
        }
    }

    /// Waits until the store can answer, at most `patience`. Returns whether it can.
    pub async fn ready(&self, patience: Duration) -> bool {
        let mut health = self.health();
        tokio::time::timeout(patience, health.wait_for(|up| *up)).await.is_ok_and(|up| up.is_ok())
    }

    /// The last thing that went wrong with the store, in words.
    pub fn fault(&self) -> Option<String> {
        self.backend.fault()
    }

    /// The time of what no turn waits for: a slow answer is as good as a fast one.
    pub const fn patient_budget(&self) -> Budget {
        Budget(PATIENT)
    }

    /// The time that a turn has for all its store operations.
    pub const fn budget(&self) -> Budget {
        Budget(self.timeout)
    }

    pub async fn get(
        &self,
        name: Name<'_>,
        budget: &mut Budget,
    ) -> Result<Option<Held>, Unavailable> {
        self.backend.get(name, budget).await
    }

    /// Stores `value` where nothing is stored. `None`: done; otherwise the value that somebody else
    /// stored before.
    pub async fn claim(
        &self,
        name: Name<'_>,
        value: &str,
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<Option<String>, Unavailable> {
        self.backend.claim(name, value, ttl, budget).await
    }

    /// As [`Self::claim`], for a session's first binding: `value` is of the first epoch, and other
    /// replicas hear of it. Unless they would find the same without the store (`is_expected`), a
    /// binding that no replica of the store acknowledges is counted.
    pub async fn begin(
        &self,
        name: Name<'_>,
        value: &str,
        is_expected: bool,
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<Option<String>, Unavailable> {
        // No epoch is lower.
        self.backend.begin(name, Merge { value, epoch: 1, ttl, is_expected }, budget).await
    }

    /// Compare-and-set: stores `new` where `expected` or nothing is stored; other replicas hear of
    /// it.
    pub async fn replace(
        &self,
        name: Name<'_>,
        expected: &str,
        new: &str,
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<Replaced, Unavailable> {
        self.backend.replace(name, Change { expected, new, ttl, is_move: false }, budget).await
    }

    /// As [`Self::replace`], for a session that moves to another key: what no replica of the store
    /// has acknowledged is counted.
    pub async fn rebind(
        &self,
        name: Name<'_>,
        expected: &str,
        new: &str,
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<Replaced, Unavailable> {
        self.backend.replace(name, Change { expected, new, ttl, is_move: true }, budget).await
    }

    /// Starts the value's life anew; stores `value` again where it was lost meanwhile.
    pub async fn extend(
        &self,
        name: Name<'_>,
        value: &str,
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<(), Unavailable> {
        self.backend.extend(name, value, ttl, budget).await
    }

    /// Stores `value`, whose epoch is `epoch`, where nothing or a lower epoch is stored; other
    /// replicas hear of it. `None`: done; otherwise what stays.
    pub async fn merge(
        &self,
        name: Name<'_>,
        value: &str,
        epoch: u32,
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<Option<String>, Unavailable> {
        self.backend.merge(name, Merge { value, epoch, ttl, is_expected: false }, budget).await
    }

    /// Adds `lines` to the end of a session's trail, which lives for `ttl` from now on and keeps
    /// its newest [`trail::LONGEST`] lines.
    pub async fn append(
        &self,
        session: &str,
        lines: &[String],
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<(), Unavailable> {
        self.backend.append(session, lines, ttl, budget).await
    }

    /// The lines of a session's trail, the oldest first.
    pub async fn list(
        &self,
        session: &str,
        budget: &mut Budget,
    ) -> Result<Vec<String>, Unavailable> {
        self.backend.list(session, budget).await
    }

    /// Calls the roll of replicas. The first set of keys ever told has the ordinal 1, each new one
    /// is one more than the newest; an older one that all live replicas have gone back to is
    /// renewed.
    pub async fn exchange_membership(
        &self,
        report: &MemberReport<'_>,
        budget: &mut Budget,
    ) -> Result<MembershipReply, Unavailable> {
        self.backend.roll(report, false, budget).await
    }

    /// As [`Self::exchange_membership`], by a replica that may be back before others that live:
    /// nothing is renewed.
    pub async fn exchange_membership_early(
        &self,
        report: &MemberReport<'_>,
        budget: &mut Budget,
    ) -> Result<MembershipReply, Unavailable> {
        self.backend.roll(report, true, budget).await
    }

    /// Says a word on the board of replicas, and hears what the others said.
    pub async fn hear(
        &self,
        word: &BoardReport<'_>,
        budget: &mut Budget,
    ) -> Result<Board, Unavailable> {
        self.backend.hear(word, budget).await
    }

    /// Whether all of the store answers, now and from now on.
    pub fn health(&self) -> watch::Receiver<bool> {
        self.backend.health()
    }

    /// The bindings that replicas announce from now on.
    pub fn announcements(&self) -> broadcast::Receiver<Announcement> {
        self.backend.announcements()
    }

    /// Counts how often the store began to listen to announcements: earlier ones may have been
    /// missed, and are read in a [`Self::walk`].
    pub fn resubscribed(&self) -> watch::Receiver<u64> {
        self.backend.resubscribed()
    }

    pub fn scan(&self) -> Result<Scan, Unavailable> {
        self.backend.scan()
    }
}
