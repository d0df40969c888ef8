//! What replicas tell each other of keys with their heartbeat, and for how long it is believed.

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

    async fn beat(&self) {
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
async fn what_others_have_in_flight_is_believed_for_as_long_as_they_are() {
    let shared = Arc::new(Lock::new(Shared::new(Flaw::None)));
    let ((one, weather), (two, _)) = (replica(&shared, "one"), replica(&shared, "two"));
    let key = Arc::clone(&two.registry.loaded().table.keys()[0]);
    let turns: Vec<_> = (0..3).map(|_| two.registry.loads.enter(&key)).collect();
    two.beat().await;
    one.beat().await;
    assert_eq!(in_flight(&one), 3);
    *weather.weather.lock().unwrap() = Weather::Away;
    tokio::time::advance(LIFE).await;
    one.beat().await;
    assert_eq!(in_flight(&one), 3, "the other one may live on");
    tokio::time::advance(Duration::from_millis(1)).await;
    one.beat().await;
    assert_eq!(in_flight(&one), 0);
    *weather.weather.lock().unwrap() = Weather::Fair;
    two.beat().await;
    one.beat().await;
    assert_eq!(in_flight(&one), 3);
    // It leaves, and a beat that was due all the same does not bring it back.
    two.heartbeat.leave().await;
    two.beat().await;
    one.beat().await;
    assert_eq!((in_flight(&one), turns.len()), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn replicas_share_what_a_key_takes() {
    let shared = Arc::new(Lock::new(Shared::new(Flaw::None)));
    let ((one, _), (two, _)) = (replica(&shared, "one"), replica(&shared, "two"));
    let key = Arc::clone(&one.registry.loaded().table.keys()[0]);
    let admitted =
        |replica: &Replica| (0..100).filter(|_| replica.registry.herd.admit(&key).is_ok()).count();
    two.beat().await;
    assert_eq!(admitted(&two), 30, "alone");
    one.beat().await;
    assert_eq!(admitted(&one), 15, "one of two");
}

#[tokio::test(start_paused = true)]
async fn what_is_over_is_over_by_itself_and_shown_so() {
    let metrics = Arc::new(Metrics::new());
    // Without the store, which would say that it is over.
    let model = Model::new(&Arc::new(Lock::new(Shared::new(Flaw::None))));
    *model.weather.lock().unwrap() = Weather::Away;
    let one = Replica::new(model, Arc::clone(&metrics), "one");
    let is_shown =
        |state: &str| metrics.render().contains(&format!("key=\"a\",state=\"{state}\"}} 1"));
    let beating = tokio::spawn(Arc::clone(&one.heartbeat).run());
    let key = Arc::clone(&one.registry.loaded().table.keys()[0]);
    let mut changes = one.registry.follow();
    one.registry.limit(&key, "m", INTERVAL * 10);
    changes.changed().await.unwrap();
    tokio::time::sleep(INTERVAL * 9).await;
    assert!(!one.registry.conditions.is_empty() && is_shown("cooling"));
    tokio::time::sleep(INTERVAL * 2).await;
    assert!(one.registry.conditions.is_empty() && is_shown("ready"));
    beating.abort();
}

#[tokio::test(start_paused = true)]
async fn what_is_met_is_told_at_once() {
    let shared = Arc::new(Lock::new(Shared::new(Flaw::None)));
    let ((one, _), (two, _)) = (replica(&shared, "one"), replica(&shared, "two"));
    let ended = Instant::now() + INTERVAL * 3 / 2;
    let beating = tokio::spawn(Arc::clone(&one.heartbeat).run());
    tokio::time::sleep_until(ended).await;
    let subject = Subject::of(&one.registry.loaded().table.keys()[0], Scope::Key);
    one.registry.conditions.note(subject, Condition::Rejected, Condition::Rejected.life());
    // Long before the next beat is due.
    tokio::time::sleep(INTERVAL / 4).await;
    two.beat().await;
    assert!(two.registry.conditions.is(subject, Condition::Rejected));
    beating.abort();
}
