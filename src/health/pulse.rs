//! A replica's pulse: several times a second it tells the others, on the board of the store, what it met and what it has in
//! flight, and hears the same of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior};

use crate::health::registry::Registry;
use crate::store::Store;
use crate::store::board::Word;
use crate::task::Tasks;

/// Between two beats. News are told at once and heard within one; what is in flight is told within one and heard within two.
const BEAT: Duration = Duration::from_millis(100);
/// What a replica that has said nothing for so long had in flight is over.
const LIFE: Duration = Duration::from_secs(5);

/// One replica's pulse.
pub struct Pulse {
    store: Arc<Store>,
    registry: Arc<Registry>,
    /// Another one for each process.
    name: String,
    /// Whoever speaks has this, so that answers are heard in the order in which they were given: when one was heard last.
    heard: Mutex<Instant>,
    has_left: AtomicBool,
}

impl Pulse {
    pub fn new(store: Arc<Store>, registry: Arc<Registry>, name: String) -> Self {
        Self { store, registry, name, heard: Mutex::new(Instant::now()), has_left: AtomicBool::new(false) }
    }

    /// Beats once, then goes on beating in the background until `tasks` end.
    pub async fn start(
        store: &Arc<Store>,
        registry: &Arc<Registry>,
        name: &str,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let pulse = Arc::new(Self::new(Arc::clone(store), Arc::clone(registry), name.to_owned()));
        pulse.beat().await;
        tasks.spawn_until_stopped(Arc::clone(&pulse).keep_beating());
        pulse
    }

    /// Beats for as long as the replica lives.
    pub async fn keep_beating(self: Arc<Self>) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_empty = true;
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                () = self.registry.conditions.news() => {}
            }
            self.beat().await;
            let is_empty = self.registry.conditions.is_empty();
            if !(is_empty && was_empty) {
                // What is over is over by itself.
                self.registry.conditions.sweep();
                self.registry.show_states();
            }
            was_empty = is_empty;
        }
    }

    /// Says one word, and takes note of the answer.
    pub async fn beat(&self) {
        let mut heard = self.heard.lock().await;
        let (seen, notes) = self.registry.conditions.word();
        let load = self.registry.loads.told();
        let life = if self.has_left.load(Ordering::Relaxed) { Duration::ZERO } else { LIFE };
        let word = Word { replica: &self.name, life, load: &load, seen, notes: &notes };
        match self.store.hear(&word, &mut self.store.patient_budget()).await {
            Ok(board) => {
                *heard = Instant::now();
                self.registry.loads.heard(&board.loads);
                self.registry.surges.share(board.loads.len() + 1);
                if self.registry.conditions.heard(&notes, &board) {
                    self.registry.has_changed();
                }
            }
            // Lost: the next one tells it again. What others had in flight is not believed for longer than they would be.
            Err(_) if heard.elapsed() > LIFE => self.registry.loads.heard(&[]),
            Err(_) => {}
        }
    }

    /// What it has in flight is over: the others are told now, and nothing else from now on.
    pub async fn leave(&self) {
        self.has_left.store(true, Ordering::Relaxed);
        self.beat().await;
    }
}
