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
use crate::health::diagnose::Met;
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
pub mod refused;
pub mod search;
pub mod idle;
pub mod pace;
pub mod memory;
pub mod http;
pub mod websocket;

use account::Account;
use entry::Entry;
use failover::{ATTEMPTS, Failover, pause};
use verdict::{Case, Verdict, as_403, decide};

/// Longest time that a binding takes if it asks only the store.
const STORE_TIME: Duration = Duration::from_millis(100);

/// Longest time from a turn's first attempt that its upstream has not processed to a further one.
const UNPROCESSED: Duration = Duration::from_secs(5);

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
    /// The keys that may serve the turn, as far as the gateway knows.
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
    /// When the first attempt began that the upstream has not processed.
    unprocessed: Option<Instant>,
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
            unprocessed: None,
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
        let began = Instant::now();
        let outcome = self.upstream.ask(binding, has_foreign_state).await;
        if matches!(outcome, Outcome::Unprocessed(_)) {
            self.unprocessed.get_or_insert(began);
        }
        self.account.note_outcome(&outcome);
        self.observe(&binding.key, &outcome);
        let case = Case::new(&binding.key, self.demand.met(), self.demand.model_use());
        let resends = self.gateway.failover.options.resends;
        let verdict = decide(outcome, case, resends, time_of_day());
        self.account.note_leave_reason(verdict.reason());
        verdict
    }

    /// Notes the headroom that the answer of a served turn states for `key`. A refusal may state
    /// another limit, and a handshake or a free request uses none.
    fn observe(&self, key: &Key, outcome: &Outcome) {
        let is_told =
            |answer: &&Answer| answer.status.is_success() && self.demand.met() == Met::Turn;
        if let Some(answer) = outcome.answer().filter(is_told) {
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

    /// Subtracts the time since `began` from the time that the turn may wait, if the binding waited
    /// for a key to take the session.
    fn count_wait(&mut self, began: Instant) {
        let spent = began.elapsed();
        if spent > STORE_TIME {
            self.tried.wait_left = self.tried.wait_left.saturating_sub(spent);
        }
    }

    /// Whether upstreams have refused to process the turn for so long that its client must hear it.
    fn is_too_late(&self) -> bool {
        self.unprocessed.is_some_and(|since| since.elapsed() > UNPROCESSED)
    }

    /// Prepares one more attempt after the upstream failed with the turn: first with the same key,
    /// then with a sibling. An error is the unchanged binding: there is no further attempt.
    async fn retry(&mut self, binding: Binding) -> Result<Binding, Binding> {
        let is_first = self.retries_left == ATTEMPTS - 1;
        if self.retries_left == 0 || self.is_too_late() || !self.gateway.failover.may_retry() {
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
