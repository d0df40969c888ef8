//! Answers the roll: tells the other replicas, through the store, which set of keys this one has loaded, and hears of theirs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior};

use crate::health::registry::Registry;
use crate::key::generation::Loaded;
use crate::store::{Report, Roll, Store, Unavailable};
use crate::task::Tasks;

/// Between two answers. A new key waits for at most as long before it takes sessions everywhere.
const BEAT: Duration = Duration::from_secs(1);
/// A replica that has said nothing for so long is no longer waited for.
const LIFE: Duration = Duration::from_secs(10);
/// After the store was away its word on the others counts for nothing for so long: they may have to reconnect, and the roll may
/// be lost or all names on it expired, so that the first one back would believe that it is alone.
const GATHERING: Duration = Duration::from_secs(4);

/// One replica's voice among the others.
pub struct Voice {
    store: Arc<Store>,
    registry: Arc<Registry>,
    /// Another one for each process.
    name: String,
    /// Held while it speaks: what it said last is the newest.
    speech: Mutex<Speech>,
}

/// What has become of its words so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speech {
    /// Each had an answer.
    Fluent,
    /// The last one was lost.
    Lost,
    /// One was lost before. From then on the answer is believed.
    Resumed(Instant),
    /// It has left, and says nothing more.
    Over,
}

impl Voice {
    pub fn new(store: Arc<Store>, registry: Arc<Registry>, name: String) -> Self {
        Self { store, registry, name, speech: Mutex::new(Speech::Fluent) }
    }

    /// Answers once, then goes on answering in the background until `tasks` end.
    pub async fn start(
        store: &Arc<Store>,
        registry: &Arc<Registry>,
        name: &str,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let voice = Arc::new(Self::new(Arc::clone(store), Arc::clone(registry), name.to_owned()));
        voice.answer().await;
        tasks.spawn_until_stopped(Arc::clone(&voice).keep_answering());
        voice
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
        let mut speech = self.speech.lock().await;
        let loaded = self.registry.loaded();
        if let Some(roll) = self.tell(&mut speech, &loaded).await {
            self.registry.heard(&loaded, &roll);
        }
    }

    /// Takes `next` into use. The store hears of it first: from its first turn on its ordinal is known, unless the store is away.
    pub async fn introduce(&self, next: Arc<Loaded>) {
        let mut speech = self.speech.lock().await;
        let roll = self.tell(&mut speech, &next).await;
        self.registry.adopt(next, roll.as_ref());
    }

    /// Lets the others know that this replica need not be waited for.
    pub async fn leave(&self) {
        *self.speech.lock().await = Speech::Over;
        // Lost: they find out after [`LIFE`].
        let _ = self.call(&self.registry.loaded(), Duration::ZERO, false).await;
    }

    /// What the others have, if that is known.
    async fn tell(&self, speech: &mut Speech, loaded: &Loaded) -> Option<Roll> {
        if *speech == Speech::Over {
            return None;
        }
        let heard = self.call(loaded, LIFE, !speech.is_fluent()).await;
        *speech = speech.followed_by(heard.is_ok(), Instant::now());
        heard.ok().filter(|_| speech.is_fluent())
    }

    async fn call(&self, loaded: &Loaded, life: Duration, is_early: bool) -> Result<Roll, Unavailable> {
        let (fingerprint, keys) = (&loaded.fingerprint, loaded.tags());
        let report = Report { replica: &self.name, fingerprint, keys: &keys, ordinal: loaded.ordinal(), life };
        let mut budget = self.store.patient_budget();
        match is_early {
            true => self.store.call_roll_early(&report, &mut budget).await,
            false => self.store.call_roll(&report, &mut budget).await,
        }
    }
}

impl Speech {
    fn is_fluent(self) -> bool {
        self == Self::Fluent
    }

    /// After one more word, which had an answer or was lost.
    fn followed_by(self, is_answered: bool, now: Instant) -> Self {
        match self {
            Self::Over => Self::Over,
            _ if !is_answered => Self::Lost,
            Self::Lost => Self::Resumed(now + GATHERING),
            Self::Resumed(until) if now < until => self,
            Self::Resumed(_) | Self::Fluent => Self::Fluent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_loss_others_have_the_time_to_answer_too() {
        let now = Instant::now();
        let lost = Speech::Fluent.followed_by(false, now);
        assert_eq!(lost, Speech::Lost);
        let resumed = lost.followed_by(true, now);
        assert_eq!(resumed.followed_by(true, now + GATHERING / 2), resumed);
        assert_eq!(resumed.followed_by(false, now + GATHERING / 2), Speech::Lost, "and again from there");
        assert_eq!(resumed.followed_by(true, now + GATHERING), Speech::Fluent);
        assert_eq!(Speech::Over.followed_by(true, now), Speech::Over);
    }
}
