//! Tests a property: one heartbeat after any observations of any replicas, all replicas agree on
//! every key.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::{Instant, advance};

use crate::health::condition::{Class, Condition, Subject};
use crate::health::conditions::Fitness;
use crate::health::diagnose::{Ailment, Scope};
use crate::health::registry::Registry;
use crate::key::table::Table;
use crate::metrics::Metrics;
use crate::peers::heartbeat::Heartbeat;
use crate::store::Store;
use crate::store::memory::Memory;

const KEYS: &str =
    "a-1 org-a 1 sk-1, a-2 org-a 1 sk-2, b-1 org-b 1 sk-3, c-1 org-c 1 sk-4, d-1 org-d 1 sk-5";
const REPLICAS: usize = 3;
const MODELS: [&str; 2] = ["m", "n"];

#[derive(Clone, Debug)]
enum Event {
    Refused(usize, Scope),
    Confirmed(usize),
    Exhausted(usize, Scope),
    Limited(usize, usize, u64),
    Served(usize),
    Disabled(usize),
    Enabled(usize),
    Passes(u64),
    /// The store forgets everything.
    Lost,
}

fn event() -> impl Strategy<Value = Event> {
    let key = 0..5_usize;
    let scope = || prop_oneof![Just(Scope::Project), Just(Scope::Organization)];
    prop_oneof![
        (key.clone(), prop_oneof![Just(Scope::Key), Just(Scope::Organization)])
            .prop_map(|(key, scope)| Event::Refused(key, scope)),
        key.clone().prop_map(Event::Confirmed),
        (key.clone(), scope()).prop_map(|(key, scope)| Event::Exhausted(key, scope)),
        (key.clone(), 0..2_usize, 1..90_u64)
            .prop_map(|(key, model, wait)| Event::Limited(key, model, wait)),
        key.clone().prop_map(Event::Served),
        key.clone().prop_map(Event::Disabled),
        key.prop_map(Event::Enabled),
        (1..70_u64).prop_map(Event::Passes),
        Just(Event::Lost),
    ]
}

struct Replica {
    registry: Arc<Registry>,
    memory: Arc<Memory>,
    heartbeat: Heartbeat,
}

impl Replica {
    fn new(name: usize, memory: &Arc<Memory>) -> Self {
        let metrics = Arc::new(Metrics::new());
        // Each key has connections of its own, so the table is built only once.
        static TABLE: LazyLock<Table> = LazyLock::new(|| Table::sketch(KEYS));
        let registry = Arc::new(Registry::new(TABLE.clone(), Arc::clone(&metrics)));
        let store = Arc::new(Store::in_memory(Arc::clone(memory), metrics));
        let replicas = Arc::clone(&registry.replicas);
        let heartbeat =
            Heartbeat::new(store, Arc::clone(&registry) as _, replicas, format!("r{name}"));
        Self { registry, memory: Arc::clone(memory), heartbeat }
    }

    async fn apply(&self, event: &Event) {
        let keys = self.registry.loaded();
        let key = |number: &usize| &keys.table.keys()[*number];
        match event {
            Event::Refused(number, scope) => {
                self.registry.observe(key(number), Ailment::Rejected(*scope))
            }
            Event::Confirmed(number) => {
                self.registry.condemn(key(number), Ailment::Rejected(Scope::Key))
            }
            Event::Exhausted(number, scope) => {
                self.registry.observe(key(number), Ailment::Exhausted(*scope))
            }
            Event::Limited(number, model, wait) => {
                self.registry.limit(key(number), MODELS[*model], Duration::from_secs(*wait));
            }
            Event::Served(number) => self.registry.has_served(key(number), Instant::now()),
            Event::Disabled(number) => {
                self.command(Subject::of_key_id(key(number)), Condition::Disabled)
            }
            Event::Enabled(number) => {
                self.command(Subject::of_key_id(key(number)), Condition::Enabled)
            }
            Event::Passes(seconds) => advance(Duration::from_secs(*seconds)).await,
            Event::Lost => self.memory.forget_board(),
        }
    }

    fn command(&self, subject: Subject, condition: Condition) {
        assert!(condition.class() == Class::Operator);
        self.registry.conditions.note(subject, condition, None);
        self.registry.has_changed();
    }

    /// The fitness of each key for each model, as this replica sees it.
    fn fitness(&self) -> Vec<String> {
        let keys = self.registry.loaded();
        let pairs = keys.table.keys().iter().flat_map(|key| MODELS.map(|model| (key, model)));
        let fitness = pairs.map(|(key, model)| match self.registry.fitness(key, model) {
            Fitness::Limited(_) => format!("{} {model}: limited", key.id),
            other => format!("{} {model}: {other:?}", key.id),
        });
        fitness.collect()
    }
}

async fn play(events: &[(usize, Event)]) -> Result<(), TestCaseError> {
    let memory = Arc::new(Memory::new(100));
    let replicas: Vec<_> = (0..REPLICAS).map(|number| Replica::new(number, &memory)).collect();
    for (replica, event) in events {
        replicas[*replica].apply(event).await;
        // Observations are reported at once and received within one heartbeat.
        replicas[*replica].heartbeat.exchange().await;
        advance(Duration::from_millis(200)).await;
        for _ in 0..2 {
            for replica in &replicas {
                replica.heartbeat.exchange().await;
            }
        }
        let expected = replicas[0].fitness();
        for other in &replicas[1..] {
            prop_assert_eq!(&other.fitness(), &expected, "after {:?}", event);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn replicas_agree(events in prop::collection::vec((0..REPLICAS, event()), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(play(&events))?;
    }
}
