//! Plays everything at once and for long: twenty keys, three replicas, sessions over both
//! transports, and keys that fail, come and go. `WARMKEY_LONG=1` (`make test-long`) plays ten times
//! as many sessions.
//!
//! The upstream's record is judged phase by phase. A session may leave its key only if the phase
//! has killed or limited that key, and must never leave its organization.

#![expect(clippy::print_stdout, reason = "with --nocapture, a phase prints its figures")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::{Codex, Talk};
use crate::world::redis::shape::Shape;
use crate::world::simulator::{Fault, Key, Turn};
use crate::world::waiting::{ANSWER, eventually, is_long};

/// Turns of each session in each phase.
const TURNS: usize = 3;
/// Codex's own pace on the simulator's clock. With more than fifteen turns a minute, even a single
/// key's cache would overflow.
const PACE: Duration = Duration::from_millis(400);
const AT_ONCE: usize = 48;

/// Four organizations of five keys; two of them have a second project.
fn keys() -> Vec<Key> {
    let key = |organization: &str, number: usize| {
        let key = Key::new(&format!("{organization}-{number}"), organization);
        if number > 3 && matches!(organization, "org-a" | "org-b") {
            key.of_project(&format!("{organization}-side"))
        } else {
            key
        }
    };
    ["org-a", "org-b", "org-c", "org-d"]
        .iter()
        .flat_map(|name| (1..=5).map(move |number| key(name, number)))
        .collect()
}

enum Player {
    Http(Box<Codex>),
    Socket(Box<Talk>),
}

impl Player {
    fn session(&self) -> &str {
        match self {
            Self::Http(codex) => &codex.session,
            Self::Socket(talk) => &talk.codex.session,
        }
    }

    /// Plays a turn. Returns the error at which the client stopped, if it did.
    async fn turn(&mut self) -> Option<String> {
        match self {
            Self::Http(codex) => {
                let ended = codex.turn("and on").await;
                (!ended.completed)
                    .then(|| format!("{} {}", ended.answer.status, ended.answer.code()))
            }
            Self::Socket(talk) => {
                talk.turn("and on").await;
                None
            }
        }
    }
}

/// The effect of a phase on keys.
#[derive(Default)]
struct Trouble {
    /// The keys whose sessions must move.
    dead: BTreeSet<String>,
    /// The keys whose sessions other keys may serve.
    limited: BTreeSet<String>,
    /// Whether bindings are forgotten, so that a search may ask other organizations.
    forgets: bool,
}

impl Trouble {
    fn dead(keys: &[&str]) -> Self {
        Self { dead: keys.iter().map(|key| (*key).into()).collect(), ..Self::default() }
    }

    fn limited(keys: &[&str]) -> Self {
        Self { limited: keys.iter().map(|key| (*key).into()).collect(), ..Self::default() }
    }
}

struct Marathon {
    cluster: Running,
    players: Vec<Player>,
    /// The key and organization of each session, and the key that served it last.
    bound: BTreeMap<String, (String, String)>,
    last: BTreeMap<String, String>,
    played: usize,
    crossings: usize,
    unforced: usize,
    failed: Vec<String>,
}

impl Marathon {
    async fn start(sessions: usize) -> Self {
        let cluster = Cluster::new()
            .keys(keys())
            .spare(vec![Key::new("org-b-6", "org-b")])
            .replicas(3)
            .redis_as(Shape::Sentinel);
        let cluster = cluster.balanced().simulator("time_scale = 10.0").start().await;
        let player = |number: usize| {
            let codex = Codex::new(cluster.address(), ALICE).patient();
            if number.is_multiple_of(2) {
                Player::Http(Box::new(codex))
            } else {
                Player::Socket(Box::new(codex.by_websocket()))
            }
        };
        let players = (0..sessions).map(player).collect();
        Self {
            cluster,
            players,
            bound: BTreeMap::new(),
            last: BTreeMap::new(),
            played: 0,
            crossings: 0,
            unforced: 0,
            failed: Vec::new(),
        }
    }

    /// Plays all sessions, and judges the upstream's record of them.
    async fn phase(&mut self, name: &str, trouble: &Trouble) {
        self.phase_of(self.players.len(), name, trouble).await;
    }

    /// Plays `count` sessions, while the others sleep.
    async fn phase_of(&mut self, count: usize, name: &str, trouble: &Trouble) {
        let (before, began) = (self.cluster.turns().await.len(), Instant::now());
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut playing = JoinSet::new();
        for mut player in self.players.drain(..count) {
            let places = Arc::clone(&places);
            playing.spawn(async move {
                let _place = places.acquire_owned().await.expect("the semaphore stays open");
                let mut failures = Vec::new();
                for _ in 0..TURNS {
                    failures.extend(player.turn().await);
                    tokio::time::sleep(PACE).await;
                }
                (player, failures)
            });
        }
        let mut failed = Vec::new();
        while let Some(played) = playing.join_next().await {
            let (player, failures) = played.expect("a player ends");
            failed.extend(failures);
            self.players.push(player);
        }
        let turns = self.cluster.turns().await.split_off(before);
        self.played += count * TURNS;
        self.judge(&turns, trouble);
        let sum = |of: fn(&Turn) -> u64| {
            turns.iter().filter(|turn| turn.is_served()).map(of).sum::<u64>() as f64
        };
        let (cached, ideal) =
            (sum(|turn| turn.cached_tokens), sum(|turn| turn.ideal_cached_tokens));
        println!(
            "{name:<28} {:>6} attempts in {:>5.1} s, cached {:.1} %, {:.1} % of the ideal, {} failed; so far {} unforced moves, {} crossings",
            turns.len(),
            began.elapsed().as_secs_f64(),
            100.0 * cached / sum(|turn| turn.input_tokens),
            100.0 * cached / ideal,
            failed.len(),
            self.unforced,
            self.crossings,
        );
        self.failed.extend(failed.into_iter().map(|failure| format!("{name}: {failure}")));
    }

    fn judge(&mut self, turns: &[Turn], trouble: &Trouble) {
        for player in &self.players {
            let all = turns.iter().filter(|turn| turn.session.as_deref() == Some(player.session()));
            let organization =
                self.bound.get(player.session()).map(|(_, organization)| organization.clone());
            // A turn that another organization refused as foreign counts as a crossing, too, unless
            // bindings were forgotten.
            let is_elsewhere = |turn: &&Turn| {
                !turn.is_served()
                    && organization
                        .as_ref()
                        .is_some_and(|organization| *organization != turn.organization)
            };
            self.crossings +=
                if trouble.forgets { 0 } else { all.clone().filter(is_elsewhere).count() };
            let own = all.filter(|turn| turn.is_served());
            for turn in own {
                let last = self.last.insert(player.session().to_owned(), turn.key.clone());
                // A connection has one key for life, even if the session's own key was limited when
                // it was opened.
                let is_same_connection =
                    turn.transport == "websocket" && last.as_ref() == Some(&turn.key);
                let Some((key, organization)) = self.bound.get_mut(player.session()) else {
                    self.bound.insert(
                        player.session().to_owned(),
                        (turn.key.clone(), turn.organization.clone()),
                    );
                    continue;
                };
                if *organization != turn.organization {
                    println!(
                        "{} crossed from {organization} to {}",
                        player.session(),
                        turn.organization
                    );
                    self.crossings += 1;
                } else if *key == turn.key || trouble.limited.contains(key) || is_same_connection {
                } else if trouble.dead.contains(key) {
                    *key = turn.key.clone();
                } else {
                    println!("{} went from {key} to {}", player.session(), turn.key);
                    self.unforced += 1;
                    *key = turn.key.clone();
                }
            }
        }
    }

    /// Waits until no key is limited, and until no sibling serves in place of a key for whose limit
    /// a turn has waited in vain.
    async fn calms_down(&self) {
        let is_unused = |key: &Value| {
            let conditions = key["conditions"].as_array().expect("a list of conditions");
            conditions.iter().any(|one| one["reason"] == "limited" || one["reason"] == "strained")
        };
        for replica in &self.cluster.replicas {
            eventually(ANSWER, "limits are over", async || {
                (!replica.keys().await.iter().any(is_unused)).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_stay_whatever_happens_to_keys() {
    let mut marathon = Marathon::start(if is_long() { 2_000 } else { 200 }).await;
    // The number of faults does not grow with the number of sessions. One limit for each session
    // would last longer than the clients retry.
    let many = 40;
    marathon.phase("calm", &Trouble::default()).await;

    // One project's limit is short enough to wait; a sibling serves for the other project.
    marathon
        .cluster
        .upstream()
        .fails_with(Fault::limited(2).project("org-c-main").times(many))
        .await;
    marathon
        .cluster
        .upstream()
        .fails_with(Fault::limited(8).project("org-a-side").times(many / 10))
        .await;
    marathon.phase("limits", &Trouble::limited(&["org-a-4", "org-a-5"])).await;
    marathon.cluster.upstream().heal().await;
    marathon.calms_down().await;

    marathon
        .cluster
        .upstream()
        .fails_with(Fault::down(502).code("server_error").key("org-b-1").times(many / 4))
        .await;
    marathon.phase("failures", &Trouble::limited(&["org-b-1"])).await;
    marathon.cluster.upstream().heal().await;

    marathon.cluster.upstream().revoke("org-a-1").await;
    marathon.cluster.upstream().revoke("org-d-1").await;
    marathon.phase("two keys revoked", &Trouble::dead(&["org-a-1", "org-d-1"])).await;

    let changed: Vec<Key> = keys()
        .into_iter()
        .filter(|key| key.id != "org-c-2")
        .chain([Key::new("org-b-6", "org-b")])
        .collect();
    marathon.cluster.change(|description| description.keys(changed));
    for number in 0..3 {
        marathon.cluster.reload(number).await;
    }
    marathon.phase("one key removed, one added", &Trouble::dead(&["org-c-2"])).await;

    marathon.cluster.replicas[0].kill().await;
    marathon.phase("a replica killed", &Trouble::default()).await;
    marathon.cluster.restart(0).await;
    marathon.phase("a replica restarted", &Trouble::default()).await;

    marathon.cluster.sentinel().primary().await.is_copied().await;
    marathon.cluster.sentinel().cut_replicas_off().await;
    marathon.cluster.upstream().revoke("org-b-2").await;
    // Fewer sessions play, because Sentinels do not promote a replica that was cut off for too
    // long.
    marathon.phase_of(200, "writes that will be lost", &Trouble::dead(&["org-b-2"])).await;
    let killed = marathon.cluster.sentinel().kill_primary().await;
    marathon
        .phase("Redis fails over", &Trouble { forgets: true, ..Trouble::dead(&["org-b-2"]) })
        .await;
    marathon.cluster.sentinel().failed_over(killed).await;
    for replica in &marathon.cluster.replicas {
        replica.shows("warmkey_store_up", 1.0).await;
    }
    // The store has lost the moves of this phase. Sessions that sleep meanwhile would follow the
    // store, although none of them has moved.
    marathon.phase("calm again", &Trouble::default()).await;

    println!(
        "{} turns of {} sessions: {} unforced moves, {} crossings, {} failed",
        marathon.played,
        marathon.players.len(),
        marathon.unforced,
        marathon.crossings,
        marathon.failed.len()
    );
    assert!(
        marathon.failed.is_empty(),
        "turns failed for want of trying: {:?}",
        &marathon.failed[..marathon.failed.len().min(5)]
    );
    assert_eq!((marathon.unforced, marathon.crossings), (0, 0));

    // If no key can cure a fault, its client learns that at once, and other sessions go on.
    marathon.players.retain(|player| matches!(player, Player::Http(_)));
    marathon.cluster.upstream().exhaust("org-d").await;
    let of_d = marathon.bound.values().filter(|(_, organization)| organization == "org-d").count();
    marathon
        .phase(
            "an organization exhausted",
            &Trouble::limited(&["org-d-2", "org-d-3", "org-d-4", "org-d-5"]),
        )
        .await;
    assert!(of_d > 0 && !marathon.failed.is_empty());
    assert!(
        marathon.failed.iter().all(|failure| failure.ends_with("429 insufficient_quota")),
        "{:?}",
        marathon.failed.first()
    );
    assert_eq!((marathon.unforced, marathon.crossings), (0, 0));
}
