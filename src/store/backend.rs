//! What every kind of store can do: a Redis, the memory of one process, and the model that tests
//! play with.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::{broadcast, watch};

use super::announcement::{Announcement, Scan};
use super::board::{Board, BoardReport};
use super::name::Name;
use super::{Budget, Held, MemberReport, MembershipReply, Replaced, Unavailable};

/// An answer on its way.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, Unavailable>> + Send + 'a>>;

/// A compare-and-set.
pub struct Change<'c> {
    pub expected: &'c str,
    pub new: &'c str,
    pub ttl: Duration,
    /// The session moves to another key, which no replica would find without the store.
    pub is_move: bool,
}

/// A value that is stored where nothing or a lower epoch is.
pub struct Merge<'m> {
    pub value: &'m str,
    pub epoch: u32,
    pub ttl: Duration,
    /// Every replica would find the same without the store.
    pub is_expected: bool,
}

/// One operation each, atomic. A backend takes what it needs of the budget, and does not retry.
pub trait Backend: Send + Sync {
    fn get<'a>(&'a self, name: Name<'a>, budget: &'a mut Budget) -> Pending<'a, Option<Held>>;

    /// Stores `value` where nothing is stored. `None`: done; otherwise what was stored before.
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

    /// Starts the value's life anew; stores `value` again where it was lost meanwhile.
    fn extend<'a>(
        &'a self,
        name: Name<'a>,
        value: &'a str,
        ttl: Duration,
        budget: &'a mut Budget,
    ) -> Pending<'a, ()>;

    /// `None`: done; otherwise what stays.
    fn merge<'a>(
        &'a self,
        name: Name<'a>,
        merge: Merge<'a>,
        budget: &'a mut Budget,
    ) -> Pending<'a, Option<String>>;

    /// As [`Self::merge`], for a session's first binding.
    fn begin<'a>(
        &'a self,
        name: Name<'a>,
        merge: Merge<'a>,
        budget: &'a mut Budget,
    ) -> Pending<'a, Option<String>>;

    /// Adds lines to the end of a session's trail.
    fn append<'a>(
        &'a self,
        session: &'a str,
        lines: &'a [String],
        ttl: Duration,
        budget: &'a mut Budget,
    ) -> Pending<'a, ()>;

    /// The lines of a session's trail, the oldest first.
    fn list<'a>(&'a self, session: &'a str, budget: &'a mut Budget) -> Pending<'a, Vec<String>>;

    fn roll<'a>(
        &'a self,
        report: &'a MemberReport<'a>,
        is_early: bool,
        budget: &'a mut Budget,
    ) -> Pending<'a, MembershipReply>;

    fn hear<'a>(&'a self, word: &'a BoardReport<'a>, budget: &'a mut Budget) -> Pending<'a, Board>;

    /// Whether all of the store answers, now and from now on.
    fn health(&self) -> watch::Receiver<bool>;

    /// The last thing that went wrong, in words.
    fn fault(&self) -> Option<String> {
        None
    }

    /// The bindings that replicas announce from now on.
    fn announcements(&self) -> broadcast::Receiver<Announcement> {
        broadcast::channel(1).1
    }

    /// Counts how often the store began to listen to announcements: earlier ones may have been
    /// missed.
    fn resubscribed(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    /// A walk through all that is bound.
    fn scan(&self) -> Result<Scan, Unavailable> {
        Ok(Scan::empty())
    }
}
