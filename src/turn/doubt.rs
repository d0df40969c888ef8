//! Decides a doubt about a key: the upstream answered a turn with 401. One probe tells whether the
//! upstream refuses the key or only the request.
//!
//! Until the probe decides, other turns and replicas use the key as before. Turns that doubt the
//! same key at the same time share one probe.

use std::collections::HashMap;
#[cfg(test)]
use std::collections::HashSet;
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::health::diagnose::Scope;
use crate::key::{Key, Tag};
use crate::upstream::probe::{Acceptance, ask_about};

/// Maximum time that a turn waits for the probe of its key.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Most keys whose last probe is remembered, beyond those that are being probed.
const MOST: usize = 1_024;

/// The result of a doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The upstream accepts the key, so its answer was about the request.
    Accepted,
    /// The upstream refuses the key, or its organization.
    Refused(Scope),
    /// The upstream did not say in time, so nothing is known about the key.
    Undecided,
    /// The upstream did not say in time, but a second client has met the same 401.
    Suspected,
}

/// The last probe of a key: when it was sent, and what the upstream answered.
type Last = Arc<Mutex<Option<(Instant, Acceptance)>>>;

/// The doubts of all turns of a replica.
#[derive(Default)]
pub struct Doubts {
    keys: Lock<HashMap<Tag, Last>>,
    /// The keys that probes find refused, in tests without an upstream.
    #[cfg(test)]
    refused: Option<Arc<Lock<HashSet<Tag>>>>,
    /// Whether no probe decides anything, in tests without an upstream.
    #[cfg(test)]
    is_silent: bool,
}

impl Doubts {
    /// Returns doubts whose probes find the keys in `refused` refused, and all others accepted.
    #[cfg(test)]
    pub fn that_refuse(refused: Arc<Lock<HashSet<Tag>>>) -> Self {
        Self { refused: Some(refused), ..Self::default() }
    }

    /// Returns doubts whose probes decide nothing.
    #[cfg(test)]
    pub fn that_stay() -> Self {
        Self { is_silent: true, ..Self::default() }
    }

    async fn ask(&self, key: &Key) -> Acceptance {
        #[cfg(test)]
        if self.is_silent {
            return std::future::pending().await;
        }
        #[cfg(test)]
        if let Some(refused) = &self.refused {
            return match refused.lock().unwrap_or_else(PoisonError::into_inner).contains(&key.tag) {
                true => Acceptance::Refused(Scope::Key),
                false => Acceptance::Accepted,
            };
        }
        ask_about(key).await
    }

    /// Asks the upstream about `key`. If another turn has asked since `met`, when this turn met the
    /// refusal, that answer counts. `left`: the time that a further doubt of the turn may take.
    /// `asked` is called for each probe that is sent.
    pub async fn settle(
        &self,
        key: &Key,
        (met, left): (Instant, Option<Duration>),
        asked: impl FnOnce(),
    ) -> Settled {
        let longest = left.map_or(PROBE_TIMEOUT, |left| left.min(PROBE_TIMEOUT));
        if longest.is_zero() {
            return Settled::Undecided;
        }
        let last = self.last(key);
        let settling = async {
            let mut last = last.lock().await;
            if let Some((sent, credential)) = *last
                && sent >= met
            {
                return credential;
            }
            let sent = Instant::now();
            asked();
            let credential = self.ask(key).await;
            *last = Some((sent, credential));
            credential
        };
        match timeout(longest, settling).await {
            Ok(Acceptance::Accepted) => Settled::Accepted,
            Ok(Acceptance::Refused(scope)) => Settled::Refused(scope),
            Ok(Acceptance::Unknown) | Err(_) => Settled::Undecided,
        }
    }

    fn last(&self, key: &Key) -> Last {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= MOST {
            keys.retain(|_, last| Arc::strong_count(last) > 1);
        }
        Arc::clone(keys.entry(key.shown_tag).or_default())
    }
}
