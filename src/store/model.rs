//! A store for tests of state machines. Each operation is one step, and a test controls the store's
//! faults and flaws.
//!
//! Uses the in-process store, which does what the scripts do (`tests/it/scripts.rs` proves it with
//! a real Redis). Tests can thus play every interleaving of replicas, outages, losses and lost
//! answers. Membership behaves as in `membership.lua`, except that no replica expires.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use super::announcement::{Announcement, Read, Scan};
use super::backend::{Backend, Change, Merge, Pending};
use super::board::{Board, BoardReport};
use super::memory::Memory;
use super::name::Name;
use super::{Budget, MemberReport, MembershipReply, Replaced, StoredValue, Unavailable};

/// Longer than any test case.
const TTL: Duration = Duration::from_secs(3_600);

/// The state of one replica's connection to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    Fair,
    /// No operation reaches the store.
    Away,
    /// Every operation reaches the store, but no answer comes back, so the result of a write is
    /// unknown.
    Mute,
}

/// A defect that a script could have. Tests must notice each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// A claim overwrites a stored value.
    PlainClaim,
    /// A compare-and-set compares nothing.
    PlainReplace,
    /// A compare-and-set compares the key, not the epoch.
    ReplaceByKey,
    /// A merge writes only if nothing is stored.
    MergeNothingOver,
    /// A merge always writes.
    PlainMerge,
    /// A merge writes over an equal epoch.
    MergeEqual,
}

/// A completed write: the value before and after.
#[derive(Clone, Debug)]
pub struct Write {
    pub id: String,
    pub old: Option<String>,
    pub new: String,
}

/// The state that all replicas share.
pub struct Shared {
    pub flaw: Flaw,
    pub writes: Vec<Write>,
    values: Memory,
    /// The sets of keys by fingerprint: ordinal and tags.
    sets: BTreeMap<String, (u32, String)>,
    /// The fingerprint that each live replica has loaded.
    replicas: BTreeMap<String, String>,
}

impl Shared {
    pub fn new(flaw: Flaw) -> Self {
        Self {
            flaw,
            writes: Vec::new(),
            values: Memory::new(1_000),
            sets: BTreeMap::new(),
            replicas: BTreeMap::new(),
        }
    }

    /// The ordinal of a set of keys, if a replica ever reported the set.
    pub fn ordinal(&self, fingerprint: &str) -> Option<u32> {
        self.sets.get(fingerprint).map(|(ordinal, _)| *ordinal)
    }

    /// The names of the live replicas.
    pub fn live(&self) -> Vec<&str> {
        self.replicas.keys().map(String::as_str).collect()
    }

    fn value(&self, id: &str) -> Option<String> {
        self.values.get(Name::Binding(id)).map(|entry| entry.value)
    }

    /// Runs an operation on a value and records the write.
    fn keeping<T>(&mut self, id: &str, operation: impl FnOnce(&Memory) -> T) -> T {
        let old = self.value(id);
        let answer = operation(&self.values);
        match self.value(id) {
            Some(new) if old.as_ref() != Some(&new) => {
                self.writes.push(Write { id: id.into(), old, new })
            }
            _ => {}
        }
        answer
    }

    /// Loses the last write to `id`, like a failover, and its records.
    pub fn loses(&mut self, id: &str) {
        let last = self
            .writes
            .iter()
            .rev()
            .find(|write| write.id == id)
            .and_then(|write| write.old.clone());
        match last {
            Some(old) => overwrite(&self.values, id, &old),
            None => self.values.remove(Name::Binding(id)),
        }
        self.writes.retain(|write| write.id != id);
    }
}

/// The steps of one scan.
pub type ScanSteps = Vec<Result<Read, Unavailable>>;

/// Announcements that a receiver of a test may be behind before it misses some.
pub const BEHIND: usize = 4;

/// The announcements that one replica receives, and the scans that it makes.
#[derive(Clone)]
pub struct ModelGossip {
    pub announced: broadcast::Sender<Announcement>,
    /// Counts the subscriptions.
    pub resubscribed: watch::Sender<u64>,
    /// The results of the next scans, step by step. Later scans find nothing.
    pub scans: Arc<Mutex<VecDeque<ScanSteps>>>,
    /// The start of each scan.
    pub begun: Arc<Mutex<Vec<Instant>>>,
}

/// One replica's connection to the store.
#[derive(Clone)]
pub struct Model {
    pub shared: Arc<Mutex<Shared>>,
    pub weather: Arc<Mutex<Weather>>,
    pub gossip: ModelGossip,
}

impl Model {
    pub fn new(shared: &Arc<Mutex<Shared>>) -> Self {
        let (announced, resubscribed) = (broadcast::Sender::new(BEHIND), watch::Sender::new(0));
        let gossip =
            ModelGossip { announced, resubscribed, scans: Arc::default(), begun: Arc::default() };
        Self { shared: Arc::clone(shared), weather: Arc::new(Mutex::new(Weather::Fair)), gossip }
    }

    /// Runs one operation as a step of its own: other replicas may run before it.
    fn step<'a, T: Send + 'a>(
        &'a self,
        operation: impl FnOnce(&mut Shared) -> T + Send + 'a,
    ) -> Pending<'a, T> {
        Box::pin(async move {
            pause().await;
            let weather = *self.weather.lock().unwrap();
            let unavailable = || Unavailable(format!("{weather:?}"));
            if weather == Weather::Away {
                return Err(unavailable());
            }
            let answer = operation(&mut self.lock());
            if weather == Weather::Fair { Ok(answer) } else { Err(unavailable()) }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }
}

impl Backend for Model {
    fn get<'a>(&'a self, name: Name<'a>, _: &'a mut Budget) -> Pending<'a, Option<StoredValue>> {
        // The value never expires, so that no binding is refreshed.
        self.step(move |shared| {
            shared.value(&name.to_string()).map(|value| StoredValue { value, left: Duration::MAX })
        })
    }

    fn put<'a>(
        &'a self,
        name: Name<'a>,
        value: &'a str,
        _: Duration,
        _: &'a mut Budget,
    ) -> Pending<'a, ()> {
        let id = name.to_string();
        self.step(move |shared| shared.keeping(&id, |values| overwrite(values, &id, value)))
    }

    fn claim<'a>(
        &'a self,
        name: Name<'a>,
        value: &'a str,
        _: Duration,
        _: &'a mut Budget,
    ) -> Pending<'a, Option<String>> {
        let id = name.to_string();
        self.step(move |shared| match shared.flaw {
            Flaw::PlainClaim => {
                shared.keeping(&id, |values| overwrite(values, &id, value));
                None
            }
            _ => shared.keeping(&id, |values| values.claim(Name::Binding(&id), value, TTL)),
        })
    }

    fn begin<'a>(
        &'a self,
        name: Name<'a>,
        merge: Merge<'a>,
        budget: &'a mut Budget,
    ) -> Pending<'a, Option<String>> {
        self.claim(name, merge.value, merge.ttl, budget)
    }

    fn replace<'a>(
        &'a self,
        name: Name<'a>,
        change: Change<'a>,
        _: &'a mut Budget,
    ) -> Pending<'a, Replaced> {
        let id = name.to_string();
        self.step(move |shared| {
            let stored = shared.value(&id);
            let key = |value: &str| value.split(' ').next().map(str::to_owned);
            let expected = match (shared.flaw, &stored) {
                (Flaw::PlainReplace, Some(stored)) => stored,
                (Flaw::ReplaceByKey, Some(stored)) if key(stored) == key(change.expected) => stored,
                _ => change.expected,
            };
            shared.keeping(&id, |values| {
                values.replace(Name::Binding(&id), expected, change.new, TTL)
            })
        })
    }

    fn extend<'a>(
        &'a self,
        _: Name<'a>,
        _: &'a str,
        _: Duration,
        _: &'a mut Budget,
    ) -> Pending<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn merge<'a>(
        &'a self,
        name: Name<'a>,
        merge: Merge<'a>,
        _: &'a mut Budget,
    ) -> Pending<'a, Option<String>> {
        let id = name.to_string();
        self.step(move |shared| {
            let epoch = match shared.flaw {
                Flaw::MergeNothingOver => 0,
                Flaw::PlainMerge => u32::MAX,
                Flaw::MergeEqual => merge.epoch + 1,
                _ => merge.epoch,
            };
            shared.keeping(&id, |values| values.merge(Name::Binding(&id), merge.value, epoch, TTL))
        })
    }

    fn append<'a>(
        &'a self,
        session: &'a str,
        lines: &'a [String],
        _: Duration,
        _: &'a mut Budget,
    ) -> Pending<'a, ()> {
        self.step(move |shared| shared.values.append(session, lines, TTL))
    }

    fn list<'a>(&'a self, session: &'a str, _: &'a mut Budget) -> Pending<'a, Vec<String>> {
        self.step(move |shared| shared.values.list(session))
    }

    fn exchange_membership<'a>(
        &'a self,
        report: &'a MemberReport<'a>,
        is_early: bool,
        _: &'a mut Budget,
    ) -> Pending<'a, MembershipReply> {
        self.step(move |shared| {
            if report.life.is_zero() {
                shared.replicas.remove(report.replica);
                return MembershipReply { ordinal: 0, others: Vec::new() };
            }
            shared.replicas.insert(report.replica.into(), report.fingerprint.into());
            let live: BTreeSet<_> = shared
                .replicas
                .values()
                .filter(|print| *print != report.fingerprint)
                .cloned()
                .collect();
            let newest = shared.sets.values().map(|(ordinal, _)| *ordinal).max().unwrap_or(0);
            let ordinal = match shared.sets.get(report.fingerprint) {
                Some((ordinal, _)) if *ordinal == newest || !live.is_empty() || is_early => {
                    *ordinal
                }
                None if report.ordinal > 0 => report.ordinal,
                _ => newest + 1,
            };
            shared.sets.insert(report.fingerprint.into(), (ordinal, report.keys.into()));
            MembershipReply {
                ordinal,
                others: live.iter().map(|print| shared.sets[print].1.clone()).collect(),
            }
        })
    }

    fn exchange_board<'a>(
        &'a self,
        report: &'a BoardReport<'a>,
        _: &'a mut Budget,
    ) -> Pending<'a, Board> {
        self.step(move |shared| shared.values.exchange_board(report))
    }

    fn health(&self) -> watch::Receiver<bool> {
        watch::channel(true).1
    }

    fn announcements(&self) -> broadcast::Receiver<Announcement> {
        self.gossip.announced.subscribe()
    }

    fn resubscribed(&self) -> watch::Receiver<u64> {
        self.gossip.resubscribed.subscribe()
    }

    fn scan(&self) -> Result<Scan, Unavailable> {
        self.gossip.begun.lock().unwrap().push(Instant::now());
        Ok(Scan::of(self.gossip.scans.lock().unwrap().pop_front().unwrap_or_default()))
    }
}

/// Yields once.
pub async fn pause() {
    let mut has_paused = false;
    let step = |context: &mut Context<'_>| match std::mem::replace(&mut has_paused, true) {
        true => Poll::Ready(()),
        false => {
            context.waker().wake_by_ref();
            Poll::Pending
        }
    };
    poll_fn(step).await;
}

fn overwrite(values: &Memory, id: &str, value: &str) {
    values.merge(Name::Binding(id), value, u32::MAX, TTL);
}
