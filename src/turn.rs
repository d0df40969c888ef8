//! A turn: one request and its answer, from authenticating its client to accounting for what it
//! cost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ::http::request::Parts;
use ::http::{HeaderMap, HeaderValue, Uri};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use crate::binding::Binding;
use crate::binding::bind::{Bindings, Found};
use crate::binding::demand::{Sealed, Wanted};
use crate::binding::ownership::Owners;
use crate::binding::trail::Step;
use crate::client::{Client, Clients};
use crate::current::Current;
use crate::error::{Error, ErrorKind};
use crate::health::conditions::Fitness;
use crate::health::registry::Registry;
use crate::limit::{Retries, chance, jittered};
use crate::metrics::{Decision, Metrics, Reason};
use crate::outcome::Answer;
use crate::session::identify::{Identifier, Identity};
use crate::store::Budget;
use crate::task::Tasks;
use crate::upstream::attempt::{Ask, Sent, send};
use crate::upstream::headers::TURN_STATE;
use crate::usage::books::Books;

pub mod account;
pub mod verdict;
pub mod waiting;
pub mod corroboration;
pub mod search;
pub mod ownership;
pub mod http;
pub mod websocket;

use account::Account;
use corroboration::Corroboration;
use http::replay::Replay;
use ownership::ForeignIds;
use search::Search;
use verdict::{Verdict, decide};
use waiting::{Waiters, insisting, moment};
use websocket::sockets::Sockets;

/// Query parameters in which a client might show a credential: they would end up in logs on the
/// way.
const CREDENTIALS: [&str; 5] = ["key", "api_key", "api-key", "token", "access_token"];

/// So often the upstream is asked at most where it fails.
const ATTEMPTS: u32 = 3;

/// `[failover]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverSettings {
    /// Whether a turn that may already have been served is sent again.
    pub ambiguous: bool,
}

/// How far a turn goes for its answer.
#[derive(Clone, Copy, Debug)]
pub struct FailoverOptions {
    /// The longest wait in place for a key that is short.
    pub wait: Duration,
    /// A turn that may already have been served is sent again.
    pub resends: bool,
}

/// All that serving turns needs: one a replica, shared by its turns.
pub struct Gateway {
    /// Who may call.
    pub clients: Arc<Current<Clients>>,
    /// Which session a turn belongs to.
    pub identifier: Identifier,
    /// Which key a session is bound to.
    pub bindings: Bindings,
    /// Whose a stored response is.
    pub owners: Arc<Owners>,
    /// What becomes of ids that never passed through here.
    pub foreign_ids: ForeignIds,
    /// Which keys are in use.
    pub registry: Arc<Registry>,
    /// The memory that request bodies are held in.
    pub replay: Replay,
    /// Where the end of each turn is told.
    pub books: Arc<Books>,
    pub metrics: Arc<Metrics>,
    pub options: FailoverOptions,
    /// Who waits for keys.
    pub waiters: Waiters,
    /// What attempts may be repeated with.
    pub retries: Mutex<Retries>,
    /// Who was told that a model is not to be had.
    pub corroboration: Corroboration,
    /// The WebSockets that are open.
    pub sockets: Sockets,
    /// Owns what outlives a turn.
    pub tasks: Tasks,
}

/// What is sent upstream, and with how much time for the store.
struct Sending<'t> {
    ask: Ask<'t>,
    head: &'t Parts,
    /// When all of it was here.
    whole: Instant,
    budget: Budget,
}

impl Gateway {
    /// Who calls, and for which session, as far as the head tells.
    fn receive(
        &self,
        account: &mut Account,
        head: &Parts,
    ) -> Result<(Arc<Client>, Identity), Error> {
        let client = self.clients.get().authenticate(&head.headers)?;
        account.client(&client.id);
        refuse_credentials(&head.uri)?;
        let identity = self.identifier.by_headers(&client.id, &head.headers);
        Ok((client, identity))
    }

    fn wanted<'t>(
        &self,
        client: &'t Client,
        headers: &'t HeaderMap,
        identity: Identity,
        model: &'t str,
        carries_sealed: Sealed<'t>,
        by_websocket: bool,
    ) -> Wanted<'t> {
        let turn_state = headers.get(TURN_STATE).map(HeaderValue::as_bytes);
        let lineage = self.identifier.lineage(&client.id, headers);
        let (session, patience) = (identity.session, self.options.wait);
        Wanted {
            session,
            lineage,
            carries_sealed,
            turn_state,
            by_websocket,
            model,
            patience,
            ..Wanted::of(client)
        }
    }

    /// The spine: binds, and asks until there is an answer. Until then, and never after, a failed
    /// attempt may move to another key.
    async fn serve(
        &self,
        account: &mut Account,
        sending: &mut Sending<'_>,
        wanted: &mut Wanted<'_>,
        found: Found,
    ) -> Result<(Binding, Answer), Error> {
        let Sending { ask, head, whole, budget } = sending;
        let sent = Sent { headers: &head.headers, query: head.uri.query(), ask: *ask };
        let mut binding = self.bindings.bind(wanted, found, budget).await?;
        let first = Arc::clone(&binding.key);
        account.overhead(*whole);
        let (mut retries, mut limits) = (self.retries(), 0);
        loop {
            binding = self.wait(wanted, binding, budget).await?;
            account.bound(&binding, !binding.key.shares_cache_with(&first), &self.registry.loads);
            let is_foreign_state =
                wanted.turn_state.is_some_and(|state| binding.is_foreign_state(state));
            let began = Instant::now();
            let outcome = send(&sent, &binding.key, is_foreign_state).await;
            if let Some(answer) = outcome.answer() {
                self.registry.headrooms.observe(&binding.key, wanted.model, &answer.headers);
            }
            match decide(outcome, self.options.resends, SystemTime::now()) {
                Verdict::Deliver(answer) => {
                    return Ok(self.deliver(binding, answer, began, budget).await);
                }
                Verdict::Denied(answer) => {
                    self.corroboration.heard(&self.registry, &binding.key, wanted);
                    return Ok((binding, answer));
                }
                Verdict::GiveUp(error, reason) => {
                    self.refuse(wanted, &binding, reason);
                    return Err(error);
                }
                Verdict::Foreign(answer) if binding.is_provisional => {
                    let search =
                        Search { gateway: self, sent: &sent, wanted, provisional: &binding };
                    return search.run(account, answer, budget).await;
                }
                Verdict::Foreign(answer) => return Ok((binding, answer)),
                Verdict::Again(last) => {
                    match self.again(wanted, binding, &mut retries, budget).await {
                        Ok(next) => binding = next,
                        Err(binding) => return last.map(|answer| (binding, answer)),
                    }
                }
                Verdict::Limited(told) => {
                    let wait = told.max(insisting(limits));
                    self.registry.limit(&binding.key, wanted.model, wait);
                    if retries == 0 {
                        self.refuse(wanted, &binding, Reason::Limited);
                        return Err(Error::limited(
                            "The upstream keys that may serve this session are cooling.",
                            wait,
                        ));
                    }
                    (retries, limits) = (retries - 1, limits + 1);
                    self.stop_waiting(wanted, &binding, limits);
                    binding = self.elsewhere(wanted, &binding, Reason::Limited, budget).await?;
                }
                Verdict::Ailing(ailment) => {
                    if let Some(successor) = self.registry.successor(&binding.key) {
                        // Refused was what it showed before a reload.
                        binding.key = successor;
                        continue;
                    }
                    self.registry.observe(&binding.key, ailment);
                    // A key that is refused is asked whether that is meant before its sessions
                    // leave it.
                    self.registry.settled(&binding.key).await;
                    binding = self.elsewhere(wanted, &binding, ailment.into(), budget).await?;
                }
            }
        }
    }

    /// Where the turn goes, now that its key has refused it for this `reason`.
    async fn elsewhere(
        &self,
        wanted: &mut Wanted<'_>,
        binding: &Binding,
        reason: Reason,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        if reason != Reason::Limited {
            wanted.refused.push(binding.key.tag);
        }
        let next = self.bindings.rebind(wanted, binding, budget).await;
        if next.is_err() {
            self.refuse(wanted, binding, reason);
        }
        next
    }

    /// Ends the wait for a key that is limited again after it was waited for, where a sibling
    /// serves at once.
    fn stop_waiting(&self, wanted: &mut Wanted<'_>, binding: &Binding, limits: u32) {
        let patience = std::mem::take(&mut wanted.patience);
        if limits == 1 || !self.bindings.has_sibling(wanted, binding) {
            wanted.patience = patience;
        }
    }

    /// Waits in place where the binding's key is short for a moment. Where that takes too long, or
    /// too many wait, another serves.
    async fn wait(
        &self,
        wanted: &mut Wanted<'_>,
        mut binding: Binding,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        while let Fitness::Limited(short) = self.registry.fitness(&binding.key, wanted.model) {
            let place = self.waiters.enter(&binding.key).filter(|_| short <= wanted.patience);
            if let Some(_place) = place {
                self.tell(wanted, &binding, Decision::Wait, Reason::Limited);
                let pause = jittered(short, chance());
                wanted.patience = wanted.patience.saturating_sub(pause);
                sleep(pause).await;
                continue;
            }
            wanted.patience = Duration::ZERO;
            binding = self.elsewhere(wanted, &binding, Reason::Limited, budget).await?;
        }
        Ok(binding)
    }

    /// One more attempt after the upstream has failed with the turn: first with the same key, then
    /// with a sibling. The error is the binding as it was: there is no further attempt.
    async fn again(
        &self,
        wanted: &mut Wanted<'_>,
        binding: Binding,
        retries: &mut u32,
        budget: &mut Budget,
    ) -> Result<Binding, Binding> {
        let is_first = *retries == ATTEMPTS - 1;
        if *retries == 0 || !lock(&self.retries).take() {
            self.refuse(wanted, &binding, Reason::Failed);
            return Err(binding);
        }
        *retries -= 1;
        sleep(moment()).await;
        let next = match is_first {
            true => Ok(binding),
            false => {
                wanted.failed.push(binding.key.tag);
                self.bindings.rebind(wanted, &binding, budget).await.map_err(|_| binding)
            }
        };
        match &next {
            Ok(binding) => self.tell(wanted, binding, Decision::Retry, Reason::Failed),
            Err(binding) => self.refuse(wanted, binding, Reason::Failed),
        }
        next
    }

    fn retries(&self) -> u32 {
        lock(&self.retries).turn();
        ATTEMPTS - 1
    }

    fn refuse(&self, wanted: &Wanted<'_>, binding: &Binding, reason: Reason) {
        self.tell(wanted, binding, Decision::Refuse, reason);
    }

    fn tell(&self, wanted: &Wanted<'_>, binding: &Binding, decision: Decision, reason: Reason) {
        let key = Some(&*binding.key);
        let to = key.filter(|_| decision != Decision::Refuse);
        self.bindings.trail.tell(&Step {
            session: wanted.session.as_ref(),
            decision,
            reason,
            from: key,
            to,
        });
    }

    async fn deliver(
        &self,
        binding: Binding,
        answer: Answer,
        began: Instant,
        budget: &mut Budget,
    ) -> (Binding, Answer) {
        if answer.status.is_success() {
            self.registry.has_served(&binding.key, began);
            self.bindings.confirm(&binding, budget).await;
        }
        (binding, answer)
    }
}

fn lock(retries: &Mutex<Retries>) -> MutexGuard<'_, Retries> {
    // Nothing in it can panic.
    retries.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refuse_credentials(uri: &Uri) -> Result<(), Error> {
    let names =
        uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split('=').next());
    match names.into_iter().any(|name| CREDENTIALS.iter().any(|one| name.eq_ignore_ascii_case(one)))
    {
        true => Err(Error::new(
            ErrorKind::InvalidApiKey,
            "A credential in the URL is not accepted: send `Authorization: Bearer TOKEN`.",
        )),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;
