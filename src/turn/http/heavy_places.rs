//! The places for long texts, which other threads decode, scan, edit and translate.
//!
//! A client has at most one place at a time, so that many long bodies of one client do not hold up
//! others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::client::ClientId;
use crate::error::{Error, ErrorKind};

/// Most long texts that are decoded, scanned or translated at once. More would take the cores from
/// other turns.
pub const HEAVY: usize = 2;
/// Longest wait for a place.
const HEAVY_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest wait of an answer for a place. The answer is billed already, so it may wait as long as a
/// turn waits for its upstream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

/// `Retry-After` of a turn that gets no place.
const SOON: Duration = Duration::from_secs(5);

/// The places of all clients, for bodies and for messages of WebSockets.
pub struct HeavyPlaces {
    all: Arc<Semaphore>,
    /// The one place of each client that has or awaits one.
    own: Mutex<HashMap<ClientId, Weak<Semaphore>>>,
}

/// A place, until it is dropped.
pub struct HeavyPlace {
    _shared: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
}

impl HeavyPlaces {
    pub fn new(places: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(places)), own: Mutex::default() }
    }

    /// Does `work` for `client` on another thread, as soon as one of the places is free.
    pub async fn run<T: Send + 'static>(
        &self,
        client: &ClientId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.take_within(client, HEAVY_TIMEOUT).await?.run(work).await
    }

    /// As [`Self::run`], for work on an answer to `client`.
    pub async fn finish<T: Send + 'static>(
        &self,
        client: &ClientId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.take_for_answer(client).await?.run(work).await
    }

    /// Waits for a place for work on an answer to `client`.
    pub async fn take_for_answer(&self, client: &ClientId) -> Result<HeavyPlace, Error> {
        self.take_within(client, ANSWER_TIMEOUT).await
    }

    async fn take_within(&self, client: &ClientId, limit: Duration) -> Result<HeavyPlace, Error> {
        let taken = tokio::time::timeout(limit, self.take(client)).await;
        taken.ok().flatten().ok_or_else(|| {
            Error::new(ErrorKind::NoKeyAvailable, "Too many long bodies come at once.")
                .retry_after(SOON)
        })
    }

    /// Waits for a place for `client`.
    async fn take(&self, client: &ClientId) -> Option<HeavyPlace> {
        let own = self.of(client).acquire_owned().await.ok()?;
        let shared = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(HeavyPlace { _shared: shared, _own: own })
    }

    /// Returns the place of `client`, and drops the places of clients that no longer use theirs.
    fn of(&self, client: &ClientId) -> Arc<Semaphore> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = own.get(client).and_then(Weak::upgrade) {
            return place;
        }
        own.retain(|_, place| place.strong_count() > 0);
        let place = Arc::new(Semaphore::new(1));
        own.insert(client.clone(), Arc::downgrade(&place));
        place
    }
}

impl HeavyPlace {
    /// Does `work` on another thread.
    #[expect(
        clippy::disallowed_methods,
        reason = "the places bound the threads, the limits of bodies and answers the time"
    )]
    pub async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let working = tokio::task::spawn_blocking(move || {
            let _place = self;
            work()
        });
        let failed = |_| Error::new(ErrorKind::Internal, "The gateway failed on this turn.");
        working.await.map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn client_with_many_long_bodies_holds_up_no_other() {
        const SECOND: Duration = Duration::from_secs(1);
        let places = Arc::new(HeavyPlaces::new(HEAVY));
        let [alice, bob, carol] = ["alice", "bob", "carol"].map(ClientId::new);
        let most = Arc::new([const { AtomicUsize::new(0) }; 2]);
        let queued: Vec<_> = (0..10)
            .map(|_| {
                let (places, alice, most) = (Arc::clone(&places), alice.clone(), Arc::clone(&most));
                tokio::spawn(async move {
                    let place = places.take(&alice).await;
                    let now = most[0].fetch_add(1, Ordering::SeqCst) + 1;
                    most[1].fetch_max(now, Ordering::SeqCst);
                    tokio::time::sleep(SECOND).await;
                    most[0].fetch_sub(1, Ordering::SeqCst);
                    place.is_some()
                })
            })
            .collect();
        tokio::time::sleep(SECOND / 2).await;
        let began = tokio::time::Instant::now();
        let bobs = places.take(&bob).await;
        assert!(bobs.is_some() && began.elapsed().is_zero(), "a place is free");
        assert!(places.take(&carol).await.is_some());
        assert!(began.elapsed() <= SECOND, "{:?}: one body at most", began.elapsed());
        drop(bobs);
        for one in queued {
            assert!(one.await.unwrap(), "each has its turn");
        }
        assert_eq!(most[1].load(Ordering::SeqCst), 1, "one at a time");
        drop(places.take(&bob).await);
        assert_eq!(places.own.lock().unwrap().len(), 1, "nothing is left of the others");
    }
}
