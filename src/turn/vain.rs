//! Remembers which sessions were told to wait for a limited key, on a WebSocket or by the end of a
//! stream. In both cases the client waits, so only its next turn shows whether the wait was in
//! vain.

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
/// Most sessions whose waits are remembered, and most waits of each.
const MOST: usize = 10_000;
const MOST_OF_ONE: usize = 8;

/// The waits of one session: what was limited, and until when.
type Waits = Vec<(Subject, Instant)>;

#[derive(Default)]
pub struct ClientWaits(Mutex<HashMap<SessionId, Waits>>);

impl ClientWaits {
    /// Notes that a turn of `session` met a limit of `key` for `wait`. Returns true if the session
    /// has already waited for that limit, and so in vain. `sent`: when the turn was sent to the
    /// key. `None`: the limit was stated for no turn, so no client has waited for it.
    pub fn limited(
        &self,
        session: &SessionId,
        (key, asked): (&Key, ModelUse<'_>),
        sent: Option<Instant>,
        wait: Duration,
    ) -> bool {
        let (subject, now) = (Subject::of_use(key, asked), Instant::now());
        let mut all = self.lock();
        if all.len() >= MOST && !all.contains_key(session) {
            all.retain(|_, waits| waits.iter().any(|(_, end)| *end + MEMORY > now));
            if all.len() >= MOST {
                return false;
            }
        }
        let waits = all.entry(session.clone()).or_default();
        waits.retain(|(_, end)| *end + MEMORY > sent.unwrap_or(now));
        let known = waits.iter().position(|(of, _)| *of == subject);
        let is_in_vain = known.zip(sent).is_some_and(|(at, sent)| waits[at].1 <= sent);
        match known {
            Some(at) if is_in_vain => waits[at].1 = now + wait,
            // A turn that was sent before the wait's end does not prolong the wait.
            Some(_) => {}
            None if waits.len() < MOST_OF_ONE => waits.push((subject, now + wait)),
            None => {}
        }
        is_in_vain
    }

    /// Notes that `key` has served a turn of `session`. If that turn was `sent` after the wait for
    /// the key's limit, the wait is over.
    pub fn served(&self, session: &SessionId, (key, asked): (&Key, ModelUse<'_>), sent: Instant) {
        let mut all = self.lock();
        if all.is_empty() {
            return;
        }
        let Some(waits) = all.get_mut(session) else { return };
        let subject = Subject::of_use(key, asked);
        waits.retain(|(of, end)| *of != subject || *end > sent);
        if waits.is_empty() {
            all.remove(session);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Waits>> {
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
        let use_of = |model: &'static str| (&*binding.key, ModelUse::from(model));
        let meets = |model, sent| waits.limited(&session, use_of(model), Some(sent), 2 * SECOND);
        assert!(!meets("m", start), "the first");
        tokio::time::advance(SECOND).await;
        assert!(!meets("m", start + SECOND), "it did not wait");
        tokio::time::advance(SECOND).await;
        assert!(!meets("m", start), "it was sent before the limit was known");
        assert!(!waits.limited(&session, use_of("m"), None, 2 * SECOND), "it is of no turn");
        assert!(meets("m", start + 2 * SECOND), "a turn that did not wait prolongs nothing");
        tokio::time::advance(2 * SECOND).await;
        assert!(meets("m", Instant::now()), "again and again");
        assert!(!meets("n", Instant::now()), "another model");
        tokio::time::advance(2 * SECOND).await;
        assert!(meets("n", Instant::now()), "a wait of its own");
        assert!(meets("m", Instant::now()), "which does not end the other");
        tokio::time::advance(2 * SECOND + MEMORY).await;
        assert!(!meets("m", Instant::now()), "too late to belong to that wait");
    }

    /// A served turn ends only the wait for the subject that has served it, and only if it came
    /// after that wait.
    #[tokio::test(start_paused = true)]
    async fn wait_ends_with_a_service_after_it() {
        let gateway = gateway(&[("a", "o", "p"), ("b", "o", "q")]);
        let (_, binding, _) = bound(&gateway, &Client::unrestricted("alice")).await;
        let session = binding.session.clone().expect("the turn has a session");
        let loaded = gateway.registry.loaded();
        let is_other = |key: &&std::sync::Arc<Key>| key.tag != binding.key.tag;
        let other = loaded.table.keys().iter().find(is_other).expect("two keys");
        let began = Instant::now();
        for (by, model, sent, ends) in [
            (&binding.key, "m", began, false),
            (&binding.key, "n", began + 2 * SECOND, false),
            (other, "m", began + 2 * SECOND, false),
            (&binding.key, "m", began + 2 * SECOND, true),
        ] {
            let waits = ClientWaits::default();
            let limited =
                |sent| waits.limited(&session, (&binding.key, "m".into()), Some(sent), 2 * SECOND);
            assert!(!limited(Instant::now()));
            let late = Instant::now() + 2 * SECOND;
            let since = sent + (Instant::now() - began);
            waits.served(&session, (by, model.into()), since);
            tokio::time::advance(2 * SECOND).await;
            assert_eq!(limited(late), !ends, "{} {model} {:?}", by.id, sent - began);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_are_limited_in_number() {
        let gateway = gateway(&[("a", "o", "p")]);
        let (_, binding, _) = bound(&gateway, &Client::unrestricted("alice")).await;
        let session = |number: usize| {
            SessionId::parse(&format!("{number:0>22}")).expect("an id of that length")
        };
        let waits = ClientWaits::default();
        let meets = |number: usize, model: &str| {
            let case = (&*binding.key, ModelUse::from(model));
            waits.limited(&session(number), case, Some(Instant::now()), SECOND)
        };
        for number in 0..=MOST {
            meets(number, "m");
        }
        for number in 0..=MOST_OF_ONE {
            meets(0, &number.to_string());
        }
        let known = |number| waits.lock().get(&session(number)).map_or(0, Vec::len);
        assert_eq!((known(0), known(MOST - 1), known(MOST)), (MOST_OF_ONE, 1, 0));
        tokio::time::advance(SECOND + MEMORY).await;
        meets(MOST, "m");
        let all = waits.lock().len();
        assert_eq!((all, known(MOST)), (1, 1), "old ones make room");
    }
}
