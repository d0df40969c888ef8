//! Limits how many sessions move to a key from keys that can serve no more. A moved session's first
//! turn reads nothing from the cache, so too many at once would exhaust the new key's rate limit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::key::{Key, Tag};
use crate::limit::Rate;
use crate::peers::replicas::Replicas;

/// Window over which the usual rate of new sessions is measured.
const WINDOW: Duration = Duration::from_secs(60);
/// Minimum rate of new sessions a second, over all replicas, that counts as usual. A key takes at
/// least as many moved sessions as if this were its rate.
const LEAST: f64 = 5.0;
/// Moved sessions come at most at `TIMES` the usual rate, and at once at most `AT_ONCE` seconds'
/// worth of them.
const TIMES: f64 = 2.0;
const AT_ONCE: f64 = 3.0;

/// The flow of new and moved sessions to each key on this replica.
pub struct Herd {
    origin: Instant,
    /// The live replicas, which share the herd that a key takes.
    replicas: Arc<Replicas>,
    keys: Mutex<HashMap<Tag, Flow>>,
}

#[derive(Default)]
struct Flow {
    /// New sessions in this window and in the one before.
    counts: [u32; 2],
    window: u64,
    moved: Rate,
}

impl Flow {
    /// The usual rate, in new sessions a second.
    fn usual(&mut self, now: Duration) -> f64 {
        let window = now.as_secs() / WINDOW.as_secs();
        match window - self.window {
            0 => {}
            1 => self.counts = [0, self.counts[0]],
            _ => self.counts = [0, 0],
        }
        self.window = window;
        let passed = (now.as_secs_f64() / WINDOW.as_secs_f64()).fract();
        let [this, last] = self.counts.map(f64::from);
        (this + last * (1.0 - passed)) / WINDOW.as_secs_f64()
    }
}

impl Herd {
    pub fn new(replicas: Arc<Replicas>) -> Self {
        Self { origin: Instant::now(), replicas, keys: Mutex::default() }
    }

    /// Counts a new session on `key`.
    pub fn count_new_session(&self, key: &Key) {
        self.on(key, |flow, now| {
            flow.usual(now);
            flow.counts[0] += 1;
        });
    }

    /// Admits a session that moves to `key`. An error says how long until one may.
    pub fn admit(&self, key: &Key) -> Result<(), Duration> {
        let least = LEAST / self.replicas.count() as f64;
        self.on(key, |flow, now| {
            let rate = flow.usual(now).max(least) * TIMES;
            let interval = Duration::from_secs_f64(1.0 / rate);
            flow.moved.take(now, interval, (rate * AT_ONCE).max(1.0) as u32)
        })
    }

    fn on<T>(&self, key: &Key, act: impl FnOnce(&mut Flow, Duration) -> T) -> T {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        act(keys.entry(key.tag).or_default(), self.origin.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::table::Table;

    #[tokio::test(start_paused = true)]
    async fn herd_comes_at_twice_the_usual_rate() {
        let table = Table::sketch("busy o 1 sk-a, quiet o 1 sk-b");
        let ([busy, quiet], herd) = (table.keys(), Herd::new(Arc::default())) else {
            panic!("two keys")
        };
        for _ in 0..1_200 {
            herd.count_new_session(busy);
            tokio::time::advance(Duration::from_millis(50)).await;
        }
        let mut admitted = [0, 0];
        for _ in 0..10_000 {
            for (key, count) in [busy, quiet].into_iter().zip(&mut admitted) {
                *count += u32::from(herd.admit(key).is_ok());
            }
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        // Twenty and five a second, for ten seconds, plus the burst of three seconds.
        assert!((400..=530).contains(&admitted[0]), "{admitted:?}");
        assert!((100..=135).contains(&admitted[1]), "{admitted:?}");
        let wait = (0..10_000).find_map(|_| herd.admit(quiet).err()).expect("a key takes no herd");
        tokio::time::advance(wait).await;
        assert!(herd.admit(quiet).is_ok());
    }

    /// How many moved sessions `key` takes at once: three seconds' worth of twice the usual rate.
    fn at_once(herd: &Herd, key: &Key) -> usize {
        (0..1_000).take_while(|_| herd.admit(key).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn replicas_share_the_least_that_a_key_takes_and_none_takes_nothing() {
        let table = Table::sketch("a o 1 sk-a");
        for (replicas, expected) in [(1, 30), (2, 15), (5, 6), (100, 1)] {
            let count = Arc::new(Replicas::default());
            let herd = Herd::new(Arc::clone(&count));
            count.set_others(replicas - 1);
            assert_eq!(at_once(&herd, &table.keys()[0]), expected, "{replicas} replicas");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn usual_rate_is_that_of_the_last_minute() {
        let table = Table::sketch("a o 1 sk-a");
        for (after, expected) in [(0, 120), (30, 60), (59, 30), (60, 30), (61, 30), (3_600, 30)] {
            let (herd, key) = (Herd::new(Arc::default()), &table.keys()[0]);
            for _ in 0..1_200 {
                herd.count_new_session(key);
                tokio::time::advance(Duration::from_millis(50)).await;
            }
            tokio::time::advance(Duration::from_secs(after)).await;
            // Half a minute later, half of that minute lies within the last one.
            assert_eq!(at_once(&herd, key), expected, "{after} s later");
        }
    }
}
