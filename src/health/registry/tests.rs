//! Tests of what turns see of keys and their health.

use crate::health::registry::*;
use crate::limit::wait_or_usual;
use crate::wire::error_body::ErrorBody;

const REJECTED: Ailment = Ailment::Rejected(Scope::Key);

fn registry(sketch: &str) -> (Registry, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    (Registry::new(Table::sketch(sketch), Arc::clone(&metrics)), metrics)
}

fn reload(registry: &Registry, sketch: &str, ordinal: Option<u32>) {
    let reply = ordinal.map(|ordinal| MembershipReply { ordinal, others: Vec::new() });
    registry.adopt(registry.prepare(Table::sketch(sketch)).unwrap(), reply.as_ref());
}

fn key(registry: &Registry, id: &str) -> Arc<Key> {
    registry.loaded().table.keys().iter().find(|key| key.id == id).cloned().unwrap()
}

#[test]
fn keys_in_another_order_are_no_reload() {
    let (registry, _) = registry("a o 1 sk-a, b o 1 sk-b");
    assert!(registry.prepare(Table::sketch("b o 1 sk-b, a o 1 sk-a")).is_none());
}

#[test]
fn frozen_set_decides_where_sessions_go_while_the_store_is_away() {
    let ids = |loaded: Arc<Loaded>| {
        loaded.table.keys().iter().map(|key| key.id.clone()).collect::<String>()
    };
    let (registry, _) = registry("a o 1 sk-a, b o 1 sk-b");
    reload(&registry, "a o 1 sk-a, c o 1 sk-c", Some(2));
    assert_eq!((ids(registry.loaded()), ids(registry.frozen())), ("ac".into(), "ac".into()));
    reload(&registry, "a o 1 sk-a, d o 1 sk-d", None);
    reload(&registry, "a o 1 sk-a, d o 1 sk-d, e o 1 sk-e", None);
    assert_eq!((ids(registry.loaded()), ids(registry.frozen())), ("ade".into(), "ac".into()));
    let frozen = registry.frozen();
    assert_eq!(
        frozen.table.keys().iter().map(|key| frozen.is_removed(key)).collect::<Vec<_>>(),
        [false, true]
    );
    registry.take_reply(&registry.loaded(), &MembershipReply { ordinal: 3, others: Vec::new() });
    assert_eq!(ids(registry.frozen()), "ade");
    reload(&registry, "f o 1 sk-f", None);
    assert_eq!(ids(registry.frozen()), "f", "a set without a key left decides nothing");
}

#[test]
fn another_secret_deserves_a_try() {
    let (registry, _) = registry("a o 1 sk-old, b o 1 sk-b");
    let old = key(&registry, "a");
    registry.condemn(&old, REJECTED);
    assert!(registry.successor(&old).is_none() && !registry.is_ready(&old, ""));
    reload(&registry, "a o 2 sk-old, b o 1 sk-b", Some(1));
    assert!(!registry.is_ready(&key(&registry, "a"), ""), "another weight heals nothing");
    reload(&registry, "a o 1 sk-new, b o 1 sk-b", Some(1));
    let new = key(&registry, "a");
    assert!(registry.is_ready(&new, ""));
    assert!(registry.successor(&old).is_some_and(|key| Arc::ptr_eq(&key, &new)));
    // A turn that was sent with the old secret ends late.
    registry.condemn(&old, REJECTED);
    assert!(registry.is_ready(&new, ""));
    registry.condemn(&new, REJECTED);
    assert!(!registry.is_ready(&new, ""));
}

#[test]
fn removed_key_is_not_shown() {
    let (registry, metrics) = registry("a o 1 sk-a, b o 1 sk-b");
    registry.condemn(&key(&registry, "b"), REJECTED);
    assert!(metrics.render().contains(r#"key="b",state="disabled"} 1"#));
    reload(&registry, "a o 1 sk-a", Some(2));
    assert!(!metrics.render().contains("key=\"b\""), "{}", metrics.render());
}

#[tokio::test(start_paused = true)]
async fn illness_from_before_a_served_turn_has_passed() {
    let (registry, _) = registry("a o 1 sk-a, b o 1 sk-b, c o 1 sk-c");
    let a = key(&registry, "a");
    let before = Instant::now();
    tokio::time::advance(Duration::from_millis(1)).await;
    registry.condemn(&a, REJECTED);
    registry.has_served(&a, before);
    assert!(!registry.is_ready(&a, ""), "it began before the refusal");
    registry.has_served(&a, Instant::now());
    assert!(registry.is_ready(&a, ""));
    assert!(registry.conditions.ramp(&a) < 0.01 && registry.state(&a) == KeyState::Probing);
    tokio::time::advance(RAMP / 2).await;
    assert!((registry.conditions.ramp(&a) - 0.5).abs() < 0.01);
    tokio::time::advance(RAMP).await;
    assert!(registry.state(&a) == KeyState::Ready);
}

#[tokio::test(start_paused = true)]
async fn most_keys_refused_at_once_are_an_incident() {
    let (registry, _) = registry("a o 1 sk-a, b o 1 sk-b, c p 1 sk-c");
    let keys = ["a", "b", "c"].map(|id| key(&registry, id));
    registry.observe(&keys[0], REJECTED);
    assert_eq!(registry.fitness(&keys[0], ""), Fitness::Bypassed(Why::Suspected));
    registry.condemn(&keys[0], REJECTED);
    assert_eq!(registry.fitness(&keys[0], ""), Fitness::Dead(Why::Rejected));
    registry.observe(&keys[1], REJECTED);
    assert_eq!(registry.fitness(&keys[0], ""), Fitness::Bypassed(Why::Incident));
    registry.end_illness(Subject::of(&keys[1], Scope::Key), "b");
    assert_eq!(registry.fitness(&keys[0], ""), Fitness::Dead(Why::Rejected));
    tokio::time::advance(Duration::from_secs(11)).await;
    registry.condemn(&keys[1], REJECTED);
    assert_eq!(
        registry.fitness(&keys[1], ""),
        Fitness::Dead(Why::Rejected),
        "one after the other they died"
    );
}

#[tokio::test(start_paused = true)]
async fn project_is_limited_for_one_model_for_a_time() {
    let (registry, _) = registry("a o 1 sk-a, b o 1 sk-b, c p 1 sk-c, d o 1 sk-d");
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|id| key(&registry, id));
    registry.limit(&a, "m", Duration::from_secs(5));
    registry.limit(&a, "m", Duration::from_secs(1));
    assert_eq!(
        registry.fitness(&a, "m"),
        Fitness::Limited(Duration::from_secs(5)),
        "no shorter limit shortens it"
    );
    assert!(
        registry.is_ready(&a, "n")
            && registry.is_ready(&c, "m")
            && registry.state(&a) == KeyState::Cooling
    );
    // Without a project, the limit is the key's until a second key meets it.
    assert!(registry.is_ready(&b, "m") && registry.is_ready(&d, "m"));
    registry.limit(&b, "m", Duration::from_secs(2));
    assert_eq!(registry.fitness(&d, "m"), Fitness::Limited(Duration::from_secs(2)));
    // The limit of a tier is the tier's.
    let flex = ModelUse::new("m", Some("flex"));
    registry.limit(&c, flex, Duration::from_secs(3));
    assert!(registry.is_ready(&c, "m") && !registry.is_ready(&c, flex));
    assert!(!registry.is_strained(&c, "m"));
    registry.strain(&c, "m".into());
    assert!(registry.is_strained(&c, "m") && registry.is_ready(&c, "m"));
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!(registry.is_ready(&a, "m"));
}

const ORGANIZATION: Ailment = Ailment::Exhausted(Scope::Organization);

/// Whether a probe is asked for.
async fn is_probe_asked_for(registry: &Registry) -> bool {
    tokio::time::timeout(Duration::from_millis(1), registry.probe_requested()).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn refusal_is_a_suspicion_until_a_probe_confirms_it_and_a_quota_is_believed() {
    let (registry, _) = registry("a o 1 sk-a, b p 1 sk-b, c q 1 sk-c, d r 1 sk-d");
    let [a, b] = ["a", "b"].map(|id| key(&registry, id));
    registry.observe(&a, REJECTED);
    assert_eq!(registry.fitness(&a, ""), Fitness::Bypassed(Why::Suspected));
    assert!(is_probe_asked_for(&registry).await, "a probe is asked for at once");
    registry.observe(&b, ORGANIZATION);
    assert_eq!(registry.fitness(&b, ""), Fitness::Dead(Why::ExhaustedOrganization));
    assert!(!is_probe_asked_for(&registry).await, "there is nothing to ask");
    assert!(registry.is_exhausted(&b) && !registry.is_exhausted(&a));
    registry.condemn(&a, REJECTED);
    registry.observe(&a, REJECTED);
    assert_eq!(
        registry.fitness(&a, ""),
        Fitness::Dead(Why::Rejected),
        "a suspicion takes nothing back"
    );
    // A probe accepted the key: another refusal is a suspicion, however soon it comes.
    registry.end_illness(Subject::of(&a, Scope::Key), "a");
    assert_eq!(registry.state(&a), KeyState::Probing);
    registry.observe(&a, REJECTED);
    assert_eq!(registry.fitness(&a, ""), Fitness::Bypassed(Why::Suspected));
}

#[tokio::test(start_paused = true)]
async fn failure_of_an_answer_says_what_a_refusal_does() {
    let (registry, _) = registry("a o 1 sk-a, b p 1 sk-b, c q 1 sk-c");
    let [a, b, c] = ["a", "b", "c"].map(|id| key(&registry, id));
    let failure = |code: &str, wait: Option<u64>| ErrorBody {
        code: Some(code.into()),
        wait: wait.map(Duration::from_secs),
        ..ErrorBody::default()
    };
    registry.observe_failure(&a, "m".into(), &failure("rate_limit_exceeded", Some(7)));
    assert_eq!(registry.fitness(&a, "m"), Fitness::Limited(Duration::from_secs(7)));
    registry.observe_failure(&b, "m".into(), &failure("rate_limit_exceeded", None));
    assert_eq!(registry.fitness(&b, "m"), Fitness::Limited(wait_or_usual(None)));
    assert!(registry.is_ready(&a, "n") && registry.is_ready(&b, "n"));
    for nothing in ["server_error", "invalid_api_key", ""] {
        registry.observe_failure(&c, "m".into(), &failure(nothing, Some(7)));
        assert!(registry.is_ready(&c, "m"), "{nothing}");
    }
    registry.observe_failure(&c, "m".into(), &failure("insufficient_quota", None));
    assert_eq!(registry.fitness(&c, "n"), Fitness::Dead(Why::ExhaustedOrganization));
}

#[tokio::test(start_paused = true)]
async fn answer_on_an_old_connection_tells_of_the_quota_alone() {
    let (registry, _) = registry("a o 1 sk-a, b p 1 sk-b, c q 1 sk-c");
    let a = key(&registry, "a");
    registry.condemn(&a, REJECTED);
    registry.condemn(&a, Ailment::Exhausted(Scope::Project));
    registry.condemn(&a, ORGANIZATION);
    registry.has_answered(&a);
    assert!(!registry.is_exhausted(&a));
    assert_eq!(registry.fitness(&a, ""), Fitness::Dead(Why::Rejected), "it was accepted before");
    registry.condemn(&a, ORGANIZATION);
    registry.has_served(&a, Instant::now());
    assert!(
        registry.is_ready(&a, "") && registry.conditions.ramp(&a) < 0.01,
        "a turn that is served tells of all"
    );
}

#[tokio::test(start_paused = true)]
async fn suspicion_is_waited_for_a_moment_and_not_longer() {
    let (registry, _) = registry("a o 1 sk-a, b p 1 sk-b, c q 1 sk-c");
    let a = key(&registry, "a");
    let waited = async |registry: &Registry| {
        let began = Instant::now();
        registry.wait_for_probe(&a).await;
        began.elapsed()
    };
    assert_eq!(waited(&registry).await, Duration::ZERO);
    for scope in [Scope::Key, Scope::Organization] {
        registry.observe(&a, Ailment::Rejected(scope));
        assert_eq!(waited(&registry).await, SETTLED, "no probe decides");
        let confirming = async {
            tokio::time::sleep(SETTLED / 2).await;
            registry.condemn(&a, Ailment::Rejected(scope));
        };
        let (waited, ()) = tokio::join!(waited(&registry), confirming);
        assert_eq!(waited, SETTLED / 2, "{scope:?}");
        registry.has_served(&a, Instant::now());
        tokio::time::advance(RAMP).await;
    }
}

#[tokio::test(start_paused = true)]
async fn key_is_closed_when_an_operator_says_so_or_has_removed_it() {
    let (registry, _) = registry("a o 1 sk-a, b p 1 sk-b, c q 1 sk-c, d r 1 sk-d, e s 1 sk-e");
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|id| key(&registry, id));
    for (key, command) in [(&a, Condition::Disabled), (&b, Condition::Drained)] {
        assert!(!registry.is_closed(key));
        registry.conditions.note(Subject::of_key_id(key), command, None);
        assert!(registry.is_closed(key), "{command:?}");
    }
    registry.condemn(&c, REJECTED);
    registry.observe(&d, REJECTED);
    assert!(!registry.is_closed(&c) && !registry.is_closed(&d), "observations may pass");
    reload(&registry, "b p 1 sk-b, c x 1 sk-new, d r 0 sk-new", Some(2));
    assert!(
        registry.is_closed(&a) && registry.is_closed(&c),
        "one is removed, and one another organization's"
    );
    assert!(
        !registry.is_closed(&d)
            && registry.successor(&c).is_none()
            && registry.successor(&a).is_none()
    );
    assert_eq!(registry.successor(&d).map(|key| key.weight), Some(0));
}

#[tokio::test(start_paused = true)]
async fn state_is_that_of_the_worst_condition() {
    let (registry, metrics) = registry("a o 1 sk-a, b p 1 sk-b, c q 1 sk-c");
    let a = key(&registry, "a");
    let is_shown =
        |state: &str| metrics.render().contains(&format!("key=\"a\",state=\"{state}\"}} 1"));
    assert!(registry.state(&a) == KeyState::Ready && is_shown("ready"));
    registry.condemn(&a, REJECTED);
    registry.end_illness(Subject::of(&a, Scope::Key), "a");
    assert!(registry.state(&a) == KeyState::Probing && is_shown("probing"));
    registry.limit(&a, "m", Duration::from_secs(1));
    assert!(registry.state(&a) == KeyState::Cooling && is_shown("cooling"));
    tokio::time::advance(Duration::from_secs(1)).await;
    registry.deny(&a, "n");
    assert!(
        registry.state(&a) == KeyState::Cooling
            && registry.fitness(&a, "n") == Fitness::Bypassed(Why::NoAccess)
    );
    registry.observe(&a, REJECTED);
    assert!(registry.state(&a) == KeyState::Disabled && is_shown("disabled"));
}

#[tokio::test(start_paused = true)]
async fn change_wakes_those_who_follow() {
    let (registry, _) = registry("a o 1 sk-a, b p 1 sk-b, c q 1 sk-c");
    let a = key(&registry, "a");
    let mut changes = registry.follow();
    let mut is_changed = || {
        let is_notified = changes.has_changed().unwrap();
        changes.borrow_and_update();
        is_notified
    };
    let acts: [&dyn Fn(); 5] = [
        &|| registry.limit(&a, "m", Duration::from_secs(9)),
        &|| registry.deny(&a, "n"),
        &|| registry.observe(&a, REJECTED),
        &|| registry.condemn(&a, REJECTED),
        &|| registry.condemn(&a, ORGANIZATION),
    ];
    for (number, act) in acts.into_iter().enumerate() {
        act();
        assert!(is_changed(), "{number}");
        act();
        assert!(!is_changed(), "{number}: it was known");
    }
    registry.has_served(&a, Instant::now());
    assert!(is_changed());
}
