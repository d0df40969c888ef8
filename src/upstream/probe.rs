//! Asks upstreams again about keys that are out of use: whether they still refuse a key, or accept
//! it again.
//!
//! A probe of a refused key asks for the key's models, which costs nothing. Only a turn can show
//! whether a quota is back. For that, one replica at a time lets one turn try.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::MissedTickBehavior;
use tracing::field::Empty;
use tracing::{Instrument, info_span};

use crate::clock::time_of_day;
use crate::health::condition::{Condition, Subject};
use crate::health::diagnose::{Ailment, Judgement, Met, ModelUse, Scope, Trouble, judge};
use crate::health::registry::Registry;
use crate::key::Key;
use crate::metrics::{Decision, Metrics, Reason};
use crate::outcome::{Outcome, Refusal};
use crate::store::Store;
use crate::store::name::Name;
use crate::task::Tasks;
use crate::telemetry::work::WORK;
use crate::upstream::attempt::read;
use crate::upstream::models::{read_list, request};

/// Time between two looks for conditions that are due.
const INTERVAL: Duration = Duration::from_secs(1);
/// Most keys of an organization that are asked, if each one is refused for itself.
const MAX_ASKED: usize = 3;
/// Maximum time for an upstream to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The probes of one replica.
pub struct Prober {
    pub store: Arc<Store>,
    pub registry: Arc<Registry>,
    pub metrics: Arc<Metrics>,
    pub tasks: Tasks,
    /// The prober's name, unique among replicas.
    pub name: String,
}

impl Prober {
    /// Probes in the background until `tasks` end. `name` is unique among replicas.
    pub fn start(
        store: &Arc<Store>,
        registry: &Arc<Registry>,
        metrics: &Arc<Metrics>,
        tasks: &Tasks,
        name: String,
    ) {
        let (store, registry) = (Arc::clone(store), Arc::clone(registry));
        let (metrics, owned) = (Arc::clone(metrics), tasks.clone());
        let prober = Self { store, registry, metrics, tasks: owned, name };
        let prober = Arc::new(prober);
        tasks.spawn_kept("prober", move || Arc::clone(&prober).keep_probing());
    }

    /// Probes for as long as the replica lives.
    pub async fn keep_probing(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.registry.probe_requested() => {}
            }
            for (subject, condition, pause) in self.registry.conditions.due() {
                let prober = Arc::clone(&self);
                self.tasks.spawn(async move { prober.ask(subject, condition, pause).await });
            }
        }
    }

    /// Probes `subject`. `pause`: time until the next probe.
    async fn ask(&self, subject: Subject, condition: Condition, pause: Duration) {
        match condition {
            Condition::Suspected => self.confirm(subject).await,
            Condition::Rejected if self.is_elected(subject, pause).await => {
                self.confirm(subject).await
            }
            Condition::Exhausted if self.is_elected(subject, pause).await => {
                self.metrics.decided(Decision::Probe, Reason::Exhausted);
                tracing::info!(decision = "probe", reason = "exhausted", "a new session may try");
                self.registry.conditions.grant(subject);
            }
            _ => {}
        }
    }

    /// Whether this replica probes for all replicas. Without the store, each replica probes for
    /// itself.
    async fn is_elected(&self, subject: Subject, pause: Duration) -> bool {
        let subject = subject.name();
        let claimed = self
            .store
            .claim(
                Name::Probe(&subject),
                &self.name,
                pause / 5 * 4,
                &mut self.store.background_budget(),
            )
            .await;
        !matches!(claimed, Ok(Some(_)))
    }

    /// Asks the upstream whether it now accepts a key that it has refused.
    async fn confirm(&self, subject: Subject) {
        let loaded = self.registry.loaded();
        let is_organization = matches!(subject, Subject::Organization(_));
        let is_rejected = |key: &&Arc<Key>| {
            self.registry.conditions.is(Subject::of(key, Scope::Key), Condition::Rejected)
        };
        let mut concerned: Vec<_> =
            loaded.table.keys().iter().filter(|key| subject.concerns(key)).collect();
        concerned.sort_by_key(is_rejected);
        for key in concerned.into_iter().take(if is_organization { MAX_ASKED } else { 1 }) {
            self.metrics.decided(Decision::Probe, Reason::Rejected);
            let (told, status) = ask_traced(key).await;
            tracing::info!(
                decision = "probe",
                reason = "rejected",
                key = %key.id,
                answer = status,
                "asked whether a key is accepted"
            );
            return match told.map_or(Acceptance::Unknown, Told::acceptance) {
                // A key that is refused for itself says nothing about its organization, so the next
                // key is asked.
                Acceptance::Refused(Scope::Key) if is_organization => {
                    self.registry.condemn(key, Ailment::Rejected(Scope::Key));
                    continue;
                }
                Acceptance::Refused(scope) => self.registry.condemn(key, Ailment::Rejected(scope)),
                Acceptance::Accepted => self.registry.end_illness(subject, &key.id),
                Acceptance::Unknown => {}
            };
        }
        if is_organization {
            // Each key asked was refused for itself, so the organization is not refused.
            self.registry.end_illness(subject, "");
        }
    }
}

/// Whether an upstream accepts a key's credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceptance {
    Accepted,
    Refused(Scope),
    /// The upstream did not answer, or its answer does not tell.
    Unknown,
}

/// Asks whether the upstream accepts `key`. An answer counts only if the upstream must have checked
/// the credential for it.
pub async fn ask_about(key: &Key) -> Acceptance {
    ask_traced(key).await.0.map_or(Acceptance::Unknown, Told::acceptance)
}

/// Probes `key` in a span of its own. Returns the answer's status as text, too.
async fn ask_traced(key: &Key) -> (Option<Told>, String) {
    let probe = info_span!(target: WORK, "probe", warmkey.key = %key.id, answer = Empty);
    let told = examine(key).instrument(probe.clone()).await;
    let status = told.map_or("no answer".into(), |told| told.status.as_u16().to_string());
    probe.record("answer", &status);
    (told, status)
}

/// The facts that an answer to a probe states.
#[derive(Clone, Copy)]
struct Told {
    status: StatusCode,
    /// The scope of the refusal, if the key is refused.
    refused: Option<Scope>,
    /// Whether the upstream itself says what is wrong. A page, or an error that names nothing, may
    /// come from an edge in front of the upstream, which checks no credential.
    is_own_error: bool,
    /// Whether the answer is a list of models.
    is_list: bool,
}

impl Told {
    fn acceptance(self) -> Acceptance {
        match (self.refused, self.status) {
            (Some(scope), _) => Acceptance::Refused(scope),
            (
                None,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS,
            ) if self.is_own_error => Acceptance::Accepted,
            (None, status) if status.is_success() && self.is_list => Acceptance::Accepted,
            (None, _) => Acceptance::Unknown,
        }
    }
}

/// Asks `GET /models`. Returns the status, and the scope of the refusal if the key is refused.
/// `None`: the upstream did not answer.
pub async fn ask(key: &Key) -> Option<(StatusCode, Option<Scope>)> {
    examine(key).await.map(|told| (told.status, told.refused))
}

async fn examine(key: &Key) -> Option<Told> {
    let asked = async {
        let answer = key.connections.execute(request(key, None)).await.ok()?;
        let mut outcome = read(answer).await;
        let is_list = match &mut outcome {
            Outcome::Answered(answer) if answer.status.is_success() => match answer.rest.take() {
                Some(rest) => read_list(&answer.headers, rest).await.is_some(),
                None => false,
            },
            _ => false,
        };
        Some((outcome, is_list))
    };
    let (outcome, is_list) = tokio::time::timeout(ANSWER_TIMEOUT, asked).await.ok()??;
    let scope = match &outcome {
        Outcome::Refused(Refusal { answer, error }) => {
            let case = (Met::Probe, ModelUse::default());
            match judge(case, answer.status, error, &answer.headers, time_of_day()) {
                Judgement::Key => Some(Scope::Key),
                Judgement::Organization(Trouble::Refused) => Some(Scope::Organization),
                _ => None,
            }
        }
        _ => None,
    };
    let is_own_error = match &outcome {
        // OpenAI's error about missing scopes has no code.
        Outcome::Refused(Refusal { error, .. }) => {
            let is_named = error.code.as_deref().is_some_and(|code| !code.is_empty());
            !error.is_page && (is_named || error.lacks_right)
        }
        _ => false,
    };
    Some(Told { status: outcome.answer()?.status, refused: scope, is_own_error, is_list })
}

#[cfg(test)]
mod tests;
