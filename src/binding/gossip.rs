//! What this replica hears of sessions that it has not served, so that an outage finds it with the
//! word of those that have: each binding when it is made or sealed, and those from before when it
//! begins to listen.
//!
//! What was missed is heard from the store at the session's next turn.

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

/// Between two steps of a walk through the store: turns are not to feel it.
const PACE: Duration = Duration::from_millis(5);
/// A walk that did not come to its end begins again after so long; then after twice as long, up to
/// the other.
const AGAIN: Duration = Duration::from_secs(1);
const SELDOM: Duration = Duration::from_secs(60);

pub struct Gossip {
    store: Arc<Store>,
    local: Arc<Local>,
    /// Word to the reader: something was told faster than it could be heard.
    missed: Notify,
}

impl Gossip {
    pub fn new(store: &Arc<Store>, local: &Arc<Local>) -> Self {
        Self { store: Arc::clone(store), local: Arc::clone(local), missed: Notify::new() }
    }

    /// Listens and reads, for as long as it is polled.
    pub async fn keep(self) {
        tokio::join!(self.keep_listening(), self.keep_reading());
    }

    async fn keep_listening(&self) {
        let mut news = self.store.announcements();
        loop {
            match news.recv().await {
                Ok(told) => {
                    if let Some((session, record)) = understood(&told) {
                        self.local.hear(&session, &record);
                    }
                }
                Err(RecvError::Lagged(_)) => self.missed.notify_one(),
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// Reads what is bound already, each time that news may have been missed.
    async fn keep_reading(&self) {
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
                // All replicas lose a store together, and what is told too fast once may be so
                // again.
                sleep(AGAIN.mul_f64(chance())).await;
            }
            let mut pause = AGAIN;
            while let Err(Unavailable(why)) = self.read_all().await {
                if pause == AGAIN {
                    tracing::warn!(why, "what is bound in the store is not all known here");
                }
                tokio::select! {
                    () = sleep(jittered(pause, chance())) => pause = SELDOM.min(pause * 2),
                    Ok(()) = resubscribed.changed() => {
                        (last, pause) = (*resubscribed.borrow(), AGAIN);
                    }
                }
            }
        }
    }

    /// Goes on where a node fails, and says so at the end.
    async fn read_all(&self) -> Result<(), Unavailable> {
        let (mut walk, mut bindings, mut failure) = (self.store.scan()?, 0, None);
        while let Some(some) = walk.step().await {
            match some {
                Ok(some) => {
                    bindings += some.len();
                    for (news, left) in &some {
                        if let Some((session, record)) = understood(news) {
                            self.local.read(&session, &record, *left);
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

/// `None`: a newer version wrote it.
fn understood(Announcement { id, value }: &Announcement) -> Option<(SessionId, BindingRecord)> {
    Some((SessionId::parse(id)?, BindingRecord::parse(value)?))
}
