//! A bounded map whose entries expire.
//!
//! A full map drops the entry that expires soonest. That is the entry that was unused for longest.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// An entry's expiry, and the number of the write that set it, which makes it unique.
type Expiry = (Instant, u64);

/// A bounded map whose entries expire.
pub struct Expiring<V> {
    by_id: HashMap<Arc<str>, (V, Expiry)>,
    /// The same entries, ordered by expiry.
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

    /// The value and its expiry.
    pub fn get(&self, id: &str) -> Option<(&V, Instant)> {
        self.by_id
            .get(id)
            .filter(|(_, expiry)| expiry.0 > Instant::now())
            .map(|(value, expiry)| (value, expiry.0))
    }

    pub fn put(&mut self, id: &str, value: V, ttl: Duration) {
        let now = Instant::now();
        self.remove(id);
        self.shrink(self.capacity - 1, now);
        self.writes += 1;
        let (id, expiry) = (Arc::<str>::from(id), (now + ttl, self.writes));
        self.by_expiry.insert(expiry, Arc::clone(&id));
        self.by_id.insert(id, (value, expiry));
    }

    /// Whether `id` is in the map, or fits without evicting another entry.
    pub fn has_room(&mut self, id: &str) -> bool {
        self.shrink(self.capacity, Instant::now());
        self.by_id.contains_key(id) || self.by_id.len() < self.capacity
    }

    /// Drops expired entries, and then further ones until at most `count` are left.
    fn shrink(&mut self, count: usize, now: Instant) {
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
    async fn map_never_exceeds_its_capacity() {
        let mut map = Expiring::new(100);
        for n in 0..1_000 {
            map.put(&n.to_string(), n, HOUR);
        }
        assert_eq!((map.by_id.len(), map.by_expiry.len()), (100, 100));
        assert_eq!(map.get("999").map(|(value, _)| *value), Some(999));
    }

    #[tokio::test(start_paused = true)]
    async fn longest_unused_entry_is_evicted() {
        let mut map = Expiring::new(100);
        for n in 0..500 {
            tokio::time::advance(Duration::from_secs(1)).await;
            map.put("used", 0, HOUR);
            map.put(&n.to_string(), n, HOUR);
        }
        for n in 0..500 {
            assert_eq!(map.get(&n.to_string()).is_some(), n > 400, "{n}: only the last 99 stay");
        }
        assert!(map.get("used").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn map_has_room_if_no_entry_is_evicted() {
        let mut map = Expiring::new(2);
        map.put("a", 0, HOUR);
        map.put("b", 0, HOUR * 2);
        assert!(map.has_room("a") && !map.has_room("c"));
        tokio::time::advance(HOUR).await;
        assert!(map.has_room("c") && map.get("b").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn expired_entries_are_dropped_first() {
        let mut map = Expiring::new(100);
        for n in 0..50 {
            map.put(&n.to_string(), n, HOUR);
        }
        tokio::time::advance(HOUR).await;
        map.put("new", 0, HOUR);
        assert_eq!((map.by_id.len(), map.by_expiry.len()), (1, 1));
    }
}
