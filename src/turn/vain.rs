//! Remembers which sessions were told to wait for a limited key on a WebSocket. There the client
//! waits, so only its next turn shows that the wait was in vain.

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::turn::tests::{bound, gateway};

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn wait_is_in_vain_only_for_a_turn_after_its_end() {
        let gateway = gateway(&[("a", "o", "p")]);
        let (_, binding, _) = bound(&gateway, &Client::unrestricted("alice")).await;
        let session = binding.session.clone().expect("the turn has a session");
        let (waits, start) = (ClientWaits::default(), Instant::now());
        let meets = |model: &'static str, began| {
            waits.limited(&session, (&binding.key, model.into()), began, 2 * SECOND)
        };
        assert!(!meets("m", start), "the first");
        tokio::time::advance(SECOND).await;
        assert!(!meets("m", start + SECOND), "it did not wait");
        tokio::time::advance(SECOND).await;
        assert!(!meets("m", start), "it began before the limit was known");
        assert!(meets("m", start + 2 * SECOND), "a turn that did not wait prolongs nothing");
        tokio::time::advance(2 * SECOND).await;
        assert!(meets("m", Instant::now()), "again and again");
        tokio::time::advance(2 * SECOND).await;
        assert!(!meets("n", Instant::now()), "another model");
        waits.served(&session);
        tokio::time::advance(2 * SECOND).await;
        assert!(!meets("n", Instant::now()), "it has been served since");
        tokio::time::advance(2 * SECOND + MEMORY).await;
        assert!(!meets("n", Instant::now()), "too late to belong to that wait");
    }
}
