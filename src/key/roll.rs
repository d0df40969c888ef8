//! Answers the roll: tells the other replicas, through the store, which set of keys this one has loaded, and hears of theirs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::MissedTickBehavior;

use super::generation::Loaded;
use super::registry::Registry;
use crate::store::{Report, Roll, Store, Unavailable};

/// Between two answers. A new key waits for at most as long before it takes sessions everywhere.
const BEAT: Duration = Duration::from_secs(1);
/// A replica that has said nothing for so long is no longer waited for.
const LIFE: Duration = Duration::from_secs(5);

/// One replica's voice among the others.
pub struct Voice {
    store: Arc<Store>,
    registry: Arc<Registry>,
    /// Another one for each process.
    name: String,
    /// Whether it has left. Held while it speaks: what it said last is the newest.
    has_left: Mutex<bool>,
}

impl Voice {
    pub fn new(store: Arc<Store>, registry: Arc<Registry>, name: String) -> Self {
        Self { store, registry, name, has_left: Mutex::new(false) }
    }

    /// Answers for as long as the replica lives.
    pub async fn keep_answering(self: Arc<Self>) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut health = self.store.health();
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                // A store that is back may have forgotten everything.
                Ok(()) = health.changed() => {}
            }
            self.answer().await;
        }
    }

    /// Answers once, and takes note of what the others have.
    pub async fn answer(&self) {
        let has_left = self.has_left.lock().await;
        let loaded = self.registry.loaded();
        if !*has_left && let Ok(roll) = self.tell(&loaded, LIFE).await {
            self.registry.heard(&loaded, &roll);
        }
    }

    /// Takes `next` into use. The store hears of it first: from its first turn on its ordinal is known, unless the store is away.
    pub async fn introduce(&self, next: Arc<Loaded>) {
        let _speaking = self.has_left.lock().await;
        let roll = self.tell(&next, LIFE).await.ok();
        self.registry.adopt(next, roll.as_ref());
    }

    /// Lets the others know that this replica need not be waited for.
    pub async fn leave(&self) {
        *self.has_left.lock().await = true;
        // Lost: they find out after [`LIFE`].
        let _ = self.tell(&self.registry.loaded(), Duration::ZERO).await;
    }

    async fn tell(&self, loaded: &Loaded, life: Duration) -> Result<Roll, Unavailable> {
        let (fingerprint, keys) = (&loaded.fingerprint, loaded.tags());
        let report = Report { replica: &self.name, fingerprint, keys: &keys, ordinal: loaded.ordinal(), life };
        self.store.call_roll(&report, &mut self.store.budget()).await
    }
}
