//! The store of one process: a bounded map with the same operations as Redis.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Held, Replaced};

/// How many entries are looked at to find the one to evict: as Redis does, near enough to the soonest to expire.
const SAMPLE: usize = 16;

struct Entry {
    value: String,
    expires: Instant,
}

/// A bounded map of values that expire.
pub struct Memory {
    entries: Mutex<HashMap<String, Entry>>,
    capacity: usize,
}

impl Memory {
    pub fn new(capacity: usize) -> Self {
        Self { entries: Mutex::default(), capacity: capacity.max(1) }
    }

    pub fn get(&self, id: &str) -> Option<Held> {
        let now = Instant::now();
        self.lock()
            .get(id)
            .filter(|entry| entry.expires > now)
            .map(|entry| Held { value: entry.value.clone(), left: entry.expires - now })
    }

    pub fn claim(&self, id: &str, value: &str, ttl: Duration) -> Option<String> {
        let mut entries = self.lock();
        match live(&entries, id) {
            Some(stored) => Some(stored.to_owned()),
            None => {
                self.put(&mut entries, id, value, ttl);
                None
            }
        }
    }

    pub fn replace(&self, id: &str, expected: &str, new: &str, ttl: Duration) -> Replaced {
        let mut entries = self.lock();
        match live(&entries, id) {
            Some(stored) if stored != expected => Replaced::Lost(stored.to_owned()),
            _ => {
                self.put(&mut entries, id, new, ttl);
                Replaced::Done
            }
        }
    }

    pub fn extend(&self, id: &str, value: &str, ttl: Duration) {
        let mut entries = self.lock();
        let value = live(&entries, id).unwrap_or(value).to_owned();
        self.put(&mut entries, id, &value, ttl);
    }

    fn put(&self, entries: &mut HashMap<String, Entry>, id: &str, value: &str, ttl: Duration) {
        if entries.len() >= self.capacity && !entries.contains_key(id) {
            let soonest = entries.iter().take(SAMPLE).min_by_key(|(_, entry)| entry.expires).map(|(id, _)| id.clone());
            if let Some(soonest) = soonest {
                entries.remove(&soonest);
            }
        }
        entries.insert(id.to_owned(), Entry { value: value.to_owned(), expires: Instant::now() + ttl });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        // Every write is one insert or one remove: a panic elsewhere leaves nothing half done.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn live<'a>(entries: &'a HashMap<String, Entry>, id: &str) -> Option<&'a str> {
    entries.get(id).filter(|entry| entry.expires > Instant::now()).map(|entry| entry.value.as_str())
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
        assert_eq!(memory.lock().len(), 100);
        assert!(memory.get("999").is_some());
    }
}
