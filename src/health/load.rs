//! Counts turns in flight by key: on this replica, and on the other replicas by their reports.
//!
//! Each replica reports its own counts several times a second. Reports are believed for seconds, so
//! that a crashed replica's counts end soon.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::key::{Key, Tag};

/// A key with fewer turns in flight than this never exceeds its share.
const LIGHT: u64 = 8;

#[derive(Default)]
pub struct Loads {
    own: RwLock<HashMap<Tag, Arc<AtomicUsize>>>,
    others: RwLock<HashMap<Tag, usize>>,
}

/// One turn's place in its key's count, given back when dropped.
pub struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Loads {
    /// Counts a turn on `key` until the place is dropped.
    pub fn enter(&self, key: &Key) -> InFlight {
        let known = self.own.read().unwrap_or_else(PoisonError::into_inner).get(&key.tag).cloned();
        // A reload has just brought the key, or has just removed it.
        let add = || {
            Arc::clone(
                self.own
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(key.tag)
                    .or_default(),
            )
        };
        let count = known.unwrap_or_else(add);
        count.fetch_add(1, Ordering::Relaxed);
        InFlight(count)
    }

    /// Counts `keys`, and removed keys that turns in flight still use.
    pub fn follow(&self, keys: &[Arc<Key>]) {
        let mut own = self.own.write().unwrap_or_else(PoisonError::into_inner);
        own.retain(|tag, count| {
            keys.iter().any(|key| key.tag == *tag) || Arc::strong_count(count) > 1
        });
        for key in keys {
            own.entry(key.tag).or_default();
        }
    }

    /// Turns in flight on all replicas.
    pub fn of(&self, key: &Key) -> usize {
        let others =
            self.others.read().unwrap_or_else(PoisonError::into_inner).get(&key.tag).copied();
        self.own_of(key) + others.unwrap_or(0)
    }

    fn own_of(&self, key: &Key) -> usize {
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        own.get(&key.tag).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// The candidate with the fewest turns in flight for its weight.
    pub fn least<'k>(
        &self,
        candidates: impl Iterator<Item = &'k Arc<Key>>,
    ) -> Option<&'k Arc<Key>> {
        let load = |key: &Key| self.of(key) as u64;
        // Cross-multiplication avoids a division.
        candidates
            .min_by(|a, b| (load(a) * u64::from(b.weight)).cmp(&(load(b) * u64::from(a.weight))))
    }

    /// Whether `key` has over a quarter more than its share of what `siblings` have in flight.
    /// `siblings` include `key`.
    pub fn is_above_share(&self, key: &Key, siblings: &[&Arc<Key>]) -> bool {
        let load = self.of(key) as u64;
        if load < LIGHT {
            return false;
        }
        let (all, weights) = siblings.iter().fold((1, 0), |(all, weights), sibling| {
            (all + self.of(sibling) as u64, weights + u64::from(sibling.weight))
        });
        load * weights * 4 > all * u64::from(key.weight) * 5
    }

    /// The report of what this replica has in flight: `<tag>=<count>`, separated by spaces.
    pub fn report(&self) -> String {
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        let counts = own
            .iter()
            .map(|(tag, count)| (tag, count.load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0);
        counts.map(|(tag, count)| format!("{tag}={count}")).collect::<Vec<_>>().join(" ")
    }

    /// Takes the reports of all others in place of their last ones.
    pub fn replace_others(&self, loads: &[String]) {
        let mut sums = HashMap::new();
        for (tag, count) in
            loads.iter().flat_map(|load| load.split(' ')).filter_map(|entry| entry.split_once('='))
        {
            if let (Some(tag), Ok(count)) = (Tag::parse(tag), count.parse::<u32>()) {
                // A larger count belongs to another version, and no sum of these overflows.
                *sums.entry(tag).or_default() += count as usize;
            }
        }
        *self.others.write().unwrap_or_else(PoisonError::into_inner) = sums;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::table::Table;

    #[test]
    fn turns_on_all_replicas_count() {
        let table = Table::sketch("a o 1 sk-a, b o 1 sk-b");
        let [a, b] = table.keys() else { panic!("two keys") };
        let (one, two) = (Loads::default(), Loads::default());
        let turns: Vec<_> = [a, a, b].map(|key| one.enter(key)).into();
        two.replace_others(&[one.report(), "nonsense x=y".into()]);
        let mine = two.enter(b);
        assert_eq!((two.of(a), two.of(b)), (2, 2));
        assert_eq!(
            two.least(table.keys().iter()).map(|key| key.id.as_str()),
            Some("a"),
            "the first of equals"
        );
        drop((turns, mine));
        two.replace_others(&[one.report()]);
        assert_eq!((one.report().as_str(), two.of(a), two.of(b)), ("", 0, 0));
    }

    /// Pins the format that other versions and replicas read.
    #[test]
    fn load_is_reported_as_it_always_was() {
        let table = Table::sketch("a o 1 sk-a, b o 1 sk-b");
        let [a, b] = table.keys() else { panic!("two keys") };
        let (one, two) = (Loads::default(), Loads::default());
        let turns: Vec<_> = (0..12).map(|_| one.enter(a)).collect();
        assert_eq!(one.report(), "LvuVKDJr=12");
        two.replace_others(&["fq-xkaPX=3 LvuVKDJr=12 newer".into()]);
        assert_eq!((two.of(a), two.of(b), turns.len()), (12, 3, 12));
    }

    #[test]
    fn share_is_exceeded_by_a_quarter_and_by_more_than_a_few() {
        let table = Table::sketch("a o 1 sk-a, b o 1 sk-b");
        let keys: Vec<_> = table.keys().iter().collect();
        let loads = Loads::default();
        let is_above = |a: usize, b: usize| {
            loads.replace_others(&[format!("{}={a} {}={b}", keys[0].tag, keys[1].tag)]);
            loads.is_above_share(keys[0], &keys)
        };
        assert!(!is_above(7, 0) && is_above(8, 0));
        assert!(!is_above(20, 18) && is_above(26, 14));
    }

    #[test]
    fn least_is_what_has_fewest_turns_for_its_weight() {
        let table = Table::sketch("light o 1 sk-a, heavy o 4 sk-b");
        let [light, heavy] = table.keys() else { panic!("two keys") };
        let loads = Loads::default();
        for (counts, expected) in [
            ([1, 3], "heavy"),
            ([1, 4], "the first"),
            ([1, 5], "light"),
            ([0, 1], "light"),
            ([3, 0], "heavy"),
            ([10, 39], "heavy"),
            ([10, 41], "light"),
        ] {
            loads.replace_others(&[format!(
                "{}={} {}={}",
                light.tag, counts[0], heavy.tag, counts[1]
            )]);
            for keys in [[light, heavy], [heavy, light]] {
                let expected = if expected == "the first" { keys[0].id.as_str() } else { expected };
                assert_eq!(
                    loads.least(keys.into_iter()).map(|key| key.id.as_str()),
                    Some(expected),
                    "{counts:?}"
                );
            }
        }
        assert_eq!(loads.least(std::iter::empty()).map(|key| key.id.as_str()), None);
    }

    #[test]
    fn loads_of_others_are_summed_up_and_replace_their_last_reports() {
        let table = Table::sketch("a o 1 sk-a, b o 1 sk-b");
        let [a, b] = table.keys() else { panic!("two keys") };
        let loads = Loads::default();
        loads.replace_others(&[
            format!("{}=2 {}=1", a.tag, b.tag),
            String::new(),
            format!("{}=3", a.tag),
        ]);
        assert_eq!(
            (loads.of(a), loads.of(b), loads.report().as_str()),
            (5, 1, ""),
            "of its own it has none"
        );
        loads.replace_others(&[format!("{}=1", a.tag)]);
        let _turn = loads.enter(b);
        assert_eq!((loads.of(a), loads.of(b), loads.report()), (1, 1, format!("{}=1", b.tag)));
    }

    /// Another version may write anything: a count that this one cannot add up is passed over.
    #[test]
    fn load_that_no_replica_can_have_is_passed_over() {
        let table = Table::sketch("a o 1 sk-a, b o 1 sk-b");
        let [a, b] = table.keys() else { panic!("two keys") };
        let loads = Loads::default();
        let huge = format!("{}={} {}=2", a.tag, usize::MAX, b.tag);
        loads.replace_others(&[huge.clone(), huge, format!("{}=1 \u{fffd}=3", a.tag)]);
        assert_eq!((loads.of(a), loads.of(b)), (1, 4));
    }

    #[test]
    fn share_goes_by_weight() {
        let table = Table::sketch("heavy o 3 sk-a, light o 1 sk-b");
        let keys: Vec<_> = table.keys().iter().collect();
        let loads = Loads::default();
        let is_above = |heavy: usize, light: usize| {
            loads.replace_others(&[format!("{}={heavy} {}={light}", keys[0].tag, keys[1].tag)]);
            [loads.is_above_share(keys[0], &keys), loads.is_above_share(keys[1], &keys)]
        };
        // Of 40 turns, the heavy key's share is 30 and the light key's 10; a quarter more is not
        // too many.
        assert_eq!(is_above(30, 10), [false, false]);
        assert_eq!(is_above(37, 3), [false, false]);
        assert_eq!(is_above(40, 1), [true, false]);
        assert_eq!(is_above(28, 12), [false, false]);
        assert_eq!(is_above(26, 14), [false, true]);
        assert_eq!(is_above(0, 7), [false, false], "a few are no load");
    }

    #[test]
    fn removed_key_is_counted_until_its_turns_have_ended() {
        let table = Table::sketch("a o 1 sk-a, b o 1 sk-b");
        let loads = Loads::default();
        loads.follow(table.keys());
        let turn = loads.enter(&table.keys()[1]);
        loads.follow(&table.keys()[..1]);
        assert_eq!(loads.own.read().unwrap().len(), 2);
        drop(turn);
        loads.follow(&table.keys()[..1]);
        assert_eq!(loads.own.read().unwrap().len(), 1);
    }
}
