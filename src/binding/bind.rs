//! Binds a turn to the key of its session, and moves a session when its key can serve no more.
//!
//! A live binding changes only when its key is dead or gone or, before anything is sealed, short
//! for long: never for load, weights, a new key, a recovered key, a restart. Every change is a
//! compare-and-set with one winner; losers use the winner's key. The store being away is no error:
//! `outage` answers then.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::binding::demand::Wanted;
use crate::binding::local::{Belief, Known, Local};
use crate::binding::place::{Places, Standing, none_in_use, not_loaded};
use crate::binding::record::{BindingRecord, state_tag};
use crate::binding::select::Reach;
use crate::binding::trail::{Step, Trail};
use crate::binding::{Binding, Written};
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::limit::{chance, jittered};
use crate::metrics::{BindingResult, Decision, Reason};
use crate::session::SessionId;
use crate::store::name::Name;
use crate::store::{Budget, Held, Replaced, Store, Unavailable};
use crate::task::Tasks;

/// So many turns wait on this replica until a key takes one more moved session.
const MOVERS: usize = 256;

/// What a look into the store found.
pub type Found = Result<Option<Held>, Unavailable>;

pub struct Bindings {
    pub(super) store: Arc<Store>,
    pub(super) places: Places,
    pub(super) local: Arc<Local>,
    pub(super) ttl: Duration,
    pub(super) tasks: Tasks,
    pub trail: Trail,
    /// Places for those that wait to move.
    movers: Semaphore,
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

    /// The time that a turn has for all its store operations.
    pub fn budget(&self) -> Budget {
        self.store.budget()
    }

    /// The one round trip of a later turn. Needs only the session, so that it runs while the body
    /// is still coming.
    pub async fn look_up(&self, session: &SessionId, budget: &mut Budget) -> Found {
        self.store.get(Name::Binding(session.as_str()), budget).await
    }

    pub async fn bind(
        &self,
        wanted: &mut Wanted<'_>,
        found: Found,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        let bound = match self.hold(wanted, &found, budget).await {
            Ok(()) => self.find(wanted, found, budget).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &bound {
            let session = wanted.session.as_ref();
            let (reason, from) = match session.and_then(|session| self.local.recall(session)) {
                Some(Known { record, .. }) => {
                    (self.places.reason(wanted, &record), self.places.key_of(&record))
                }
                None if error.kind == ErrorKind::InsufficientQuota => (Reason::Exhausted, None),
                None if error.kind == ErrorKind::RateLimitExceeded => (Reason::Limited, None),
                None => (Reason::NoneInUse, None),
            };
            self.trail.tell(&Step {
                session,
                decision: Decision::Refuse,
                reason,
                from: from.as_deref(),
                to: None,
            });
        }
        bound
    }

    async fn find(
        &self,
        wanted: &Wanted<'_>,
        found: Found,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        let Some(session) = &wanted.session else { return self.by_load(wanted) };
        self.tell_thread(wanted, session);
        match found {
            Ok(Some(held)) => self.adopt(wanted, session, &held, budget).await,
            Ok(None) => match self.local.recall(session) {
                Some(known) => self.restore(wanted, session, &known, budget).await,
                None => self.create(wanted, session, budget).await,
            },
            Err(_) => self.without_store(wanted, session),
        }
    }

    /// Where the turn goes now that something is known of `binding`'s key that was not before: it
    /// stays, is served by a sibling, or its session moves.
    pub async fn rebind(
        &self,
        wanted: &mut Wanted<'_>,
        binding: &Binding,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        self.hold_again(wanted);
        // Another turn of the session may have moved it meanwhile, and a guess gives way to what is
        // stored.
        let known = binding.session.as_ref().and_then(|session| self.local.recall(session));
        let is_better = |known: &Known, record: &BindingRecord| {
            known.record.epoch > record.epoch || known.is_provisional && known.is_of(record)
        };
        let newer = known
            .as_ref()
            .filter(|known| binding.record().is_some_and(|record| is_better(known, record)));
        let next = match (&binding.session, &binding.written) {
            (Some(session), Written::Stored(record) | Written::Beside(record)) => match newer {
                Some(known) => self.restore(wanted, session, known, budget).await?,
                None => self.use_stored(wanted, session, record.clone(), self.ttl, budget).await?,
            },
            (Some(session), Written::Here(record)) => {
                let own = Known {
                    record: record.clone(),
                    is_provisional: self.is_provisional(session, record, binding),
                };
                self.use_known(wanted, session, newer.unwrap_or(&own))?
            }
            // What the session's history holds is not known: its organization is not left.
            (Some(session), Written::Nowhere) => {
                let key = self.places.choose(
                    wanted,
                    session,
                    Reach::Organization(binding.key.organization_tag),
                )?;
                Binding::passing(&key, Some(session), binding.result)
            }
            (None, _) => self.by_load(wanted)?,
        };
        if next.key.tag == binding.key.tag && next.written == binding.written {
            return Ok(Binding { key: next.key, ..binding.clone() });
        }
        Ok(has_moved(next))
    }

    /// Whether another connection of the session would be served by another key than `binding`'s.
    pub fn would_leave(&self, wanted: &Wanted<'_>, binding: &Binding) -> bool {
        let (Some(_), Some(record)) = (&binding.session, binding.record()) else {
            return self.places.by_load(wanted).is_ok_and(|key| key.tag != binding.key.tag);
        };
        match self.places.standing_later(wanted, record) {
            Standing::Ready(key) => key.tag != binding.key.tag,
            Standing::Bypassed(reason) => {
                self.has_sibling(wanted, binding)
                    || may_leave(wanted, record, reason)
                        && self.places.has_any(wanted, Reach::Anywhere)
            }
            Standing::Dead(_) | Standing::OtherProject => {
                self.places.has_any(wanted, wanted.last_reach(record))
            }
        }
    }

    /// Whether another key of the session's organization can serve the turn.
    pub fn has_sibling(&self, wanted: &Wanted<'_>, binding: &Binding) -> bool {
        let bound = binding.session.as_ref().zip(binding.record());
        bound
            .is_some_and(|(session, record)| self.places.sibling(wanted, session, record).is_some())
    }

    /// What a client is told whose turn nobody can serve in place of `binding`'s key.
    pub fn shortage(&self, wanted: &Wanted<'_>, binding: &Binding) -> Error {
        self.places.shortage_of(
            wanted,
            binding.record().map_or(Reach::Anywhere, |record| wanted.last_reach(record)),
        )
    }

    /// Uses a stored binding, or moves it where its key can serve no more.
    async fn adopt(
        &self,
        wanted: &Wanted<'_>,
        session: &SessionId,
        held: &Held,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        let Some(record) = BindingRecord::parse(&held.value) else {
            return self.beside_store(wanted, session);
        };
        match self.local.confirm(session, &record) {
            Belief::Stored => self.use_stored(wanted, session, record, held.left, budget).await,
            Belief::Unsealed => {
                let sealed = record.sealed();
                self.seal(session, &record, &sealed, false, budget).await;
                let record = self.newer(session, &sealed).unwrap_or(sealed);
                self.use_stored(wanted, session, record, held.left, budget).await
            }
            Belief::Outdated => match self.local.recall(session) {
                Some(known) => self.restore(wanted, session, &known, budget).await,
                // Belief in it has ended just now.
                None => self.use_stored(wanted, session, record, held.left, budget).await,
            },
        }
    }

    /// The store has lost, or has not heard yet, what this replica knows of the session: tells it,
    /// unless it knows better.
    async fn restore(
        &self,
        wanted: &Wanted<'_>,
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
                None => return self.beside_store(wanted, session),
            },
            Err(_) => return self.without_store(wanted, session),
        };
        let record = self.newer(session, &record).unwrap_or(record);
        self.use_stored(wanted, session, record, self.ttl, budget).await
    }

    /// Takes note that the store holds `record`. Returns what this replica knows instead, where
    /// that is newer: another turn of the session was faster, and the store has lost its word. The
    /// next turn brings it back.
    fn newer(&self, session: &SessionId, record: &BindingRecord) -> Option<BindingRecord> {
        match self.local.confirm(session, record) {
            Belief::Outdated => self.local.recall(session).map(|known| known.record),
            Belief::Stored | Belief::Unsealed => None,
        }
    }

    /// Uses what the store holds, which lives for `left`.
    async fn use_stored(
        &self,
        wanted: &Wanted<'_>,
        session: &SessionId,
        record: BindingRecord,
        left: Duration,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        let mut standing = self.places.standing(wanted, &record);
        if matches!(standing, Standing::Bypassed(Reason::Suspected)) {
            // In a moment it is known whether its sessions leave it: better than to and fro.
            self.places.settled(&record).await;
            standing = self.places.standing(wanted, &record);
        }
        match standing {
            Standing::Ready(key) => {
                let refresh = left < self.ttl / 4 * 3;
                Ok(Binding {
                    refresh,
                    ..Binding::stored(&key, session, record, BindingResult::Existing)
                })
            }
            Standing::Bypassed(reason) => match self.spill(wanted, session, &record, reason) {
                Err(_) if may_leave(wanted, &record, reason) => {
                    self.replace(wanted, session, record, reason, budget).await
                }
                spilled => spilled,
            },
            Standing::Dead(reason) => self.replace(wanted, session, record, reason, budget).await,
            Standing::OtherProject => self.serve_beside(wanted, session, &record),
        }
    }

    /// A session's first binding, by the first of all turns that try.
    async fn create(
        &self,
        wanted: &Wanted<'_>,
        session: &SessionId,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        let (record, result, chosen) = match self.inherited(wanted, budget).await {
            Some(record) => (record, BindingResult::Inherited, None),
            None => {
                let key = self.places.place_new(wanted, session)?;
                (
                    BindingRecord::first(&key, self.places.generation()),
                    BindingResult::Created,
                    Some(key),
                )
            }
        };
        let (id, value) = (session.as_str(), record.to_string());
        // Should the store be lost, another replica would look for it by its order alone.
        let is_expected =
            chosen.as_ref().is_some_and(|key| self.places.is_default(wanted, session, key));
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
                let binding = self.use_stored(wanted, session, record, self.ttl, budget).await?;
                let result =
                    if binding.result == BindingResult::Existing { result } else { binding.result };
                Ok(Binding { result, is_provisional: true, ..binding })
            }
            Ok(Some(winner)) => {
                self.adopt(wanted, session, &Held { value: winner, left: self.ttl }, budget).await
            }
            Err(_) => self.go_by(wanted, session, record, true),
        }
    }

    /// Compare-and-set from `record` to the next key that may serve. Whoever loses looks at what
    /// the winner stored, and goes on from there only if that key can serve no more either: at most
    /// once a key.
    async fn replace(
        &self,
        wanted: &Wanted<'_>,
        session: &SessionId,
        mut record: BindingRecord,
        mut reason: Reason,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        let mut patience = wanted.patience;
        for _ in 0..=self.places.count() {
            let key = self.place_moved(wanted, session, &record, &mut patience).await?;
            let next =
                record.moved_to(&key, self.places.generation(), wanted.turn_state.map(state_tag));
            let outcome = self
                .store
                .rebind(
                    Name::Binding(session.as_str()),
                    &record.to_string(),
                    &next.to_string(),
                    self.ttl,
                    budget,
                )
                .await;
            let held = match outcome {
                Ok(Replaced::Done) => match self.newer(session, &next) {
                    None => {
                        self.tell(session, Decision::Move, reason, &record, &key);
                        return Ok(has_moved(Binding::stored(
                            &key,
                            session,
                            next,
                            BindingResult::Rebound,
                        )));
                    }
                    Some(newer) => newer,
                },
                Ok(Replaced::Lost(winner)) => match BindingRecord::parse(&winner) {
                    Some(winner) => self.newer(session, &winner).unwrap_or(winner),
                    None => return self.beside_store(wanted, session),
                },
                Err(_) => return self.go_by(wanted, session, next, false).map(has_moved),
            };
            match self.places.standing(wanted, &held) {
                Standing::Ready(key) => {
                    return Ok(has_moved(Binding::stored(
                        &key,
                        session,
                        held,
                        BindingResult::Existing,
                    )));
                }
                Standing::Bypassed(reason) => {
                    return self.spill(wanted, session, &held, reason).map(has_moved);
                }
                Standing::Dead(now) => (record, reason) = (held, now),
                Standing::OtherProject => return self.serve_beside(wanted, session, &held),
            }
        }
        Err(none_in_use())
    }

    /// The key that the session moves to, once it takes one more.
    async fn place_moved(
        &self,
        wanted: &Wanted<'_>,
        session: &SessionId,
        record: &BindingRecord,
        patience: &mut Duration,
    ) -> Result<Arc<Key>, Error> {
        // Dropped by a client that leaves, too.
        let mut place = None;
        loop {
            let within = |reach| self.places.place_moved(wanted, session, reach);
            let found = within(wanted.reach(record)).or_else(|_| within(wanted.last_reach(record)));
            let wait = match found? {
                Ok(key) => return Ok(key),
                Err(wait) => jittered(wait, chance()),
            };
            let is_first = place.is_none();
            place = place.or_else(|| self.movers.try_acquire().ok().filter(|_| wait <= *patience));
            if wait > *patience || place.is_none() {
                return Err(Error::limited(
                    "Too many sessions move to the keys that may serve this one.",
                    wait,
                ));
            }
            if is_first {
                let (decision, reason) = (Decision::Wait, Reason::Crowded);
                self.trail.tell(&Step {
                    session: Some(session),
                    decision,
                    reason,
                    from: None,
                    to: None,
                });
            }
            *patience -= wait;
            sleep(wait).await;
        }
    }

    /// Serves the turn from the session's organization and leaves the binding alone.
    pub(super) fn spill(
        &self,
        wanted: &Wanted<'_>,
        session: &SessionId,
        record: &BindingRecord,
        reason: Reason,
    ) -> Result<Binding, Error> {
        let own = self.places.key_of(record);
        let key = match (self.places.sibling(wanted, session, record), own, reason) {
            (Some(key), ..) => key,
            // What nobody of its organization may have the client is told by its own key.
            (None, Some(own), Reason::NoAccess) => own,
            (None, _, Reason::NotLoaded) => return Err(not_loaded()),
            (None, ..) => {
                return Err(self
                    .places
                    .shortage_of(wanted, Reach::Organization(record.organization)));
            }
        };
        self.tell(session, Decision::Spill, reason, record, &key);
        let (is_provisional, written) = (!record.sealed, Written::Beside(record.clone()));
        let binding = Binding::new(&key, Some(session), written, BindingResult::Spilled);
        Ok(Binding { has_moved: key.tag != record.key, is_provisional, ..binding })
    }

    pub(super) fn tell(
        &self,
        session: &SessionId,
        decision: Decision,
        reason: Reason,
        record: &BindingRecord,
        to: &Key,
    ) {
        let from = self.places.key_of(record);
        self.trail.tell(&Step {
            session: Some(session),
            decision,
            reason,
            from: from.as_deref(),
            to: Some(to),
        });
    }

    /// Serves the turn where the response is stored that it goes on from, and leaves the binding
    /// alone: it is to another project. An answer of the session's own organization seals it as a
    /// sibling's would.
    pub(super) fn serve_beside(
        &self,
        wanted: &Wanted<'_>,
        session: &SessionId,
        record: &BindingRecord,
    ) -> Result<Binding, Error> {
        let key = self.places.choose(wanted, session, wanted.within)?;
        self.tell(session, Decision::Spill, Reason::Stored, record, &key);
        let is_home = key.organization_tag == record.organization;
        let written = if is_home { Written::Beside(record.clone()) } else { Written::Nowhere };
        Ok(has_moved(Binding::new(&key, Some(session), written, BindingResult::Spilled)))
    }

    /// What is stored was written by a newer version: it knows better, so its word is neither used
    /// nor overwritten.
    fn beside_store(&self, wanted: &Wanted<'_>, session: &SessionId) -> Result<Binding, Error> {
        let key = self.places.default_of(wanted, session)?;
        Ok(Binding::passing(&key, Some(session), BindingResult::Degraded))
    }

    fn by_load(&self, wanted: &Wanted<'_>) -> Result<Binding, Error> {
        Ok(Binding::passing(&self.places.by_load(wanted)?, None, BindingResult::None))
    }
}

/// Whether a session leaves its organization for this, where nobody else in it can serve. One whose
/// history may be elsewhere does so only for what lasts.
fn may_leave(wanted: &Wanted<'_>, record: &BindingRecord, reason: Reason) -> bool {
    match reason {
        Reason::Limited | Reason::Disabled => wanted.reach(record) == Reach::Anywhere,
        Reason::Exhausted => wanted.last_reach(record) == Reach::Anywhere,
        _ => false,
    }
}

fn has_moved(binding: Binding) -> Binding {
    Binding { has_moved: true, ..binding }
}
