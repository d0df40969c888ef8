//! A client that reads a paced stream, and measures how late each event comes, also while the
//! replica does heavy work.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::lateness::Lateness;
use crate::world::recorder::{Recorder, Seen, Step, chunk, stream_head};
use crate::world::waiting::ms;
use crate::world::wire::{Connection, Piece, Request};

/// Time between two events of a paced stream.
pub const PACE: Duration = ms(20);

const PACED: &str = r#"{"model":"gpt-5.4","prompt_cache_key":"paced","stream":true,"input":"x"}"#;

/// Most runs. Their median must show that no event waits.
pub const RUNS: usize = 9;

/// The results of some runs. More than half of [`RUNS`] decide the median.
#[derive(Default)]
pub struct Median {
    good: usize,
    bad: Vec<(Duration, Duration)>,
}

impl Median {
    /// Notes a run that took `took`. Meanwhile the events of others were `late`, and would have
    /// been late by `machine` anyway. Returns whether the median is known to be good. Fails the
    /// test if it is known to be bad.
    pub fn note(&mut self, took: Duration, late: Duration, machine: Duration) -> bool {
        match late.saturating_sub(machine) < took / 8 {
            true => self.good += 1,
            false => self.bad.push((took, late)),
        }
        assert!(self.bad.len() <= RUNS / 2, "of work and late: {:?}", self.bad);
        self.good > RUNS / 2
    }
}

/// The answer of a [`Recorder`](crate::world::recorder::Recorder) that paces its events for ever.
fn paced() -> Vec<Step> {
    let event =
        b"event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\"}\n\n";
    vec![Step::Send(stream_head("")), Step::Drip(chunk(event), PACE)]
}

/// Asks for paced streams, one after the other, until `is_over`. Returns how late each event came
/// after the one before.
pub async fn events(address: SocketAddr, request: &Request, is_over: &AtomicBool) -> Vec<Duration> {
    let mut late = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let mut connection = Connection::open(address).await;
        let answer = connection.ask(request).await.expect("an answer");
        assert_eq!(answer.status, 200, "a paced stream");
        let mut last = None;
        while let Piece::Bytes(_) = connection.piece().await {
            let now = Instant::now();
            late.extend(last.map(|last: Instant| (now - last).saturating_sub(PACE)));
            last = Some(now);
            if is_over.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    late
}

/// The median of the worst tenth.
pub fn worst_tenth(mut late: Vec<Duration>) -> Duration {
    late.sort();
    assert!(late.len() >= 20, "{} events", late.len());
    late[late.len() - late.len() / 20 - 1]
}

/// The worst of all.
pub fn worst(late: &[Duration]) -> Duration {
    late.iter().max().copied().expect("events have come")
}

fn is_paced(seen: &Seen) -> bool {
    // The upstream does not search a long body, which would delay the upstream itself.
    seen.body.len() < 1_000 && String::from_utf8_lossy(&seen.body).contains("paced")
}

/// Starts a replica with one thread for turns. Its upstream paces one stream, and answers
/// everything else with `steps`.
pub async fn on_one_thread(steps: Vec<Step>, options: &str) -> (Recorder, Running) {
    let script = move |seen: &Seen| if is_paced(seen) { paced() } else { steps.clone() };
    let upstream = Recorder::start(script).await;
    let cluster = Cluster::new()
        .recorded_by(&upstream)
        .upstream(options)
        .shell("export TOKIO_WORKER_THREADS=1")
        .start()
        .await;
    (upstream, cluster)
}

/// Checks that another client's events come in time while `work` is done. In the median of
/// [`RUNS`], no event may be later than a part of the work's time. The test's own process and the
/// upstream may be late, too. Events that come straight from the upstream show by how much.
pub async fn holds_up_nobody(upstream: &Recorder, cluster: &Running, mut work: impl AsyncFnMut()) {
    let mut median = Median::default();
    // A machine that compiles meanwhile has slow moments of its own.
    let lateness = Lateness::watch();
    loop {
        let from = std::time::Instant::now();
        let is_over = Arc::new(AtomicBool::new(false));
        let others = [cluster.address(), upstream.address()].map(|address| {
            let is_over = Arc::clone(&is_over);
            tokio::spawn(
                async move { events(address, &Request::turn(ALICE, PACED), &is_over).await },
            )
        });
        let mut took = Duration::MAX;
        for _ in 0..3 {
            let began = Instant::now();
            work().await;
            took = took.min(began.elapsed());
        }
        is_over.store(true, Ordering::Relaxed);
        let [through, straight] = others;
        let late = worst(&through.await.expect("the client runs"));
        let straight = worst(&straight.await.expect("the client runs"));
        if median.note(took, late, straight.max(lateness.longest(from))) {
            return;
        }
    }
}
