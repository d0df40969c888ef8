//! The owner of each stored response and of its items: its session, and the only project that can
//! continue from it.
//!
//! The gateway writes the owner before the client can read the response's id, and never changes it.
//! A client's ids lead only to its own responses. Another client's id is treated like an id that
//! was never issued. While the store is away, this replica remembers unwritten owners and writes
//! them as soon as the store answers.

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

/// Pause between writes while the store answers, because a single write may have failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Most owners that are written at a time.
const WRITES_AT_ONCE: usize = 32;

/// The session of a stored response and the project that stores the response. The stored form is
/// `<organization tag><project tag>[ <session id>]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub session: Option<SessionId>,
    organization: Tag,
    project: Tag,
}

impl Owner {
    /// Returns the owner of a response that `binding`'s key gives.
    pub fn of(binding: &Binding) -> Self {
        let key = &binding.key;
        Self {
            session: binding.session.clone(),
            organization: key.organization_tag,
            project: key.project_tag,
        }
    }

    /// Returns the keys that a turn may use to continue from the response.
    pub const fn reach(&self) -> Reach {
        Reach::Project { organization: self.organization, project: self.project }
    }

    /// Returns `None` for a text that this version does not understand.
    fn parse(text: &str) -> Option<Self> {
        // Tags are ASCII.
        let text = text.is_ascii().then_some(text)?;
        let (place, session) =
            text.split_once(' ').map_or((text, None), |(place, session)| (place, Some(session)));
        // A newer version may write more words.
        let session = session.and_then(|words| words.split(' ').next());
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

/// The owners of all stored responses, and this replica's memory of them.
pub struct Owners {
    store: Arc<Store>,
    ttl: Duration,
    known: Mutex<Known>,
    /// Signals that `unwritten` is not empty.
    pending: Notify,
}

struct Known {
    owners: Expiring<Owner>,
    /// The responses whose owner the store does not have yet.
    unstored: VecDeque<ResponseId>,
    capacity: usize,
}

impl Owners {
    /// Remembers at most `capacity` owners, each for `ttl`.
    pub fn new(store: Arc<Store>, ttl: Duration, capacity: usize) -> Self {
        let known = Known { owners: Expiring::new(capacity), unstored: VecDeque::new(), capacity };
        Self { store, ttl, known: Mutex::new(known), pending: Notify::new() }
    }

    /// Writes the owner of `response`. Afterwards the client may have the id: every replica finds
    /// the owner or, if the store is away, at least this replica does.
    pub async fn keep(&self, response: &ResponseId, owner: Owner, budget: &mut Budget) {
        let is_written = self.write(response, &owner, self.ttl, budget).await.is_ok();
        self.lock().owners.put(response.as_str(), owner, self.ttl);
        if !is_written {
            self.queue(response);
        }
    }

    /// Returns the owner of a response, if it is known. A store that is away is an error only if
    /// this replica does not remember the owner either.
    pub async fn find(
        &self,
        response: &ResponseId,
        budget: &mut Budget,
    ) -> Result<Option<Owner>, Unavailable> {
        match self.store.get(name(response), budget).await {
            Ok(Some(entry)) => {
                let owner = Owner::parse(&entry.value)
                    .ok_or_else(|| Unavailable("a newer version wrote the value".into()))?;
                self.lock().owners.put(response.as_str(), owner.clone(), entry.left.min(self.ttl));
                Ok(Some(owner))
            }
            Ok(None) => {
                let known = self.recall(response);
                if known.is_some() {
                    // The store has lost the owner.
                    self.queue(response);
                }
                Ok(known.map(|(owner, _)| owner))
            }
            Err(away) => self.recall(response).map_or(Err(away), |(owner, _)| Ok(Some(owner))),
        }
    }

    /// Writes `owner` for each of `items`, as [`Self::keep`] does.
    pub async fn keep_items(&self, items: &[ResponseId], owner: &Owner, budget: &mut Budget) {
        for some in items.chunks(WRITES_AT_ONCE) {
            let written = some.iter().map(|item| {
                let mut share = budget.share();
                async move { (self.write(item, owner, self.ttl, &mut share).await, share) }
            });
            let written = join_all(written).await;
            for (item, (result, share)) in some.iter().zip(written) {
                budget.limit_to(&share);
                if result.is_err() {
                    self.queue(item);
                }
                let first = result.ok().flatten().unwrap_or_else(|| owner.clone());
                self.lock().owners.put(item.as_str(), first, self.ttl);
            }
        }
    }

    /// Returns the owner of each item, as [`Self::find`] does, up to the first items without one.
    /// An owner never changes, so what this replica remembers needs no store: a conversation names
    /// all its items with each turn.
    pub async fn find_items(
        &self,
        items: &[ResponseId],
        budget: &mut Budget,
    ) -> Vec<Result<Option<Owner>, Unavailable>> {
        let mut all = Vec::with_capacity(items.len());
        for some in items.chunks(WRITES_AT_ONCE) {
            let found = join_all(some.iter().map(|item| {
                let mut share = budget.share();
                async move {
                    let found = match self.recall(item) {
                        Some((owner, _)) => Ok(Some(owner)),
                        None => self.find(item, &mut share).await,
                    };
                    (found, share)
                }
            }));
            for (found, share) in found.await {
                budget.limit_to(&share);
                all.push(found);
            }
            if all.iter().any(|found| !matches!(found, Ok(Some(_)))) {
                break;
            }
        }
        all
    }

    /// Writes pending owners as soon as the store answers. Runs until the replica stops.
    pub async fn keep_storing(self: Arc<Self>) {
        let mut health = self.store.health();
        loop {
            self.pending.notified().await;
            while !self.catch_up().await {
                tokio::select! {
                    Ok(()) = health.changed() => {}
                    () = tokio::time::sleep(RETRY_PAUSE) => {}
                }
            }
        }
    }

    /// Returns whether all pending owners are written.
    async fn catch_up(&self) -> bool {
        loop {
            let some = self.next_unstored();
            if some.is_empty() {
                return true;
            }
            let written = join_all(some.iter().map(|response| async {
                let Some((owner, left)) = self.recall(response) else { return Ok(None) };
                self.write(response, &owner, left, &mut self.store.budget()).await
            }));
            let written = written.await;
            let failed = some
                .iter()
                .zip(&written)
                .filter(|(_, written)| written.is_err())
                .map(|(response, _)| response.clone());
            self.lock().unstored.extend(failed);
            if written.iter().any(Result::is_err) {
                return false;
            }
        }
    }

    fn next_unstored(&self) -> Vec<ResponseId> {
        let mut known = self.lock();
        let count = known.unstored.len().min(WRITES_AT_ONCE);
        known.unstored.drain(..count).collect()
    }

    fn queue(&self, response: &ResponseId) {
        let mut known = self.lock();
        if known.unstored.len() >= known.capacity {
            known.unstored.pop_front();
        }
        known.unstored.push_back(response.clone());
        drop(known);
        self.pending.notify_one();
    }

    /// Returns the owner that is stored already, if there is one.
    async fn write(
        &self,
        response: &ResponseId,
        owner: &Owner,
        left: Duration,
        budget: &mut Budget,
    ) -> Result<Option<Owner>, Unavailable> {
        let first = self.store.claim(name(response), &owner.to_string(), left, budget).await?;
        Ok(first.and_then(|first| Owner::parse(&first)))
    }

    /// Returns the remembered owner and its remaining lifetime.
    fn recall(&self, response: &ResponseId) -> Option<(Owner, Duration)> {
        let known = self.lock();
        known
            .owners
            .get(response.as_str())
            .map(|(owner, expiry)| (owner.clone(), expiry - Instant::now()))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Every write completes before the lock is released.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(id: &ResponseId) -> Name<'_> {
    if id.is_item() { Name::Item(id.as_str()) } else { Name::Response(id.as_str()) }
}

#[cfg(test)]
mod tests;
