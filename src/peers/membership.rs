//! MembershipReply: tells the other replicas, through the store, which set of keys this one has
//! loaded, and hears of theirs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::Instant;

use crate::store::{MemberReport, MembershipReply, Store, Unavailable};

/// Between two reports. A new key waits for at most as long before it takes sessions everywhere.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// A replica that was silent for so long is no longer waited for.
pub const LIFE: Duration = Duration::from_secs(10);
/// After an outage the store's word on the others counts for nothing for so long. They may have to
/// reconnect, and the membership may be lost or expired: the first replica to come back would
/// believe that it is alone.
pub const GATHERING: Duration = Duration::from_secs(4);

/// A set of keys, as the others are told of it.
pub struct KeySet {
    pub fingerprint: String,
    /// The tags of the keys, separated by spaces.
    pub tags: String,
    /// The set's ordinal, as far as it is known. 0: not known.
    pub ordinal: u32,
}

/// One replica among the others.
pub struct Member {
    store: Arc<Store>,
    /// Unique to the process.
    name: String,
    /// Held during an exchange.
    confidence: Mutex<Confidence>,
}

/// One exchange of a member with the store.
pub struct Exchange<'m> {
    member: &'m Member,
    confidence: MutexGuard<'m, Confidence>,
}

/// How far the store's word on the others is believed, by what has become of the reports so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Confidence {
    /// Each report was answered.
    Full,
    /// The last report was lost.
    Lost,
    /// A report was lost before. From then on the answer is believed.
    Regained(Instant),
    /// The replica has left, and reports nothing more.
    Left,
}

impl Member {
    pub fn new(store: Arc<Store>, name: String) -> Self {
        Self { store, name, confidence: Mutex::new(Confidence::Full) }
    }

    /// Waits for other exchanges of this replica to end, so that what is told last is the newest.
    pub async fn begin(&self) -> Exchange<'_> {
        Exchange { member: self, confidence: self.confidence.lock().await }
    }

    /// Lets the others know that they need not wait for this replica.
    pub async fn leave(&self, loaded: impl FnOnce() -> KeySet) {
        *self.confidence.lock().await = Confidence::Left;
        // Lost: they find out after [`LIFE`].
        let _ = self.tell(&loaded(), Duration::ZERO, false).await;
    }

    /// Tells when the store comes or goes: a store that is back may have forgotten everything.
    pub fn store_health(&self) -> watch::Receiver<bool> {
        self.store.health()
    }

    async fn tell(
        &self,
        loaded: &KeySet,
        life: Duration,
        is_early: bool,
    ) -> Result<MembershipReply, Unavailable> {
        let KeySet { fingerprint, tags, ordinal } = loaded;
        let report =
            MemberReport { replica: &self.name, fingerprint, keys: tags, ordinal: *ordinal, life };
        let mut budget = self.store.patient_budget();
        match is_early {
            true => self.store.exchange_membership_early(&report, &mut budget).await,
            false => self.store.exchange_membership(&report, &mut budget).await,
        }
    }
}

impl Exchange<'_> {
    /// Reports the set `loaded`. Returns what the others have, if that is known.
    pub async fn report(&mut self, loaded: &KeySet) -> Option<MembershipReply> {
        if *self.confidence == Confidence::Left {
            return None;
        }
        let answer = self.member.tell(loaded, LIFE, !self.confidence.is_full()).await;
        *self.confidence = self.confidence.followed_by(answer.is_ok(), Instant::now());
        answer.ok().filter(|_| self.confidence.is_full())
    }
}

impl Confidence {
    fn is_full(self) -> bool {
        self == Self::Full
    }

    /// The confidence after one more report, which was answered or lost.
    fn followed_by(self, is_answered: bool, now: Instant) -> Self {
        match self {
            Self::Left => Self::Left,
            _ if !is_answered => Self::Lost,
            Self::Lost => Self::Regained(now + GATHERING),
            Self::Regained(until) if now < until => self,
            Self::Regained(_) | Self::Full => Self::Full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_loss_others_have_the_time_to_answer_too() {
        let now = Instant::now();
        let lost = Confidence::Full.followed_by(false, now);
        assert_eq!(lost, Confidence::Lost);
        let resumed = lost.followed_by(true, now);
        assert_eq!(resumed.followed_by(true, now + GATHERING / 2), resumed);
        assert_eq!(
            resumed.followed_by(false, now + GATHERING / 2),
            Confidence::Lost,
            "and again from there"
        );
        assert_eq!(resumed.followed_by(true, now + GATHERING), Confidence::Full);
        assert_eq!(Confidence::Left.followed_by(true, now), Confidence::Left);
    }
}
