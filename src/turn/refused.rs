//! Handles an upstream that refuses a turn's key: its credential is in doubt, or its quota is used
//! up.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::binding::Binding;
use crate::binding::demand::{Demand, Tried};
use crate::error::Error;
use crate::health::diagnose::{Ailment, Met, Scope};
use crate::key::Key;
use crate::metrics::{Decision, Reason};
use crate::turn::doubt::Settled;
use crate::turn::verdict::undecided;
use crate::turn::{Ask, Attempts, Gateway};

impl Gateway {
    /// Decides whether a 401 to a turn with `key` is about the key. If the upstream refuses the key
    /// or its organization, all replicas learn it. If no probe decides, they learn of the doubt
    /// once a second client has met it, or at once from an only client. A handshake's answer never
    /// makes them doubt. Returns `None` if a reload has replaced the key's secret since.
    ///
    /// A turn's first doubt is always probed; further doubts spend the time that the turn may wait.
    /// A turn makes at most one key suspected, because a turn that siblings refuse may be at fault.
    pub(super) async fn settle(
        &self,
        key: &Key,
        doubted: Scope,
        (demand, met, tried): (&Demand<'_>, Met, &mut Tried),
    ) -> Option<Settled> {
        if self.registry.successor(key).is_some() {
            return None;
        }
        let asked = || self.books.metrics.decided(Decision::Probe, Reason::Rejected);
        let (began, left) = (Instant::now(), Some(tried.wait_left));
        let left = left.filter(|_| std::mem::replace(&mut tried.has_doubted, true));
        // A doubt without a probe says nothing.
        let is_probed = left != Some(Duration::ZERO) && met != Met::Handshake;
        let corroboration = &self.failover.corroboration;
        // If there is only one client, its doubt affects no other.
        let counts = || {
            self.entry.clients.get().is_single() || corroboration.report_doubt(key, doubted, demand)
        };
        let mut settled = self.failover.doubts.settle(key, (began, left), asked).await;
        match settled {
            Settled::Refused(scope) => self.registry.condemn(key, Ailment::Rejected(scope)),
            Settled::Undecided if is_probed && !tried.has_suspected && counts() => {
                (settled, tried.has_suspected) = (Settled::Suspected, true);
                self.registry.observe(key, Ailment::Rejected(doubted));
            }
            Settled::Accepted | Settled::Undecided | Settled::Suspected => {}
        }
        tried.wait_left = tried.wait_left.saturating_sub(began.elapsed());
        Some(settled)
    }
}

impl<A: Ask> Attempts<'_, A> {
    /// Handles a 401. Returns the turn's next binding, or `None` if the upstream accepts the key
    /// and refuses only this turn.
    pub(super) async fn handle_doubt(
        &mut self,
        binding: &Binding,
        scope: Scope,
    ) -> Result<Option<Binding>, Error> {
        if self.tried.refused.contains(&binding.key.tag) {
            // The key was accepted again meanwhile, and refuses this turn once more.
            return Ok(None);
        }
        let case = (self.demand, self.demand.met(), &mut self.tried);
        Ok(match self.gateway.settle(&binding.key, scope, case).await {
            Some(Settled::Accepted) => None,
            Some(Settled::Undecided) => {
                self.refuse(binding, Reason::Rejected);
                return Err(undecided());
            }
            Some(Settled::Refused(_) | Settled::Suspected) => {
                Some(self.leave(binding, Reason::Rejected).await?)
            }
            None => Some(self.with_successor(binding)),
        })
    }

    /// Handles a key, a project or an organization without credit.
    pub(super) async fn exhaust(
        &mut self,
        binding: &Binding,
        scope: Scope,
    ) -> Result<Binding, Error> {
        if self.gateway.registry.successor(&binding.key).is_some() {
            return Ok(self.with_successor(binding));
        }
        self.gateway.registry.observe(&binding.key, Ailment::Exhausted(scope));
        self.leave(binding, Reason::Exhausted).await
    }

    /// Returns `binding` with its key's successor, because the upstream refused the secret that a
    /// reload has replaced.
    fn with_successor(&self, binding: &Binding) -> Binding {
        let successor = self.gateway.registry.successor(&binding.key);
        let key = successor.unwrap_or_else(|| Arc::clone(&binding.key));
        Binding { key, ..binding.clone() }
    }
}

#[cfg(test)]
mod tests;
