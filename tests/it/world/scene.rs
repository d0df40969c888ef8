//! Redis in any weather, under two hundred sessions on three replicas: no turn fails, no turn waits
//! for Redis, no session moves.
//!
//! Replicas without memory would still agree on the first key of a session's own order. So that
//! these tests can fail, most sessions of a scene are bound to another key. Only the store, and the
//! replicas' memory while the store is away, keep them there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::lateness::Lateness;
use crate::world::load::Load;
use crate::world::replica::{Metrics, Replica};
use crate::world::simulator::{Key, siblings};
use crate::world::waiting::{SOON, eventually, found, ms};

/// Sessions that every replica has served before the weather changes, and sessions that begin
/// after.
pub const KNOWN: usize = 150;
pub const NEW: usize = 50;
pub const PERIOD: Duration = Duration::from_millis(2_500);
/// The time that a machine which also compiles adds to a turn now and then.
const NOISE: Duration = Duration::from_millis(1_000);
/// Turns in flight at once before the weather changes.
pub const AT_A_TIME: usize = 8;
/// How long Redis is away.
pub const AWAY: Duration = Duration::from_millis(3_500);
/// The longest time that one turn may wait for Redis. A bucket of the histogram ends there.
pub const LONGEST: Duration = Duration::from_millis(100);

pub const FAILURES: &str = "warmkey_store_failures_total";

pub fn keys() -> Vec<Key> {
    [siblings("org-a", 3), siblings("org-b", 3)].concat()
}

/// Weights that send nearly every session to two keys of one organization.
pub fn lopsided() -> Vec<Key> {
    let mut keys = keys();
    (keys[0].weight, keys[1].weight) = (60, 30);
    keys
}

/// A deployment under load, with each session's key on record. Fields drop in order: the load goes
/// first.
pub struct Scene {
    load: Load,
    pub cluster: Running,
    /// The key of each known session.
    bound: BTreeMap<String, String>,
    /// The number of turns on record before the load began.
    before: usize,
    /// The longest turn before the weather changed.
    normal: Duration,
    lateness: Lateness,
}

impl Scene {
    /// Starts three replicas in front of the store that `cluster` describes, and the load on them.
    pub async fn set(cluster: Cluster) -> Self {
        // No binding may be forgotten before the scene begins, however slow the machine is.
        let cluster = cluster.keys(lopsided()).replicas(3).balanced().store("timeout = \"5s\"");
        let mut cluster = cluster.start().await;
        let mut sessions: Vec<Codex> =
            (0..KNOWN).map(|_| Codex::new(cluster.address(), ALICE)).collect();
        sessions = turn_each(sessions).await;
        cluster.change(|cluster| cluster.keys(keys()).store(""));
        for number in 0..3 {
            cluster.replace(number).await;
        }
        let balancer = cluster.address();
        for number in 0..3 {
            sessions = introduce(&cluster, number, sessions).await;
        }
        sessions.iter_mut().for_each(|session| session.moves_to(balancer));
        let turns = cluster.upstream().recorded(KNOWN * 4).await;
        // The last turn of each session has found its binding, so its key is the right one.
        let bound: BTreeMap<_, _> = turns
            .iter()
            .map(|turn| (turn.session.clone().unwrap_or_default(), turn.key.clone()))
            .collect();
        assert_eq!(bound.len(), KNOWN);
        let mut load = Load::new(PERIOD);
        load.join(sessions);
        let mut scene = Self {
            load,
            cluster,
            bound,
            before: turns.len(),
            normal: Duration::ZERO,
            lateness: Lateness::watch(),
        };
        let (from, until) = (Instant::now(), Instant::now() + PERIOD);
        sleep_until(until).await;
        scene.normal = scene.longest(from, until);
        scene
    }

    fn longest(&self, from: Instant, to: Instant) -> Duration {
        let laps = self.load.laps(from, to);
        assert!(laps.len() > 10, "the load goes on: {} turns", laps.len());
        laps.iter().map(|lap| lap.took).max().unwrap_or_default()
    }

    /// New sessions begin, and move from replica to replica.
    pub fn newcomers_join(&mut self) {
        self.load.join((0..NEW).map(|_| Codex::new(self.cluster.address(), ALICE)).collect());
    }

    /// Plays on after Redis has just gone away, and checks that no turn waits.
    pub async fn endures(&mut self, span: Duration) {
        let from = std::time::Instant::now();
        for (number, waited) in self.does_without(span).await.into_iter().enumerate() {
            let late = self.lateness.total(from).as_secs_f64();
            assert!(
                waited < LATER + late,
                "replica {number}: after the first second turns waited {waited:.3} s, {late:.3} s late"
            );
        }
    }

    /// Plays on after Redis has just begun to fail, and checks that no turn fails or takes long.
    /// Returns how long the turns of each replica waited for Redis after the first second. While
    /// Redis answers, a busy machine may cause that wait.
    pub async fn does_without(&mut self, span: Duration) -> [f64; 3] {
        let struck = Instant::now();
        let at_first = self.waits().await;
        self.newcomers_join();
        sleep_until(struck + ms(1_000)).await;
        let after_a_second = self.waits().await;
        sleep_until(struck + span).await;
        let at_last = self.waits().await;
        judge_waits(&at_first, &at_last);
        self.is_quick(struck, span);
        let late = self.lateness.count(struck.into_std());
        std::array::from_fn(|number| {
            let [first, second, last] =
                [&at_first[number], &after_a_second[number], &at_last[number]];
            assert!(
                last.degraded > first.degraded,
                "replica {number} noticed nothing: this test shows nothing"
            );
            let long = last.long - first.long;
            assert!(long <= SLOW_TURNS + late, "replica {number}: {long} turns waited too long");
            last.seconds - second.seconds
        })
    }

    /// Checks that nearly no turn since `before` has waited too long for the store.
    pub async fn has_waited_little(&self, before: &[Waits]) {
        judge_waits(before, &self.waits().await);
    }

    /// Plays on, and checks that no turn takes long.
    pub async fn goes_on(&self, span: Duration) {
        let from = Instant::now();
        sleep_until(from + span).await;
        self.is_quick(from, span);
    }

    /// Checks that no turn in `span` took longer than before, with an allowance for waits for the
    /// store and for a core.
    fn is_quick(&self, from: Instant, span: Duration) {
        let (longest, late) =
            (self.longest(from, from + span), self.lateness.of_a_turn(from.into_std()));
        let most = self.normal + LONGEST + NOISE + late;
        assert!(
            longest <= most,
            "a turn took {longest:?}, and before {:?}, {late:?} late",
            self.normal
        );
    }

    /// Returns how often since `from` a process waited so long for a core that a turn may have been
    /// late, too.
    pub fn lateness(&self, from: std::time::Instant) -> f64 {
        self.lateness.count(from)
    }

    /// Plays on after Redis has just come back: all replicas must find it within two seconds and go
    /// on as before.
    pub async fn recovers(&mut self) {
        let back = Instant::now();
        self.is_found(back).await;
        self.goes_on(PERIOD).await;
    }

    /// Waits until all replicas have found the store, which must be within two seconds of `back`.
    pub async fn is_found(&self, back: Instant) {
        for replica in &self.cluster.replicas {
            replica.shows("warmkey_store_up", 1.0).await;
        }
        let (took, late) = (back.elapsed(), self.lateness.of_a_turn(back.into_std()));
        assert!(took < ms(2_000) + NOISE / 2 + late, "found again after {took:?}, {late:?} late");
    }

    /// How many turns went without the store so far.
    pub async fn degraded(&self) -> f64 {
        self.waits().await.iter().map(|waits| waits.degraded).sum()
    }

    /// Returns the failures of the store so far, without timeouts.
    pub async fn failures(&self) -> f64 {
        let mut failures = 0.0;
        for replica in &self.cluster.replicas {
            let is_one =
                |series: &str| series.starts_with(FAILURES) && !series.contains("\"timeout\"");
            failures += replica.metrics().await.sum_where(is_one);
        }
        failures
    }

    /// Checks that each replica has counted this failure of the store.
    pub async fn names(&self, reason: &str) {
        let series = format!("{FAILURES}{{reason={reason:?}}}");
        for (number, replica) in self.cluster.replicas.iter().enumerate() {
            assert!(replica.metrics().await.get(&series) > 0.0, "replica {number}: {series}");
        }
    }

    /// How long turns have waited for the store so far, by replica.
    pub async fn waits(&self) -> Vec<Waits> {
        let mut waits = Vec::new();
        for replica in &self.cluster.replicas {
            waits.push(Waits::read(&replica.metrics().await));
        }
        waits
    }

    /// Ends the load and checks the upstream's record: every turn served once, byte for byte, by
    /// its session's key.
    pub async fn judge(self) {
        let sent = self.load.end().await;
        let turns = self.cluster.upstream().recorded(self.before + sent.len()).await;
        let turns = &turns[self.before..];
        assert!(turns.iter().all(|turn| turn.is_served()), "the upstream has refused nothing");
        let arrived: BTreeSet<String> = turns.iter().map(|turn| turn.body_sha256.clone()).collect();
        assert!(
            arrived == sent && turns.len() == sent.len(),
            "the bodies that arrived are the bodies that were sent"
        );
        let drift = drift(
            self.bound,
            turns.iter().map(|turn| (turn.session.clone().unwrap_or_default(), turn.key.clone())),
        );
        assert!(drift.is_empty(), "{} turns met another key: {drift:?}", drift.len());
        for replica in &self.cluster.replicas {
            assert!(replica.metrics().await.sum("warmkey_turns_total") > 0.0);
            replica.shows("warmkey_active_turns", 0.0).await;
        }
    }
}

/// Returns every turn with another key than its session's turn before.
pub fn drift(
    mut bound: BTreeMap<String, String>,
    turns: impl Iterator<Item = (String, String)>,
) -> Vec<String> {
    let mut drift = Vec::new();
    for (session, key) in turns {
        match bound.insert(session.clone(), key.clone()) {
            Some(before) if before != key => drift.push(format!("{session}: {before} -> {key}")),
            _ => {}
        }
    }
    drift
}

/// Plays one turn of each session, a few at a time.
pub async fn turn_each(sessions: Vec<Codex>) -> Vec<Codex> {
    let mut waiting = sessions.into_iter();
    let mut playing = JoinSet::new();
    let mut played = Vec::new();
    loop {
        while playing.len() < AT_A_TIME {
            let Some(mut session) = waiting.next() else { break };
            playing.spawn(async move {
                session.turn("before the weather changes").await.served();
                session
            });
        }
        match playing.join_next().await {
            Some(session) => played.push(session.expect("a turn is served")),
            None => return played,
        }
    }
}

/// Plays each session on replica `number` until the store has answered in time, which a slow
/// machine may prevent at first. Plays a few sessions at a time, so that one late answer repeats
/// only those few.
pub async fn introduce(cluster: &Running, number: usize, mut sessions: Vec<Codex>) -> Vec<Codex> {
    let replica = &cluster.replicas[number];
    replica.shows("warmkey_store_up", 1.0).await;
    let mut introduced = Vec::new();
    while !sessions.is_empty() {
        let mut some = sessions.split_off(sessions.len().saturating_sub(AT_A_TIME));
        some.iter_mut().for_each(|session| session.moves_to(replica.address()));
        let what = format!("sessions in time for replica {number}");
        found(&what, async || {
            let (degraded, all) = bindings(replica).await;
            some = turn_each(std::mem::take(&mut some)).await;
            // A turn is counted a moment after its client has the answer.
            let goal = all + some.len() as f64;
            let counted = async || Some(bindings(replica).await).filter(|(_, all)| *all >= goal);
            let (degraded_now, _) = eventually(SOON, "all turns are counted", counted).await;
            ((degraded_now - degraded).abs() < f64::EPSILON).then_some(())
        })
        .await;
        introduced.append(&mut some);
    }
    introduced
}

/// Turns that went without the store, and all turns.
async fn bindings(replica: &Replica) -> (f64, f64) {
    let metrics = replica.metrics().await;
    (
        metrics.get(r#"warmkey_bindings_total{result="degraded"}"#),
        metrics.sum("warmkey_bindings_total"),
    )
}

/// How long the turns of a replica have waited for the store, all of them together.
pub struct Waits {
    seconds: f64,
    /// Number of waits that are too long for any machine.
    long: f64,
    /// Number of waits longer than [`LONGEST`].
    late: f64,
    /// Number of all questions.
    all: f64,
    degraded: f64,
}

/// Longest wait of all turns of a replica together, after the first second. Fifty waiting turns
/// would take ten times as long.
const LATER: f64 = 0.250;
/// Most slow turns of a replica. After three, it must have noticed that the store is away.
const SLOW_TURNS: f64 = 2.0;
/// The share of all questions that may take longer than [`LONGEST`] on a machine that also
/// compiles. A store that is slow only for the first second has five times as many.
const LATE: f64 = 0.05;

impl Waits {
    fn read(metrics: &Metrics) -> Self {
        let on_the_path =
            ["get", "claim", "replace"].map(|operation| format!("operation=\"{operation}\""));
        let of = |series: &str| on_the_path.iter().any(|label| series.contains(label));
        let sum = |name: &str, label: &str| {
            metrics.sum_where(|series| {
                series.starts_with(name) && series.contains(label) && of(series)
            })
        };
        let all = sum("warmkey_store_seconds_count", "");
        Self {
            seconds: sum("warmkey_store_seconds_sum", ""),
            long: all - sum("warmkey_store_seconds_bucket", "le=\"0.25\""),
            late: all - sum("warmkey_store_seconds_bucket", "le=\"0.1\""),
            all,
            degraded: metrics.get(r#"warmkey_bindings_total{result="degraded"}"#),
        }
    }
}

/// Judges the waits between two readings of all replicas.
fn judge_waits(before: &[Waits], after: &[Waits]) {
    let grown = |count: fn(&Waits) -> f64| {
        after.iter().map(count).sum::<f64>() - before.iter().map(count).sum::<f64>()
    };
    let (late, all) = (grown(|waits| waits.late), grown(|waits| waits.all));
    assert!(
        all > 0.0 && late <= all * LATE,
        "{late} of {all} questions took longer than {LONGEST:?}"
    );
}
