//! Tests of the faults of a Redis: late answers, refusals, silence, broken connections, and the
//! reports about them.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;

use super::fake::Fake;
use super::*;
use crate::setting::Secret;

/// Ample time for an answer of a Redis in the same process, on a busy machine.
const TIMEOUT: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_secs(20);

async fn store(fake: &Fake) -> (Store, Tasks) {
    let (metrics, tasks) = (Arc::new(Metrics::new()), Tasks::new());
    let store = opened(fake, metrics, &tasks);
    assert!(store.ready(LONG).await);
    (store, tasks)
}

fn opened(fake: &Fake, metrics: Arc<Metrics>, tasks: &Tasks) -> Store {
    Store::in_redis(&settings(fake), metrics, tasks).unwrap()
}

fn settings(fake: &Fake) -> StoreSettings {
    let url = SecretSource::Text(Secret::new(fake.url()));
    StoreSettings { url, prefix: "w".into(), timeout: Span(TIMEOUT), ca_file: None }
}

/// Waits until `is_so` holds.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(LONG, waiting).await.is_ok(), "{what}: not within {LONG:?}");
}

/// The number of commands `name` that the Redis received.
fn count(fake: &Fake, name: &str) -> usize {
    fake.commands().iter().filter(|asked| *asked == name).count()
}

fn is_up(store: &Store) -> bool {
    store.metrics.render().contains("\nwarmkey_store_up 1\n")
}

#[tokio::test]
async fn empty_budget_sends_nothing_and_blames_no_store() {
    let fake =
        Fake::answering(|_, command| Some(if command == "PTTL" { ":5" } else { "$-1" })).await;
    let (store, _tasks) = store(&fake).await;
    assert!(store.claim(Name::Binding("s"), "v", LONG, &mut Budget(Duration::ZERO)).await.is_err());
    assert!(is_up(&store));
    assert_eq!(store.get(Name::Binding("s"), &mut Budget(LONG)).await.unwrap(), None);
    assert!(!fake.commands().contains(&"SET".to_owned()), "{:?}", fake.commands());
}

#[tokio::test]
async fn budget_covers_all_operations_of_a_turn() {
    let fake =
        Fake::answering(|_, command| Some(if command == "PTTL" { ":5" } else { "$-1" })).await;
    let (store, _tasks) = store(&fake).await;
    let mut budget = Budget(LONG);
    assert_eq!(store.get(Name::Binding("s"), &mut budget).await.unwrap(), None);
    assert!(budget.0 < LONG && !budget.0.is_zero(), "{budget:?}");
    // One question without an answer spends the whole budget, so the next one is not sent.
    fake.hush(1);
    let mut budget = Budget(TIMEOUT / 2);
    assert!(store.get(Name::Binding("s"), &mut budget).await.is_err());
    assert!(budget.0.is_zero(), "{budget:?}");
    assert!(store.claim(Name::Binding("s"), "v", LONG, &mut budget).await.is_err());
    // Another connection is used. Everything that was sent on the first one has arrived by then.
    fake.hush(0);
    fake.cut(1);
    assert!(store.get(Name::Binding("s"), &mut Budget(LONG)).await.is_err());
    assert!(store.ready(LONG).await);
    assert_eq!(store.get(Name::Binding("s"), &mut Budget(LONG)).await.unwrap(), None);
    assert!(!fake.commands().contains(&"SET".to_owned()), "{:?}", fake.commands());
}

#[tokio::test]
async fn error_for_one_command_is_an_answer() {
    let fake =
        Fake::proven_by(|_, _| Some("-OOM command not allowed when used memory > 'maxmemory'."))
            .await;
    let (store, _tasks) = store(&fake).await;
    for _ in 0..5 {
        assert!(store.claim(Name::Binding("s"), "v", LONG, &mut Budget(LONG)).await.is_err());
    }
    assert!(is_up(&store) && fake.connections() == 1);
}

#[tokio::test]
async fn turn_without_time_blames_no_store() {
    let fake = Fake::answering(|_, _| None).await;
    let (store, _tasks) = store(&fake).await;
    for _ in 0..5 {
        assert!(store.get(Name::Binding("s"), &mut Budget(TIMEOUT / 10)).await.is_err());
    }
    assert!(is_up(&store) && fake.connections() == 1);
}

#[tokio::test]
async fn turns_that_wait_together_are_one_silence() {
    let fake = Fake::answering(|_, _| None).await;
    let (store, _tasks) = store(&fake).await;
    let (mut first, mut second, mut third) = (store.budget(), store.budget(), store.budget());
    let all = tokio::join!(
        store.get(Name::Binding("a"), &mut first),
        store.get(Name::Binding("b"), &mut second),
        store.get(Name::Binding("c"), &mut third)
    );
    assert!(all.0.is_err() && all.1.is_err() && all.2.is_err());
    assert!(is_up(&store) && fake.connections() == 1);
}

#[tokio::test]
async fn silent_connection_is_remade_and_its_late_error_harms_no_other() {
    let fake =
        Fake::answering(|_, command| Some(if command == "PTTL" { ":5" } else { "$-1" })).await;
    let (store, _tasks) = store(&fake).await;
    fake.hush(1);
    let mut patient = Budget(LONG);
    let late = store.get(Name::Binding("late"), &mut patient);
    let others = async {
        assert!(store.get(Name::Binding("s"), &mut store.budget()).await.is_err());
        // One silence raises doubt, and the link itself finds out the rest.
        let mut health = store.health();
        let gone = health.wait_for(|up| !up);
        assert!(tokio::time::timeout(LONG, gone).await.is_ok());
        assert!(store.ready(LONG).await);
        assert_eq!(store.get(Name::Binding("s"), &mut Budget(LONG)).await.unwrap(), None);
        fake.cut(1);
    };
    let (late, ()) = tokio::join!(late, others);
    assert!(late.is_err(), "its connection was cut: {late:?}");
    assert!(is_up(&store));
    assert_eq!(store.get(Name::Binding("s"), &mut Budget(LONG)).await.unwrap(), None);
    assert_eq!(fake.connections(), 2);
}

#[tokio::test]
async fn first_attempt_after_a_loss_is_made_at_once() {
    let fake =
        Fake::answering(|_, command| Some(if command == "PTTL" { ":5" } else { "$-1" })).await;
    let (store, _tasks) = store(&fake).await;
    // Two attempts are at least 250 ms apart. Two heartbeats would take longer.
    let between = Duration::from_millis(250);
    let mut fastest = LONG;
    for number in 1..=5 {
        let before = count(&fake, "PROBE");
        until("a heartbeat", || count(&fake, "PROBE") > before).await;
        fake.cut(number);
        let began = Instant::now();
        assert!(store.get(Name::Binding("s"), &mut Budget(LONG)).await.is_err());
        assert!(store.ready(LONG).await);
        fastest = fastest.min(began.elapsed());
        if fastest < between {
            return;
        }
    }
    panic!("each one waited: {fastest:?}");
}

#[tokio::test]
async fn redis_that_takes_no_writes_is_not_used() {
    for refusal in [
        "-READONLY You can't write against a read only replica.",
        "-LOADING Redis is loading",
        "-MASTERDOWN Link down",
    ] {
        let is_replica = Arc::new(AtomicBool::new(true));
        let says = Arc::clone(&is_replica);
        let fake = Fake::proven_by(move |_, command| match command {
            "PROBE" if says.load(Ordering::Relaxed) => Some(refusal),
            "PROBE" => Some("+OK"),
            "PTTL" => Some(":5"),
            _ => Some("$-1"),
        })
        .await;
        let (metrics, tasks) = (Arc::new(Metrics::new()), Tasks::new());
        let store = opened(&fake, metrics, &tasks);
        until("another attempt", || fake.connections() > 1).await;
        assert!(!is_up(&store), "{refusal}");
        assert!(store.get(Name::Binding("s"), &mut store.budget()).await.is_err());
        assert!(store.fault().unwrap().contains(&refusal[1..9]), "{:?}", store.fault());
        is_replica.store(false, Ordering::Relaxed);
        assert!(store.ready(LONG).await);
        assert_eq!(store.get(Name::Binding("s"), &mut Budget(LONG)).await.unwrap(), None);
        tasks.join(LONG).await;
    }
}

#[tokio::test]
async fn primary_that_became_a_replica_is_given_up_at_its_first_refusal() {
    let is_replica = Arc::new(AtomicBool::new(false));
    let says = Arc::clone(&is_replica);
    let fake = Fake::proven_by(move |_, command| match command {
        "GET" => Some("$-1"),
        "PTTL" => Some(":-2"),
        _ if says.load(Ordering::Relaxed) => {
            Some("-READONLY You can't write against a read only replica.")
        }
        "PROBE" => Some("+OK"),
        _ => Some("$-1"),
    })
    .await;
    let (store, _tasks) = store(&fake).await;
    is_replica.store(true, Ordering::Relaxed);
    assert_eq!(
        store.get(Name::Binding("s"), &mut Budget(LONG)).await.unwrap(),
        None,
        "it still reads"
    );
    assert!(store.claim(Name::Binding("s"), "v", LONG, &mut Budget(LONG)).await.is_err());
    assert!(!is_up(&store));
    let page = store.metrics.render();
    assert!(page.contains("warmkey_store_failures_total{reason=\"readonly\"} 1"), "{page}");
}

#[tokio::test]
async fn store_that_is_away_makes_no_turn_wait() {
    let fake =
        Fake::answering(|_, command| Some(if command == "PTTL" { ":5" } else { "$-1" })).await;
    let (store, _tasks) = store(&fake).await;
    fake.hush(usize::MAX);
    let began = Instant::now();
    assert!(store.get(Name::Binding("s"), &mut store.budget()).await.is_err());
    let mut health = store.health();
    assert!(tokio::time::timeout(LONG, health.wait_for(|up| !up)).await.is_ok());
    // The link asks twice more at once. With heartbeats alone, this would take two seconds longer.
    assert!(began.elapsed() < TIMEOUT * 3 + Duration::from_millis(1_500), "{:?}", began.elapsed());
    let before = count(&fake, "GET");
    for _ in 0..100 {
        assert!(store.get(Name::Binding("s"), &mut store.budget()).await.is_err());
    }
    assert_eq!(count(&fake, "GET"), before);
    fake.hush(0);
    assert!(store.ready(LONG).await);
}

#[tokio::test]
async fn retired_part_counts_as_missing_no_longer() {
    use super::dial::Dialer;
    use super::fault::Faults;
    use super::health::Health;
    use super::link::{Link, LinkTarget};
    let fake = Fake::answering(|_, _| Some("$-1")).await;
    let dialer = Arc::new(Dialer::new(&settings(&fake)).unwrap());
    let metrics = Arc::new(Metrics::new());
    let (faults, health) =
        (Arc::new(Faults::new(Arc::clone(&metrics))), Arc::new(Health::new(metrics)));
    let link = || {
        let host = dialer.address().unwrap().hosts.remove(0);
        let (dialer, faults, health) =
            (Arc::clone(&dialer), Arc::clone(&faults), Arc::clone(&health));
        Arc::new(Link::new(dialer, LinkTarget::Node(host), faults, health, Arc::default()))
    };
    let one = link();
    assert!(!health.is_up(), "the link is not connected yet");
    let keeping = tokio::spawn(Arc::clone(&one).keep());
    until("a connection", || health.is_up()).await;
    let other = link();
    one.retire();
    assert!(!health.is_up(), "the other one is still missing");
    other.retire();
    assert!(health.is_up());
    // The retired link may have been about to connect. It must still stay retired.
    let before = fake.connections();
    until("another connection", || fake.connections() > before).await;
    until("the test writes", || count(&fake, "PROBE") >= 6).await;
    assert!(!one.is_up() && health.is_up());
    keeping.abort();
}
