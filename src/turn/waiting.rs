//! Waiting for a key that is short for a moment: in place, so that the session's cache stays warm,
//! and never too many at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::key::{Key, Tag};
use crate::limit::chance;

/// So many turns wait for one key on this replica.
const WAITERS: usize = 64;
/// How long a key is left alone at least that is short again.
const INSISTING: Duration = Duration::from_secs(1);
/// A short time in which what failed by chance may succeed.
const MOMENT: Duration = Duration::from_millis(100);

#[derive(Default)]
pub struct Waiters {
    places: Mutex<HashMap<Tag, Arc<Semaphore>>>,
}

impl Waiters {
    /// A place among those that wait for `key`, until it is dropped: also by a client that leaves.
    /// `None`: there is none.
    pub fn enter(&self, key: &Key) -> Option<OwnedSemaphorePermit> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(key.tag).or_insert_with(|| Arc::new(Semaphore::new(WAITERS)));
        Arc::clone(place).try_acquire_owned().ok()
    }
}

/// How long to wait before an attempt that repeats one that failed.
pub fn moment() -> Duration {
    MOMENT + MOMENT.mul_f64(chance())
}

/// How long a key is left alone at least that a turn was told of so often before that it is short:
/// "in a moment" was not true then.
pub fn insisting(told: u32) -> Duration {
    INSISTING * told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::table::Table;

    #[test]
    fn places_are_few_and_come_back() {
        let (patience, table) = (Waiters::default(), Table::sketch("a o 1 sk-a, b o 1 sk-b"));
        let [a, b] = table.keys() else { panic!("two keys") };
        let mut waiting: Vec<_> =
            (0..WAITERS).map(|_| patience.enter(a).expect("a place")).collect();
        assert!(patience.enter(a).is_none() && patience.enter(b).is_some());
        waiting.pop();
        assert!(patience.enter(a).is_some());
    }

    #[test]
    fn waits_are_short_and_spread() {
        let moments: Vec<_> = (0..100).map(|_| moment()).collect();
        assert!(moments.iter().all(|wait| (MOMENT..=2 * MOMENT).contains(wait)), "{moments:?}");
        let (first, last) = (moments.iter().min().unwrap(), moments.iter().max().unwrap());
        assert!(*last - *first > MOMENT / 2, "not all at once: {first:?} to {last:?}");
        assert_eq!([0, 1, 2].map(insisting), [0, 1, 2].map(Duration::from_secs));
    }
}
