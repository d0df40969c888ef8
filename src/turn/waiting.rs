//! Waits for a limited key. A turn waits in place, so that its session's cache stays warm; the
//! number of waiting turns is limited.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};

use crate::binding::Binding;
use crate::binding::demand::Tried;
use crate::error::Error;
use crate::health::conditions::Fitness;
use crate::health::diagnose::ModelUse;
use crate::key::{Key, Tag};
use crate::limit::{chance, jittered};
use crate::metrics::{Decision, Reason};
use crate::session::SessionId;
use crate::turn::account::Account;
use crate::turn::{Ask, Attempts, Gateway};
use crate::usage::tap::Reading;

/// Most turns that wait for one key on this replica.
const WAITERS: usize = 64;
/// The step of [`back_off`].
const BACK_OFF: Duration = Duration::from_secs(1);

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
    /// turns wait, another key serves the turn.
    pub(super) async fn wait(&mut self, mut binding: Binding) -> Result<Binding, Error> {
        let gateway = self.gateway;
        let asked = self.demand.model_use();
        while let Fitness::Limited(wait) = gateway.registry.fitness(&binding.key, asked) {
            let permit = match gateway.bindings.is_relieved(self.placing(), &binding) {
                // Another turn has waited in vain, so a free sibling serves this one at once.
                true => None,
                false => gateway.failover.waiters.enter(&binding.key),
            };
            if let Some(_permit) = permit.filter(|_| wait <= self.tried.wait_left) {
                self.record_decision(&binding, Decision::Wait, Reason::Limited);
                let pause = jittered(wait, chance()).min(self.tried.wait_left);
                self.waited_for = Some(binding.key.tag);
                self.tried.wait_left = self.tried.wait_left.saturating_sub(pause);
                self.account.note_wait(&binding.key, pause);
                sleep(pause).await;
                continue;
            }
            self.tried.wait_left = Duration::ZERO;
            binding = self.leave(&binding, Reason::Limited).await?;
        }
        Ok(binding)
    }

    /// Handles a rate limit of the key's project for the model: the turn waits, or another key
    /// serves.
    pub(super) async fn handle_limit(
        &mut self,
        binding: &Binding,
        stated: Duration,
    ) -> Result<Binding, Error> {
        let wait = stated.max(back_off(self.limits));
        let asked = self.demand.model_use();
        self.gateway.registry.limit(&binding.key, asked, wait);
        if self.waited_for == Some(binding.key.tag) {
            self.gateway.registry.strain(&binding.key, asked);
        }
        if self.retries_left == 0 {
            self.refuse(binding, Reason::Limited);
            return Err(Error::limited(
                "The upstream keys that may serve this session are cooling.",
                wait,
            ));
        }
        (self.retries_left, self.limits) = (self.retries_left - 1, self.limits + 1);
        self.stop_waiting(binding);
        self.leave(binding, Reason::Limited).await
    }

    /// Handles an upstream that limits handshakes, which says nothing about its turns: this turn
    /// waits once, or another key serves it. Nothing is remembered.
    pub(super) async fn handle_deferral(
        &mut self,
        binding: Binding,
        stated: Duration,
    ) -> Result<Binding, Error> {
        let pause = jittered(stated, chance());
        if self.limits == 0 && pause <= self.tried.wait_left {
            self.limits = 1;
            self.record_decision(&binding, Decision::Wait, Reason::Limited);
            self.tried.wait_left -= pause;
            sleep(pause).await;
            return Ok(binding);
        }
        self.tried.failed.push(binding.key.tag);
        match self.rebind(&binding).await {
            Ok(next) if !self.tried.failed.contains(&next.key.tag) => Ok(next),
            _ => {
                self.refuse(&binding, Reason::Limited);
                let text = "The upstream is limiting its WebSockets at the moment.";
                Err(Error::limited(text, stated))
            }
        }
    }

    /// Ends the waits of a turn whose key is limited again after a wait, if a sibling can serve at
    /// once.
    pub(super) fn stop_waiting(&mut self, binding: &Binding) {
        let spent = Tried { wait_left: Duration::ZERO, ..self.tried.clone() };
        let placing = self.demand.with_tried(&spent, self.within);
        if self.limits > 1 && self.gateway.bindings.has_sibling(placing, binding) {
            self.tried = spent;
        }
    }
}

impl Gateway {
    /// Handles a limit of `key` for which the client waits. `sent`: when the turn that met the
    /// limit was sent. `None`: the limit was stated for no turn. If the session has already waited
    /// for that limit, free siblings of the same cache serve.
    pub(super) fn limit_for_client(
        &self,
        (session, key): (Option<&SessionId>, &Key),
        asked: ModelUse<'_>,
        (sent, wait): (Option<Instant>, Duration),
    ) {
        self.registry.limit(key, asked, wait);
        let waits = &self.failover.client_waits;
        if session.is_some_and(|session| waits.limited(session, (key, asked), sent, wait)) {
            self.registry.strain(key, asked);
        }
    }

    /// Notes what the end of an answer of `key` says about the key. A failure that it states means
    /// the same as that error over HTTP. Returns true if the key is limited.
    ///
    /// A stored response shows how it once ended, which says nothing about the key's health now.
    pub(super) fn observe_end(&self, account: &Account, key: &Key, reading: &Reading) -> bool {
        if !account.is_turn() {
            return false;
        }
        let (asked, sent) = (account.asked_model(), account.sent());
        let session = account.session();
        let Some(failure) = &reading.failure else {
            if let Some(session) = session.filter(|_| account.is_served_by(reading)) {
                self.failover.client_waits.served(session, (key, asked), sent);
            }
            return false;
        };
        let Some(wait) = self.registry.observe_failure(key, asked, failure) else { return false };
        self.limit_for_client((session, key), asked, (Some(sent), wait));
        if account.has_waited_for(key) {
            // The turn itself has waited for this key, in vain.
            self.registry.strain(key, asked);
        }
        true
    }
}

/// Minimum back-off for a key that has already rate-limited this turn `limits` times, so that the
/// waits that the upstream named were too short.
fn back_off(limits: u32) -> Duration {
    BACK_OFF * limits
}
