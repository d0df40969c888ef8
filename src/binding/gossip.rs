//! Learns the bindings that other replicas make, so that this replica can serve those sessions
//! while the store is away.
//!
//! A subscription brings each binding when it is made or sealed. A scan of the store brings the
//! bindings that are older than the subscription. A missed binding reaches this replica when the
//! session's next turn reads the store.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::sleep;

use crate::binding::local::Local;
use crate::binding::record::BindingRecord;
use crate::limit::{chance, jittered};
use crate::session::SessionId;
use crate::store::announcement::Announcement;
use crate::store::{Store, Unavailable};

/// Pause between two steps of a scan, so that the scan does not slow turns down.
const PACE: Duration = Duration::from_millis(5);
/// First pause before a failed scan is repeated. The pause doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

pub struct Gossip {
    store: Arc<Store>,
    local: Arc<Local>,
    /// Tells the scanner that announcements came too fast and some were dropped.
    missed: Notify,
}

impl Gossip {
    pub fn new(store: &Arc<Store>, local: &Arc<Local>) -> Self {
        Self { store: Arc::clone(store), local: Arc::clone(local), missed: Notify::new() }
    }

    /// Receives announcements and scans for as long as the future is polled.
    pub async fn keep(self) {
        tokio::join!(self.keep_receiving(), self.keep_scanning());
    }

    async fn keep_receiving(&self) {
        let mut announcements = self.store.announcements();
        loop {
            match announcements.recv().await {
                Ok(announcement) => {
                    if let Some((session, record)) = parse(&announcement) {
                        self.local.note_announced(&session, &record);
                    }
                }
                Err(RecvError::Lagged(_)) => self.missed.notify_one(),
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// Scans the stored bindings each time that announcements may have been missed.
    async fn keep_scanning(&self) {
        let (mut resubscribed, mut last, mut is_first) = (self.store.resubscribed(), 0, true);
        loop {
            tokio::select! {
                count = resubscribed.wait_for(|count| *count != last) => match count {
                    Ok(count) => last = *count,
                    Err(_) => return,
                },
                () = self.missed.notified() => {}
            }
            if !std::mem::take(&mut is_first) {
                // All replicas lose a store at the same time, and announcements that came too fast
                // once may do so again.
                sleep(FIRST_PAUSE.mul_f64(chance())).await;
            }
            let mut pause = FIRST_PAUSE;
            while let Err(Unavailable(why)) = self.scan_all().await {
                if pause == FIRST_PAUSE {
                    tracing::warn!(why, "what is bound in the store is not all known here");
                }
                tokio::select! {
                    () = sleep(jittered(pause, chance())) => pause = LONGEST_PAUSE.min(pause * 2),
                    Ok(()) = resubscribed.changed() => {
                        (last, pause) = (*resubscribed.borrow(), FIRST_PAUSE);
                    }
                }
            }
        }
    }

    /// Scans all nodes. A node that fails does not stop the scan; the error is returned at the end.
    async fn scan_all(&self) -> Result<(), Unavailable> {
        let (mut scan, mut bindings, mut failure) = (self.store.scan()?, 0, None);
        while let Some(some) = scan.step().await {
            match some {
                Ok(some) => {
                    bindings += some.len();
                    for (announcement, left) in &some {
                        if let Some((session, record)) = parse(announcement) {
                            self.local.note_scanned(&session, &record, *left);
                        }
                    }
                }
                Err(why) => failure = Some(why),
            }
            sleep(PACE).await;
        }
        match failure {
            Some(failure) => Err(failure),
            None => {
                tracing::info!(bindings, "what is bound in the store is known");
                Ok(())
            }
        }
    }
}

/// Returns `None` if a newer version wrote the announcement.
fn parse(Announcement { id, value }: &Announcement) -> Option<(SessionId, BindingRecord)> {
    Some((SessionId::parse(id)?, BindingRecord::parse(value)?))
}
