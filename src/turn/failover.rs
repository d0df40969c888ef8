//! How often and for how long a turn tries: `[failover]`, `binding.wait`, and what the turns of a
//! replica share of it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;

use crate::limit::{Retries, chance};
use crate::turn::corroboration::Corroboration;
use crate::turn::waiting::Waiters;

/// The most attempts that a turn makes while the upstream fails.
pub const ATTEMPTS: u32 = 3;
/// A pause in which a failure by chance may pass.
const PAUSE: Duration = Duration::from_millis(100);
/// The step of [`back_off`].
const BACK_OFF: Duration = Duration::from_secs(1);

/// `[failover]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverSettings {
    /// Whether a turn that may already have been served is sent again.
    pub ambiguous: bool,
}

/// How far a turn goes for its answer.
#[derive(Clone, Copy, Debug)]
pub struct FailoverOptions {
    /// The longest wait in place for a limited key.
    pub wait: Duration,
    /// A turn that may already have been served is sent again.
    pub resends: bool,
}

/// What failover needs to know of all turns on this replica.
pub struct Failover {
    pub options: FailoverOptions,
    /// The turns that wait for limited keys.
    pub waiters: Waiters,
    /// The clients that were told that a model is not to be had.
    pub corroboration: Corroboration,
    /// The attempts that failed turns may still repeat.
    retries: Mutex<Retries>,
}

impl Failover {
    pub fn new(options: FailoverOptions) -> Self {
        let (waiters, corroboration) = (Waiters::default(), Corroboration::default());
        Self { options, waiters, corroboration, retries: Mutex::default() }
    }

    /// Each turn adds a share of an attempt to what failed turns may repeat.
    pub fn begin_turn(&self) {
        self.retries().turn();
    }

    /// Takes one attempt of those that failed turns may repeat, if there is one.
    pub fn may_retry(&self) -> bool {
        self.retries().take()
    }

    fn retries(&self) -> MutexGuard<'_, Retries> {
        // Nothing in it can panic.
        self.retries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long to wait before an attempt that repeats one that failed.
pub fn pause() -> Duration {
    PAUSE + PAUSE.mul_f64(chance())
}

/// Minimum back-off for a key that has already rate-limited this turn `told` times: its "in a
/// moment" was not true.
pub fn back_off(told: u32) -> Duration {
    BACK_OFF * told
}
