//! Binds a turn to the key of its session, and moves a session when its key can serve no more.
//!
//! A live binding changes only when its key is dead or gone: never for load, weights, a new key, a recovered key, a restart.
//! Every change is a compare-and-set with one winner; losers use the winner's key. The store being away is no error: the
//! session's own order answers, the same on every replica.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::Binding;
use super::record::{Record, state_tag};
use super::select::{Reach, first};
use crate::client::Client;
use crate::error::{Error, Kind};
use crate::key::Key;
use crate::key::registry::Registry;
use crate::key::table::Table;
use crate::metrics::BindingResult;
use crate::session::SessionId;
use crate::store::{Budget, Held, Replaced, Store, Unavailable};
use crate::task::Tasks;

/// Between attempts to learn the generation of the key set.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// What a client is told when a key may be loaded in a moment.
const SOON: Duration = Duration::from_secs(1);
/// What a client is told when keys are out of use.
const LATER: Duration = Duration::from_secs(30);

/// A turn as binding sees it.
pub struct Wanted<'t> {
    pub session: Option<SessionId>,
    pub client: &'t Client,
    /// Whether the turn itself shows content that only its organization can open.
    pub carries_sealed: &'t (dyn Fn() -> bool + Sync),
}

/// What a look into the store found.
pub type Found = Result<Option<Held>, Unavailable>;

pub struct Bindings {
    store: Arc<Store>,
    table: Arc<Table>,
    registry: Arc<Registry>,
    ttl: Duration,
    tasks: Tasks,
    /// The ordinal of this replica's key set. 0: not known yet.
    generation: Arc<AtomicU32>,
}

impl Bindings {
    pub fn new(store: Arc<Store>, table: Arc<Table>, registry: Arc<Registry>, ttl: Duration, tasks: Tasks) -> Self {
        let generation = Arc::new(AtomicU32::new(0));
        tasks.spawn_until_stopped(learn_generation(Arc::clone(&store), table.fingerprint(), Arc::clone(&generation)));
        Self { store, table, registry, ttl, tasks, generation }
    }

    /// The time that a turn has for all its store operations.
    pub fn budget(&self) -> Budget {
        self.store.budget()
    }

    /// The one round trip of a later turn. Needs only the session, so that it runs while the body is still coming.
    pub async fn look_up(&self, session: &SessionId, budget: &mut Budget) -> Found {
        self.store.get(session.as_str(), budget).await
    }

    pub async fn bind(&self, wanted: &Wanted<'_>, found: Found, budget: &mut Budget) -> Result<Binding, Error> {
        let Some(session) = &wanted.session else { return self.by_load(wanted) };
        match found {
            Ok(Some(held)) => self.adopt(wanted, session, &held.value, held.left, budget).await,
            Ok(None) => self.create(wanted, session, budget).await,
            Err(_) => self.without_store(wanted, session, BindingResult::Degraded),
        }
    }

    /// Moves the session away from `binding`'s key, which the registry has taken out of use. `state` is the turn's
    /// `x-codex-turn-state`, which belongs to the key that is left.
    pub async fn rebind(
        &self,
        wanted: &Wanted<'_>,
        binding: &Binding,
        state: Option<&[u8]>,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        match (&binding.session, &binding.record) {
            (Some(session), Some(record)) => self.replace(wanted, session, record.clone(), state, budget).await,
            (Some(session), None) => self.without_store(wanted, session, BindingResult::Degraded),
            (None, _) => self.by_load(wanted),
        }
    }

    /// After the first bytes of a successful answer: marks the session as sealed and starts its life anew, where either is due.
    pub fn confirm(&self, binding: &Binding) {
        let (Some(session), Some(record)) = (&binding.session, &binding.record) else { return };
        let (store, session, ttl) = (Arc::clone(&self.store), session.clone(), self.ttl);
        let before = record.to_string();
        if !record.sealed {
            let sealed = record.sealed().to_string();
            self.tasks.spawn(async move {
                // Lost or unknown: the next turn's answer does it again.
                let _ = store.replace(session.as_str(), &before, &sealed, ttl, &mut store.budget()).await;
            });
        } else if binding.refresh {
            self.tasks.spawn(async move {
                let _ = store.extend(session.as_str(), &before, ttl, &mut store.budget()).await;
            });
        }
    }

    /// Uses a stored binding, or moves it where its key can serve no more.
    async fn adopt(
        &self,
        wanted: &Wanted<'_>,
        session: &SessionId,
        stored: &str,
        left: Duration,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        let Some(record) = Record::parse(stored) else {
            // Written by a newer version: it knows better, so its word is neither used nor overwritten.
            return self.without_store(wanted, session, BindingResult::Degraded);
        };
        match self.table.by_tag(record.key) {
            Some(key) if self.may_serve(wanted, key) => {
                let refresh = left < self.ttl / 4 * 3;
                let (key, session) = (Arc::clone(key), Some(session.clone()));
                Ok(Binding { key, result: BindingResult::Existing, session, record: Some(record), refresh })
            }
            None if self.is_newer(&record) => self.spill(wanted, session, record),
            _ => self.replace(wanted, session, record, None, budget).await,
        }
    }

    /// A session's first binding, by the first of all turns that try.
    async fn create(&self, wanted: &Wanted<'_>, session: &SessionId, budget: &mut Budget) -> Result<Binding, Error> {
        let key = self.choose(wanted, session, Reach::Anywhere)?;
        let record = Record::first(&key, self.generation());
        match self.store.claim(session.as_str(), &record.to_string(), self.ttl, budget).await {
            Ok(None) => {
                let (session, result) = (Some(session.clone()), BindingResult::Created);
                Ok(Binding { key, result, session, record: Some(record), refresh: false })
            }
            // Boxed since a lost claim may end in a move.
            Ok(Some(winner)) => Box::pin(self.adopt(wanted, session, &winner, self.ttl, budget)).await,
            Err(_) => self.without_store(wanted, session, BindingResult::Degraded),
        }
    }

    /// Compare-and-set from `record` to the next key that may serve. Whoever loses looks at what the winner stored, and goes
    /// on from there only if that key can serve no more either: at most once a key.
    async fn replace(
        &self,
        wanted: &Wanted<'_>,
        session: &SessionId,
        mut record: Record,
        state: Option<&[u8]>,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        for _ in 0..=self.table.keys().len() {
            let reach = self.reach(wanted, &record);
            let key = self.choose(wanted, session, reach)?;
            let next = record.moved_to(&key, self.generation(), state.map(state_tag));
            let moved = self.store.replace(session.as_str(), &record.to_string(), &next.to_string(), self.ttl, budget).await;
            let (stored, result) = match moved {
                Ok(Replaced::Done) => {
                    tracing::info!(%session, key = %key.id, epoch = next.epoch, "session moved");
                    (next, BindingResult::Rebound)
                }
                Ok(Replaced::Lost(winner)) => match Record::parse(&winner) {
                    Some(winner) => (winner, BindingResult::Existing),
                    None => return self.without_store(wanted, session, BindingResult::Degraded),
                },
                // Whether it was written is not known: the next turn reads what is.
                Err(_) => {
                    return Ok(Binding {
                        key,
                        result: BindingResult::Degraded,
                        session: Some(session.clone()),
                        record: None,
                        refresh: false,
                    });
                }
            };
            match self.table.by_tag(stored.key) {
                Some(key) if self.may_serve(wanted, key) => {
                    let (key, session) = (Arc::clone(key), Some(session.clone()));
                    return Ok(Binding { key, result, session, record: Some(stored), refresh: false });
                }
                None if self.is_newer(&stored) => return self.spill(wanted, session, stored),
                _ => record = stored,
            }
        }
        Err(none_available(LATER))
    }

    /// Serves the turn from the session's organization and leaves the binding alone: its key is not loaded here yet.
    fn spill(&self, wanted: &Wanted<'_>, session: &SessionId, record: Record) -> Result<Binding, Error> {
        let key = self.choose(wanted, session, Reach::Organization(record.organization)).map_err(|_| none_available(SOON))?;
        Ok(Binding { key, result: BindingResult::Spilled, session: Some(session.clone()), record: None, refresh: false })
    }

    /// The session's own order, which every replica finds alike.
    fn without_store(&self, wanted: &Wanted<'_>, session: &SessionId, result: BindingResult) -> Result<Binding, Error> {
        let key = self.choose(wanted, session, Reach::Anywhere)?;
        Ok(Binding { key, result, session: Some(session.clone()), record: None, refresh: false })
    }

    /// A turn without a session goes where the least is going on.
    fn by_load(&self, wanted: &Wanted<'_>) -> Result<Binding, Error> {
        let candidates = self.table.keys().iter().filter(|key| key.weight > 0 && self.may_serve(wanted, key));
        let key = self.registry.least_loaded(candidates).ok_or_else(|| none_available(LATER))?;
        Ok(Binding { key: Arc::clone(key), result: BindingResult::None, session: None, record: None, refresh: false })
    }

    fn choose(&self, wanted: &Wanted<'_>, session: &SessionId, reach: Reach) -> Result<Arc<Key>, Error> {
        let allowed: Vec<_> = self
            .table
            .keys()
            .iter()
            .filter(|key| reach.includes(key) && wanted.client.may_use_organization(&key.organization))
            .collect();
        first(session.as_str(), &allowed, |key| self.registry.is_usable(key)).cloned().ok_or_else(|| none_available(LATER))
    }

    fn reach(&self, wanted: &Wanted<'_>, record: &Record) -> Reach {
        if record.sealed || (wanted.carries_sealed)() { Reach::Organization(record.organization) } else { Reach::Anywhere }
    }

    fn may_serve(&self, wanted: &Wanted<'_>, key: &Key) -> bool {
        wanted.client.may_use_organization(&key.organization) && self.registry.is_usable(key)
    }

    /// Whether `record` was written by a replica that may know keys which this one has not loaded.
    fn is_newer(&self, record: &Record) -> bool {
        let generation = self.generation();
        generation == 0 || record.generation > generation
    }

    fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }
}

fn none_available(wait: Duration) -> Error {
    Error::new(
        Kind::NoKeyAvailable,
        "No upstream key that may serve this session is in use. Its operator has been told; try again later.",
    )
    .retry_after(wait)
}

async fn learn_generation(store: Arc<Store>, fingerprint: String, generation: Arc<AtomicU32>) {
    loop {
        if let Ok(ordinal) = store.ordinal(&fingerprint, &mut store.budget()).await {
            generation.store(ordinal, Ordering::Relaxed);
            return;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}
