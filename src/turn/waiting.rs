//! Waits for a limited key. A turn waits in place, so that its session's cache stays warm; the
//! number of waiting turns is limited.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use crate::binding::Binding;
use crate::binding::demand::Tried;
use crate::error::Error;
use crate::health::conditions::Fitness;
use crate::key::{Key, Tag};
use crate::limit::{chance, jittered};
use crate::metrics::{Decision, Reason};
use crate::turn::{Ask, Attempts};

/// Most turns that wait for one key on this replica.
const WAITERS: usize = 64;

#[derive(Default)]
pub struct Waiters {
    permits: Mutex<HashMap<Tag, Arc<Semaphore>>>,
}

impl Waiters {
    /// Returns a permit to wait for `key`, released on drop, also when the client leaves. `None`:
    /// too many turns wait.
    pub fn enter(&self, key: &Key) -> Option<OwnedSemaphorePermit> {
        let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        let of_key = permits.entry(key.tag).or_insert_with(|| Arc::new(Semaphore::new(WAITERS)));
        Arc::clone(of_key).try_acquire_owned().ok()
    }
}

impl<A: Ask> Attempts<'_, A> {
    /// Waits in place while the binding's key is limited. If the wait is too long, or too many
    /// turns wait, another key serves.
    pub(super) async fn wait(&mut self, mut binding: Binding) -> Result<Binding, Error> {
        let gateway = self.gateway;
        while let Fitness::Limited(wait) = gateway.registry.fitness(&binding.key, self.demand.model)
        {
            let permit = gateway.failover.waiters.enter(&binding.key);
            if let Some(_permit) = permit.filter(|_| wait <= self.tried.wait_left) {
                self.record_decision(&binding, Decision::Wait, Reason::Limited);
                let pause = jittered(wait, chance());
                self.tried.wait_left = self.tried.wait_left.saturating_sub(pause);
                self.account.waits(&binding.key, pause);
                sleep(pause).await;
                continue;
            }
            self.tried.wait_left = Duration::ZERO;
            binding = self.leave(&binding, Reason::Limited).await?;
        }
        Ok(binding)
    }

    /// Ends the waits of a turn whose key is limited again after a wait, if a sibling can serve at
    /// once.
    pub(super) fn stop_waiting(&mut self, binding: &Binding) {
        let spent = Tried { wait_left: Duration::ZERO, ..self.tried.clone() };
        let placing = self.demand.after(&spent);
        if self.limits > 1 && self.gateway.bindings.has_sibling(placing, binding) {
            self.tried = spent;
        }
    }
}
