//! Whose a stored response is, and which project stores it: only that one can go on from it.
//!
//! Written down before its client can have read its id, and never changed. A client's ids lead
//! nowhere but to its own responses: one of somebody else is an id that nobody has issued. The
//! store being away loses no word: what it has yet to hear is remembered here, and told as soon as
//! it answers.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::binding::Binding;
use crate::binding::select::Reach;
use crate::key::Tag;
use crate::session::{ResponseId, SessionId};
use crate::store::expiring::Expiring;
use crate::store::name::Name;
use crate::store::{Budget, Store, Unavailable};

/// Between attempts to tell the store while it answers: a single write may have failed.
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// So many owners are on their way into the store at a time.
const TOLD_AT_ONCE: usize = 32;

/// The session that a stored response belongs to, and the project that stores it. As it is written:
/// `<organization tag><project tag>[ <session id>]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub session: Option<SessionId>,
    organization: Tag,
    project: Tag,
}

impl Owner {
    /// Of what is answered under `binding`.
    pub fn of(binding: &Binding) -> Self {
        let key = &binding.key;
        Self {
            session: binding.session.clone(),
            organization: key.organization_tag,
            project: key.project_tag,
        }
    }

    /// Where a turn may go that goes on from it.
    pub const fn reach(&self) -> Reach {
        Reach::Project { organization: self.organization, project: self.project }
    }

    /// `None` for what this version does not understand.
    fn parse(text: &str) -> Option<Self> {
        // Tags are ASCII.
        let text = text.is_ascii().then_some(text)?;
        let (place, session) =
            text.split_once(' ').map_or((text, None), |(place, session)| (place, Some(session)));
        let (organization, project) = place.split_at_checked(Tag::LENGTH)?;
        let session = session.map(|id| SessionId::parse(id).ok_or(())).transpose().ok()?;
        Some(Self {
            session,
            organization: Tag::parse(organization)?,
            project: Tag::parse(project)?,
        })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.organization, self.project)?;
        self.session.as_ref().map_or(Ok(()), |session| write!(f, " {session}"))
    }
}

/// The owners of all stored responses, and what this replica remembers of them.
pub struct Owners {
    store: Arc<Store>,
    ttl: Duration,
    known: Mutex<Known>,
    /// Told when there is something that the store has yet to hear of.
    behind: Notify,
}

struct Known {
    owners: Expiring<Owner>,
    /// What the store has yet to hear of.
    untold: VecDeque<ResponseId>,
    capacity: usize,
}

impl Owners {
    /// Remembers at most `capacity`; an owner is forgotten after `ttl`.
    pub fn new(store: Arc<Store>, ttl: Duration, capacity: usize) -> Self {
        let known = Known { owners: Expiring::new(capacity), untold: VecDeque::new(), capacity };
        Self { store, ttl, known: Mutex::new(known), behind: Notify::new() }
    }

    /// Writes down whose `response` is. Afterwards its client may have its id: every replica finds
    /// it or, where the store could not be told, at least this one.
    pub async fn keep(&self, response: &ResponseId, owner: Owner, budget: &mut Budget) {
        let is_told = self.tell(response, &owner, self.ttl, budget).await.is_ok();
        self.lock().owners.put(response.as_str(), owner, self.ttl);
        if !is_told {
            self.is_behind(response);
        }
    }

    /// The owner of a response, if it is known. The store being away is an error only where this
    /// replica does not know it either.
    pub async fn find(
        &self,
        response: &ResponseId,
        budget: &mut Budget,
    ) -> Result<Option<Owner>, Unavailable> {
        match self.store.get(Name::Response(response.as_str()), budget).await {
            Ok(Some(held)) => {
                let owner = Owner::parse(&held.value)
                    .ok_or_else(|| Unavailable("it speaks of a newer version".into()))?;
                self.lock().owners.put(response.as_str(), owner.clone(), held.left.min(self.ttl));
                Ok(Some(owner))
            }
            Ok(None) => {
                let known = self.recall(response);
                if known.is_some() {
                    // The store has lost it.
                    self.is_behind(response);
                }
                Ok(known.map(|(owner, _)| owner))
            }
            Err(away) => self.recall(response).map_or(Err(away), |(owner, _)| Ok(Some(owner))),
        }
    }

    /// Tells the store what it has yet to hear of, as soon as it answers, for as long as the
    /// replica lives.
    pub async fn keep_telling(self: Arc<Self>) {
        let mut health = self.store.health();
        loop {
            self.behind.notified().await;
            while !self.catch_up().await {
                tokio::select! {
                    Ok(()) = health.changed() => {}
                    () = tokio::time::sleep(TELL_AGAIN) => {}
                }
            }
        }
    }

    /// Returns whether the store has heard all there is.
    async fn catch_up(&self) -> bool {
        loop {
            let some = self.next_untold();
            if some.is_empty() {
                return true;
            }
            let told = join_all(some.iter().map(|response| async {
                let Some((owner, left)) = self.recall(response) else { return Ok(()) };
                self.tell(response, &owner, left, &mut self.store.budget()).await
            }));
            let told = told.await;
            let failed = some
                .iter()
                .zip(&told)
                .filter(|(_, told)| told.is_err())
                .map(|(response, _)| response.clone());
            self.lock().untold.extend(failed);
            if told.iter().any(Result::is_err) {
                return false;
            }
        }
    }

    fn next_untold(&self) -> Vec<ResponseId> {
        let mut known = self.lock();
        let count = known.untold.len().min(TOLD_AT_ONCE);
        known.untold.drain(..count).collect()
    }

    fn is_behind(&self, response: &ResponseId) {
        let mut known = self.lock();
        if known.untold.len() >= known.capacity {
            known.untold.pop_front();
        }
        known.untold.push_back(response.clone());
        drop(known);
        self.behind.notify_one();
    }

    /// An id is issued once: what is stored already is the same word.
    async fn tell(
        &self,
        response: &ResponseId,
        owner: &Owner,
        left: Duration,
        budget: &mut Budget,
    ) -> Result<(), Unavailable> {
        self.store
            .claim(Name::Response(response.as_str()), &owner.to_string(), left, budget)
            .await
            .map(drop)
    }

    /// What this replica remembers, and for how long it still does.
    fn recall(&self, response: &ResponseId) -> Option<(Owner, Duration)> {
        let known = self.lock();
        known
            .owners
            .get(response.as_str())
            .map(|(owner, expiry)| (owner.clone(), expiry - Instant::now()))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Every write is whole before the lock is given back.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
