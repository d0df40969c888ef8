//! A set of keys that this replica has loaded, and what the replica knows of the other replicas'
//! sets.
//!
//! Replicas reload at different moments. The store numbers the sets, so that a replica can tell
//! whether a key that it lacks is not loaded yet or was removed. A key takes new sessions once
//! every live replica has it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::key::table::Table;
use crate::key::{Key, Tag};
use crate::store::MembershipReply;

/// A set of keys, and its place among the sets of all replicas.
pub struct Loaded {
    pub table: Table,
    pub fingerprint: String,
    /// The set's ordinal. 0: not known yet.
    ordinal: AtomicU32,
    /// The keys that every other live replica has, too, as far as this replica knows.
    common: RwLock<HashSet<Tag>>,
    /// Keys that have been removed since.
    removed: HashSet<Tag>,
}

impl Loaded {
    /// The set that a replica starts with. Until the store tells of other replicas, all keys count
    /// as common.
    pub fn new(table: Table) -> Self {
        let common = tags(&table).collect();
        Self::with(table, 0, common, HashSet::new())
    }

    /// The set that follows this one. Until the store has answered, only keys that were common
    /// before stay common: a new key takes no session that another replica could not serve.
    pub fn followed_by(&self, table: Table) -> Self {
        let common = tags(&table).filter(|tag| self.common().contains(tag)).collect();
        // Other weights and secrets do not make another set.
        let ordinal = if table.fingerprint() == self.fingerprint { self.ordinal() } else { 0 };
        Self::with(table, ordinal, common, HashSet::new())
    }

    /// This set as it stays in use after `now` is loaded while the store is away. Each session
    /// finds the same order of keys as before.
    pub fn frozen_under(&self, now: &Table) -> Self {
        let table = self.table.renewed(now);
        let is_removed = |key: &&Arc<Key>| {
            now.by_tag(key.tag).is_none_or(|new| new.organization_tag != key.organization_tag)
        };
        let removed = table.keys().iter().filter(is_removed).map(|key| key.tag).collect();
        Self::with(table, self.ordinal(), self.common().clone(), removed)
    }

    fn with(table: Table, ordinal: u32, common: HashSet<Tag>, removed: HashSet<Tag>) -> Self {
        let fingerprint = table.fingerprint();
        Self {
            table,
            fingerprint,
            ordinal: AtomicU32::new(ordinal),
            common: RwLock::new(common),
            removed,
        }
    }

    pub fn ordinal(&self) -> u32 {
        self.ordinal.load(Ordering::Relaxed)
    }

    /// The tags of the set's keys, as reported to the store.
    pub fn tags(&self) -> String {
        tags(&self.table).map(|tag| tag.to_string()).collect::<Vec<_>>().join(" ")
    }

    /// Takes the store's reply about this set and the others.
    pub fn take_reply(&self, reply: &MembershipReply) {
        let sets = reply
            .others
            .iter()
            .map(|tags| tags.split(' ').filter_map(Tag::parse).collect::<HashSet<_>>());
        let own = tags(&self.table).collect();
        let common = sets
            .fold(own, |common: HashSet<Tag>, set| common.intersection(&set).copied().collect());
        *self.common.write().unwrap_or_else(PoisonError::into_inner) = common;
        self.ordinal.store(reply.ordinal, Ordering::Relaxed);
    }

    /// Whether sessions may be bound to `key`: every live replica has it. If no key is common,
    /// every key may be used, because every turn needs one.
    pub fn is_common(&self, key: &Key) -> bool {
        let common = self.common();
        common.is_empty() || common.contains(&key.tag)
    }

    /// Whether `key` was removed in an outage: it counts in the order of a session's keys, but must
    /// not be used.
    pub fn is_removed(&self, key: &Key) -> bool {
        self.removed.contains(&key.tag)
    }

    fn common(&self) -> RwLockReadGuard<'_, HashSet<Tag>> {
        self.common.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tags(table: &Table) -> impl Iterator<Item = Tag> {
    table.keys().iter().map(|key| key.tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "a org-a 1 sk-a, b org-b 1 sk-b";
    const NEW: &str = "a org-a 1 sk-a, c org-a 1 sk-c";

    fn reply(ordinal: u32, others: &[&str]) -> MembershipReply {
        MembershipReply {
            ordinal,
            others: others.iter().map(|sketch| Loaded::new(Table::sketch(sketch)).tags()).collect(),
        }
    }

    fn common(loaded: &Loaded) -> String {
        loaded
            .table
            .keys()
            .iter()
            .filter(|key| loaded.is_common(key))
            .map(|key| key.id.as_str())
            .collect()
    }

    /// Pins the format that other versions and replicas read.
    #[test]
    fn set_of_keys_is_reported_as_it_always_was() {
        let loaded = Loaded::new(Table::sketch("a o 1 sk-a, b o 1 sk-b"));
        assert_eq!(loaded.tags(), "LvuVKDJr fq-xkaPX");
        let others = vec!["fq-xkaPX newer=1 LvuVKDJr".into(), "LvuVKDJr".into()];
        loaded.take_reply(&MembershipReply { ordinal: 7, others });
        assert_eq!((common(&loaded).as_str(), loaded.ordinal()), ("a", 7));
    }

    #[test]
    fn keys_all_take_sessions_until_the_store_answers() {
        let started = Loaded::new(Table::sketch(OLD));
        assert_eq!((common(&started).as_str(), started.ordinal()), ("ab", 0));
    }

    #[test]
    fn new_key_takes_sessions_once_every_live_replica_has_it() {
        let before = Loaded::new(Table::sketch(OLD));
        before.take_reply(&reply(1, &[]));
        let after = before.followed_by(Table::sketch(NEW));
        assert_eq!(
            (common(&after).as_str(), after.ordinal()),
            ("a", 0),
            "not before the store has answered"
        );
        after.take_reply(&reply(2, &[OLD]));
        assert_eq!(
            (common(&after).as_str(), after.ordinal()),
            ("a", 2),
            "nor while another replica lacks it"
        );
        after.take_reply(&reply(2, &[]));
        assert_eq!(common(&after), "ac");
    }

    #[test]
    fn common_keys_are_those_that_all_others_have() {
        let loaded = Loaded::new(Table::sketch("a o 1 sk-a, b o 1 sk-b, c o 1 sk-c, d o 1 sk-d"));
        loaded.take_reply(&reply(
            3,
            &[
                "a o 1 sk-a, b o 1 sk-b, c o 1 sk-c",
                "b o 1 sk-b, c o 1 sk-c, d o 1 sk-d",
                "e o 1 sk-e, c o 1 sk-c",
            ],
        ));
        assert_eq!(common(&loaded), "c");
        loaded.take_reply(&reply(3, &["a o 1 sk-a", "b o 1 sk-b"]));
        assert_eq!(common(&loaded), "abcd", "nothing is");
    }

    #[test]
    fn key_that_was_not_common_before_a_reload_is_not_common_after() {
        let before = Loaded::new(Table::sketch(NEW));
        before.take_reply(&reply(2, &[OLD]));
        assert_eq!(
            common(
                &before
                    .followed_by(Table::sketch("a org-a 1 sk-a, c org-a 1 sk-c, d org-d 1 sk-d"))
            ),
            "a"
        );
    }

    #[test]
    fn key_may_be_used_if_no_key_is_common() {
        let loaded = Loaded::new(Table::sketch("c org-a 1 sk-c"));
        loaded.take_reply(&reply(2, &[OLD]));
        assert_eq!(common(&loaded), "c");
    }

    #[test]
    fn other_weights_and_secrets_make_no_other_set() {
        let before = Loaded::new(Table::sketch(OLD));
        before.take_reply(&reply(7, &[]));
        let after = before.followed_by(Table::sketch("b org-b 5 sk-b, a org-a 0 sk-new"));
        assert_eq!((common(&after).as_str(), after.ordinal()), ("ba", 7));
    }

    #[test]
    fn frozen_set_keeps_places_and_weights_and_shows_the_present_secrets() {
        let before = Loaded::new(Table::sketch(OLD));
        before.take_reply(&reply(3, &["a org-a 1 sk-a"]));
        let frozen = before.frozen_under(&Table::sketch("a org-a 9 sk-new, c org-a 1 sk-c"));
        let [a, b] = frozen.table.keys() else { panic!("the same places") };
        assert_eq!((a.weight, a.secret.expose(), frozen.is_removed(a)), (1, "sk-new", false));
        assert!(frozen.is_removed(b) && !frozen.is_common(b));
        assert_eq!(frozen.ordinal(), 3);
        let back = frozen.frozen_under(&Table::sketch("b org-b 1 sk-b"));
        assert!(!back.is_removed(&back.table.keys()[1]) && back.is_removed(&back.table.keys()[0]));
        let moved = before.frozen_under(&Table::sketch("a org-z 1 sk-a"));
        assert!(
            moved.is_removed(&moved.table.keys()[0]),
            "what another organization sealed it cannot open"
        );
    }
}
