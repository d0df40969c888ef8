//! Tests of the registry as a topic of the heartbeat: what replicas report about keys, and how long
//! a report is believed.

use std::sync::{Arc, Mutex as Lock};
use std::time::Duration;

use tokio::time::Instant;

use crate::health::condition::{Condition, Subject};
use crate::health::diagnose::Scope;
use crate::health::registry::Registry;
use crate::key::table::Table;
use crate::metrics::Metrics;
use crate::peers::heartbeat::{Heartbeat, INTERVAL, LIFE};
use crate::store::Store;
use crate::store::model::{Flaw, Model, Shared, Weather};

struct Replica {
    registry: Arc<Registry>,
    heartbeat: Arc<Heartbeat>,
}

impl Replica {
    fn new(model: Model, metrics: Arc<Metrics>, name: &str) -> Self {
        let registry = Arc::new(Registry::new(Table::sketch("a o 1 sk-a"), Arc::clone(&metrics)));
        let store = Arc::new(Store::in_model(model, metrics));
        let (topic, replicas) = (Arc::clone(&registry) as _, Arc::clone(&registry.replicas));
        Self { registry, heartbeat: Arc::new(Heartbeat::new(store, topic, replicas, name.into())) }
    }

    async fn exchange(&self) {
        self.heartbeat.exchange().await;
    }
}

fn replica(shared: &Arc<Lock<Shared>>, name: &str) -> (Replica, Model) {
    let model = Model::new(shared);
    (Replica::new(model.clone(), Arc::new(Metrics::new()), name), model)
}

fn in_flight(replica: &Replica) -> usize {
    replica.registry.loads.of(&replica.registry.loaded().table.keys()[0])
}

#[tokio::test(start_paused = true)]
async fn turns_in_flight_of_others_are_believed_for_the_life_of_a_report() {
    let shared = Arc::new(Lock::new(Shared::new(Flaw::None)));
    let ((one, weather), (two, _)) = (replica(&shared, "one"), replica(&shared, "two"));
    let key = Arc::clone(&two.registry.loaded().table.keys()[0]);
    let turns: Vec<_> = (0..3).map(|_| two.registry.loads.enter(&key)).collect();
    two.exchange().await;
    one.exchange().await;
    assert_eq!(in_flight(&one), 3);
    *weather.weather.lock().unwrap() = Weather::Away;
    tokio::time::advance(LIFE).await;
    one.exchange().await;
    assert_eq!(in_flight(&one), 3, "the other one may live on");
    tokio::time::advance(Duration::from_millis(1)).await;
    one.exchange().await;
    assert_eq!(in_flight(&one), 0);
    *weather.weather.lock().unwrap() = Weather::Fair;
    two.exchange().await;
    one.exchange().await;
    assert_eq!(in_flight(&one), 3);
    // A replica that has left stays away, even if one more heartbeat is due.
    two.heartbeat.leave().await;
    two.exchange().await;
    one.exchange().await;
    assert_eq!((in_flight(&one), turns.len()), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn replicas_share_the_herd_that_a_key_takes() {
    let shared = Arc::new(Lock::new(Shared::new(Flaw::None)));
    let ((one, _), (two, _)) = (replica(&shared, "one"), replica(&shared, "two"));
    let key = Arc::clone(&one.registry.loaded().table.keys()[0]);
    let admitted =
        |replica: &Replica| (0..100).filter(|_| replica.registry.herd.admit(&key).is_ok()).count();
    two.exchange().await;
    assert_eq!(admitted(&two), 30, "alone");
    one.exchange().await;
    assert_eq!(admitted(&one), 15, "one of two");
}

#[tokio::test(start_paused = true)]
async fn condition_ends_by_itself_and_the_metric_shows_it() {
    let metrics = Arc::new(Metrics::new());
    // The store, which would say that the condition is over, is away.
    let model = Model::new(&Arc::new(Lock::new(Shared::new(Flaw::None))));
    *model.weather.lock().unwrap() = Weather::Away;
    let one = Replica::new(model, Arc::clone(&metrics), "one");
    let is_shown =
        |state: &str| metrics.render().contains(&format!("key=\"a\",state=\"{state}\"}} 1"));
    let running = tokio::spawn(Arc::clone(&one.heartbeat).run());
    let key = Arc::clone(&one.registry.loaded().table.keys()[0]);
    let mut changes = one.registry.follow();
    one.registry.limit(&key, "m", INTERVAL * 10);
    changes.changed().await.unwrap();
    tokio::time::sleep(INTERVAL * 9).await;
    assert!(!one.registry.conditions.is_empty() && is_shown("cooling"));
    tokio::time::sleep(INTERVAL * 2).await;
    assert!(one.registry.conditions.is_empty() && is_shown("ready"));
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn observation_is_reported_at_once() {
    let shared = Arc::new(Lock::new(Shared::new(Flaw::None)));
    let ((one, _), (two, _)) = (replica(&shared, "one"), replica(&shared, "two"));
    let ended = Instant::now() + INTERVAL * 3 / 2;
    let running = tokio::spawn(Arc::clone(&one.heartbeat).run());
    tokio::time::sleep_until(ended).await;
    let subject = Subject::of(&one.registry.loaded().table.keys()[0], Scope::Key);
    one.registry.conditions.note(subject, Condition::Rejected, Condition::Rejected.life());
    // Long before the next heartbeat is due.
    tokio::time::sleep(INTERVAL / 4).await;
    two.exchange().await;
    assert!(two.registry.conditions.is(subject, Condition::Rejected));
    running.abort();
}
