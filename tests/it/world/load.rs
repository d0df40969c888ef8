//! Plays many sessions at a steady pace, and measures each turn.
//!
//! No session retries: a turn that is not served fails the test.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::world::codex::Codex;

/// A turn as its client saw it.
#[derive(Clone, Debug)]
pub struct Lap {
    pub began: Instant,
    pub took: Duration,
    pub sha256: String,
}

/// The load. It ends with its test, however the test ends.
pub struct Load {
    period: Duration,
    laps: Arc<Mutex<Vec<Lap>>>,
    failures: Arc<Mutex<Vec<String>>>,
    players: JoinSet<()>,
    over: watch::Sender<bool>,
}

impl Load {
    /// Each session begins a turn in every `period`, unless its turn before is still in flight.
    pub fn new(period: Duration) -> Self {
        Self {
            period,
            laps: Arc::default(),
            failures: Arc::default(),
            players: JoinSet::new(),
            over: watch::Sender::new(false),
        }
    }

    /// Makes these sessions play from now on, each at a moment of its own within the period.
    pub fn join(&mut self, sessions: Vec<Codex>) {
        let count = u32::try_from(sessions.len()).expect("not so many");
        for (number, mut session) in (0..).zip(sessions) {
            let (laps, failures) = (Arc::clone(&self.laps), Arc::clone(&self.failures));
            let (mut over, period) = (self.over.subscribe(), self.period);
            self.players.spawn(async move {
                sleep(period * number / count).await;
                let mut ticks = interval(period);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                for turn in 0.. {
                    tokio::select! {
                        _ = ticks.tick() => {}
                        _ = over.wait_for(|over| *over) => return,
                    }
                    let began = Instant::now();
                    let ended = session.turn(&format!("at a steady pace {turn}")).await;
                    if !ended.completed {
                        let failure = format!("{} {}", ended.answer.status, ended.answer.text());
                        return failures.lock().expect("no holder panics").push(failure);
                    }
                    let lap = Lap { began, took: began.elapsed(), sha256: ended.sha256 };
                    laps.lock().expect("no holder panics").push(lap);
                }
            });
        }
    }

    /// Fails the test unless every turn so far was served.
    pub fn all_served(&self) {
        let failures = self.failures.lock().expect("no holder panics");
        assert!(
            failures.is_empty(),
            "{} sessions ended with a turn that failed: {}",
            failures.len(),
            failures[0]
        );
    }

    /// The turns that began in this time and have ended.
    pub fn laps(&self, from: Instant, to: Instant) -> Vec<Lap> {
        self.all_served();
        let mut laps = self.laps.lock().expect("no holder panics").clone();
        laps.retain(|lap| (from..to).contains(&lap.began));
        laps
    }

    /// Waits for the turns in flight, and returns the body hashes of all turns.
    pub async fn end(mut self) -> BTreeSet<String> {
        self.over.send_replace(true);
        while let Some(player) = self.players.join_next().await {
            player.expect("a player ends");
        }
        self.all_served();
        let laps = self.laps.lock().expect("no holder panics");
        laps.iter().map(|lap| lap.sha256.clone()).collect()
    }
}
