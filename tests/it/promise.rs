//! The one promise: a session stays on the key whose prompt cache is warm, whichever replica takes
//! each turn, even while replicas die.
//!
//! The same work goes to one key directly, and through Warmkey; the simulator records both. Its
//! clock runs five hundred times faster, so that sessions keep the pace of people. A real key takes
//! about 15 requests a minute of one session before it overflows to a cold machine, and forgets
//! after half an hour.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::world::cluster::{ALICE, BOB, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::process::Folder;
use crate::world::simulator::{Key, Simulator, Turn, keys_by_session, siblings};
use crate::world::waiting::{SOON, eventually, ms, within};

const SESSIONS: usize = 200;
const TURNS: usize = 10;
/// Of so many sessions, one begins with a root and its sub-agents at once.
const BUSY: usize = 25;
const AGENTS: usize = 32;
/// Sessions that are open at a time.
const OPEN: usize = 16;
const ALL_TURNS: usize = SESSIONS * TURNS + SESSIONS / BUSY * (AGENTS - 1);
/// One model of each cache regime: steps, and exact breakpoints.
const MODELS: [&str; 2] = ["gpt-5.4", "gpt-5.6-sol"];
const SIMULATOR: &str = "time_scale = 500\nevents = 4";

/// Body hashes of all served turns, and the number of finished turns.
#[derive(Default)]
struct Work {
    done: AtomicUsize,
    sent: std::sync::Mutex<BTreeSet<String>>,
}

impl Work {
    async fn turn(&self, codex: &mut Codex, text: &str) {
        let ended = codex.turn(text).await.served();
        self.sent.lock().expect("no holder panics").insert(ended.sha256);
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until this many percent of the turns are finished, for as long as there is progress.
    async fn reaches(&self, percent: usize) {
        let goal = ALL_TURNS * percent / 100;
        while self.done.load(Ordering::Relaxed) < goal {
            let before = self.done.load(Ordering::Relaxed);
            eventually(SOON * 2, "progress", async || {
                (self.done.load(Ordering::Relaxed) > before).then_some(())
            })
            .await;
        }
    }

    /// Plays one session: its first turn, perhaps with sub-agents, then its other turns with a
    /// growing history.
    async fn session(&self, number: usize, mut root: Codex) {
        let said = "the quick brown fox jumps over the lazy dog, and ".repeat(20);
        if number.is_multiple_of(BUSY) {
            // The agents are slow enough that all are in flight at once. They start a moment apart,
            // as people and tools do.
            let mut agents = JoinSet::new();
            for _ in 1..AGENTS {
                let (mut agent, begun) = (root.spawn(), Arc::new(Notify::new()));
                let telling = Arc::clone(&begun);
                agents.spawn(async move {
                    let turn = agent
                        .turn_telling("an agent begins SLOW:4x200ms", || telling.notify_one())
                        .await;
                    turn.served().sha256
                });
                // Even if this request arrives late, the next one follows three seconds later on
                // the upstream's clock.
                within(SOON, "an agent is answered", begun.notified()).await;
                sleep(ms(6)).await;
            }
            self.turn(&mut root, &format!("{said} SLOW:4x200ms")).await;
            while let Some(agent) = agents.join_next().await {
                self.sent.lock().expect("no holder panics").insert(agent.expect("an agent ends"));
                self.done.fetch_add(1, Ordering::Relaxed);
            }
        } else {
            self.turn(&mut root, &format!("{said} first")).await;
        }
        for turn in 1..TURNS {
            self.turn(&mut root, &format!("{said} {turn}")).await;
        }
    }

    async fn play(self: Arc<Self>, address: SocketAddr, tokens: [String; 2]) {
        let open = Arc::new(Semaphore::new(OPEN));
        let mut sessions = JoinSet::new();
        for number in 0..SESSIONS {
            let codex =
                Codex::new(address, &tokens[number / 2 % 2]).model(MODELS[number % 2]).patient();
            let (work, open) = (Arc::clone(&self), Arc::clone(&open));
            sessions.spawn(async move {
                let _turn = open.acquire_owned().await.expect("the gate stays");
                work.session(number, codex).await;
            });
        }
        while let Some(session) = sessions.join_next().await {
            session.expect("a session plays to its end");
        }
    }
}

/// Returns the cached share of each regime's input: of all tokens, and of those that the ideal
/// upstream would have cached.
fn shares(turns: &[Turn]) -> [(f64, f64); 2] {
    MODELS.map(|model| {
        let of_model = |turn: &&Turn| turn.is_served() && turn.model.as_deref() == Some(model);
        let sum =
            |part: fn(&Turn) -> u64| turns.iter().filter(of_model).map(part).sum::<u64>() as f64;
        let cached = sum(|turn| turn.cached_tokens);
        (cached / sum(|turn| turn.input_tokens), cached / sum(|turn| turn.ideal_cached_tokens))
    })
}

async fn single_key() -> [(f64, f64); 2] {
    let folder = Folder::new();
    let key = Key::new("only", "org-a");
    let simulator = Simulator::start(&folder, std::slice::from_ref(&key), SIMULATOR).await;
    let token = key.secret();
    Arc::new(Work::default()).play(simulator.address(), [token.clone(), token]).await;
    let turns = simulator.recorded(ALL_TURNS).await;
    assert_eq!(turns.iter().filter(|turn| turn.is_served()).count(), ALL_TURNS);
    shares(&turns)
}

/// Keys with weights that differ for each replica: only the store can make the three replicas
/// agree.
fn keys(number: usize) -> Vec<Key> {
    let mut keys = [siblings("org-a", 3), siblings("org-b", 3)].concat();
    keys[number * 2].weight = 10;
    keys
}

async fn three_replicas() -> Running {
    let mut cluster = Cluster::new()
        .keys(keys(0))
        .replicas(3)
        .redis()
        .balanced()
        .simulator(SIMULATOR)
        .server("drain_delay", "\"400ms\"")
        .start()
        .await;
    for number in 1..3 {
        cluster.change(|cluster| cluster.keys(keys(number)));
        cluster.replace(number).await;
    }
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_holds_while_replicas_die() {
    let single = single_key().await;
    assert!(
        single.iter().all(|(_, of_ideal)| *of_ideal > 0.99),
        "the single key itself does not overflow: {single:?}"
    );

    let mut cluster = three_replicas().await;
    let work = Arc::new(Work::default());
    let playing =
        tokio::spawn(Arc::clone(&work).play(cluster.address(), [ALICE.into(), BOB.into()]));
    work.reaches(25).await;
    cluster.replicas[0].kill().await;
    work.reaches(50).await;
    cluster.replicas[1].terminate().await;
    assert_eq!(cluster.replicas[1].exit(SOON * 2).await.code(), Some(0));
    cluster.change(|cluster| cluster.keys(keys(1)));
    cluster.restart(1).await;
    work.reaches(75).await;
    cluster.change(|cluster| cluster.keys(keys(0)));
    cluster.restart(0).await;
    playing.await.expect("all sessions play to their end");

    let turns = cluster.upstream().recorded(ALL_TURNS).await;
    let keys = keys_by_session(&turns);
    assert_eq!(keys.len(), SESSIONS);
    let moved: BTreeMap<_, _> = keys.iter().filter(|(_, keys)| keys.len() != 1).collect();
    assert!(moved.is_empty(), "exactly one key a session: {moved:?}");
    assert_eq!(
        keys.into_values().flatten().collect::<BTreeSet<_>>().len(),
        6,
        "and every key is at work"
    );

    let served: BTreeSet<String> =
        turns.iter().filter(|turn| turn.is_served()).map(|turn| turn.body_sha256.clone()).collect();
    assert!(
        served == *work.sent.lock().expect("no holder panics"),
        "the bodies that arrived are the bodies that were sent"
    );

    for ((model, (cached, of_ideal)), single) in MODELS.iter().zip(shares(&turns)).zip(single) {
        assert!(
            cached >= 0.99 * single.0,
            "{model}: cached {cached:.4}, by the single key {:.4}",
            single.0
        );
        assert!(
            of_ideal >= 0.99,
            "{model}: {of_ideal:.4} of the ideal, the single key {:.4}",
            single.1
        );
    }
    for (number, replica) in cluster.replicas.iter().enumerate() {
        assert!(
            replica.metrics().await.sum("warmkey_turns_total") > 0.0,
            "replica {number} took its part"
        );
        replica.shows("warmkey_active_turns", 0.0).await;
    }
}
