//! A set of keys as this replica has loaded it, and what it has heard of the sets of others.
//!
//! Replicas reload at different moments. The store numbers the sets, so that a replica knows whether another's key is not
//! loaded yet or is removed; a key takes new sessions once every live replica has it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};

use super::table::Table;
use super::{Key, Tag};
use crate::store::Roll;

/// A set of keys, and its place among the sets of all replicas.
pub struct Loaded {
    pub table: Table,
    /// The set's ordinal. 0: not known yet.
    ordinal: AtomicU32,
    /// The keys that every other live replica has too. `None`: nothing was heard of them yet.
    common: RwLock<Option<HashSet<Tag>>>,
}

impl Loaded {
    pub fn new(table: Table) -> Self {
        Self { table, ordinal: AtomicU32::new(0), common: RwLock::default() }
    }

    pub fn ordinal(&self) -> u32 {
        self.ordinal.load(Ordering::Relaxed)
    }

    /// The tags of its keys, as they are told to the store.
    pub fn tags(&self) -> String {
        let tags: Vec<_> = self.table.keys().iter().map(|key| key.tag.to_string()).collect();
        tags.join(" ")
    }

    /// Takes note of what the store said of this set and the others.
    pub fn heard(&self, roll: &Roll) {
        let sets = roll.others.iter().map(|tags| tags.split(' ').filter_map(Tag::parse).collect::<HashSet<_>>());
        let own = self.table.keys().iter().map(|key| key.tag).collect();
        let common = sets.fold(own, |common: HashSet<Tag>, set| common.intersection(&set).copied().collect());
        *self.common.write().unwrap_or_else(PoisonError::into_inner) = Some(common);
        self.ordinal.store(roll.ordinal, Ordering::Relaxed);
    }

    /// Whether sessions may be bound to `key`: every live replica would find it.
    pub fn is_common(&self, key: &Key) -> bool {
        self.common.read().unwrap_or_else(PoisonError::into_inner).as_ref().is_none_or(|common| common.contains(&key.tag))
    }
}
