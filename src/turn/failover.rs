//! Limits how often and for how long a turn tries: `[failover]`, `binding.wait`, and the limits
//! that the turns of a replica share.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;

use crate::limit::{Retries, chance};
use crate::turn::corroboration::Corroboration;
use crate::turn::doubt::Doubts;
use crate::turn::vain::ClientWaits;
use crate::turn::waiting::Waiters;

/// Most attempts of a turn while the upstream fails.
pub const ATTEMPTS: u32 = 3;
/// Pause before a retry, in which a random failure may pass.
const PAUSE: Duration = Duration::from_millis(100);

/// The options under `[failover]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverSettings {
    /// Whether a turn is sent again that the upstream may already have served.
    pub ambiguous: bool,
}

/// Limits of a turn's attempts.
#[derive(Clone, Copy, Debug)]
pub struct FailoverOptions {
    /// Longest time that a turn waits in place for a limited key.
    pub wait: Duration,
    /// Whether a turn is sent again that the upstream may already have served.
    pub resends: bool,
}

/// State of failover that all turns of this replica share.
pub struct Failover {
    pub options: FailoverOptions,
    /// The turns that wait for limited keys.
    pub waiters: Waiters,
    /// The sessions that were told to wait for a limited key.
    pub client_waits: ClientWaits,
    /// The clients that were denied a model.
    pub corroboration: Corroboration,
    /// The probes that decide whether a 401 is about its key.
    pub doubts: Doubts,
    /// The retries that turns may still make.
    retries: Mutex<Retries>,
}

impl Failover {
    pub fn new(options: FailoverOptions) -> Self {
        let (waiters, corroboration) = (Waiters::default(), Corroboration::default());
        let (doubts, client_waits) = (Doubts::default(), ClientWaits::default());
        let retries = Mutex::default();
        Self { options, waiters, client_waits, corroboration, doubts, retries }
    }

    /// Counts a turn. Each turn adds a fraction of a retry to the retries left.
    pub fn begin_turn(&self) {
        self.retries().turn();
    }

    /// Takes a retry, if one is left.
    pub fn may_retry(&self) -> bool {
        self.retries().take()
    }

    fn retries(&self) -> MutexGuard<'_, Retries> {
        // No code can panic while it has the lock.
        self.retries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the pause before a retry.
pub fn pause() -> Duration {
    PAUSE + PAUSE.mul_f64(chance())
}
