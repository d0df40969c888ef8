//! What this replica hears of sessions that it has not served, so that an outage finds it with the word of those that have: each
//! binding when it is made or sealed, and those from before when it begins to listen.
//!
//! What was missed is heard from the store at the session's next turn.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::sleep;

use super::local::Local;
use super::record::Record;
use crate::session::SessionId;
use crate::store::news::News;
use crate::store::{Store, Unavailable};

/// Between two steps of a walk through the store: turns are not to feel it.
const PACE: Duration = Duration::from_millis(5);
/// A walk that did not come to its end begins again after so long; then after twice as long, up to the other.
const AGAIN: Duration = Duration::from_secs(1);
const SELDOM: Duration = Duration::from_secs(60);

pub struct Hearsay {
    store: Arc<Store>,
    local: Arc<Local>,
    /// Word to the reader: something was told faster than it could be heard.
    missed: Notify,
}

impl Hearsay {
    pub fn new(store: &Arc<Store>, local: &Arc<Local>) -> Self {
        Self { store: Arc::clone(store), local: Arc::clone(local), missed: Notify::new() }
    }

    /// Listens and reads, for as long as it is polled.
    pub async fn keep(self) {
        tokio::join!(self.keep_listening(), self.keep_reading());
    }

    async fn keep_listening(&self) {
        let mut news = self.store.news();
        loop {
            match news.recv().await {
                Ok(told) => self.heed(&told),
                Err(RecvError::Lagged(_)) => self.missed.notify_one(),
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// Reads what is bound already, each time that news may have been missed.
    async fn keep_reading(&self) {
        let (mut tuned, mut last) = (self.store.tuned(), 0);
        loop {
            tokio::select! {
                count = tuned.wait_for(|count| *count != last) => match count {
                    Ok(count) => last = *count,
                    Err(_) => return,
                },
                () = self.missed.notified() => {}
            }
            let mut pause = AGAIN;
            while let Err(Unavailable(why)) = self.read_all().await {
                if pause == AGAIN {
                    tracing::warn!(why, "what is bound in the store is not all known here");
                }
                sleep(pause).await;
                pause = SELDOM.min(pause * 2);
            }
        }
    }

    /// Goes on where a node fails, and says so at the end.
    async fn read_all(&self) -> Result<(), Unavailable> {
        let (mut walk, mut bindings, mut failure) = (self.store.walk()?, 0, None);
        while let Some(some) = walk.step().await {
            match some {
                Ok(some) => {
                    some.iter().for_each(|known| self.heed(known));
                    bindings += some.len();
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

    fn heed(&self, News { id, value }: &News) {
        if let (Some(session), Some(record)) = (SessionId::parse(id), Record::parse(value)) {
            self.local.hear(&session, &record);
        }
    }
}
