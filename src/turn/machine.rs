//! The state machine of the binding. Three replicas share one store. Random interleavings of turns,
//! outages, lost answers, dead keys, merges, reloads and restarts must keep the invariants.
//!
//! The judge is the upstream's record, together with the store's record of its writes. The judge
//! must also catch each wrong variant of a script: a machine that misses one proves nothing.
//!
//! The machine drives the gateway's own loop, [`Attempts::run`](super::Attempts::run), which
//! `binding` must not use. It therefore stands beside the loop and not beside the binding.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Waker};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use crate::binding::outage::merge_all;
use crate::store::model::{Flaw, Shared, Weather};

mod replica;
mod upstream;

use replica::{Replica, TTL};
use upstream::Upstream;

const REPLICAS: usize = 3;
const SESSIONS: usize = 2;
/// Most turns and merges that run at a time.
const BUSY: usize = 6;

/// An event in a history.
#[derive(Clone, Debug)]
enum Event {
    /// A turn of a session begins on a replica.
    Turn(usize, usize),
    /// The running tasks take these steps.
    Steps(Vec<usize>),
    Weather(usize, Weather),
    Dies(usize),
    Recovers(usize),
    Merge(usize),
    /// A replica loads another set of keys, and exchanges membership later.
    Reload(usize, usize),
    Membership(usize),
    Restart(usize),
    /// A failover loses the last write of a session.
    Loses(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let weather =
        prop_oneof![3 => Just(Weather::Fair), 2 => Just(Weather::Away), 1 => Just(Weather::Mute)];
    prop_oneof![
        8 => (0..REPLICAS, 0..SESSIONS)
            .prop_map(|(replica, session)| Event::Turn(replica, session)),
        12 => prop::collection::vec(0..BUSY, 1..12).prop_map(Event::Steps),
        3 => (0..REPLICAS, weather).prop_map(|(replica, weather)| Event::Weather(replica, weather)),
        2 => (0..upstream::KEYS.len()).prop_map(Event::Dies),
        1 => (0..upstream::KEYS.len()).prop_map(Event::Recovers),
        2 => (0..REPLICAS).prop_map(Event::Merge),
        1 => (0..REPLICAS, 0..upstream::SETS.len())
            .prop_map(|(replica, set)| Event::Reload(replica, set)),
        2 => (0..REPLICAS).prop_map(Event::Membership),
        1 => (0..REPLICAS).prop_map(Event::Restart),
        1 => (0..SESSIONS).prop_map(Event::Loses),
    ]
}

type Going = Pin<Box<dyn Future<Output = ()>>>;

struct Machine {
    shared: Arc<Mutex<Shared>>,
    upstream: Rc<Upstream>,
    replicas: Vec<Rc<Replica>>,
    going: Vec<Going>,
}

impl Machine {
    fn new(flaw: Flaw) -> Self {
        let shared = Arc::new(Mutex::new(Shared::new(flaw)));
        let upstream = Rc::new(Upstream::new(&shared));
        let replicas: Vec<_> = (0..REPLICAS)
            .map(|number| Rc::new(Replica::start(number, 0, &shared, &upstream.refused)))
            .collect();
        let mut machine = Self { shared, upstream, replicas, going: Vec::new() };
        machine.exchange_membership();
        machine
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Turn(replica, session) => self.begin_turn(*replica, *session),
            Event::Steps(which) => which.iter().for_each(|which| self.step(*which)),
            Event::Weather(replica, weather) => {
                *self.replicas[*replica].model.weather.lock().unwrap() = *weather
            }
            Event::Dies(key) => self.upstream.dies(*key),
            Event::Recovers(key) => {
                self.upstream.recovers(*key);
                // How replicas learn of the recovery is not part of the binding, so here all learn
                // it at once.
                self.replicas.iter().for_each(|replica| {
                    replica.registry.has_served(&upstream::keys()[*key], Instant::now())
                });
            }
            Event::Merge(replica) => {
                let replica = Rc::clone(&self.replicas[*replica]);
                self.begin(Box::pin(async move {
                    merge_all(&replica.store, &replica.local, &replica.registry, TTL).await;
                }));
            }
            Event::Reload(replica, set) => {
                self.replicas[*replica].set.set(*set);
                self.upstream.reloads(*replica, *set);
                let registry = &self.replicas[*replica].registry;
                if let Some(next) = registry.prepare(upstream::set(*set)) {
                    registry.adopt(next, None);
                }
            }
            Event::Membership(replica) => {
                let replica = Rc::clone(&self.replicas[*replica]);
                self.begin(Box::pin(async move { replica.answer_membership().await }));
            }
            Event::Loses(session) => {
                self.shared.lock().unwrap().loses(upstream::session(*session).as_str());
                self.upstream.forgets(*session);
            }
            Event::Restart(number) => {
                // The replica's turns end with it. Their writes may still arrive, like any write.
                let set = self.replicas[*number].set.get();
                self.replicas[*number].is_gone.set(true);
                self.replicas[*number] =
                    Rc::new(Replica::start(*number, set, &self.shared, &self.upstream.refused));
                let replica = Rc::clone(&self.replicas[*number]);
                self.begin(Box::pin(async move { replica.answer_membership().await }));
            }
        }
    }

    fn begin_turn(&mut self, replica: usize, session: usize) {
        let (replica, upstream) = (Rc::clone(&self.replicas[replica]), Rc::clone(&self.upstream));
        self.begin(Box::pin(async move { replica.turn(&upstream, session).await }));
    }

    fn begin(&mut self, work: Going) {
        while self.going.len() >= BUSY {
            self.step(0);
        }
        self.going.push(work);
    }

    fn step(&mut self, which: usize) {
        if self.going.is_empty() {
            return;
        }
        let which = which % self.going.len();
        if self.going[which].as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            // The remaining tasks keep their order.
            drop(self.going.remove(which));
        }
    }

    fn finish(&mut self) {
        while !self.going.is_empty() {
            self.step(0);
        }
    }

    fn exchange_membership(&mut self) {
        for replica in &self.replicas {
            let replica = Rc::clone(replica);
            self.going.push(Box::pin(async move { replica.answer_membership().await }));
        }
        self.finish();
    }

    /// Ends all trouble. Whatever has happened before, all replicas must agree from now on.
    fn settle(&mut self) {
        self.finish();
        for key in 0..upstream::KEYS.len() {
            self.take(&Event::Recovers(key));
        }
        for number in 0..REPLICAS {
            self.take(&Event::Weather(number, Weather::Fair));
            self.take(&Event::Reload(number, 0));
        }
        self.exchange_membership();
        self.exchange_membership();
        (0..REPLICAS).for_each(|number| self.take(&Event::Merge(number)));
        self.finish();
        for session in 0..SESSIONS {
            // The first turns may still correct provisional bindings.
            for round in 0..2 {
                for number in 0..REPLICAS {
                    if round == 1 && number == 0 {
                        self.upstream.expects_peace(session);
                    }
                    self.begin_turn(number, session);
                    self.finish();
                }
            }
        }
    }

    /// Returns the first violation of an invariant.
    fn violation(&self) -> Option<String> {
        self.upstream
            .violation()
            .or_else(|| upstream::wrong_write(&self.upstream, &self.shared.lock().unwrap().writes))
    }
}

fn play(flaw: Flaw, events: &[Event]) -> Result<(), String> {
    // The gateway's loop sets timers, but no test waits for them.
    static TIMERS: LazyLock<Runtime> =
        LazyLock::new(|| Builder::new_current_thread().enable_time().build().unwrap());
    let _timers = TIMERS.enter();
    let mut machine = Machine::new(flaw);
    for event in events {
        machine.take(event);
        if let Some(violation) = machine.violation() {
            return Err(violation);
        }
    }
    machine.settle();
    machine.violation().map_or(Ok(()), Err)
}

/// Plays `cases` histories: the same ones each time, or random `others`.
fn search(flaw: Flaw, cases: u32, others: bool) -> Result<(), String> {
    let config =
        Config { cases, failure_persistence: None, max_shrink_iters: 4_096, ..Config::default() };
    let same = || TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner =
        if others { TestRunner::new(config) } else { TestRunner::new_with_rng(config, same()) };
    let tested = runner.run(&prop::collection::vec(event(), 1..40), |events| {
        play(flaw, &events).map_err(TestCaseError::fail)
    });
    tested.map_err(|error| match error {
        TestError::Fail(why, events) => format!("{why}\nafter {events:#?}"),
        TestError::Abort(why) => why.to_string(),
    })
}

/// Plays the same histories each time, because a suite that fails by chance says nothing about a
/// change. `WARMKEY_CASES=1000000` plays other histories.
#[test]
fn binding_holds_in_every_interleaving() {
    let asked = std::env::var("WARMKEY_CASES").ok().and_then(|cases| cases.parse().ok());
    search(Flaw::None, asked.unwrap_or(100_000), asked.is_some())
        .unwrap_or_else(|violation| panic!("{violation}"));
}

/// Found by chance: the store takes a move, but no replica learns of it, because the replica that
/// made the move is cut off. Then the key recovers.
#[test]
fn move_that_no_replica_knows_is_no_violation() {
    let events = [
        Event::Dies(0),
        Event::Dies(2),
        Event::Turn(1, 1),
        Event::Steps(vec![0; 8]),
        Event::Turn(2, 1),
        Event::Turn(0, 0),
        Event::Turn(0, 0),
        Event::Steps(vec![3, 3, 0]),
        Event::Restart(2),
        Event::Recovers(0),
        Event::Turn(0, 0),
        Event::Weather(1, Weather::Away),
        Event::Turn(1, 1),
    ];
    assert_eq!(play(Flaw::None, &events), Ok(()));
}

/// Found by chance: a sibling serves a turn, while another turn moves the session away from its
/// key. The key has recovered by then.
#[test]
fn turn_beside_the_binding_learns_of_its_move() {
    let events = [
        Event::Turn(0, 0),
        Event::Dies(2),
        Event::Steps(vec![0, 0, 0, 0, 0, 0]),
        Event::Membership(0),
        Event::Membership(0),
        Event::Turn(0, 0),
        Event::Turn(0, 0),
        Event::Reload(0, 2),
        Event::Steps(vec![3, 0, 3, 0, 2, 0, 2, 2, 0, 2]),
        Event::Reload(0, 0),
        Event::Dies(1),
        Event::Turn(0, 0),
        Event::Turn(0, 0),
        Event::Turn(0, 0),
        Event::Turn(0, 0),
        Event::Turn(0, 0),
    ];
    assert_eq!(play(Flaw::None, &events), Ok(()));
}

/// Found by chance: only one replica has a key, and another replica's newer set lacks it.
#[test]
fn key_that_a_newer_set_lacks_is_removed() {
    let events = [
        Event::Weather(2, Weather::Away),
        Event::Turn(2, 0),
        Event::Steps(vec![0; 3]),
        Event::Membership(1),
        Event::Turn(1, 0),
        Event::Reload(1, 1),
        Event::Dies(2),
        Event::Steps(vec![0; 10]),
        Event::Reload(0, 2),
        Event::Membership(0),
        Event::Turn(0, 0),
        Event::Steps(vec![0; 5]),
    ];
    assert_eq!(play(Flaw::None, &events), Ok(()));
}

/// Found twice by chance: a session begins with another key than the first one of its order. A
/// cut-off replica finds the session's organization by a search that ends with the first key.
#[test]
fn search_of_a_cut_off_replica_does_not_move_the_session() {
    let events = [
        Event::Dies(0),
        Event::Dies(2),
        Event::Turn(2, 0),
        Event::Steps(vec![0; 6]),
        Event::Weather(1, Weather::Away),
        Event::Turn(2, 1),
        Event::Recovers(0),
        Event::Steps(vec![5, 1]),
        Event::Turn(1, 1),
        Event::Recovers(2),
        Event::Turn(1, 1),
    ];
    assert_eq!(play(Flaw::None, &events), Ok(()));
}

#[test]
fn wrong_script_is_caught() {
    for flaw in [
        Flaw::PlainClaim,
        Flaw::PlainReplace,
        Flaw::ReplaceByKey,
        Flaw::MergeNothingOver,
        Flaw::PlainMerge,
        Flaw::MergeEqual,
    ] {
        assert!(search(flaw, 100_000, false).is_err(), "{flaw:?} is not caught");
    }
}
