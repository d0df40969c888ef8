//! What is known of keys, as turns meet it.

use crate::health::registry::*;

const REJECTED: Ailment = Ailment::Rejected(Scope::Key);

fn registry(sketch: &str) -> (Registry, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    (Registry::new(Table::sketch(sketch), Arc::clone(&metrics)), metrics)
}

fn reload(registry: &Registry, sketch: &str, ordinal: Option<u32>) {
    let roll = ordinal.map(|ordinal| Roll { ordinal, others: Vec::new() });
    registry.adopt(registry.prepare(Table::sketch(sketch)).unwrap(), roll.as_ref());
}

fn key(registry: &Registry, id: &str) -> Arc<Key> {
    registry.loaded().table.keys().iter().find(|key| key.id == id).cloned().unwrap()
}

#[test]
fn the_same_keys_are_no_reload() {
    let (registry, _) = registry("a o 1 sk-a, b o 1 sk-b");
    assert!(registry.prepare(Table::sketch("b o 1 sk-b, a o 1 sk-a")).is_none());
}

#[test]
fn while_the_store_is_away_the_set_of_the_moment_of_loss_says_where_sessions_go() {
    let ids = |loaded: Arc<Loaded>| loaded.table.keys().iter().map(|key| key.id.clone()).collect::<String>();
    let (registry, _) = registry("a o 1 sk-a, b o 1 sk-b");
    reload(&registry, "a o 1 sk-a, c o 1 sk-c", Some(2));
    assert_eq!((ids(registry.loaded()), ids(registry.frozen())), ("ac".into(), "ac".into()));
    reload(&registry, "a o 1 sk-a, d o 1 sk-d", None);
    reload(&registry, "a o 1 sk-a, d o 1 sk-d, e o 1 sk-e", None);
    assert_eq!((ids(registry.loaded()), ids(registry.frozen())), ("ade".into(), "ac".into()));
    let frozen = registry.frozen();
    assert_eq!(frozen.table.keys().iter().map(|key| frozen.is_gone(key)).collect::<Vec<_>>(), [false, true]);
    registry.heard(&registry.loaded(), &Roll { ordinal: 3, others: Vec::new() });
    assert_eq!(ids(registry.frozen()), "ade");
    reload(&registry, "f o 1 sk-f", None);
    assert_eq!(ids(registry.frozen()), "f", "a set of which nothing is left says nothing");
}

#[test]
fn another_secret_deserves_a_try() {
    let (registry, _) = registry("a o 1 sk-old, b o 1 sk-b");
    let old = key(&registry, "a");
    registry.condemn(&old, REJECTED);
    assert!(registry.successor(&old).is_none() && !registry.is_well(&old, ""));
    reload(&registry, "a o 2 sk-old, b o 1 sk-b", Some(1));
    assert!(!registry.is_well(&key(&registry, "a"), ""), "another weight heals nothing");
    reload(&registry, "a o 1 sk-new, b o 1 sk-b", Some(1));
    let new = key(&registry, "a");
    assert!(registry.is_well(&new, ""));
    assert!(registry.successor(&old).is_some_and(|key| Arc::ptr_eq(&key, &new)));
    // A turn that was sent with the old secret ends late.
    registry.condemn(&old, REJECTED);
    assert!(registry.is_well(&new, ""));
    registry.condemn(&new, REJECTED);
    assert!(!registry.is_well(&new, ""));
}

#[test]
fn nothing_is_shown_of_a_removed_key() {
    let (registry, metrics) = registry("a o 1 sk-a, b o 1 sk-b");
    registry.condemn(&key(&registry, "b"), REJECTED);
    assert!(metrics.render().contains(r#"key="b",state="disabled"} 1"#));
    reload(&registry, "a o 1 sk-a", Some(2));
    assert!(!metrics.render().contains("key=\"b\""), "{}", metrics.render());
}

#[tokio::test(start_paused = true)]
async fn what_was_met_before_a_turn_began_has_passed_when_it_is_served() {
    let (registry, _) = registry("a o 1 sk-a, b o 1 sk-b, c o 1 sk-c");
    let a = key(&registry, "a");
    let before = Instant::now();
    tokio::time::advance(Duration::from_millis(1)).await;
    registry.condemn(&a, REJECTED);
    registry.has_served(&a, before);
    assert!(!registry.is_well(&a, ""), "it began before the refusal");
    registry.has_served(&a, Instant::now());
    assert!(registry.is_well(&a, ""));
    assert!(registry.conditions.ramp(&a) < 0.01 && registry.state(&a) == KeyState::Probing);
    tokio::time::advance(RAMP / 2).await;
    assert!((registry.conditions.ramp(&a) - 0.5).abs() < 0.01);
    tokio::time::advance(RAMP).await;
    assert!(registry.state(&a) == KeyState::Ready);
}

#[tokio::test(start_paused = true)]
async fn most_keys_refused_at_once_is_the_upstreams_affair() {
    let (registry, _) = registry("a o 1 sk-a, b o 1 sk-b, c p 1 sk-c");
    let keys = ["a", "b", "c"].map(|id| key(&registry, id));
    registry.observe(&keys[0], REJECTED);
    assert_eq!(registry.fitness(&keys[0], ""), Fitness::Aside(Why::Suspected));
    registry.condemn(&keys[0], REJECTED);
    assert_eq!(registry.fitness(&keys[0], ""), Fitness::Lost(Why::Rejected));
    registry.observe(&keys[1], REJECTED);
    assert_eq!(registry.fitness(&keys[0], ""), Fitness::Aside(Why::Incident));
    registry.recovered(Subject::of(&keys[1], Scope::Key), "b");
    assert_eq!(registry.fitness(&keys[0], ""), Fitness::Lost(Why::Rejected));
    tokio::time::advance(Duration::from_secs(11)).await;
    registry.condemn(&keys[1], REJECTED);
    assert_eq!(registry.fitness(&keys[1], ""), Fitness::Lost(Why::Rejected), "one after the other they died");
}

#[tokio::test(start_paused = true)]
async fn a_project_is_short_of_one_model_for_a_time() {
    let (registry, _) = registry("a o 1 sk-a, b o 1 sk-b, c p 1 sk-c");
    let [a, b, c] = ["a", "b", "c"].map(|id| key(&registry, id));
    registry.limit(&a, "m", Duration::from_secs(5));
    registry.limit(&b, "m", Duration::from_secs(1));
    assert_eq!(registry.fitness(&b, "m"), Fitness::Short(Duration::from_secs(5)), "one project, and no word shortens it");
    assert!(registry.is_well(&a, "n") && registry.is_well(&c, "m") && registry.state(&a) == KeyState::Cooling);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!(registry.is_well(&a, "m"));
}
