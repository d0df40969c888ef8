//! Binds a turn to the key of its session, and moves a session when its key can serve no more.
//!
//! A live binding changes only when its key is dead or gone: never for load, weights, a new key, a recovered key, a restart.
//! Every change is a compare-and-set with one winner; losers use the winner's key. The store being away is no error: the
//! session's own order answers, the same on every replica.

use std::sync::Arc;
use std::time::Duration;

use super::Binding;
use super::record::{Record, state_tag};
use super::select::{Reach, first};
use crate::client::Client;
use crate::error::{Error, Kind};
use crate::key::Key;
use crate::key::health::Ailment;
use crate::key::registry::Registry;
use crate::metrics::BindingResult;
use crate::session::SessionId;
use crate::store::{Budget, Held, Replaced, Store, Unavailable};
use crate::task::Tasks;

/// What a client is told when a key may be loaded in a moment.
const SOON: Duration = Duration::from_secs(1);
/// What a client is told when keys are out of use.
const LATER: Duration = Duration::from_secs(30);

/// A turn as binding sees it.
pub struct Wanted<'t> {
    pub session: Option<SessionId>,
    pub client: &'t Client,
    /// Whether the turn itself shows content that only its organization can open.
    pub carries_sealed: Sealed<'t>,
    /// The turn's `x-codex-turn-state`: it belongs to the key that issued it, and is remembered as stale where the turn moves.
    pub turn_state: Option<&'t [u8]>,
}

/// Where to look for content that only its organization can open.
#[derive(Clone, Copy)]
pub enum Sealed<'t> {
    Known(bool),
    /// In this JSON text, which is only looked at when the answer matters.
    In(&'t [u8]),
}

/// A field that only an organization's own blobs have. Inside a text its quotes would be escaped.
const SEALED: &[u8] = br#""encrypted_content""#;

impl Sealed<'_> {
    pub fn is_sealed(self) -> bool {
        match self {
            Self::Known(sealed) => sealed,
            Self::In(text) => memchr::memmem::find(text, SEALED).is_some(),
        }
    }
}

/// What a look into the store found.
pub type Found = Result<Option<Held>, Unavailable>;

pub struct Bindings {
    store: Arc<Store>,
    registry: Arc<Registry>,
    ttl: Duration,
    tasks: Tasks,
}

impl Bindings {
    pub fn new(store: Arc<Store>, registry: Arc<Registry>, ttl: Duration, tasks: Tasks) -> Self {
        Self { store, registry, ttl, tasks }
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
            Ok(Some(held)) => self.adopt(wanted, session, &held, budget).await,
            Ok(None) => self.create(wanted, session, budget).await,
            Err(_) => self.without_store(wanted, session),
        }
    }

    /// Moves the session away from `binding`'s key, which the registry has taken out of use.
    pub async fn rebind(&self, wanted: &Wanted<'_>, binding: &Binding, budget: &mut Budget) -> Result<Binding, Error> {
        let moved = match (&binding.session, &binding.record) {
            (Some(session), Some(record)) => return self.replace(wanted, session, record.clone(), budget).await,
            // What the session's history holds is not known while the store is away: its organization is not left.
            (Some(session), None) => {
                let key = self.choose(wanted, session, Reach::Organization(binding.key.organization_tag))?;
                Binding::passing(&key, Some(session), binding.result)
            }
            (None, _) => self.by_load(wanted)?,
        };
        Ok(Binding { has_moved: true, ..moved })
    }

    /// Before the first byte of a successful answer: what it holds only this organization can open, so the session is sealed by
    /// then. A stored life that is due starts anew, behind the turn's back.
    pub async fn confirm(&self, binding: &Binding, budget: &mut Budget) {
        let (Some(session), Some(record)) = (&binding.session, &binding.record) else { return };
        let stored = record.to_string();
        if !record.sealed {
            // Lost or unknown: the next turn's answer does it again.
            let _ = self.store.replace(session.as_str(), &stored, &record.sealed().to_string(), self.ttl, budget).await;
        } else if binding.refresh {
            let (store, session, ttl) = (Arc::clone(&self.store), session.clone(), self.ttl);
            self.tasks.spawn(async move {
                let _ = store.extend(session.as_str(), &stored, ttl, &mut store.budget()).await;
            });
        }
    }

    /// Uses a stored binding, or moves it where its key can serve no more.
    async fn adopt(&self, wanted: &Wanted<'_>, session: &SessionId, held: &Held, budget: &mut Budget) -> Result<Binding, Error> {
        let Some(record) = Record::parse(&held.value) else {
            // Written by a newer version: it knows better, so its word is neither used nor overwritten.
            return self.without_store(wanted, session);
        };
        match self.standing(wanted, &record) {
            Standing::Serves(key) => {
                let refresh = held.left < self.ttl / 4 * 3;
                Ok(Binding { refresh, ..Binding::stored(&key, session, record, BindingResult::Existing) })
            }
            Standing::NotLoaded => self.spill(wanted, session, &record),
            Standing::Gone => self.replace(wanted, session, record, budget).await,
        }
    }

    /// A session's first binding, by the first of all turns that try.
    async fn create(&self, wanted: &Wanted<'_>, session: &SessionId, budget: &mut Budget) -> Result<Binding, Error> {
        let key = self.choose(wanted, session, Reach::Anywhere)?;
        let record = Record::first(&key, self.registry.loaded().ordinal());
        match self.store.claim(session.as_str(), &record.to_string(), self.ttl, budget).await {
            Ok(None) => Ok(Binding::stored(&key, session, record, BindingResult::Created)),
            Ok(Some(winner)) => self.adopt(wanted, session, &Held { value: winner, left: self.ttl }, budget).await,
            Err(_) => self.without_store(wanted, session),
        }
    }

    /// Compare-and-set from `record` to the next key that may serve. Whoever loses looks at what the winner stored, and goes
    /// on from there only if that key can serve no more either: at most once a key.
    async fn replace(
        &self,
        wanted: &Wanted<'_>,
        session: &SessionId,
        mut record: Record,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        for _ in 0..=self.registry.loaded().table.keys().len() {
            let key = self.choose(wanted, session, reach(wanted, &record))?;
            let next = record.moved_to(&key, self.registry.loaded().ordinal(), wanted.turn_state.map(state_tag));
            let outcome = self.store.rebind(session.as_str(), &record.to_string(), &next.to_string(), self.ttl, budget).await;
            let binding = match outcome {
                Ok(Replaced::Done) => {
                    tracing::info!(%session, key = %key.id, epoch = next.epoch, "session moved");
                    Binding::stored(&key, session, next, BindingResult::Rebound)
                }
                // Whether it was written is not known: the next turn reads what is.
                Err(_) => Binding::passing(&key, Some(session), BindingResult::Degraded),
                Ok(Replaced::Lost(winner)) => {
                    let Some(winner) = Record::parse(&winner) else { return self.without_store(wanted, session) };
                    match self.standing(wanted, &winner) {
                        Standing::Serves(key) => Binding::stored(&key, session, winner, BindingResult::Existing),
                        Standing::NotLoaded => self.spill(wanted, session, &winner)?,
                        Standing::Gone => {
                            record = winner;
                            continue;
                        }
                    }
                }
            };
            return Ok(Binding { has_moved: true, ..binding });
        }
        Err(none_available(LATER))
    }

    /// Serves the turn from the session's organization and leaves the binding alone: its key is not loaded here yet.
    fn spill(&self, wanted: &Wanted<'_>, session: &SessionId, record: &Record) -> Result<Binding, Error> {
        let key = self.choose(wanted, session, Reach::Organization(record.organization)).map_err(|_| none_available(SOON))?;
        Ok(Binding { has_moved: true, ..Binding::passing(&key, Some(session), BindingResult::Spilled) })
    }

    /// The session's own order, which every replica finds alike.
    fn without_store(&self, wanted: &Wanted<'_>, session: &SessionId) -> Result<Binding, Error> {
        let key = self.choose(wanted, session, Reach::Anywhere)?;
        Ok(Binding::passing(&key, Some(session), BindingResult::Degraded))
    }

    /// A turn without a session goes where the least is going on.
    fn by_load(&self, wanted: &Wanted<'_>) -> Result<Binding, Error> {
        let loaded = self.registry.loaded();
        let candidates = loaded.table.keys().iter().filter(|key| key.weight > 0 && self.may_serve(wanted, key));
        let key = self.registry.least_loaded(candidates).ok_or_else(|| none_available(LATER))?;
        Ok(Binding::passing(key, None, BindingResult::None))
    }

    /// The session's first choice among the keys within `reach`.
    fn choose(&self, wanted: &Wanted<'_>, session: &SessionId, reach: Reach) -> Result<Arc<Key>, Error> {
        let loaded = self.registry.loaded();
        let is_open = |key: &&Arc<Key>| reach.includes(key) && loaded.is_common(key) && self.is_allowed(wanted, key);
        let allowed: Vec<_> = loaded.table.keys().iter().filter(is_open).collect();
        if let Some(key) = first(session.as_str(), &allowed, |key| self.registry.is_usable(key)) {
            return Ok(Arc::clone(key));
        }
        let is_exhausted = |key: &&Arc<Key>| matches!(self.registry.ailment(key), Some(Ailment::Exhausted(_)));
        match reach {
            // Waiting does not help, and no other organization can open the session's history.
            Reach::Organization(_) if !allowed.is_empty() && allowed.iter().all(is_exhausted) => Err(Error::new(
                Kind::InsufficientQuota,
                "The quota of this session's organization is exhausted, and no other can go on with its history. Add credit to it, or start a new session.",
            )
            .retry_after(LATER)),
            _ => Err(none_available(LATER)),
        }
    }

    /// What this replica makes of a stored binding.
    fn standing(&self, wanted: &Wanted<'_>, record: &Record) -> Standing {
        let loaded = self.registry.loaded();
        let generation = loaded.ordinal();
        match loaded.table.by_tag(record.key).cloned() {
            Some(key) if self.may_serve(wanted, &key) => Standing::Serves(key),
            // Somebody moved the session here, whatever this replica thinks of the key: worth a try.
            Some(key) if record.epoch > 1 && self.is_allowed(wanted, &key) && self.registry.may_try(&key) => {
                Standing::Serves(key)
            }
            Some(_) => Standing::Gone,
            // Only a replica of the same or a newer generation may call a key removed.
            None if generation == 0 || record.generation > generation => Standing::NotLoaded,
            None => Standing::Gone,
        }
    }

    fn may_serve(&self, wanted: &Wanted<'_>, key: &Key) -> bool {
        self.is_allowed(wanted, key) && self.registry.is_usable(key)
    }

    fn is_allowed(&self, wanted: &Wanted<'_>, key: &Key) -> bool {
        wanted.client.may_use_organization(&key.organization)
    }
}

/// What a replica makes of a stored binding.
enum Standing {
    Serves(Arc<Key>),
    /// A newer set of keys, which this replica has not loaded, may have its key.
    NotLoaded,
    /// Its key can serve no more.
    Gone,
}

fn reach(wanted: &Wanted<'_>, record: &Record) -> Reach {
    if record.sealed || wanted.carries_sealed.is_sealed() { Reach::Organization(record.organization) } else { Reach::Anywhere }
}

fn none_available(wait: Duration) -> Error {
    Error::new(
        Kind::NoKeyAvailable,
        "No upstream key that may serve this session is in use. Its operator has been told; try again later.",
    )
    .retry_after(wait)
}
