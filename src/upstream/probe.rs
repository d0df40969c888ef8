//! Asks again about keys that are out of use: whether a refusal is meant, and whether it has passed.
//!
//! A refused key is asked for its models, which costs nothing. Whether a quota is there again only a turn can find out: one
//! replica at a time lets one try.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::time::MissedTickBehavior;

use super::headers::credential;
use crate::key::Key;
use crate::key::condition::{Condition, Subject};
use crate::key::health::{Ailment, Scope};
use crate::key::registry::Registry;
use crate::metrics::{Decision, Metrics, Reason};
use crate::store::Store;
use crate::task::Tasks;

/// How often it is looked whether something is to be asked.
const BEAT: Duration = Duration::from_secs(1);
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
            Condition::Rejected if self.is_elected(subject, pause).await => self.confirm(subject).await,
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
        let lease = format!("probe:{}", subject.name());
        let claimed = self.store.claim(&lease, &self.name, pause / 5 * 4, &mut self.store.patient_budget()).await;
        !matches!(claimed, Ok(Some(_)))
    }

    /// Asks the upstream whether it accepts a key that it has refused.
    async fn confirm(&self, subject: Subject) {
        let loaded = self.registry.loaded();
        // One that is refused by itself says nothing of its organization.
        let is_sound = |key: &&Arc<Key>| !self.registry.conditions.is(Subject::of(key, Scope::Key), Condition::Rejected);
        let concerned = || loaded.table.keys().iter().filter(|key| subject.concerns(key));
        let Some(key) = concerned().find(is_sound).or_else(|| concerned().next()) else { return };
        let scope = if matches!(subject, Subject::Organization(_)) { Scope::Organization } else { Scope::Key };
        self.metrics.decided(Decision::Probe, Reason::Rejected);
        let status = is_accepted(key).await;
        let told = status.map_or("no answer".into(), |status| status.as_u16().to_string());
        tracing::info!(decision = "probe", reason = "rejected", key = %key.id, answer = told, "asked whether a key is accepted");
        match status {
            Some(StatusCode::UNAUTHORIZED) => self.registry.condemn(key, Ailment::Rejected(scope)),
            // Whatever else it says, it says it to a key that it knows.
            Some(status) if !status.is_server_error() => self.registry.recovered(subject, &key.id),
            Some(_) | None => {}
        }
    }
}

/// What `GET /models` is answered with. `None`: with nothing.
pub async fn is_accepted(key: &Key) -> Option<StatusCode> {
    let mut request = reqwest::Request::new(Method::GET, key.upstream.models.clone());
    if let Some(value) = credential(&key.secret) {
        request.headers_mut().insert(http::header::AUTHORIZATION, value);
    }
    let answer = tokio::time::timeout(PATIENCE, key.connections.execute(request)).await.ok()?.ok()?;
    Some(answer.status())
}
