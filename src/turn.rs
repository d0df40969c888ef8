//! A turn: one request and its answer, from authenticating the client to recording the result.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::binding::Binding;
use crate::binding::bind::{Bindings, Found};
use crate::binding::demand::{Demand, Placing, Tried};
use crate::binding::select::Reach;
use crate::binding::trail::Step;
use crate::clock::time_of_day;
use crate::error::Error;
use crate::health::diagnose::{Ailment, Scope};
use crate::health::registry::Registry;
use crate::key::{Key, Tag};
use crate::metrics::{Decision, Reason};
use crate::outcome::{Answer, Outcome};
use crate::session::SessionId;
use crate::store::Budget;
use crate::upstream::attempt::send;
use crate::upstream::request::Request;
use crate::usage::books::Books;

pub mod account;
pub mod verdict;
pub mod entry;
pub mod ownership;
pub mod corroboration;
pub mod doubt;
pub mod vain;
pub mod failover;
pub mod waiting;
pub mod search;
pub mod idle;
pub mod pace;
pub mod memory;
pub mod http;
pub mod websocket;

use account::Account;
use doubt::Settled;
use entry::Entry;
use failover::{ATTEMPTS, Failover, pause};
use verdict::{Case, Verdict, as_403, decide, undecided};

/// A binding that takes no longer than this has only asked the store.
const STORE_TIME: Duration = Duration::from_millis(100);

/// The parts that all turns of a replica share, over HTTP and WebSocket.
pub struct Gateway {
    /// Authenticates clients, identifies sessions, and checks ids that turns refer to.
    pub entry: Entry,
    /// The key of each session.
    pub bindings: Bindings,
    /// The loaded keys and their health.
    pub registry: Arc<Registry>,
    /// How often and for how long a turn tries.
    pub failover: Failover,
    /// Receives the record of each turn.
    pub books: Arc<Books>,
}

impl Gateway {
    /// Decides whether a 401 to a turn with `key` is about the key. If the upstream refuses the key
    /// or its organization, all replicas learn it. If no probe decides, they learn of the doubt
    /// only once a second client has met it, or at once from an only client. `None`: a reload has
    /// replaced the key's secret since.
    ///
    /// The first doubt of a turn always has its probe. All further ones take from the turn's waits,
    /// and make no further key suspected: a turn that a sibling refuses, too, may be at fault.
    async fn settle(
        &self,
        key: &Key,
        doubted: Scope,
        (demand, tried): (&Demand<'_>, &mut Tried),
    ) -> Option<Settled> {
        if self.registry.successor(key).is_some() {
            return None;
        }
        let asked = || self.books.metrics.decided(Decision::Probe, Reason::Rejected);
        let (began, left) = (Instant::now(), Some(tried.wait_left));
        let left = left.filter(|_| std::mem::replace(&mut tried.has_doubted, true));
        // A doubt without a probe says nothing.
        let is_probed = left != Some(Duration::ZERO);
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

    /// Records a decision about a turn of `session` at the binding's key.
    fn record_decision(
        &self,
        session: Option<&SessionId>,
        binding: &Binding,
        decision: Decision,
        reason: Reason,
    ) {
        let from = Some(&*binding.key);
        let to = from.filter(|_| decision != Decision::Refuse);
        self.bindings.trail.record(&Step { session, decision, reason, from, to });
    }
}

/// The upstream as the spine sees it.
pub trait Ask {
    /// Sends the turn once with the binding's key. If another key issued the turn's
    /// `x-codex-turn-state` (`has_foreign_state`), the header is left out.
    fn ask(&self, binding: &Binding, has_foreign_state: bool) -> impl Future<Output = Outcome>;
}

impl Ask for Request<'_> {
    async fn ask(&self, binding: &Binding, has_foreign_state: bool) -> Outcome {
        send(self, &binding.key, has_foreign_state).await
    }
}

/// The attempts of one turn, up to its answer.
pub struct Attempts<'t, A> {
    gateway: &'t Gateway,
    account: &'t mut Account,
    upstream: &'t A,
    demand: &'t Demand<'t>,
    tried: Tried,
    /// The keys that the turn may use, as far as this is known.
    within: Reach,
    /// The time that is left for store operations.
    budget: &'t mut Budget,
    /// The key to which the turn was bound first.
    first: Option<Arc<Key>>,
    retries_left: u32,
    /// The number of rate-limited attempts.
    limits: u32,
    /// The key for which the turn has waited last.
    waited_for: Option<Tag>,
}

impl<'t, A: Ask> Attempts<'t, A> {
    pub fn new(
        gateway: &'t Gateway,
        account: &'t mut Account,
        upstream: &'t A,
        (demand, tried, within): (&'t Demand<'t>, Tried, Reach),
        budget: &'t mut Budget,
    ) -> Self {
        let (first, retries_left, limits, waited_for) = (None, ATTEMPTS - 1, 0, None);
        Self {
            gateway,
            account,
            upstream,
            demand,
            tried,
            within,
            budget,
            first,
            retries_left,
            limits,
            waited_for,
        }
    }

    fn placing(&self) -> Placing<'_> {
        self.demand.with_tried(&self.tried, self.within)
    }

    /// The spine: binds the turn and tries until there is an answer. Only before an answer may a
    /// failed attempt move to another key. `complete` is the time when the whole request had
    /// arrived.
    pub async fn run(
        mut self,
        found: Found,
        complete: Instant,
    ) -> Result<(Binding, Answer), Error> {
        let mut binding = self.begin(found, complete).await?;
        loop {
            binding = self.wait(binding).await?;
            let began = Instant::now();
            binding = match self.attempt(&binding, self.has_foreign_state(&binding)).await {
                Verdict::Deliver(answer) => return Ok(self.deliver(binding, answer, began).await),
                Verdict::Denied(answer) => {
                    let Gateway { failover, registry, .. } = self.gateway;
                    failover.corroboration.report(registry, &binding.key, self.demand);
                    return Ok((binding, answer));
                }
                Verdict::TooSteep(answer) => {
                    self.refuse(&binding, Reason::TooSteep);
                    return Ok((binding, answer));
                }
                Verdict::GiveUp(error, reason) => {
                    self.refuse(&binding, reason);
                    return Err(error);
                }
                Verdict::Foreign(answer) if binding.is_provisional => {
                    return self.search(binding, answer).await;
                }
                Verdict::Foreign(answer) => return Ok((binding, answer)),
                Verdict::Again(last) => match self.retry(binding).await {
                    Ok(next) => next,
                    Err(binding) => return last.map(|answer| (binding, answer)),
                },
                Verdict::Limited(stated) => self.handle_limit(&binding, stated).await?,
                Verdict::Deferred(stated) => self.handle_deferral(binding, stated).await?,
                Verdict::Doubted(answer, scope) => {
                    match self.handle_doubt(&binding, scope).await? {
                        Some(next) => next,
                        None => return Ok((binding, as_403(answer))),
                    }
                }
                Verdict::Exhausted(scope) => self.exhaust(&binding, scope).await?,
            };
        }
    }

    /// Binds the turn before its first attempt.
    async fn begin(&mut self, found: Found, complete: Instant) -> Result<Binding, Error> {
        let (bindings, began) = (&self.gateway.bindings, Instant::now());
        let placing = self.demand.with_tried(&self.tried, self.within);
        let (binding, within) = bindings.bind(placing, found, self.budget).await?;
        self.within = within;
        self.count_wait(began);
        self.account.note_overhead(complete);
        self.gateway.failover.begin_turn();
        Ok(binding)
    }

    /// Whether another key than the binding's issued the turn's `x-codex-turn-state`.
    fn has_foreign_state(&self, binding: &Binding) -> bool {
        self.demand.turn_state.is_some_and(|state| binding.is_foreign_state(state))
    }

    /// Makes one attempt: notes the key, sends the turn, and decides what the outcome means.
    async fn attempt(&mut self, binding: &Binding, has_foreign_state: bool) -> Verdict {
        self.note(binding);
        let outcome = self.upstream.ask(binding, has_foreign_state).await;
        self.account.note_outcome(&outcome);
        self.observe(&binding.key, &outcome);
        let case = Case::new(&binding.key, self.demand.met(), self.demand.model_use());
        let resends = self.gateway.failover.options.resends;
        let verdict = decide(outcome, case, resends, time_of_day());
        self.account.note_leave_reason(verdict.reason());
        verdict
    }

    /// Notes the headroom that the answer states for `key`. The answer to a free request states
    /// none.
    fn observe(&self, key: &Key, outcome: &Outcome) {
        if let Some(answer) = outcome.answer().filter(|_| !self.demand.is_free) {
            self.gateway.registry.headrooms.observe(key, self.demand.model_use(), &answer.headers);
        }
    }

    /// Notes that the binding's key serves the turn from now on.
    fn note(&mut self, binding: &Binding) {
        let first = self.first.get_or_insert_with(|| Arc::clone(&binding.key));
        let domain_moved = !binding.key.shares_cache_with(first);
        self.account.note_attempt(binding, domain_moved, &self.gateway.registry.loads);
    }

    async fn deliver(
        &mut self,
        binding: Binding,
        answer: Answer,
        began: Instant,
    ) -> (Binding, Answer) {
        if answer.status.is_success() {
            if !self.demand.is_free {
                let Gateway { registry, failover, .. } = self.gateway;
                failover.corroboration.has_served(registry, &binding.key, self.demand, began);
            }
            self.gateway.bindings.confirm(&binding, self.demand.seals(), self.budget).await;
        }
        (binding, answer)
    }

    /// Handles a 401. Returns the turn's next binding, or `None` if the upstream accepts the key
    /// and refuses only this turn.
    async fn handle_doubt(
        &mut self,
        binding: &Binding,
        scope: Scope,
    ) -> Result<Option<Binding>, Error> {
        if self.tried.refused.contains(&binding.key.tag) {
            // The key was accepted again meanwhile, and refuses this turn once more.
            return Ok(None);
        }
        let case = (self.demand, &mut self.tried);
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
    async fn exhaust(&mut self, binding: &Binding, scope: Scope) -> Result<Binding, Error> {
        if self.gateway.registry.successor(&binding.key).is_some() {
            return Ok(self.with_successor(binding));
        }
        self.gateway.registry.observe(&binding.key, Ailment::Exhausted(scope));
        self.leave(binding, Reason::Exhausted).await
    }

    /// Returns the binding with the key that a reload has put in place of its own: the upstream
    /// refused the old one.
    fn with_successor(&self, binding: &Binding) -> Binding {
        let successor = self.gateway.registry.successor(&binding.key);
        let key = successor.unwrap_or_else(|| Arc::clone(&binding.key));
        Binding { key, ..binding.clone() }
    }

    /// Returns the turn's next binding after the binding's key refused the turn for `reason`.
    async fn leave(&mut self, binding: &Binding, reason: Reason) -> Result<Binding, Error> {
        if reason != Reason::Limited {
            self.tried.refused.push(binding.key.tag);
        }
        let next = self.rebind(binding).await;
        if next.is_err() {
            self.refuse(binding, reason);
        }
        next
    }

    async fn rebind(&mut self, binding: &Binding) -> Result<Binding, Error> {
        let began = Instant::now();
        let bindings = &self.gateway.bindings;
        let placing = self.demand.with_tried(&self.tried, self.within);
        let next = bindings.rebind(placing, binding, self.budget).await;
        self.count_wait(began);
        let (next, within) = next?;
        self.within = within;
        Ok(next)
    }

    /// Subtracts the time since `began` from the turn's waits, if binding waited in it for a key to
    /// take the session.
    fn count_wait(&mut self, began: Instant) {
        let spent = began.elapsed();
        if spent > STORE_TIME {
            self.tried.wait_left = self.tried.wait_left.saturating_sub(spent);
        }
    }

    /// Prepares one more attempt after the upstream failed with the turn: first with the same key,
    /// then with a sibling. The error is the unchanged binding: there is no further attempt.
    async fn retry(&mut self, binding: Binding) -> Result<Binding, Binding> {
        let is_first = self.retries_left == ATTEMPTS - 1;
        if self.retries_left == 0 || !self.gateway.failover.may_retry() {
            self.refuse(&binding, Reason::Failed);
            return Err(binding);
        }
        self.retries_left -= 1;
        sleep(pause()).await;
        let next = match is_first {
            true => Ok(binding),
            false => {
                self.tried.failed.push(binding.key.tag);
                self.rebind(&binding).await.map_err(|_| binding)
            }
        };
        match &next {
            Ok(binding) => self.record_decision(binding, Decision::Retry, Reason::Failed),
            Err(binding) => self.refuse(binding, Reason::Failed),
        }
        next
    }

    fn refuse(&self, binding: &Binding, reason: Reason) {
        self.record_decision(binding, Decision::Refuse, reason);
    }

    fn record_decision(&self, binding: &Binding, decision: Decision, reason: Reason) {
        self.gateway.record_decision(self.demand.session.as_ref(), binding, decision, reason);
    }
}

#[cfg(test)]
mod judged;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod tests;
