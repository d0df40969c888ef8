//! Tests of a turn between its attempts: how long the turn waits, how often it tries again, and
//! with which key.

use super::*;
use crate::binding::demand::Turn;
use crate::binding::local::Local;
use crate::binding::ownership::Owners;
use crate::binding::place::Places;
use crate::binding::trail::Trail;
use crate::client::{Client, Clients};
use crate::current::Current;
use crate::key::table::Table;
use crate::key::{KeySettings, UpstreamSettings};
use crate::metrics::{Metrics, Transport};
use crate::session::SessionId;
use crate::session::identify::Identifier;
use crate::setting::Secret;
use crate::store::Store;
use crate::store::memory::Memory;
use crate::task::Tasks;
use crate::turn::entry::ForeignIds;
use crate::turn::failover::FailoverOptions;
use ::http::HeaderMap;

const TTL: Duration = Duration::from_secs(3_600);
const WAIT: Duration = Duration::from_secs(5);
const SECOND: Duration = Duration::from_secs(1);

/// A replica with its own store and these keys, each with its organization and project. There is no
/// upstream.
pub fn gateway(keys: &[(&str, &str, &str)]) -> Gateway {
    let upstream: UpstreamSettings =
        serde_json::from_str(r#"{"name":"u","base_url":"http://127.0.0.1:1"}"#).unwrap();
    let settings = keys.iter().map(|(id, organization, project)| {
        let key = serde_json::json!({ "id": id, "upstream": "u", "organization": organization, "project": project,
            "weight": 1, "secret": "sk" });
        serde_json::from_value::<KeySettings>(key).unwrap()
    });
    let (metrics, tasks) = (Arc::new(Metrics::new()), Tasks::new());
    let table = Table::new(&[upstream], &settings.collect::<Vec<_>>()).unwrap();
    let registry = Arc::new(Registry::new(table, Arc::clone(&metrics)));
    let store = Arc::new(Store::in_memory(Arc::new(Memory::new(100)), Arc::clone(&metrics)));
    let (places, trail) = (Places::new(Arc::clone(&registry)), Trail::new(Arc::clone(&metrics)).0);
    let local = Arc::new(Local::new(100, TTL / 2));
    let entry = Entry {
        clients: Arc::new(Current::new(Arc::new(Clients::new(&[]).unwrap()))),
        identifier: Identifier::new(&Secret::new("a secret of the tests"), None),
        owners: Arc::new(Owners::new(Arc::clone(&store), TTL, 100)),
        foreign_ids: ForeignIds::Refuse,
    };
    Gateway {
        entry,
        bindings: Bindings::new(store, places, local, TTL, tasks, trail),
        registry,
        failover: Failover::new(FailoverOptions { wait: WAIT, resends: false }),
        books: Arc::new(Books::new(metrics)),
    }
}

/// Binds a turn of a new session for the model `m`.
pub async fn bound<'c>(gateway: &Gateway, client: &'c Client) -> (Turn<'c>, Binding, Budget) {
    let mut turn = Turn::of(client);
    turn.demand.session = SessionId::parse(&"s".repeat(SessionId::LENGTH));
    (turn.demand.model, turn.tried.wait_left) = ("m", WAIT);
    let mut budget = gateway.bindings.budget();
    let bound = gateway.bindings.bind(turn.placing(), Ok(None), &mut budget).await;
    let (binding, _) = bound.unwrap();
    (turn, binding, budget)
}

/// An upstream that must not be asked.
struct Nowhere;

impl Ask for Nowhere {
    async fn ask(&self, _: &Binding, _: bool) -> Outcome {
        panic!("no turn is sent")
    }
}

fn attempts<'t>(
    gateway: &'t Gateway,
    account: &'t mut Account,
    turn: &'t Turn<'t>,
    budget: &'t mut Budget,
) -> Attempts<'t, Nowhere> {
    let Turn { demand, tried, within } = turn;
    Attempts::new(gateway, account, &Nowhere, (demand, tried.clone(), *within), budget)
}

pub fn account(gateway: &Gateway) -> Account {
    Account::open(Arc::clone(&gateway.books), Transport::Http, &HeaderMap::new())
}

/// Returns how often this decision was counted.
pub fn decided(gateway: &Gateway, decision: &str, reason: &str) -> u32 {
    let series = format!("warmkey_decisions_total{{decision=\"{decision}\",reason=\"{reason}\"}} ");
    let page = gateway.books.metrics.render();
    page.lines()
        .find_map(|line| line.strip_prefix(&series))
        .map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn turn_waits_as_often_as_its_wait_left_allows() {
    let client = Client::unrestricted("alice");
    for (again, is_served) in [(SECOND, true), (3 * SECOND, false)] {
        let gateway = gateway(&[("a", "o", "p")]);
        let (turn, binding, mut budget) = bound(&gateway, &client).await;
        let mut account = self::account(&gateway);
        let mut attempts = self::attempts(&gateway, &mut account, &turn, &mut budget);
        let (key, began) = (Arc::clone(&binding.key), Instant::now());
        gateway.registry.limit(&key, "m", again);
        // While the turn waits, other turns are told that the key is limited again for as long.
        let told = async {
            sleep(again - SECOND / 10).await;
            let places: Vec<_> =
                std::iter::from_fn(|| gateway.failover.waiters.enter(&key)).collect();
            assert_eq!(places.len(), 63, "the turn has one of 64 permits");
            gateway.registry.limit(&key, "m", again);
        };
        let (waited, ()) = tokio::join!(attempts.wait(binding), told);
        let took = began.elapsed();
        assert!(took <= WAIT, "{took:?}: all waits of a turn together");
        match waited {
            Ok(binding) => {
                assert!(
                    is_served && binding.key.id == "a" && took >= again * 2 - SECOND / 10,
                    "{took:?}"
                );
                let left = WAIT - took;
                assert!(
                    attempts.tried.wait_left.abs_diff(left) < SECOND / 50,
                    "{:?} and not {left:?}",
                    attempts.tried.wait_left
                );
            }
            Err(error) => assert!(!is_served && error.code() == "rate_limit_exceeded", "{error:?}"),
        }
        assert_eq!(decided(&gateway, "wait", "limited"), 1 + u32::from(is_served));
        assert_eq!(decided(&gateway, "refuse", "limited"), u32::from(!is_served));
    }
}

#[tokio::test(start_paused = true)]
async fn turn_without_a_permit_to_wait_uses_another_key_at_once() {
    let client = Client::unrestricted("alice");
    for keys in [&[("a", "o", "p"), ("b", "o", "q")][..], &[("a", "o", "p")]] {
        let gateway = gateway(keys);
        let (turn, binding, mut budget) = bound(&gateway, &client).await;
        let mut account = self::account(&gateway);
        let mut attempts = self::attempts(&gateway, &mut account, &turn, &mut budget);
        let began = Instant::now();
        let mut places: Vec<_> =
            std::iter::from_fn(|| gateway.failover.waiters.enter(&binding.key)).collect();
        gateway.registry.limit(&binding.key, "m", SECOND);
        match attempts.wait(binding.clone()).await {
            Ok(beside) => {
                assert!(keys.len() == 2 && beside.key.tag != binding.key.tag && beside.has_moved)
            }
            Err(error) => {
                assert!(keys.len() == 1 && error.code() == "rate_limit_exceeded", "{error:?}")
            }
        }
        assert_eq!(
            (began.elapsed(), decided(&gateway, "wait", "limited")),
            (Duration::ZERO, 0),
            "no turn waited"
        );
        places.pop();
        attempts.tried.wait_left = WAIT;
        let waited = attempts.wait(binding.clone()).await.unwrap();
        assert!(
            waited.key.tag == binding.key.tag && began.elapsed() >= SECOND,
            "{:?}",
            began.elapsed()
        );
        assert!(
            gateway.failover.waiters.enter(&binding.key).is_some(),
            "the turn releases its permit"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn wait_longer_than_wait_left_is_not_begun() {
    let client = Client::unrestricted("alice");
    for (wait, is_waited_for) in [(WAIT, true), (WAIT + SECOND / 1_000, false)] {
        let gateway = gateway(&[("a", "o", "p"), ("b", "o", "q")]);
        let (turn, binding, mut budget) = bound(&gateway, &client).await;
        let mut account = self::account(&gateway);
        let mut attempts = self::attempts(&gateway, &mut account, &turn, &mut budget);
        let began = Instant::now();
        gateway.registry.limit(&binding.key, "m", wait);
        let waited = attempts.wait(binding.clone()).await.unwrap();
        assert_eq!(waited.key.tag == binding.key.tag, is_waited_for, "{wait:?}");
        assert_eq!(began.elapsed() >= wait, is_waited_for, "{wait:?}");
        assert_eq!(decided(&gateway, "spill", "limited"), u32::from(!is_waited_for));
    }
}

#[tokio::test(start_paused = true)]
async fn key_that_is_limited_again_is_left_for_a_ready_sibling() {
    let client = Client::unrestricted("alice");
    let (alone, two) = (&[("a", "o", "p")][..], &[("a", "o", "p"), ("b", "o", "q")][..]);
    // The sibling may be limited, too, but for less time than the turn may wait.
    for (keys, sibling_for, limits, is_left) in [
        (two, Duration::ZERO, 1, false),
        (two, Duration::ZERO, 2, true),
        (two, SECOND, 2, false),
        (alone, Duration::ZERO, 2, false),
    ] {
        let gateway = gateway(keys);
        let (turn, binding, mut budget) = bound(&gateway, &client).await;
        let mut account = self::account(&gateway);
        let mut attempts = self::attempts(&gateway, &mut account, &turn, &mut budget);
        let loaded = gateway.registry.loaded();
        if let Some(sibling) = loaded
            .table
            .keys()
            .iter()
            .find(|key| key.tag != binding.key.tag && !sibling_for.is_zero())
        {
            gateway.registry.limit(sibling, "m", sibling_for);
        }
        attempts.limits = limits;
        attempts.stop_waiting(&binding);
        let left = if is_left { Duration::ZERO } else { WAIT };
        assert_eq!(attempts.tried.wait_left, left, "{keys:?}, {sibling_for:?}, {limits}");
    }
}

#[tokio::test(start_paused = true)]
async fn failed_turn_is_repeated_with_its_key_then_with_a_sibling_and_then_no_more() {
    let client = Client::unrestricted("alice");
    let gateway = gateway(&[("a", "o", "p"), ("b", "o", "p")]);
    let (turn, binding, mut budget) = bound(&gateway, &client).await;
    let mut account = self::account(&gateway);
    let mut attempts = self::attempts(&gateway, &mut account, &turn, &mut budget);
    let own = binding.key.tag;
    gateway.failover.begin_turn();
    let mut next = Ok(binding);
    for (is_own, is_last) in [(true, false), (false, false), (false, true)] {
        let began = Instant::now();
        next = attempts.retry(next.unwrap()).await;
        let (Ok(binding) | Err(binding)) = &next;
        assert_eq!((binding.key.tag == own, next.is_err()), (is_own, is_last));
        let took = began.elapsed();
        assert!(
            if is_last { took.is_zero() } else { took >= SECOND / 10 && took <= SECOND / 4 },
            "{took:?}"
        );
    }
    assert_eq!(
        (decided(&gateway, "retry", "failed"), decided(&gateway, "refuse", "failed")),
        (2, 1)
    );
    // All turns together have used up their retries, so another turn is not repeated at all.
    let (turn, binding, mut budget) = bound(&gateway, &client).await;
    let mut account = self::account(&gateway);
    let mut attempts = self::attempts(&gateway, &mut account, &turn, &mut budget);
    gateway.failover.begin_turn();
    let began = Instant::now();
    assert!(attempts.retry(binding).await.is_err());
    assert_eq!((decided(&gateway, "refuse", "failed"), began.elapsed()), (2, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn failed_turn_without_a_sibling_is_repeated_once() {
    let client = Client::unrestricted("alice");
    let gateway = gateway(&[("a", "o", "p")]);
    let (turn, binding, mut budget) = bound(&gateway, &client).await;
    let mut account = self::account(&gateway);
    let mut attempts = self::attempts(&gateway, &mut account, &turn, &mut budget);
    gateway.failover.begin_turn();
    let again = attempts.retry(binding).await.unwrap();
    let last = attempts.retry(again).await.unwrap_err();
    assert_eq!(
        (last.key.id.as_str(), decided(&gateway, "refuse", "failed")),
        ("a", 1),
        "the client receives the last answer"
    );
}

/// An upstream that does not process a turn, and takes its time to say so.
struct Unwilling(Duration, std::cell::Cell<u32>);

impl Ask for Unwilling {
    async fn ask(&self, _: &Binding, _: bool) -> Outcome {
        self.1.set(self.1.get() + 1);
        sleep(self.0).await;
        Outcome::Unprocessed("refused stream".into())
    }
}

#[tokio::test(start_paused = true)]
async fn turn_that_is_never_processed_ends_within_ten_seconds() {
    for (seconds, most) in [(0, 3), (1, 3), (3, 2), (4, 2), (6, 1)] {
        let gateway = gateway(&[("a", "o", "p"), ("b", "o", "q")]);
        let client = Client::unrestricted("alice");
        let (turn, _, mut budget) = bound(&gateway, &client).await;
        let mut account = self::account(&gateway);
        let upstream = Unwilling(seconds * SECOND, 0.into());
        let case = (&turn.demand, turn.tried.clone(), turn.within);
        let attempts = Attempts::new(&gateway, &mut account, &upstream, case, &mut budget);
        let began = Instant::now();
        let error = attempts.run(Ok(None), began).await.err().expect("it is never processed");
        assert_eq!((error.code(), upstream.1.get()), ("upstream_unreachable", most), "{seconds} s");
        assert!(began.elapsed() < 10 * SECOND, "{:?}", began.elapsed());
    }
}
