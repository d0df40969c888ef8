//! A replica's pulse: several times a second it tells the others, on the board of the store, what it met and what it has in
//! flight, and hears the same of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior};

use super::registry::Registry;
use crate::store::Store;
use crate::store::board::Word;

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

#[cfg(test)]
mod tests {
    use std::sync::Mutex as Lock;

    use super::*;
    use crate::key::condition::{Condition, Subject};
    use crate::key::table::Table;
    use crate::metrics::Metrics;
    use crate::store::model::{Flaw, Model, Shared, Weather};

    fn replica(shared: &Arc<Lock<Shared>>, name: &str) -> (Pulse, Model) {
        let (model, metrics) = (Model::new(shared), Arc::new(Metrics::new()));
        let store = Arc::new(Store::in_model(model.clone(), Arc::clone(&metrics)));
        let registry = Arc::new(Registry::new(Table::sketch("a o 1 sk-a"), metrics));
        (Pulse::new(store, registry, name.into()), model)
    }

    fn in_flight(pulse: &Pulse) -> usize {
        pulse.registry.loads.of(&pulse.registry.loaded().table.keys()[0])
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_have_in_flight_is_believed_for_as_long_as_they_are() {
        let shared = Arc::new(Lock::new(Shared::new(Flaw::None)));
        let ((one, weather), (two, _)) = (replica(&shared, "one"), replica(&shared, "two"));
        let key = Arc::clone(&two.registry.loaded().table.keys()[0]);
        let turns: Vec<_> = (0..3).map(|_| two.registry.loads.enter(&key)).collect();
        two.beat().await;
        one.beat().await;
        assert_eq!(in_flight(&one), 3);
        *weather.weather.lock().unwrap() = Weather::Away;
        tokio::time::advance(LIFE).await;
        one.beat().await;
        assert_eq!(in_flight(&one), 3, "the other one may live on");
        tokio::time::advance(Duration::from_millis(1)).await;
        one.beat().await;
        assert_eq!(in_flight(&one), 0);
        *weather.weather.lock().unwrap() = Weather::Fair;
        two.beat().await;
        one.beat().await;
        assert_eq!(in_flight(&one), 3);
        // It leaves, and a beat that was due all the same does not bring it back.
        two.leave().await;
        two.beat().await;
        one.beat().await;
        assert_eq!((in_flight(&one), turns.len()), (0, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn replicas_share_what_a_key_takes() {
        let shared = Arc::new(Lock::new(Shared::new(Flaw::None)));
        let ((one, _), (two, _)) = (replica(&shared, "one"), replica(&shared, "two"));
        let key = Arc::clone(&one.registry.loaded().table.keys()[0]);
        let admitted = |pulse: &Pulse| (0..100).filter(|_| pulse.registry.surges.admit(&key).is_ok()).count();
        two.beat().await;
        assert_eq!(admitted(&two), 30, "alone");
        one.beat().await;
        assert_eq!(admitted(&one), 15, "one of two");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_over_is_over_by_itself_and_shown_so() {
        let metrics = Arc::new(Metrics::new());
        // Without the store, which would say that it is over.
        let model = Model::new(&Arc::new(Lock::new(Shared::new(Flaw::None))));
        *model.weather.lock().unwrap() = Weather::Away;
        let registry = Arc::new(Registry::new(Table::sketch("a o 1 sk-a"), Arc::clone(&metrics)));
        let store = Arc::new(Store::in_model(model, Arc::clone(&metrics)));
        let one = Arc::new(Pulse::new(store, registry, "one".into()));
        let is_shown = |state: &str| metrics.render().contains(&format!("key=\"a\",state=\"{state}\"}} 1"));
        let beating = tokio::spawn(Arc::clone(&one).keep_beating());
        let key = Arc::clone(&one.registry.loaded().table.keys()[0]);
        let mut changes = one.registry.follow();
        one.registry.limit(&key, "m", BEAT * 10);
        changes.changed().await.unwrap();
        tokio::time::sleep(BEAT * 9).await;
        assert!(!one.registry.conditions.is_empty() && is_shown("cooling"));
        tokio::time::sleep(BEAT * 2).await;
        assert!(one.registry.conditions.is_empty() && is_shown("ready"));
        beating.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_met_is_told_at_once() {
        let shared = Arc::new(Lock::new(Shared::new(Flaw::None)));
        let ((one, _), (two, _)) = (replica(&shared, "one"), replica(&shared, "two"));
        let (one, ended) = (Arc::new(one), Instant::now() + BEAT * 3 / 2);
        let beating = tokio::spawn(Arc::clone(&one).keep_beating());
        tokio::time::sleep_until(ended).await;
        let subject = Subject::of(&one.registry.loaded().table.keys()[0], crate::key::health::Scope::Key);
        one.registry.conditions.note(subject, Condition::Rejected, Condition::Rejected.life());
        // Long before the next beat is due.
        tokio::time::sleep(BEAT / 4).await;
        two.beat().await;
        assert!(two.registry.conditions.is(subject, Condition::Rejected));
        beating.abort();
    }
}
