//! Remembers which sessions were told to wait for a limited key, on a WebSocket or in the failure of
//! an answer. There the client waits, so only its next turn shows that the wait was in vain.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::health::condition::Subject;
use crate::health::diagnose::ModelUse;
use crate::key::Key;
use crate::session::SessionId;

/// Time after a wait's end in which the client's next turn still belongs to that wait.
const MEMORY: Duration = Duration::from_secs(60);
/// Most waits that are remembered.
const MOST: usize = 10_000;

#[derive(Default)]
pub struct ClientWaits(Mutex<HashMap<SessionId, (Subject, Instant)>>);

impl ClientWaits {
    /// Notes that a turn of `session`, which began at `began`, met a limit of `key` for `wait`.
    /// Returns true if the session has already waited for that limit, so in vain.
    pub fn limited(
        &self,
        session: &SessionId,
        (key, asked): (&Key, ModelUse<'_>),
        began: Instant,
        wait: Duration,
    ) -> bool {
        let (subject, until) = (Subject::of_use(key, asked), Instant::now() + wait);
        let mut waits = self.lock();
        let known = waits.get(session).filter(|(of, end)| *of == subject && *end + MEMORY > began);
        let is_in_vain = known.is_some_and(|(_, end)| *end <= began);
        // Turns that do not wait do not prolong the wait.
        if known.is_none() || is_in_vain {
            if waits.len() >= MOST {
                let now = Instant::now();
                waits.retain(|_, (_, end)| *end + MEMORY > now);
            }
            if waits.len() < MOST || waits.contains_key(session) {
                waits.insert(session.clone(), (subject, until));
            }
        }
        is_in_vain
    }

    /// A turn of `session` is served, so that its waits are over.
    pub fn served(&self, session: &SessionId) {
        let mut waits = self.lock();
        if !waits.is_empty() {
            waits.remove(session);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, (Subject, Instant)>> {
        // No code can panic while it has the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
