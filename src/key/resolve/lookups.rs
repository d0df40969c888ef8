//! Bounds the lookups of an upstream's names, each of which holds a thread.
//!
//! The system's lookup cannot be stopped: while the name servers keep silent, its thread waits for
//! half a minute, long after the turn has given up. All threads for blocking work are shared with
//! long bodies, so that lookups without a bound would hold those up.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Most lookups of one upstream at once: it has its own name and that of a proxy.
const AT_ONCE: usize = 2;

/// The answer to a lookup. `None`: not yet.
type Answer = Option<Result<Vec<SocketAddr>, String>>;

/// Asks the system for the addresses of a name.
type AskSystem = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// The lookups of one upstream.
pub struct Lookups {
    /// The lookups underway, by name. Further callers share them.
    underway: Mutex<HashMap<String, watch::Receiver<Answer>>>,
    places: Arc<Semaphore>,
    ask: Box<AskSystem>,
}

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookups").finish_non_exhaustive()
    }
}

/// A lookup, which ends when this is dropped.
struct Underway {
    lookups: Arc<Lookups>,
    name: String,
    answer: watch::Sender<Answer>,
    /// Held until the thread is free again, whoever still waits.
    _place: OwnedSemaphorePermit,
}

impl Underway {
    fn ask(self) {
        let found = (self.lookups.ask)(&self.name).map_err(|error| error.to_string());
        self.answer.send_replace(Some(found));
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.lookups.lock().remove(&self.name);
    }
}

impl Lookups {
    /// Lookups by the system.
    pub fn new() -> Self {
        // The caller replaces port 0 with the port of its URL.
        Self::by(|name| Ok((name, 0).to_socket_addrs()?.collect()))
    }

    fn by(ask: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static) -> Self {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        Self { underway: Mutex::default(), places, ask: Box::new(ask) }
    }

    /// Looks `name` up, or waits for the lookup that is underway.
    pub async fn find(self: &Arc<Self>, name: &str) -> io::Result<Vec<SocketAddr>> {
        let underway = self.lock().get(name).cloned();
        let mut answer = match underway {
            Some(answer) => answer,
            None => {
                let place = Arc::clone(&self.places).acquire_owned().await;
                self.begin(name, place.map_err(io::Error::other)?)
            }
        };
        // The lookup fails without an answer only if it panicked.
        let answer = answer.wait_for(Option::is_some).await.map_err(io::Error::other)?;
        answer.clone().unwrap_or_else(|| Ok(Vec::new())).map_err(io::Error::other)
    }

    /// Begins a lookup of `name`, unless one has begun since.
    #[expect(clippy::disallowed_methods, reason = "the places bound the threads")]
    fn begin(self: &Arc<Self>, name: &str, place: OwnedSemaphorePermit) -> watch::Receiver<Answer> {
        let mut underway = self.lock();
        if let Some(answer) = underway.get(name) {
            return answer.clone();
        }
        let (answer, receiver) = watch::channel(None);
        underway.insert(name.to_owned(), receiver.clone());
        drop(underway);
        let (lookups, name) = (Arc::clone(self), name.to_owned());
        let lookup = Underway { lookups, name, answer, _place: place };
        tokio::task::spawn_blocking(move || lookup.ask());
        receiver
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<Answer>>> {
        // A panic leaves no change half made, so a poisoned lock is fit for use.
        self.underway.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::{join_all, poll_immediate};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    fn found() -> Vec<SocketAddr> {
        vec![([10, 0, 0, 1], 0).into()]
    }

    #[tokio::test]
    async fn names_that_no_server_knows_hold_few_threads() {
        let (begun, (silence, gate)) = (Arc::new(AtomicUsize::new(0)), mpsc::channel::<()>());
        let (counted, gate) = (Arc::clone(&begun), Mutex::new(gate));
        let lookups = Arc::new(Lookups::by(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            // The name servers keep silent until the test ends that.
            let _ = gate.lock().unwrap().recv();
            Ok(found())
        }));
        // Each turn gives up at once, and its lookup goes on.
        let names: Vec<_> = (0..1_000).map(|number| format!("host-{}", number % 100)).collect();
        for name in &names {
            assert!(poll_immediate(lookups.find(name)).await.is_none());
        }
        let threads = || AT_ONCE - lookups.places.available_permits();
        assert_eq!((threads(), lookups.lock().len()), (AT_ONCE, AT_ONCE));
        // Turns that wait share the lookup of their name, or wait for a place.
        let waiting = join_all(names.iter().take(10).map(|name| lookups.find(name)));
        let mut waiting = std::pin::pin!(waiting);
        assert!(poll_immediate(&mut waiting).await.is_none());
        drop(silence);
        for answer in waiting.await {
            assert_eq!(answer.unwrap(), found());
        }
        assert_eq!(begun.load(Ordering::SeqCst), 10, "one for each name");
        // Each place is given back, once its thread has ended.
        let all = lookups.places.acquire_many(AT_ONCE as u32).await.unwrap();
        assert!(lookups.lock().is_empty());
        drop(all);
    }

    #[tokio::test]
    async fn lookup_that_fails_or_panics_is_tried_again() {
        let asked = AtomicUsize::new(0);
        let lookups =
            Arc::new(Lookups::by(move |name| match asked.fetch_add(1, Ordering::SeqCst) {
                0 => Err(io::Error::other(format!("no {name}"))),
                1 => panic!("a test ordered this panic"),
                _ => Ok(found()),
            }));
        let first = lookups.find("host").await.unwrap_err();
        assert!(first.to_string().contains("no host"), "{first}");
        let all = lookups.places.acquire_many(AT_ONCE as u32).await.unwrap();
        drop(all);
        assert!(lookups.find("host").await.is_err());
        let all = lookups.places.acquire_many(AT_ONCE as u32).await.unwrap();
        drop(all);
        assert_eq!(lookups.find("host").await.unwrap(), found());
    }
}
