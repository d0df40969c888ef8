//! How late this machine is: what a process waits for a core. The one excuse of a test whose
//! subject is the clock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(5);
/// What nobody can tell from a wait of a turn's own.
const TOLD: Duration = Duration::from_millis(25);
/// Processes that a turn passes, each of which may be late: client, balancer, replica, store,
/// upstream, and back.
const HOPS: u32 = 8;

/// Looks at the clock from a thread of its own until it is dropped.
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

    /// What one thread has waited for a core since then, all waits together.
    pub fn total(&self, from: Instant) -> Duration {
        self.since(from).iter().sum()
    }

    /// How much longer a turn may take that meets the longest of these waits everywhere.
    pub fn of_a_turn(&self, from: Instant) -> Duration {
        self.since(from).into_iter().max().unwrap_or_default() * HOPS
    }

    /// How often a thread has waited so long that it looks as if somebody else had been late.
    pub fn count(&self, from: Instant) -> f64 {
        self.since(from).iter().filter(|late| **late > TOLD).count() as f64
    }
}
