//! The store of one process: a bounded map with the same operations as Redis.
//!
//! What is full gives up the entry that would expire soonest, which is the one that has been unused for longest.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Held, Replaced};

/// When an entry expires, and the number of the write that said so: no two are equal.
type Expiry = (Instant, u64);

struct Entry {
    value: String,
    expiry: Expiry,
}

/// A bounded map of values that expire.
pub struct Memory {
    entries: Mutex<Entries>,
    capacity: usize,
}

#[derive(Default)]
struct Entries {
    by_id: HashMap<Arc<str>, Entry>,
    /// The same entries, the soonest to expire first.
    by_expiry: BTreeMap<Expiry, Arc<str>>,
    writes: u64,
}

impl Entries {
    fn live(&self, id: &str) -> Option<&Entry> {
        self.by_id.get(id).filter(|entry| entry.expiry.0 > Instant::now())
    }

    fn put(&mut self, id: &str, value: String, ttl: Duration, capacity: usize) {
        let now = Instant::now();
        if let Some(old) = self.by_id.remove(id) {
            self.by_expiry.remove(&old.expiry);
        }
        while let Some(soonest) = self.by_expiry.first_entry() {
            if soonest.key().0 > now && self.by_id.len() < capacity {
                break;
            }
            self.by_id.remove(&soonest.remove());
        }
        self.writes += 1;
        let (id, expiry) = (Arc::<str>::from(id), (now + ttl, self.writes));
        self.by_expiry.insert(expiry, Arc::clone(&id));
        self.by_id.insert(id, Entry { value, expiry });
    }
}

impl Memory {
    pub fn new(capacity: usize) -> Self {
        Self { entries: Mutex::default(), capacity: capacity.max(1) }
    }

    pub fn get(&self, id: &str) -> Option<Held> {
        let entries = self.lock();
        let entry = entries.live(id)?;
        Some(Held { value: entry.value.clone(), left: entry.expiry.0.saturating_duration_since(Instant::now()) })
    }

    pub fn claim(&self, id: &str, value: &str, ttl: Duration) -> Option<String> {
        let mut entries = self.lock();
        let stored = entries.live(id).map(|entry| entry.value.clone());
        if stored.is_none() {
            entries.put(id, value.to_owned(), ttl, self.capacity);
        }
        stored
    }

    pub fn replace(&self, id: &str, expected: &str, new: &str, ttl: Duration) -> Replaced {
        let mut entries = self.lock();
        match entries.live(id) {
            Some(stored) if stored.value != expected => Replaced::Lost(stored.value.clone()),
            _ => {
                entries.put(id, new.to_owned(), ttl, self.capacity);
                Replaced::Done
            }
        }
    }

    pub fn merge(&self, id: &str, value: &str, epoch: u32, ttl: Duration) -> Option<String> {
        let mut entries = self.lock();
        let stored = entries.live(id).filter(|stored| epoch_of(&stored.value) >= epoch).map(|stored| stored.value.clone());
        if stored.is_none() {
            entries.put(id, value.to_owned(), ttl, self.capacity);
        }
        stored
    }

    pub fn extend(&self, id: &str, value: &str, ttl: Duration) {
        let mut entries = self.lock();
        let value = entries.live(id).map_or(value, |entry| &entry.value).to_owned();
        entries.put(id, value, ttl, self.capacity);
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // A panic elsewhere leaves nothing half done: no write can panic between the map and its order.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The second word. What has none was written by a newer version, which knows better.
fn epoch_of(value: &str) -> u32 {
    value.split(' ').nth(1).and_then(|epoch| epoch.parse().ok()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_claim_has_one_winner_until_it_expires() {
        let memory = Memory::new(8);
        assert_eq!(memory.claim("s", "a", HOUR), None);
        assert_eq!(memory.claim("s", "b", HOUR), Some("a".into()));
        tokio::time::advance(HOUR).await;
        assert_eq!(memory.get("s"), None);
        assert_eq!(memory.claim("s", "b", HOUR), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_replacement_names_what_it_replaces() {
        let memory = Memory::new(8);
        memory.claim("s", "a", HOUR);
        assert_eq!(memory.replace("s", "x", "b", HOUR), Replaced::Lost("a".into()));
        assert_eq!(memory.replace("s", "a", "b", HOUR), Replaced::Done);
        assert_eq!(memory.replace("gone", "a", "b", HOUR), Replaced::Done);
    }

    #[tokio::test(start_paused = true)]
    async fn a_merge_lowers_no_epoch() {
        let memory = Memory::new(8);
        assert_eq!(memory.merge("s", "a 2 1", 2, HOUR), None);
        assert_eq!(memory.merge("s", "b 1 1", 1, HOUR), Some("a 2 1".into()));
        assert_eq!(memory.merge("s", "b 2 1", 2, HOUR), Some("a 2 1".into()));
        assert_eq!(memory.merge("s", "b 3 1", 3, HOUR), None);
        memory.claim("newer", "unknown", HOUR);
        assert_eq!(memory.merge("newer", "b 3 1", 3, HOUR), Some("unknown".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_extension_keeps_the_stored_value_and_restores_a_lost_one() {
        let memory = Memory::new(8);
        memory.claim("s", "a", HOUR);
        tokio::time::advance(HOUR / 2).await;
        memory.extend("s", "old", HOUR);
        assert_eq!(memory.get("s"), Some(Held { value: "a".into(), left: HOUR }));
        memory.extend("t", "b", HOUR);
        assert_eq!(memory.get("t").map(|held| held.value), Some("b".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn it_never_holds_more_than_its_capacity() {
        let memory = Memory::new(100);
        for n in 0..1_000 {
            memory.claim(&n.to_string(), "v", HOUR);
        }
        assert_eq!(memory.lock().by_id.len(), 100);
        assert!(memory.get("999").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_been_unused_for_longest_makes_room() {
        let memory = Memory::new(100);
        memory.claim("used", "v", HOUR);
        for n in 0..500 {
            tokio::time::advance(Duration::from_secs(1)).await;
            memory.extend("used", "v", HOUR);
            memory.claim(&n.to_string(), "v", HOUR);
        }
        for n in 0..500 {
            assert_eq!(memory.get(&n.to_string()).is_some(), n > 400, "{n}: the last 99 and nobody else");
        }
        assert!(memory.get("used").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_expired_makes_room_first() {
        let memory = Memory::new(100);
        for n in 0..50 {
            memory.claim(&n.to_string(), "v", HOUR);
        }
        tokio::time::advance(HOUR).await;
        memory.claim("new", "v", HOUR);
        let entries = memory.lock();
        assert_eq!((entries.by_id.len(), entries.by_expiry.len()), (1, 1));
    }
}
