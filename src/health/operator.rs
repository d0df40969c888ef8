//! The operator's commands on keys: disable, enable, drain, probe.
//!
//! A command takes effect here at once and is reported to the other replicas right away. If the
//! store is away, the report follows as soon as the store is back. This module asks no upstream and
//! shows no secret.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::health::condition::{Condition, Subject};
use crate::health::registry::Registry;
use crate::key::Key;
use crate::peers::heartbeat::Heartbeat;

/// Prefix of an organization's name, since a key may have the same name.
const ORGANIZATION: &str = "org:";

/// A command of the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatorCommand {
    /// Takes a key out of use. Other keys of its organization serve its sessions, which stay bound
    /// to it.
    Disable,
    /// Puts a key back in use, whatever the last command was.
    Enable,
    /// Moves a key's sessions to other keys, for good.
    Drain,
    /// Forgets all observations about a key, so that turns try it again.
    Probe,
}

impl OperatorCommand {
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Disable, Self::Enable, Self::Drain, Self::Probe]
            .into_iter()
            .find(|command| command.name() == text)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Enable => "enable",
            Self::Drain => "drain",
            Self::Probe => "probe",
        }
    }

    /// The condition that the command sets.
    const fn condition(self) -> Option<Condition> {
        match self {
            Self::Disable => Some(Condition::Disabled),
            // `Enabled` replaces the last command, which a replica that was away would otherwise
            // bring back.
            Self::Enable => Some(Condition::Enabled),
            Self::Drain => Some(Condition::Drained),
            Self::Probe => None,
        }
    }
}

/// The subjects of a command, and their keys.
pub struct Target {
    /// A key, or an organization at each of its hosts.
    subjects: Vec<Subject>,
    /// Never empty.
    pub keys: Vec<Arc<Key>>,
}

/// A key as operators see it.
#[derive(Debug, Serialize)]
pub struct KeyView {
    pub id: String,
    pub organization: String,
    pub project: String,
    pub region: String,
    pub weight: u32,
    /// `ready`, `cooling`, `probing` or `disabled`.
    pub state: String,
    pub conditions: Vec<Reason>,
    /// Turns in flight on all replicas.
    pub in_flight: usize,
    pub upstream: String,
    /// Tag of the id and the secret: shows whether replicas have the same secret, but not which.
    pub fingerprint: String,
}

/// A condition of a key, or of something that the key belongs to.
#[derive(Debug, Serialize)]
pub struct Reason {
    pub reason: &'static str,
    /// `key`, `project`, `organization` or `model`.
    pub scope: &'static str,
    /// `None`: until another command.
    pub seconds_left: Option<f64>,
}

pub struct Operator {
    registry: Arc<Registry>,
    heartbeat: Arc<Heartbeat>,
}

impl Operator {
    pub const fn new(registry: Arc<Registry>, heartbeat: Arc<Heartbeat>) -> Self {
        Self { registry, heartbeat }
    }

    /// The key of this id, or all keys of the organization in `org:ID`.
    pub fn find(&self, name: &str) -> Option<Target> {
        let loaded = self.registry.loaded();
        let keys = |is_selected: &dyn Fn(&Key) -> bool| -> Vec<Arc<Key>> {
            loaded.table.keys().iter().filter(|key| is_selected(key)).cloned().collect()
        };
        let named = keys(&|key| key.id == name);
        let target = match (named.first(), name.strip_prefix(ORGANIZATION)) {
            (Some(key), _) => Target { subjects: vec![Subject::of_key_id(key)], keys: named },
            (None, Some(organization)) => {
                let keys = keys(&|key| key.organization == organization);
                let mut subjects = Vec::new();
                for key in &keys {
                    let subject = Subject::Organization(key.organization_tag);
                    if !subjects.contains(&subject) {
                        subjects.push(subject);
                    }
                }
                Target { subjects, keys }
            }
            (None, None) => return None,
        };
        (!target.keys.is_empty()).then_some(target)
    }

    /// Carries out `command` and reports it. Returns true if the other replicas have received it.
    pub async fn give(&self, target: &Target, command: OperatorCommand) -> bool {
        let conditions = &self.registry.conditions;
        match command.condition() {
            Some(condition) => {
                for subject in &target.subjects {
                    conditions.note(*subject, condition, condition.life());
                }
            }
            None => {
                // The exchange brings in observations that others reported a moment ago, which must
                // be forgotten, too.
                self.heartbeat.exchange().await;
                conditions.forget(|subject| target.keys.iter().any(|key| subject.concerns(key)));
            }
        }
        self.registry.has_changed();
        self.heartbeat.exchange().await;
        conditions.is_reported()
    }

    /// All keys, with what all replicas know about them now.
    pub async fn all(&self) -> Vec<KeyView> {
        self.heartbeat.exchange().await;
        self.views(self.registry.loaded().table.keys())
    }

    pub fn views(&self, keys: &[Arc<Key>]) -> Vec<KeyView> {
        keys.iter().map(|key| self.view(key)).collect()
    }

    fn view(&self, key: &Key) -> KeyView {
        let conditions = self.registry.conditions.of(key).into_iter();
        // `Enabled` only replaces other commands: there is nothing to show.
        let conditions = conditions.filter(|(_, condition, _)| *condition != Condition::Enabled);
        let reason = |(subject, condition, left): (Subject, Condition, Option<Duration>)| Reason {
            reason: condition.name(),
            scope: subject.scope(),
            // Tenths of a second are enough.
            seconds_left: left.map(|left| (left.as_secs_f64() * 10.0).round() / 10.0),
        };
        KeyView {
            id: key.id.clone(),
            organization: key.organization.clone(),
            project: key.project.clone(),
            region: key.region.clone(),
            weight: key.weight,
            state: self.registry.state(key).name().into(),
            conditions: conditions.map(reason).collect(),
            in_flight: self.registry.loads.of(key),
            upstream: key.upstream.name.clone(),
            fingerprint: key.shown_tag.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::conditions::{Fitness, Why};
    use crate::health::diagnose::{Ailment, Scope};
    use crate::key::table::Table;
    use crate::metrics::Metrics;
    use crate::store::Store;
    use crate::store::memory::Memory;

    fn heartbeat(store: Arc<Store>, registry: &Arc<Registry>, name: &str) -> Arc<Heartbeat> {
        let (topic, replicas) = (Arc::clone(registry) as _, Arc::clone(&registry.replicas));
        Arc::new(Heartbeat::new(store, topic, replicas, name.into()))
    }

    fn operator() -> Operator {
        let metrics = Arc::new(Metrics::new());
        let store = Arc::new(Store::in_memory(Arc::new(Memory::new(10)), Arc::clone(&metrics)));
        let table = Table::sketch("a o 1 sk-canary-a, b o 0 sk-canary-b, c p 1 sk-canary-c");
        let registry = Arc::new(Registry::new(table, metrics));
        Operator::new(Arc::clone(&registry), heartbeat(store, &registry, "one"))
    }

    fn fitness(operator: &Operator) -> Vec<Fitness> {
        operator
            .registry
            .loaded()
            .table
            .keys()
            .iter()
            .map(|key| operator.registry.fitness(key, ""))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn command_holds_until_another_one_replaces_it() {
        let operator = operator();
        let (key, organization) = (operator.find("a").unwrap(), operator.find("org:o").unwrap());
        assert_eq!((key.keys.len(), organization.keys.len()), (1, 2));
        assert!(
            operator.find("o").is_none()
                && operator.find("org:q").is_none()
                && operator.find("").is_none()
        );
        let (disabled, drained) = (Fitness::Bypassed(Why::Disabled), Fitness::Dead(Why::Drained));
        assert!(operator.give(&key, OperatorCommand::Disable).await);
        tokio::time::advance(Duration::from_secs(1_000_000)).await;
        assert_eq!(fitness(&operator), [disabled, Fitness::Ready, Fitness::Ready]);
        operator.give(&organization, OperatorCommand::Drain).await;
        assert_eq!(fitness(&operator), [drained, drained, Fitness::Ready]);
        operator.give(&organization, OperatorCommand::Enable).await;
        assert_eq!(
            fitness(&operator),
            [disabled, Fitness::Ready, Fitness::Ready],
            "its own command was not ended"
        );
        operator.give(&key, OperatorCommand::Enable).await;
        assert_eq!(fitness(&operator), [Fitness::Ready; 3]);
        assert!(
            operator
                .all()
                .await
                .iter()
                .all(|view| view.state == "ready" && view.conditions.is_empty())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn probe_forgets_observations_and_no_command() {
        let operator = operator();
        let keys = operator.registry.loaded().table.keys().to_vec();
        operator.registry.condemn(&keys[0], Ailment::Rejected(Scope::Key));
        operator.registry.end_illness(Subject::of(&keys[0], Scope::Key), "a");
        assert!(operator.registry.conditions.ramp(&keys[0]) < 0.01);
        operator.registry.condemn(&keys[0], Ailment::Exhausted(Scope::Organization));
        operator.registry.condemn(&keys[1], Ailment::Rejected(Scope::Key));
        operator.registry.limit(&keys[0], "m", Duration::from_secs(60));
        operator.registry.condemn(&keys[2], Ailment::Rejected(Scope::Key));
        operator.give(&operator.find("b").unwrap(), OperatorCommand::Disable).await;
        let exhausted = Subject::of(&keys[0], Scope::Organization);
        operator.registry.conditions.grant(exhausted);
        assert!(!operator.registry.conditions.has_ticket(&keys[1]), "no turn may try the key");
        assert!(operator.registry.conditions.has_ticket(&keys[0]));
        operator.give(&operator.find("org:o").unwrap(), OperatorCommand::Probe).await;
        let rejected = Fitness::Dead(Why::Rejected);
        assert_eq!(
            fitness(&operator),
            [Fitness::Ready, Fitness::Bypassed(Why::Disabled), rejected]
        );
        assert!(operator.registry.conditions.ramp(&keys[0]) > 0.99, "there is no gradual return");
        operator.give(&operator.find("b").unwrap(), OperatorCommand::Enable).await;
        assert_eq!(
            fitness(&operator),
            [Fitness::Ready, Fitness::Ready, rejected],
            "and its own observation is forgotten"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn key_may_be_called_like_an_organization_is_named() {
        let metrics = Arc::new(Metrics::new());
        let registry = Arc::new(Registry::new(
            Table::sketch("org:o o 1 sk-a, b o 1 sk-b, o p 1 sk-c"),
            Arc::clone(&metrics),
        ));
        let store = Arc::new(Store::in_memory(Arc::new(Memory::new(10)), metrics));
        let operator = Operator::new(Arc::clone(&registry), heartbeat(store, &registry, "one"));
        let found = |name: &str| {
            operator
                .find(name)
                .map(|target| target.keys.iter().map(|key| key.id.clone()).collect::<Vec<_>>())
        };
        assert_eq!(found("org:o"), Some(vec!["org:o".to_owned()]), "the key");
        assert_eq!(found("org:p"), Some(vec!["o".to_owned()]));
        assert_eq!(found("o"), Some(vec!["o".to_owned()]));
        operator.give(&operator.find("org:o").unwrap(), OperatorCommand::Drain).await;
        assert_eq!(
            fitness(&operator),
            [Fitness::Dead(Why::Drained), Fitness::Ready, Fitness::Ready]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn command_is_taken_while_the_store_is_away_and_reported_once_it_is_back() {
        use crate::store::model::{Flaw, Model, Shared, Weather};
        let shared = Arc::new(std::sync::Mutex::new(Shared::new(Flaw::None)));
        let replica = |name: &str| {
            let (model, metrics) = (Model::new(&shared), Arc::new(Metrics::new()));
            let registry =
                Arc::new(Registry::new(Table::sketch("a o 1 sk-a"), Arc::clone(&metrics)));
            let store = Arc::new(Store::in_model(model.clone(), metrics));
            (Operator::new(Arc::clone(&registry), heartbeat(store, &registry, name)), model.weather)
        };
        let ((one, weather), (two, _)) = (replica("one"), replica("two"));
        let target = one.find("a").unwrap();
        *weather.lock().unwrap() = Weather::Away;
        assert!(
            !one.give(&target, OperatorCommand::Disable).await,
            "no other replica has received it"
        );
        assert_eq!(fitness(&one), [Fitness::Bypassed(Why::Disabled)], "but it holds here");
        *weather.lock().unwrap() = Weather::Fair;
        assert_eq!(one.all().await[0].state, "disabled");
        assert_eq!(two.all().await[0].conditions[0].reason, "disabled");
        // Observations that another replica has reported, and this one has not received, are
        // forgotten, too.
        assert!(two.give(&target, OperatorCommand::Enable).await);
        two.registry.condemn(&target.keys[0], Ailment::Rejected(Scope::Key));
        two.heartbeat.exchange().await;
        assert!(one.give(&target, OperatorCommand::Probe).await);
        two.heartbeat.exchange().await;
        assert_eq!((fitness(&one), fitness(&two)), (vec![Fitness::Ready], vec![Fitness::Ready]));
    }

    #[tokio::test(start_paused = true)]
    async fn view_shows_conditions_and_no_secret() {
        let operator = operator();
        let keys = operator.registry.loaded().table.keys().to_vec();
        operator.registry.condemn(&keys[0], Ailment::Exhausted(Scope::Organization));
        operator.give(&operator.find("b").unwrap(), OperatorCommand::Drain).await;
        let _turn = operator.registry.loads.enter(&keys[1]);
        let shown = serde_json::to_string(&operator.all().await).unwrap();
        assert!(!shown.contains("canary"), "{shown}");
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(shown[0]["conditions"][0]["scope"], "organization");
        assert_eq!(shown[0]["conditions"][0]["reason"], "exhausted");
        assert_eq!(shown[0]["conditions"][0]["seconds_left"], 86_400.0);
        assert_eq!((&shown[1]["in_flight"], &shown[1]["weight"]), (&1.into(), &0.into()));
        assert_eq!(shown[1]["conditions"][0]["reason"], "drained");
        assert_eq!(shown[1]["conditions"][0]["seconds_left"], serde_json::Value::Null);
        assert_eq!(
            (&shown[2]["state"], &shown[2]["fingerprint"]),
            (&"ready".into(), &keys[2].shown_tag.to_string().into())
        );
    }
}
