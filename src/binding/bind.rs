//! Binds a turn to the key of its session, and moves a session when its key can serve no more.
//!
//! A live binding changes only when its key is dead or, before the session is sealed, limited for
//! long. It never changes for load, weights, a new key, a recovered key or a restart. Each change
//! is a compare-and-set with one winner, and the losers use the winner's key. If the store is away,
//! `outage` binds instead.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::binding::demand::Placing;
use crate::binding::local::{Belief, Known, Local};
use crate::binding::place::{Places, Standing};
use crate::binding::record::BindingRecord;
use crate::binding::select::Reach;
use crate::binding::trail::{Step, Trail};
use crate::binding::{Binding, Written};
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::metrics::{BindingResult, Decision, Reason};
use crate::session::SessionId;
use crate::store::name::Name;
use crate::store::{Budget, Store, StoredValue, Unavailable};
use crate::task::Tasks;

/// Most turns of this replica that wait until a key takes one more moved session.
const MOVERS: usize = 256;

/// The result of looking up a binding in the store.
pub type Found = Result<Option<StoredValue>, Unavailable>;

pub struct Bindings {
    pub(super) store: Arc<Store>,
    pub(super) places: Places,
    pub(super) local: Arc<Local>,
    pub(super) ttl: Duration,
    pub(super) tasks: Tasks,
    pub trail: Trail,
    /// Permits for turns that wait to move.
    pub(super) movers: Semaphore,
}

impl Bindings {
    pub fn new(
        store: Arc<Store>,
        places: Places,
        local: Arc<Local>,
        ttl: Duration,
        tasks: Tasks,
        trail: Trail,
    ) -> Self {
        Self { store, places, local, ttl, tasks, trail, movers: Semaphore::new(MOVERS) }
    }

    /// Returns the time that a turn has for all its store operations.
    pub fn budget(&self) -> Budget {
        self.store.budget()
    }

    /// Looks up the stored binding in one round trip. Needs only the session, so that the lookup
    /// runs while the body still arrives.
    pub async fn look_up(&self, session: &SessionId, budget: &mut Budget) -> Found {
        self.store.get(Name::Binding(session.as_str()), budget).await
    }

    /// Binds a turn. Returns its binding and the keys that it may use from now on.
    pub async fn bind(
        &self,
        placing: Placing<'_>,
        found: Found,
        budget: &mut Budget,
    ) -> Result<(Binding, Reach), Error> {
        let restricted = self.restrict(placing, &found, budget).await;
        let within = restricted.as_ref().map_or(placing.within, |within| *within);
        let placing = Placing { within, ..placing };
        let bound = match restricted {
            Ok(_) => self.find(placing, found, budget).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &bound {
            let session = placing.demand.session.as_ref();
            let (reason, from) = match session.and_then(|session| self.local.recall(session)) {
                Some(Known { record, .. }) => {
                    (self.places.reason(placing, &record), self.places.key_of(&record))
                }
                None if error.kind == ErrorKind::InsufficientQuota => (Reason::Exhausted, None),
                None if error.kind == ErrorKind::RateLimitExceeded => (Reason::Limited, None),
                None => (Reason::NoneInUse, None),
            };
            self.trail.record(&Step {
                session,
                decision: Decision::Refuse,
                reason,
                from: from.as_deref(),
                to: None,
            });
        }
        bound.map(|binding| (binding, within))
    }

    async fn find(
        &self,
        placing: Placing<'_>,
        found: Found,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        let Some(session) = &placing.demand.session else { return self.by_load(placing) };
        self.store_thread(placing, session);
        match found {
            Ok(Some(entry)) => self.adopt(placing, session, &entry, budget).await,
            Ok(None) => match self.local.recall(session) {
                Some(known) => self.restore(placing, session, &known, budget).await,
                None => self.create(placing, session, budget).await,
            },
            Err(_) => self.without_store(placing, session),
        }
    }

    /// Decides again after an attempt with `binding`'s key: the turn stays, a sibling serves it, or
    /// its session moves. Returns the next binding and the keys that the turn may use from now on.
    pub async fn rebind(
        &self,
        placing: Placing<'_>,
        binding: &Binding,
        budget: &mut Budget,
    ) -> Result<(Binding, Reach), Error> {
        let within = self.restrict_again(placing);
        let placing = Placing { within, ..placing };
        // Another turn of the session may have moved it since, and a stored binding replaces a
        // provisional one.
        let known = binding.session.as_ref().and_then(|session| self.local.recall(session));
        let is_better = |known: &Known, record: &BindingRecord| {
            known.record.epoch > record.epoch || known.is_provisional && known.is_of(record)
        };
        let newer = known
            .as_ref()
            .filter(|known| binding.record().is_some_and(|record| is_better(known, record)));
        let next = match (&binding.session, &binding.written) {
            (Some(session), Written::Stored(record) | Written::Beside(record)) => match newer {
                Some(known) => self.restore(placing, session, known, budget).await?,
                None => self.use_stored(placing, session, record.clone(), self.ttl, budget).await?,
            },
            (Some(session), Written::Here(record)) => {
                let own = Known {
                    record: record.clone(),
                    is_provisional: self.is_provisional(session, record, binding),
                };
                self.use_known(placing, session, newer.unwrap_or(&own))?
            }
            // The content of the session's history is not known, so the turn stays in its
            // organization.
            (Some(session), Written::Nowhere) => {
                let key = self.places.choose(
                    placing,
                    session,
                    Reach::Organization(binding.key.organization_tag),
                )?;
                Binding::passing(&key, Some(session), binding.result)
            }
            (None, _) => self.by_load(placing)?,
        };
        if next.key.tag == binding.key.tag && next.written == binding.written {
            return Ok((Binding { key: next.key, ..binding.clone() }, within));
        }
        Ok((next.moved(), within))
    }

    /// Whether another connection of the session would use another key than `binding`'s.
    pub fn would_leave(&self, placing: Placing<'_>, binding: &Binding) -> bool {
        let (Some(_), Some(record)) = (&binding.session, binding.record()) else {
            return self.places.by_load(placing).is_ok_and(|key| key.tag != binding.key.tag);
        };
        match self.places.standing_later(placing, record) {
            Standing::Ready(key) => key.tag != binding.key.tag,
            Standing::Bypassed(reason) => {
                self.has_sibling(placing, binding)
                    || placing.may_leave(record, reason)
                        && self.places.has_any(placing, Reach::Anywhere)
            }
            Standing::Dead(_) | Standing::OtherProject => {
                self.places.has_any(placing, placing.last_reach(record))
            }
        }
    }

    /// Whether a sibling must serve the turn, because `binding`'s key is limited again and again.
    pub fn is_relieved(&self, placing: Placing<'_>, binding: &Binding) -> bool {
        binding.session.is_some()
            && binding.record().is_some()
            && self.places.is_relieved(placing, &binding.key)
    }

    /// Whether another key of the session's organization can serve the turn.
    pub fn has_sibling(&self, placing: Placing<'_>, binding: &Binding) -> bool {
        let bound = binding.session.as_ref().zip(binding.record());
        bound.is_some_and(|(session, record)| {
            self.places.sibling(placing, session, record).is_some()
        })
    }

    /// Returns the client's error for a turn that no key can serve in place of `binding`'s.
    pub fn shortage(&self, placing: Placing<'_>, binding: &Binding) -> Error {
        self.places.shortage_of(
            placing,
            binding.record().map_or(Reach::Anywhere, |record| placing.last_reach(record)),
        )
    }

    /// Uses a stored binding, or moves the session if its key can serve no more.
    async fn adopt(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        entry: &StoredValue,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        let Some(record) = BindingRecord::parse(&entry.value) else {
            return self.beside_store(placing, session);
        };
        match self.local.confirm(session, &record) {
            Belief::Stored => self.use_stored(placing, session, record, entry.left, budget).await,
            Belief::Unsealed => {
                let sealed = record.sealed();
                self.seal(session, &record, &sealed, false, budget).await;
                let record = self.newer(session, &sealed).unwrap_or(sealed);
                self.use_stored(placing, session, record, entry.left, budget).await
            }
            Belief::Outdated => match self.local.recall(session) {
                Some(known) => self.restore(placing, session, &known, budget).await,
                // The entry in memory has just expired.
                None => self.use_stored(placing, session, record, entry.left, budget).await,
            },
        }
    }

    /// Writes the binding that this replica remembers to the store, which has lost it or does not
    /// know it yet. If the store has a newer one, the turn uses that.
    async fn restore(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        known: &Known,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        let record = known.record.of_generation(self.places.generation());
        let record = match self
            .store
            .merge(
                Name::Binding(session.as_str()),
                &record.to_string(),
                record.epoch,
                self.ttl,
                budget,
            )
            .await
        {
            Ok(None) => record,
            Ok(Some(stored)) => match BindingRecord::parse(&stored) {
                Some(stored) => stored,
                None => return self.beside_store(placing, session),
            },
            Err(_) => return self.without_store(placing, session),
        };
        let record = self.newer(session, &record).unwrap_or(record);
        self.use_stored(placing, session, record, self.ttl, budget).await
    }

    /// Notes that the store holds `record`. Returns the remembered binding if it is newer: another
    /// turn moved the session, and the store has lost that move. The next turn restores it.
    pub(super) fn newer(
        &self,
        session: &SessionId,
        record: &BindingRecord,
    ) -> Option<BindingRecord> {
        match self.local.confirm(session, record) {
            Belief::Outdated => self.local.recall(session).map(|known| known.record),
            Belief::Stored | Belief::Unsealed => None,
        }
    }

    /// Uses a stored binding, which expires after `left`.
    async fn use_stored(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        record: BindingRecord,
        left: Duration,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        let mut standing = self.places.standing(placing, &record);
        if matches!(standing, Standing::Bypassed(Reason::Suspected)) {
            // A probe decides in a moment whether sessions leave the key. Waiting avoids moving the
            // turn away and back.
            self.places.wait_for_probe(&record).await;
            standing = self.places.standing(placing, &record);
        }
        match standing {
            Standing::Ready(key) => {
                let refresh = left < self.ttl / 4 * 3;
                Ok(Binding {
                    refresh,
                    ..Binding::stored(&key, session, record, BindingResult::Existing)
                })
            }
            Standing::Bypassed(reason) => match self.spill(placing, session, &record, reason) {
                Err(_) if placing.may_leave(&record, reason) => {
                    self.replace(placing, session, record, reason, budget).await
                }
                spilled => spilled,
            },
            Standing::Dead(reason) => self.replace(placing, session, record, reason, budget).await,
            Standing::OtherProject => self.serve_beside(placing, session, &record),
        }
    }

    /// Makes a session's first binding. Of all turns that try, one wins.
    async fn create(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        let (record, result, chosen) = match self.inherit_binding(placing, budget).await {
            Some(record) => (record, BindingResult::Inherited, None),
            None => {
                let key = self.places.place_new(placing, session)?;
                (
                    BindingRecord::first(&key, self.places.generation()),
                    BindingResult::Created,
                    Some(key),
                )
            }
        };
        let (id, value) = (session.as_str(), record.to_string());
        // If the store is lost, another replica finds this key by the session's order alone.
        let is_expected =
            chosen.as_ref().is_some_and(|key| self.places.is_default(placing, session, key));
        match self.store.begin(Name::Binding(id), &value, is_expected, self.ttl, budget).await {
            Ok(None) => {
                let newer = self.newer(session, &record);
                if let (None, Some(key)) = (&newer, chosen) {
                    return Ok(Binding {
                        is_provisional: true,
                        ..Binding::stored(&key, session, record, result)
                    });
                }
                let record = newer.unwrap_or(record);
                let binding = self.use_stored(placing, session, record, self.ttl, budget).await?;
                let result =
                    if binding.result == BindingResult::Existing { result } else { binding.result };
                Ok(Binding { result, is_provisional: true, ..binding })
            }
            Ok(Some(winner)) => {
                self.adopt(placing, session, &StoredValue { value: winner, left: self.ttl }, budget)
                    .await
            }
            Err(_) => self.use_unconfirmed(placing, session, record, true),
        }
    }

    pub(super) fn record_decision(
        &self,
        session: &SessionId,
        decision: Decision,
        reason: Reason,
        record: &BindingRecord,
        to: &Key,
    ) {
        let from = self.places.key_of(record);
        self.trail.record(&Step {
            session: Some(session),
            decision,
            reason,
            from: from.as_deref(),
            to: Some(to),
        });
    }

    fn by_load(&self, placing: Placing<'_>) -> Result<Binding, Error> {
        Ok(Binding::passing(&self.places.by_load(placing)?, None, BindingResult::None))
    }
}
