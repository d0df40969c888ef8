//! A store for state machines: each operation is a step of its own, and a test makes its weather and its flaws.
//!
//! It does what the scripts do, so that every interleaving of replicas, outages and lost answers can be played; that the
//! scripts do the same is shown with a real Redis.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;

use super::{Held, Replaced, Report, Roll, Unavailable};

/// How one replica reaches the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    Fair,
    /// Nothing arrives.
    Away,
    /// Everything arrives, and no answer comes back: a write is unknown.
    Mute,
}

/// What could be wrong with a script. Each of them must be noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// A claim overwrites.
    PlainClaim,
    /// A compare-and-set compares nothing.
    PlainReplace,
    /// A compare-and-set compares the key, not the epoch.
    ReplaceByKey,
    /// A merge writes only where nothing is stored.
    MergeNothingOver,
    /// A merge writes whatever is stored.
    PlainMerge,
    /// A merge writes over an equal epoch.
    MergeEqual,
}

/// A write that was done: what was stored before, and since.
#[derive(Clone, Debug)]
pub struct Write {
    pub id: String,
    pub old: Option<String>,
    pub new: String,
}

/// What all replicas share.
pub struct Shared {
    pub flaw: Flaw,
    pub writes: Vec<Write>,
    values: BTreeMap<String, String>,
    /// The sets of keys by fingerprint: ordinal and tags.
    sets: BTreeMap<String, (u32, String)>,
    /// What each live replica has loaded.
    replicas: BTreeMap<String, String>,
}

impl Shared {
    pub fn new(flaw: Flaw) -> Self {
        Self { flaw, writes: Vec::new(), values: BTreeMap::new(), sets: BTreeMap::new(), replicas: BTreeMap::new() }
    }

    fn write(&mut self, id: &str, new: &str) {
        let old = self.values.insert(id.into(), new.into());
        self.writes.push(Write { id: id.into(), old, new: new.into() });
    }
}

/// One replica's way to the store.
#[derive(Clone)]
pub struct Model {
    pub shared: Arc<Mutex<Shared>>,
    pub weather: Arc<Mutex<Weather>>,
}

impl Model {
    pub fn new(shared: &Arc<Mutex<Shared>>) -> Self {
        Self { shared: Arc::clone(shared), weather: Arc::new(Mutex::new(Weather::Fair)) }
    }

    pub async fn get(&self, id: &str) -> Result<Option<Held>, Unavailable> {
        // A life that is never due: nothing is refreshed.
        self.step(|shared| shared.values.get(id).map(|value| Held { value: value.clone(), left: std::time::Duration::MAX })).await
    }

    pub async fn claim(&self, id: &str, value: &str) -> Result<Option<String>, Unavailable> {
        self.step(|shared| {
            let stored = shared.values.get(id).cloned().filter(|_| shared.flaw != Flaw::PlainClaim);
            if stored.is_none() {
                shared.write(id, value);
            }
            stored
        })
        .await
    }

    pub async fn replace(&self, id: &str, expected: &str, new: &str) -> Result<Replaced, Unavailable> {
        self.step(|shared| match shared.values.get(id).cloned() {
            Some(stored) if !is_expected(shared.flaw, &stored, expected) => Replaced::Lost(stored),
            _ => {
                shared.write(id, new);
                Replaced::Done
            }
        })
        .await
    }

    pub async fn merge(&self, id: &str, value: &str, epoch: u32) -> Result<Option<String>, Unavailable> {
        self.step(|shared| {
            let stays = |stored: &String| match shared.flaw {
                Flaw::MergeNothingOver => true,
                Flaw::PlainMerge => false,
                Flaw::MergeEqual => epoch_of(stored) > epoch,
                _ => epoch_of(stored) >= epoch,
            };
            let stored = shared.values.get(id).filter(|stored| stays(stored)).cloned();
            if stored.is_none() {
                shared.write(id, value);
            }
            stored
        })
        .await
    }

    pub async fn call_roll(&self, report: &Report<'_>) -> Result<Roll, Unavailable> {
        self.step(|shared| {
            shared.replicas.insert(report.replica.into(), report.fingerprint.into());
            let live: BTreeSet<_> = shared.replicas.values().filter(|print| *print != report.fingerprint).cloned().collect();
            let newest = shared.sets.values().map(|(ordinal, _)| *ordinal).max().unwrap_or(0);
            let ordinal = match shared.sets.get(report.fingerprint) {
                Some((ordinal, _)) if *ordinal == newest || !live.is_empty() => *ordinal,
                _ => newest + 1,
            };
            shared.sets.insert(report.fingerprint.into(), (ordinal, report.keys.into()));
            Roll { ordinal, others: live.iter().map(|print| shared.sets[print].1.clone()).collect() }
        })
        .await
    }

    /// One operation: other replicas may go first.
    async fn step<T>(&self, operation: impl FnOnce(&mut Shared) -> T) -> Result<T, Unavailable> {
        pause().await;
        let weather = *self.weather.lock().unwrap();
        let unavailable = || Unavailable(format!("{weather:?}"));
        if weather == Weather::Away {
            return Err(unavailable());
        }
        let answer = operation(&mut self.lock());
        if weather == Weather::Fair { Ok(answer) } else { Err(unavailable()) }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }
}

/// Gives way once.
pub async fn pause() {
    let mut has_paused = false;
    poll_fn(|_| if std::mem::replace(&mut has_paused, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

fn is_expected(flaw: Flaw, stored: &str, expected: &str) -> bool {
    match flaw {
        Flaw::PlainReplace => true,
        Flaw::ReplaceByKey => stored.split(' ').next() == expected.split(' ').next(),
        _ => stored == expected,
    }
}

fn epoch_of(value: &str) -> u32 {
    value.split(' ').nth(1).unwrap().parse().unwrap()
}
