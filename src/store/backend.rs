//! The operations of every kind of store: a Redis, the memory of one process, and the model of the
//! tests.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::{broadcast, watch};

use super::announcement::{Announcement, Scan};
use super::board::{Board, BoardReport};
use super::name::Name;
use super::{Budget, MemberReport, MembershipReply, Replaced, StoredValue, Unavailable};

/// A pending answer.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, Unavailable>> + Send + 'a>>;

/// A compare-and-set.
pub struct Change<'c> {
    pub expected: &'c str,
    pub new: &'c str,
    pub ttl: Duration,
    /// Whether the session moves to another key, which no replica could compute without the store.
    pub is_move: bool,
}

/// A value to store if nothing or a lower epoch is stored.
pub struct Merge<'m> {
    pub value: &'m str,
    pub epoch: u32,
    pub ttl: Duration,
    /// Whether every replica would compute the same value without the store.
    pub is_expected: bool,
}

/// Atomic operations on the store. A backend spends the budget and never retries.
pub trait Backend: Send + Sync {
    fn get<'a>(
        &'a self,
        name: Name<'a>,
        budget: &'a mut Budget,
    ) -> Pending<'a, Option<StoredValue>>;

    /// Stores `value`, whatever is stored.
    fn put<'a>(
        &'a self,
        name: Name<'a>,
        value: &'a str,
        ttl: Duration,
        budget: &'a mut Budget,
    ) -> Pending<'a, ()>;

    /// Stores `value` if nothing is stored. Returns `None` when done, otherwise the stored value.
    fn claim<'a>(
        &'a self,
        name: Name<'a>,
        value: &'a str,
        ttl: Duration,
        budget: &'a mut Budget,
    ) -> Pending<'a, Option<String>>;

    fn replace<'a>(
        &'a self,
        name: Name<'a>,
        change: Change<'a>,
        budget: &'a mut Budget,
    ) -> Pending<'a, Replaced>;

    /// Renews the life of the stored value, or stores `value` if nothing is stored any more.
    fn extend<'a>(
        &'a self,
        name: Name<'a>,
        value: &'a str,
        ttl: Duration,
        budget: &'a mut Budget,
    ) -> Pending<'a, ()>;

    /// Stores the value if nothing or a lower epoch is stored. Returns `None` when done, otherwise
    /// the value that stays.
    fn merge<'a>(
        &'a self,
        name: Name<'a>,
        merge: Merge<'a>,
        budget: &'a mut Budget,
    ) -> Pending<'a, Option<String>>;

    /// Like [`Self::merge`], for a session's first binding.
    fn begin<'a>(
        &'a self,
        name: Name<'a>,
        merge: Merge<'a>,
        budget: &'a mut Budget,
    ) -> Pending<'a, Option<String>>;

    /// Appends lines to a session's trail.
    fn append<'a>(
        &'a self,
        session: &'a str,
        lines: &'a [String],
        ttl: Duration,
        budget: &'a mut Budget,
    ) -> Pending<'a, ()>;

    /// The lines of a session's trail, oldest first.
    fn list<'a>(&'a self, session: &'a str, budget: &'a mut Budget) -> Pending<'a, Vec<String>>;

    fn exchange_membership<'a>(
        &'a self,
        report: &'a MemberReport<'a>,
        is_early: bool,
        budget: &'a mut Budget,
    ) -> Pending<'a, MembershipReply>;

    fn exchange_board<'a>(
        &'a self,
        report: &'a BoardReport<'a>,
        budget: &'a mut Budget,
    ) -> Pending<'a, Board>;

    /// Follows whether every part of the store answers.
    fn health(&self) -> watch::Receiver<bool>;

    /// The last fault, as text.
    fn fault(&self) -> Option<String> {
        None
    }

    /// The bindings that replicas announce from now on.
    fn announcements(&self) -> broadcast::Receiver<Announcement> {
        broadcast::channel(1).1
    }

    /// Counts the subscriptions to announcements. A new one may have missed earlier announcements.
    fn resubscribed(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    /// A scan of all stored bindings.
    fn scan(&self) -> Result<Scan, Unavailable> {
        Ok(Scan::empty())
    }
}
