//! Membership: replicas report to each other, through the store, which set of keys they have
//! loaded.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::Instant;

use crate::store::{MemberReport, MembershipReply, Store, Unavailable};

/// Time between two reports. A new key waits at most this long before every replica gives it
/// sessions.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Time after which a silent replica is no longer waited for.
pub const LIFE: Duration = Duration::from_secs(10);
/// Time after an outage during which the store's answer about other replicas is not believed. They
/// may still be reconnecting, and the membership may have been lost or expired. The first replica
/// to reconnect would believe that it is alone.
pub const GATHERING: Duration = Duration::from_secs(4);

/// A set of keys, as a replica reports it.
pub struct KeySet {
    pub fingerprint: String,
    /// The tags of the keys, separated by spaces.
    pub tags: String,
    /// The set's ordinal, or 0 if it is unknown.
    pub ordinal: u32,
}

/// This replica as a member.
pub struct Member {
    store: Arc<Store>,
    /// Unique to the process.
    name: String,
    /// The confidence in the store's answers. An exchange keeps the lock until its report is
    /// answered.
    confidence: Mutex<Confidence>,
}

/// One exchange of a member with the store.
pub struct Exchange<'m> {
    member: &'m Member,
    confidence: MutexGuard<'m, Confidence>,
}

/// Whether the store's answer about other replicas is believed, by the fate of the reports so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Confidence {
    /// The store answered every report.
    Full,
    /// The last report was lost.
    Lost,
    /// A report was lost before. The answer is believed from this instant on.
    Regained(Instant),
    /// The replica has left and reports no more.
    Left,
}

impl Member {
    pub fn new(store: Arc<Store>, name: String) -> Self {
        Self { store, name, confidence: Mutex::new(Confidence::Full) }
    }

    /// Waits for other exchanges of this replica to end, so that the last report is the newest.
    pub async fn begin(&self) -> Exchange<'_> {
        Exchange { member: self, confidence: self.confidence.lock().await }
    }

    /// Reports that other replicas need not wait for this one any more.
    pub async fn leave(&self, loaded: impl FnOnce() -> KeySet) {
        *self.confidence.lock().await = Confidence::Left;
        // If the report is lost, the other replicas stop waiting after [`LIFE`].
        let _ = self.send_report(&loaded(), Duration::ZERO, false).await;
    }

    /// Follows whether the store answers. A store that is back may have lost everything.
    pub fn store_health(&self) -> watch::Receiver<bool> {
        self.store.health()
    }

    async fn send_report(
        &self,
        loaded: &KeySet,
        life: Duration,
        is_early: bool,
    ) -> Result<MembershipReply, Unavailable> {
        let KeySet { fingerprint, tags, ordinal } = loaded;
        let report =
            MemberReport { replica: &self.name, fingerprint, keys: tags, ordinal: *ordinal, life };
        let mut budget = self.store.background_budget();
        match is_early {
            true => self.store.exchange_membership_early(&report, &mut budget).await,
            false => self.store.exchange_membership(&report, &mut budget).await,
        }
    }
}

impl Exchange<'_> {
    /// Reports the set `loaded`. Returns the sets of the other replicas, if they are known.
    pub async fn report(&mut self, loaded: &KeySet) -> Option<MembershipReply> {
        if *self.confidence == Confidence::Left {
            return None;
        }
        let answer = self.member.send_report(loaded, LIFE, !self.confidence.is_full()).await;
        *self.confidence = self.confidence.followed_by(answer.is_ok(), Instant::now());
        answer.ok().filter(|_| self.confidence.is_full())
    }
}

impl Confidence {
    fn is_full(self) -> bool {
        self == Self::Full
    }

    /// The confidence after another report, which was answered or lost.
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
    fn confidence_returns_after_others_had_time_to_report() {
        let now = Instant::now();
        let lost = Confidence::Full.followed_by(false, now);
        assert_eq!(lost, Confidence::Lost);
        let resumed = lost.followed_by(true, now);
        assert_eq!(resumed.followed_by(true, now + GATHERING / 2), resumed);
        assert_eq!(
            resumed.followed_by(false, now + GATHERING / 2),
            Confidence::Lost,
            "and the wait starts again"
        );
        assert_eq!(resumed.followed_by(true, now + GATHERING), Confidence::Full);
        assert_eq!(Confidence::Left.followed_by(true, now), Confidence::Left);
    }
}
