//! Answers the roll: tells the other replicas, through the store, which set of keys this one has loaded, and hears of theirs.

use std::sync::Arc;
use std::time::Duration;

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
}

impl Voice {
    pub fn new(store: Arc<Store>, registry: Arc<Registry>, name: String) -> Self {
        Self { store, registry, name }
    }

    /// Answers for as long as the replica lives.
    pub async fn keep_answering(self: Arc<Self>) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            self.answer().await;
        }
    }

    /// Answers once, and takes note of what the others have.
    pub async fn answer(&self) {
        let loaded = self.registry.loaded();
        if let Ok(roll) = self.tell(&loaded, LIFE).await {
            self.registry.heard(&loaded, &roll);
        }
    }

    /// Lets the others know that this replica need not be waited for.
    pub async fn leave(&self) {
        // Lost: they find out after [`LIFE`].
        let _ = self.tell(&self.registry.loaded(), Duration::ZERO).await;
    }

    async fn tell(&self, loaded: &Loaded, life: Duration) -> Result<Roll, Unavailable> {
        let (fingerprint, keys) = (loaded.table.fingerprint(), loaded.tags());
        let report = Report { replica: &self.name, fingerprint: &fingerprint, keys: &keys, ordinal: loaded.ordinal(), life };
        self.store.call_roll(&report, &mut self.store.budget()).await
    }
}
