//! Answers the roll: tells the other replicas, through the store, which set of keys this one has loaded, and hears of theirs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior};

use super::generation::Loaded;
use super::registry::Registry;
use crate::store::{Report, Roll, Store, Unavailable};

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
    use std::sync::Mutex as Lock;

    use super::*;
    use crate::key::table::Table;
    use crate::metrics::Metrics;
    use crate::store::model::{Flaw, Model, Shared, Weather};

    const FIRST: &str = "a o 1 sk-a, b o 1 sk-b";
    const SECOND: &str = "a o 1 sk-a, c o 1 sk-c";

    fn store(shared: &Arc<Lock<Shared>>) -> (Model, Arc<Store>) {
        let model = Model::new(shared);
        (model.clone(), Arc::new(Store::in_model(model, Arc::new(Metrics::new()))))
    }

    fn voice(store: &Arc<Store>, name: &str) -> Voice {
        let registry = Arc::new(Registry::new(Table::sketch(FIRST), Arc::new(Metrics::new())));
        Voice::new(Arc::clone(store), registry, name.into())
    }

    /// Takes another set into use.
    async fn loads(voice: &Voice, sketch: &str) {
        voice.introduce(voice.registry.prepare(Table::sketch(sketch)).expect("it is another set")).await;
    }

    fn ordinal(voice: &Voice) -> u32 {
        voice.registry.loaded().ordinal()
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_was_cut_off_renews_nothing_before_others_may_have_answered() {
        let shared = Arc::new(Lock::new(Shared::new(Flaw::None)));
        let (model, store) = store(&shared);
        let voice = voice(&store, "one");
        voice.answer().await;
        assert_eq!(ordinal(&voice), 1);
        loads(&voice, SECOND).await;
        assert_eq!(ordinal(&voice), 2, "it is told before the set is in use");
        let renewed = || shared.lock().unwrap().ordinal(&voice.registry.loaded().fingerprint);
        *model.weather.lock().unwrap() = Weather::Away;
        loads(&voice, FIRST).await;
        assert_eq!(ordinal(&voice), 0);
        *model.weather.lock().unwrap() = Weather::Fair;
        for pause in [Duration::ZERO, GATHERING - Duration::from_secs(1), Duration::from_secs(1)] {
            tokio::time::advance(pause).await;
            assert_eq!(ordinal(&voice), 0, "what is answered so early is not believed");
            voice.answer().await;
            assert_eq!(renewed(), Some(1), "another replica may have the newer set, and answer any moment");
        }
        assert_eq!(ordinal(&voice), 1);
        voice.answer().await;
        assert_eq!((ordinal(&voice), renewed()), (3, Some(3)), "nobody else is there");
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_that_others_live_with_is_heard_of_and_a_replica_that_has_left_is_silent() {
        let shared = Arc::new(Lock::new(Shared::new(Flaw::None)));
        let (_, store) = store(&shared);
        let (one, two) = (voice(&store, "one"), voice(&store, "two"));
        one.answer().await;
        two.answer().await;
        loads(&one, SECOND).await;
        let common = |voice: &Voice| {
            let loaded = voice.registry.loaded();
            loaded.table.keys().iter().filter(|key| loaded.is_common(key)).map(|key| key.id.as_str()).collect::<String>()
        };
        assert_eq!(common(&one), "a", "the other one has not loaded it");
        two.answer().await;
        assert_eq!(common(&two), "a");
        two.leave().await;
        assert_eq!(shared.lock().unwrap().live(), ["one"]);
        two.answer().await;
        loads(&two, SECOND).await;
        assert_eq!(shared.lock().unwrap().live(), ["one"], "it says nothing more");
        one.answer().await;
        assert_eq!(common(&one), "ac");
    }

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
