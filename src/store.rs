//! The state that all replicas share, behind a few atomic operations.
//!
//! The store keeps names ([`name::Name`]) and values. It reads only one part of a value: the second
//! word of a binding is the epoch. An outage is a value, [`Unavailable`]. No operation is retried:
//! one [`Budget`] covers all operations of a turn.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{broadcast, watch};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use crate::metrics::Metrics;
use crate::setting::{SecretSource, Span};
use crate::task::Tasks;

#[cfg(test)]
pub mod model;
pub mod name;
pub(crate) mod backend;
pub mod board;
pub(crate) mod expiring;
pub(crate) mod address;
mod breaker;
mod fault;
mod text;
mod health;
mod dial;
mod sentinel;
mod link;
mod slots;
mod cluster;
mod lag;
pub(crate) mod announcement;
pub mod memory;
pub(crate) mod redis;
pub(crate) mod shared;
pub(crate) mod trail;
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

/// The options in `[store]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreSettings {
    pub url: SecretSource,
    pub prefix: String,
    pub timeout: Span,
    /// Certificates of the authorities to trust instead of the system's, if the address uses TLS.
    pub ca_file: Option<PathBuf>,
}

impl StoreSettings {
    /// Reads the current address of the Redis.
    pub fn address(&self) -> Result<Address, String> {
        let text = self.url.read().map_err(|why| format!("store.url: {why}"))?;
        let address = Address::parse(text.expose()).map_err(|why| format!("store.url: {why}"))?;
        match (&self.ca_file, address.is_tls) {
            (Some(_), false) => Err("store.ca_file: is for rediss addresses only".into()),
            _ => Ok(address),
        }
    }

    /// Reads the current certificates in `ca_file`.
    pub fn authorities(&self) -> Result<Option<Vec<u8>>, String> {
        let Some(path) = &self.ca_file else { return Ok(None) };
        let text = std::fs::read(path)
            .map_err(|error| format!("store.ca_file: cannot read {}: {error}", path.display()))?;
        let mut found = CertificateDer::pem_slice_iter(&text).peekable();
        if found.peek().is_none() {
            return Err(format!("store.ca_file: no certificate is in {}", path.display()));
        }
        let mut trusted = RootCertStore::empty();
        match found.all(|one| one.is_ok_and(|certificate| trusted.add(certificate).is_ok())) {
            true => Ok(Some(text)),
            false => {
                Err(format!("store.ca_file: a certificate in {} cannot be read", path.display()))
            }
        }
    }
}

/// The store did not answer, or not in time. If the operation was a write, its result is unknown.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store is unavailable: {0}")]
pub struct Unavailable(pub String);

/// A stored value and its remaining life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredValue {
    pub value: String,
    pub left: Duration,
}

/// The result of a compare-and-set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// The new value is stored.
    Done,
    /// Another writer's value is stored and stays.
    Lost(String),
}

/// One replica's report about itself to the other replicas.
pub struct MemberReport<'r> {
    /// The replica's own name, constant for its life.
    pub replica: &'r str,
    /// The set of keys that the replica has loaded: the fingerprint of the set, and the tags of its
    /// keys, separated by spaces.
    pub fingerprint: &'r str,
    pub keys: &'r str,
    /// The last known ordinal of this set, or 0. A store that has lost the ordinal continues from
    /// this one.
    pub ordinal: u32,
    /// Time for which the replica counts as live without another report. 0: the replica leaves.
    pub life: Duration,
}

/// The store's answer to a [`MemberReport`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipReply {
    /// The ordinal of the replica's own set of keys.
    pub ordinal: u32,
    /// The tags of each other set that a live replica has loaded, separated by spaces.
    pub others: Vec<String>,
}

/// The time left for all store operations of one turn together. Waiting for a slow client or
/// upstream costs none of it. Once the budget is spent, no operation waits.
#[derive(Debug)]
pub struct Budget(Duration);

impl Budget {
    /// Returns the same budget, for one of several operations that run at the same time.
    pub const fn share(&self) -> Self {
        Self(self.0)
    }

    /// Spends what the slowest of several simultaneous operations has spent.
    pub fn limit_to(&mut self, share: &Self) {
        self.0 = self.0.min(share.0);
    }
}

/// The time of [`Store::background_budget`].
const BACKGROUND: Duration = Duration::from_secs(1);

/// The store of one replica.
pub struct Store {
    backend: Box<dyn Backend>,
    timeout: Duration,
    #[cfg(test)]
    metrics: Arc<Metrics>,
}

/// Budget of the in-process store, which answers at once and so never exceeds it.
const IN_PROCESS: Duration = Duration::from_secs(1);

impl Store {
    /// A store in memory, for one replica or for several in one process.
    pub fn in_memory(memory: Arc<Memory>, metrics: Arc<Metrics>) -> Self {
        metrics.store_up(true);
        Self::over(InProcess::new(memory), IN_PROCESS, metrics)
    }

    /// A store in Redis. Connects in the background, so that an unreachable Redis delays no start.
    pub fn in_redis(
        settings: &StoreSettings,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Result<Self, String> {
        let redis = Redis::open(settings, &metrics, tasks)?;
        let shared = Shared::new(redis, settings.prefix.clone(), Arc::clone(&metrics));
        Ok(Self::over(shared, settings.timeout.0, metrics))
    }

    /// One replica's connection to a modelled store, whose faults a test controls.
    #[cfg(test)]
    pub fn in_model(model: model::Model, metrics: Arc<Metrics>) -> Self {
        Self::over(model, IN_PROCESS, metrics)
    }

    #[cfg_attr(not(test), expect(unused_variables, reason = "only tests read a store's metrics"))]
    fn over(backend: impl Backend + 'static, timeout: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            backend: Box::new(backend),
            timeout,
            #[cfg(test)]
            metrics,
        }
    }

    /// Waits at most `timeout` until the store answers. Returns whether it does.
    pub async fn ready(&self, timeout: Duration) -> bool {
        let mut health = self.health();
        tokio::time::timeout(timeout, health.wait_for(|up| *up)).await.is_ok_and(|up| up.is_ok())
    }

    /// The store's last fault, as text.
    pub fn fault(&self) -> Option<String> {
        self.backend.fault()
    }

    /// Returns a budget for background work. No turn waits for such an answer, so a slow one is
    /// good enough.
    pub const fn background_budget(&self) -> Budget {
        Budget(BACKGROUND)
    }

    /// The budget of one turn for all its store operations.
    pub const fn budget(&self) -> Budget {
        Budget(self.timeout)
    }

    pub async fn get(
        &self,
        name: Name<'_>,
        budget: &mut Budget,
    ) -> Result<Option<StoredValue>, Unavailable> {
        self.backend.get(name, budget).await
    }

    /// Stores `value`, whatever is stored before. Serves facts that no decision depends on.
    pub async fn put(
        &self,
        name: Name<'_>,
        value: &str,
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<(), Unavailable> {
        self.backend.put(name, value, ttl, budget).await
    }

    /// Stores `value` if nothing is stored. Returns `None` when done, otherwise the value that
    /// another writer stored before.
    pub async fn claim(
        &self,
        name: Name<'_>,
        value: &str,
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<Option<String>, Unavailable> {
        self.backend.claim(name, value, ttl, budget).await
    }

    /// Like [`Self::claim`], for a session's first binding: `value` has epoch 1 and is announced to
    /// other replicas. If no replica of the store acknowledges the binding, counts it, unless every
    /// Warmkey replica would compute the same key anyway (`is_expected`).
    pub async fn begin(
        &self,
        name: Name<'_>,
        value: &str,
        is_expected: bool,
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<Option<String>, Unavailable> {
        // No epoch is below 1, so this merge writes only if nothing is stored.
        self.backend.begin(name, Merge { value, epoch: 1, ttl, is_expected }, budget).await
    }

    /// Compare-and-set: stores `new` if `expected` or nothing is stored, and announces it.
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

    /// Like [`Self::replace`], for a session that moves to another key. If no replica of the store
    /// acknowledges the rebind, counts it.
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

    /// Renews the life of the stored value, or stores `value` if nothing is stored any more.
    pub async fn extend(
        &self,
        name: Name<'_>,
        value: &str,
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<(), Unavailable> {
        self.backend.extend(name, value, ttl, budget).await
    }

    /// Stores `value`, whose epoch is `epoch`, if nothing or a lower epoch is stored, and announces
    /// it. Returns `None` when done, otherwise the value that stays.
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

    /// Appends `lines` to a session's trail and renews its life to `ttl`. The trail keeps its
    /// newest `trail::LONGEST` lines.
    pub async fn append(
        &self,
        session: &str,
        lines: &[String],
        ttl: Duration,
        budget: &mut Budget,
    ) -> Result<(), Unavailable> {
        self.backend.append(session, lines, ttl, budget).await
    }

    /// The lines of a session's trail, oldest first.
    pub async fn list(
        &self,
        session: &str,
        budget: &mut Budget,
    ) -> Result<Vec<String>, Unavailable> {
        self.backend.list(session, budget).await
    }

    /// Exchanges membership with the other replicas. The first set of keys ever reported gets
    /// ordinal 1, and each new set the newest ordinal plus 1. An older set also gets a new ordinal
    /// once all live replicas use it.
    pub async fn exchange_membership(
        &self,
        report: &MemberReport<'_>,
        budget: &mut Budget,
    ) -> Result<MembershipReply, Unavailable> {
        self.backend.exchange_membership(report, false, budget).await
    }

    /// Like [`Self::exchange_membership`], for a replica that may have reconnected before other
    /// live replicas: no older set gets a new ordinal.
    pub async fn exchange_membership_early(
        &self,
        report: &MemberReport<'_>,
        budget: &mut Budget,
    ) -> Result<MembershipReply, Unavailable> {
        self.backend.exchange_membership(report, true, budget).await
    }

    /// Exchanges with the board: reports this replica's notes and load, and returns the notes and
    /// loads of the others.
    pub async fn exchange_board(
        &self,
        report: &BoardReport<'_>,
        budget: &mut Budget,
    ) -> Result<Board, Unavailable> {
        self.backend.exchange_board(report, budget).await
    }

    /// Follows whether every part of the store answers.
    pub fn health(&self) -> watch::Receiver<bool> {
        self.backend.health()
    }

    /// Returns the bindings that replicas announce from now on.
    pub fn announcements(&self) -> broadcast::Receiver<Announcement> {
        self.backend.announcements()
    }

    /// Counts the subscriptions to announcements. A new subscription may have missed earlier
    /// announcements, which a [`Self::scan`] finds.
    pub fn resubscribed(&self) -> watch::Receiver<u64> {
        self.backend.resubscribed()
    }

    /// Starts a scan of all stored bindings.
    pub fn scan(&self) -> Result<Scan, Unavailable> {
        self.backend.scan()
    }
}
