//! A bounded map whose entries expire.
//!
//! What is full gives up the entry that would expire soonest, which is the one that has been unused
//! for longest.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// When an entry expires, and the number of the write that said so: no two are equal.
type Expiry = (Instant, u64);

/// A bounded map whose entries expire.
pub struct Expiring<V> {
    by_id: HashMap<Arc<str>, (V, Expiry)>,
    /// The same entries, the soonest to expire first.
    by_expiry: BTreeMap<Expiry, Arc<str>>,
    writes: u64,
    capacity: usize,
}

impl<V> Expiring<V> {
    pub fn new(capacity: usize) -> Self {
        Self {
            by_id: HashMap::new(),
            by_expiry: BTreeMap::new(),
            writes: 0,
            capacity: capacity.max(1),
        }
    }

    /// The value, and when it expires.
    pub fn get(&self, id: &str) -> Option<(&V, Instant)> {
        self.by_id
            .get(id)
            .filter(|(_, expiry)| expiry.0 > Instant::now())
            .map(|(value, expiry)| (value, expiry.0))
    }

    pub fn put(&mut self, id: &str, value: V, ttl: Duration) {
        let now = Instant::now();
        self.remove(id);
        self.leave(self.capacity - 1, now);
        self.writes += 1;
        let (id, expiry) = (Arc::<str>::from(id), (now + ttl, self.writes));
        self.by_expiry.insert(expiry, Arc::clone(&id));
        self.by_id.insert(id, (value, expiry));
    }

    /// Whether `id` has a place, or can have one that costs no other its own.
    pub fn has_room(&mut self, id: &str) -> bool {
        self.leave(self.capacity, Instant::now());
        self.by_id.contains_key(id) || self.by_id.len() < self.capacity
    }

    /// Leaves at most `count`, and none that has expired.
    fn leave(&mut self, count: usize, now: Instant) {
        while let Some(soonest) = self.by_expiry.first_entry() {
            if soonest.key().0 > now && self.by_id.len() <= count {
                break;
            }
            self.by_id.remove(&soonest.remove());
        }
    }

    pub fn remove(&mut self, id: &str) {
        if let Some((_, expiry)) = self.by_id.remove(id) {
            self.by_expiry.remove(&expiry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn it_never_holds_more_than_its_capacity() {
        let mut map = Expiring::new(100);
        for n in 0..1_000 {
            map.put(&n.to_string(), n, HOUR);
        }
        assert_eq!((map.by_id.len(), map.by_expiry.len()), (100, 100));
        assert_eq!(map.get("999").map(|(value, _)| *value), Some(999));
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_been_unused_for_longest_makes_room() {
        let mut map = Expiring::new(100);
        for n in 0..500 {
            tokio::time::advance(Duration::from_secs(1)).await;
            map.put("used", 0, HOUR);
            map.put(&n.to_string(), n, HOUR);
        }
        for n in 0..500 {
            assert_eq!(
                map.get(&n.to_string()).is_some(),
                n > 400,
                "{n}: the last 99 and nobody else"
            );
        }
        assert!(map.get("used").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn room_is_what_costs_nobody_a_place() {
        let mut map = Expiring::new(2);
        map.put("a", 0, HOUR);
        map.put("b", 0, HOUR * 2);
        assert!(map.has_room("a") && !map.has_room("c"));
        tokio::time::advance(HOUR).await;
        assert!(map.has_room("c") && map.get("b").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_expired_makes_room_first() {
        let mut map = Expiring::new(100);
        for n in 0..50 {
            map.put(&n.to_string(), n, HOUR);
        }
        tokio::time::advance(HOUR).await;
        map.put("new", 0, HOUR);
        assert_eq!((map.by_id.len(), map.by_expiry.len()), (1, 1));
    }
}
