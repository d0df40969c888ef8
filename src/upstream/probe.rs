//! Asks again about keys that are out of use: whether a refusal is meant, and whether it has
//! passed.
//!
//! A refused key is asked for its models, which costs nothing. Whether a quota is there again only
//! a turn can find out: one replica at a time lets one try.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};
use tokio::time::MissedTickBehavior;

use crate::health::condition::{Condition, Subject};
use crate::health::diagnose::{Ailment, Diagnosis, Scope, diagnose};
use crate::health::registry::Registry;
use crate::key::Key;
use crate::metrics::{Decision, Metrics, Reason};
use crate::outcome::{Outcome, Refusal};
use crate::store::Store;
use crate::store::name::Name;
use crate::task::Tasks;
use crate::upstream::attempt::read;
use crate::upstream::headers::credential;

/// How often it is looked whether something is to be asked.
const BEAT: Duration = Duration::from_secs(1);
/// So many keys of an organization are asked at the most, where one after the other is refused by
/// itself.
const WITNESSES: usize = 3;
/// How long an upstream may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// One replica's questions.
pub struct Prober {
    pub store: Arc<Store>,
    pub registry: Arc<Registry>,
    pub metrics: Arc<Metrics>,
    pub tasks: Tasks,
    /// Another one for each process.
    pub name: String,
}

impl Prober {
    /// Probes in the background until `tasks` end. `name` is this replica's among all replicas.
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
        tasks.spawn_until_stopped(Arc::new(prober).keep_probing());
    }

    /// Asks for as long as the replica lives.
    pub async fn keep_probing(self: Arc<Self>) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                () = self.registry.probe_wanted() => {}
            }
            for (subject, condition, pause) in self.registry.conditions.due() {
                let prober = Arc::clone(&self);
                self.tasks.spawn(async move { prober.ask(subject, condition, pause).await });
            }
        }
    }

    /// `pause`: until the next time.
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

    /// Whether this replica asks for all. Without the store each asks for itself.
    async fn is_elected(&self, subject: Subject, pause: Duration) -> bool {
        let subject = subject.name();
        let claimed = self
            .store
            .claim(
                Name::Probe(&subject),
                &self.name,
                pause / 5 * 4,
                &mut self.store.patient_budget(),
            )
            .await;
        !matches!(claimed, Ok(Some(_)))
    }

    /// Asks the upstream whether it accepts a key that it has refused.
    async fn confirm(&self, subject: Subject) {
        let loaded = self.registry.loaded();
        let is_organization = matches!(subject, Subject::Organization(_));
        let is_rejected = |key: &&Arc<Key>| {
            self.registry.conditions.is(Subject::of(key, Scope::Key), Condition::Rejected)
        };
        let mut concerned: Vec<_> =
            loaded.table.keys().iter().filter(|key| subject.concerns(key)).collect();
        concerned.sort_by_key(is_rejected);
        for key in concerned.into_iter().take(if is_organization { WITNESSES } else { 1 }) {
            self.metrics.decided(Decision::Probe, Reason::Rejected);
            let answer = ask(key).await;
            let told = answer.map_or("no answer".into(), |(status, _)| status.as_u16().to_string());
            tracing::info!(decision = "probe", reason = "rejected", key = %key.id, answer = told, "asked whether a key is accepted");
            return match answer {
                // One that is refused by itself says nothing of its organization: another one is
                // asked.
                Some((_, Some(Scope::Key))) if is_organization => {
                    self.registry.condemn(key, Ailment::Rejected(Scope::Key));
                    continue;
                }
                Some((_, Some(scope))) => self.registry.condemn(key, Ailment::Rejected(scope)),
                // Whatever else it says, it says it to a key that it knows.
                Some((status, None)) if !status.is_server_error() => {
                    self.registry.recovered(subject, &key.id)
                }
                Some(_) | None => {}
            };
        }
        if is_organization {
            // Each of them was refused by itself.
            self.registry.recovered(subject, "");
        }
    }
}

/// What `GET /models` is answered with, and what it refuses the key by, if it does. `None`: with
/// nothing.
pub async fn ask(key: &Key) -> Option<(StatusCode, Option<Scope>)> {
    let mut request = reqwest::Request::new(Method::GET, key.upstream.models.clone());
    if let Some(value) = credential(&key.secret) {
        request.headers_mut().insert(http::header::AUTHORIZATION, value);
    }
    let asked = async {
        let answer = key.connections.execute(request).await.ok()?;
        Some(read(answer).await)
    };
    let outcome = tokio::time::timeout(PATIENCE, asked).await.ok()??;
    let scope = match &outcome {
        Outcome::Refused(Refusal { answer, error }) => {
            match diagnose(answer.status, error, &answer.headers, SystemTime::now()) {
                Diagnosis::Ailing(Ailment::Rejected(scope)) => Some(scope),
                _ => None,
            }
        }
        _ => None,
    };
    Some((outcome.answer()?.status, scope))
}

#[cfg(test)]
mod tests;
