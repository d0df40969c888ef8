//! What this replica hears of sessions that it has not served, so that an outage finds it with the word of those that have: each
//! binding when it is made, and those from before when it begins to listen.
//!
//! What was missed is heard from the store at the session's next turn.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::time::sleep;

use super::local::Local;
use super::record::Record;
use crate::session::SessionId;
use crate::store::news::News;
use crate::store::{Store, Unavailable};

/// Between two steps of a walk through the store: the questions of turns go first.
const PACE: Duration = Duration::from_millis(5);
/// How often a walk is begun that does not come to its end, and how long after the last.
const ATTEMPTS: usize = 3;
const AGAIN: Duration = Duration::from_secs(1);

/// Takes note of what other replicas tell, for as long as this one lives.
pub async fn keep_listening(store: Arc<Store>, local: Arc<Local>) {
    let mut news = store.news();
    loop {
        match news.recv().await {
            Ok(told) => heed(&local, &told),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// Reads what is bound already, each time that news may have been missed, for as long as the replica lives.
pub async fn keep_reading(store: Arc<Store>, local: Arc<Local>) {
    let (mut tuned, mut last) = (store.tuned(), 0);
    while let Ok(count) = tuned.wait_for(|count| *count != last).await.map(|count| *count) {
        last = count;
        for _ in 0..ATTEMPTS {
            match read_all(&store, &local).await {
                Ok(bindings) => {
                    tracing::info!(bindings, "what is bound in the store is known");
                    break;
                }
                Err(Unavailable(why)) => tracing::debug!(why, "what is bound in the store is not all known"),
            }
            sleep(AGAIN).await;
        }
    }
}

/// Returns how many bindings it read: all, or as many as there is room for.
async fn read_all(store: &Store, local: &Local) -> Result<usize, Unavailable> {
    let (mut walk, mut read) = (store.walk(), 0);
    while let Some(some) = store.step(&mut walk, &mut store.patient_budget()).await? {
        for known in &some {
            if local.is_full() {
                return Ok(read);
            }
            heed(local, known);
            read += 1;
        }
        sleep(PACE).await;
    }
    Ok(read)
}

fn heed(local: &Local, News { id, value }: &News) {
    if let (Some(session), Some(record)) = (SessionId::parse(id), Record::parse(value)) {
        local.confirm(&session, &record);
    }
}
