//! Tests of refused keys: what a doubt that no probe decides may do.

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, StatusCode};
use tokio::time::{Instant, sleep};

use super::*;
use crate::client::{Client, Clients};
use crate::current::Current;
use crate::outcome::{Answer, Outcome, Refusal};
use crate::turn::doubt::Doubts;
use crate::turn::failover::Failover;
use crate::turn::tests::{account as open, bound, gateway};
use crate::wire::error_body::ErrorBody;

const SECOND: Duration = Duration::from_secs(1);
const WAIT: Duration = Duration::from_secs(5);

/// An upstream that refuses each turn with a 401, and counts the turns.
struct Doubtful(std::cell::Cell<u32>);

impl Ask for Doubtful {
    async fn ask(&self, _: &Binding, _: bool) -> Outcome {
        self.0.set(self.0.get() + 1);
        let status = StatusCode::UNAUTHORIZED;
        let (headers, head) = (HeaderMap::new(), bytes::Bytes::new());
        let answer = Answer { status, headers, head, rest: None, upgrade: None };
        let error = ErrorBody::parse(b"{}");
        Outcome::Refused(Refusal { answer, error })
    }
}

#[tokio::test(start_paused = true)]
async fn undecided_doubt_of_an_only_client_counts_at_once() {
    let mut gateway = gateway(&[("a", "o", "p"), ("b", "o", "q")]);
    gateway.failover.doubts = Doubts::that_stay();
    let clients = Clients::new(&[]).unwrap().with_open(true);
    gateway.entry.clients = Arc::new(Current::new(Arc::new(clients)));
    let client = Client::unrestricted("open");
    let (turn, _, mut budget) = bound(&gateway, &client).await;
    let (mut account, upstream) = (open(&gateway), Doubtful(0.into()));
    let case = (&turn.demand, turn.tried.clone(), turn.within);
    let attempts = Attempts::new(&gateway, &mut account, &upstream, case, &mut budget);
    assert!(attempts.run(Ok(None), Instant::now()).await.is_err(), "no key serves");
    assert_eq!(upstream.0.get(), 2, "the turn goes on to the other key");
}

/// The answer to a handshake says nothing about HTTP, however few clients there are.
#[tokio::test(start_paused = true)]
async fn undecided_doubt_of_a_handshake_says_nothing_of_its_key() {
    let mut gateway = gateway(&[("a", "o", "p"), ("b", "o", "q")]);
    gateway.failover.doubts = Doubts::that_stay();
    let clients = Clients::new(&[]).unwrap().with_open(true);
    gateway.entry.clients = Arc::new(Current::new(Arc::new(clients)));
    let client = Client::unrestricted("open");
    let (turn, _, mut budget) = bound(&gateway, &client).await;
    let (mut account, upstream) = (open(&gateway), Doubtful(0.into()));
    let demand = Demand { by_websocket: true, ..turn.demand };
    let case = (&demand, turn.tried.clone(), turn.within);
    let attempts = Attempts::new(&gateway, &mut account, &upstream, case, &mut budget);
    let error = attempts.run(Ok(None), Instant::now()).await.err().expect("no probe decides");
    assert_eq!((upstream.0.get(), error.code()), (1, "no_key_available"));
    for key in gateway.registry.loaded().table.keys() {
        assert!(gateway.registry.conditions.of(key).is_empty(), "{}", key.id);
    }
}

/// A turn that a sibling refuses, too, goes no further, and makes no second key suspected. A turn
/// that a key has served in the meantime shows that the first refusal was its request's.
#[tokio::test(start_paused = true)]
async fn undecided_doubt_is_carried_to_no_sibling() {
    for is_served in [false, true] {
        let keys = ["a", "b", "c", "d"].map(|id| (id, "o", id));
        let mut gateway = gateway(&keys);
        gateway.failover.doubts = Doubts::that_stay();
        let loaded = gateway.registry.loaded();
        let [alice, bob] = ["alice", "bob"].map(Client::unrestricted);
        let met = Demand { model: "m", ..Demand::of(&alice) };
        for key in loaded.table.keys() {
            gateway.failover.corroboration.report_doubt(key, Scope::Key, &met);
        }
        sleep(SECOND).await;
        let (turn, binding, mut budget) = bound(&gateway, &bob).await;
        let Failover { corroboration, .. } = &gateway.failover;
        if is_served {
            corroboration.has_served(&gateway.registry, &binding.key, &met, Instant::now());
        }
        let (mut account, upstream) = (open(&gateway), Doubtful(0.into()));
        let case = (&turn.demand, turn.tried.clone(), turn.within);
        let attempts = Attempts::new(&gateway, &mut account, &upstream, case, &mut budget);
        let error = attempts.run(Ok(None), Instant::now()).await.err().expect("no key serves");
        assert_eq!((error.code(), error.retry_after), ("no_key_available", Some(SECOND)));
        let is_known = |key: &&Arc<Key>| !gateway.registry.conditions.of(key).is_empty();
        let known = loaded.table.keys().iter().filter(is_known).count();
        let expected = if is_served { (1, 0) } else { (2, 1) };
        assert_eq!((upstream.0.get(), known), expected, "{is_served}");
    }
}

#[tokio::test(start_paused = true)]
async fn doubt_that_no_probe_decides_stays_with_its_turn() {
    let mut gateway = gateway(&[("a", "o", "p"), ("b", "o", "q"), ("c", "r", "s")]);
    gateway.failover.doubts = Doubts::that_stay();
    for (name, most) in [("alice", 1), ("alice", 1), ("bob", 2)] {
        let client = Client::unrestricted(name);
        let (turn, _, mut budget) = bound(&gateway, &client).await;
        let (mut account, upstream) = (open(&gateway), Doubtful(0.into()));
        let case = (&turn.demand, turn.tried.clone(), turn.within);
        let attempts = Attempts::new(&gateway, &mut account, &upstream, case, &mut budget);
        let began = Instant::now();
        let error = attempts.run(Ok(None), began).await.err().expect("no key serves");
        assert_eq!(error.code(), "no_key_available", "{name}");
        assert!(error.retry_after.is_some(), "{name}: the client asks again");
        assert!(upstream.0.get() <= most, "{name}: {} keys", upstream.0.get());
        let longest = if most == 1 { 2 * SECOND } else { 2 * SECOND + WAIT };
        assert!(began.elapsed() <= longest, "{name}: {:?}", began.elapsed());
        let loaded = gateway.registry.loaded();
        let keys = loaded.table.keys().iter();
        let known = keys.filter(|key| !gateway.registry.conditions.of(key).is_empty()).count();
        assert_eq!(known > 0, name == "bob", "{name}: a second client has met it");
    }
}
