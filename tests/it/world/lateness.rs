//! Measures how long a process of this machine waits for a core. Tests whose subject is the clock
//! allow for that time, and for nothing else.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two looks at the clock.
const TICK: Duration = Duration::from_millis(5);
/// Shortest wait that counts. A shorter one looks like a turn's own time.
const TOLD: Duration = Duration::from_millis(25);
/// Processes on a turn's way, each of which may be late: client, balancer, replica, store,
/// upstream, and back.
const HOPS: u32 = 8;

/// Watches the clock from a thread of its own until it is dropped.
pub struct Lateness {
    late: Arc<Mutex<Vec<(Instant, Duration)>>>,
}

impl Lateness {
    pub fn watch() -> Self {
        let late = Arc::new(Mutex::new(Vec::new()));
        let watched = Arc::downgrade(&late);
        std::thread::spawn(move || {
            loop {
                let due = Instant::now() + TICK;
                std::thread::sleep(TICK);
                let Some(late) = watched.upgrade() else { return };
                late.lock().unwrap_or_else(PoisonError::into_inner).push((due, due.elapsed()));
            }
        });
        Self { late }
    }

    fn since(&self, from: Instant) -> Vec<Duration> {
        let late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        late.iter().filter(|(due, _)| *due >= from).map(|(_, late)| *late).collect()
    }

    /// The sum of one thread's waits for a core since `from`.
    pub fn total(&self, from: Instant) -> Duration {
        self.since(from).iter().sum()
    }

    /// The longest of one thread's waits for a core since `from`.
    pub fn longest(&self, from: Instant) -> Duration {
        self.since(from).into_iter().max().unwrap_or_default()
    }

    /// Returns how much longer a turn may take if it meets the longest of these waits in every
    /// process.
    pub fn of_a_turn(&self, from: Instant) -> Duration {
        self.longest(from) * HOPS
    }

    /// The median of the worst tenth of the waits since `from`.
    pub fn worst_tenth(&self, from: Instant) -> Duration {
        let mut late = self.since(from);
        late.sort();
        late.len().checked_sub(late.len() / 20 + 1).map_or(Duration::ZERO, |place| late[place])
    }

    /// Returns how many waits for a core were long enough to look like another process's delay.
    pub fn count(&self, from: Instant) -> f64 {
        self.since(from).iter().filter(|late| **late > TOLD).count() as f64
    }
}
