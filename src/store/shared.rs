//! Redis as a [`Backend`]: adds prefix, budget and timing to each operation.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use super::announcement::{Announcement, Scan};
use super::backend::{Backend, Change, Merge, Pending};
use super::board::{Board, BoardReport};
use super::name::Name;
use super::redis::Redis;
use super::{Budget, MemberReport, MembershipReply, Replaced, StoredValue, Unavailable};
use crate::metrics::{Metrics, Operation};

/// The Redis backend.
pub struct Shared {
    redis: Redis,
    prefix: String,
    metrics: Arc<Metrics>,
}

impl Shared {
    pub fn new(redis: Redis, prefix: String, metrics: Arc<Metrics>) -> Self {
        Self { redis, prefix, metrics }
    }

    /// Runs an operation within the rest of `budget`, and subtracts the time that the operation
    /// took.
    fn timed<'a, T: Send + 'a, F: Future<Output = Result<T, Unavailable>> + Send + 'a>(
        &'a self,
        operation: Operation,
        name: Name<'_>,
        budget: &'a mut Budget,
        ask: impl FnOnce(&'a Redis, String, Instant) -> F + Send + 'a,
    ) -> Pending<'a, T> {
        let name = name.under(&self.prefix);
        Box::pin(async move {
            if budget.0.is_zero() {
                // If no time is left, the operation is not started: a write would be sent although
                // no turn waits for it.
                return Err(Unavailable("no time is left".into()));
            }
            let began = Instant::now();
            let result = ask(&self.redis, name, began + budget.0).await;
            let took = began.elapsed();
            budget.0 = budget.0.saturating_sub(took);
            self.metrics.store_took(operation, took.as_secs_f64());
            result
        })
    }
}

impl Backend for Shared {
    fn get<'a>(
        &'a self,
        name: Name<'a>,
        budget: &'a mut Budget,
    ) -> Pending<'a, Option<StoredValue>> {
        // No turn waits for a promise, so reads of promises count as another operation.
        let is_behind = matches!(name, Name::Promise(_));
        let operation = if is_behind { Operation::Recall } else { Operation::Get };
        self.timed(operation, name, budget, move |redis, name, until| async move {
            redis.get(&name, until).await
        })
    }

    fn put<'a>(
        &'a self,
        name: Name<'a>,
        value: &'a str,
        ttl: Duration,
        budget: &'a mut Budget,
    ) -> Pending<'a, ()> {
        self.timed(Operation::Put, name, budget, move |redis, name, until| async move {
            redis.put(&name, value, ttl, until).await
        })
    }

    fn claim<'a>(
        &'a self,
        name: Name<'a>,
        value: &'a str,
        ttl: Duration,
        budget: &'a mut Budget,
    ) -> Pending<'a, Option<String>> {
        self.timed(Operation::Claim, name, budget, move |redis, name, until| async move {
            redis.claim(&name, value, ttl, until).await
        })
    }

    fn replace<'a>(
        &'a self,
        name: Name<'a>,
        change: Change<'a>,
        budget: &'a mut Budget,
    ) -> Pending<'a, Replaced> {
        self.timed(Operation::Replace, name, budget, move |redis, name, until| async move {
            redis.replace(&name, &change, until).await
        })
    }

    fn extend<'a>(
        &'a self,
        name: Name<'a>,
        value: &'a str,
        ttl: Duration,
        budget: &'a mut Budget,
    ) -> Pending<'a, ()> {
        self.timed(Operation::Extend, name, budget, move |redis, name, until| async move {
            redis.extend(&name, value, ttl, until).await
        })
    }

    fn merge<'a>(
        &'a self,
        name: Name<'a>,
        merge: Merge<'a>,
        budget: &'a mut Budget,
    ) -> Pending<'a, Option<String>> {
        self.timed(Operation::Merge, name, budget, move |redis, name, until| async move {
            redis.merge(&name, &merge, until).await
        })
    }

    fn begin<'a>(
        &'a self,
        name: Name<'a>,
        merge: Merge<'a>,
        budget: &'a mut Budget,
    ) -> Pending<'a, Option<String>> {
        self.timed(Operation::Claim, name, budget, move |redis, name, until| async move {
            redis.merge(&name, &merge, until).await
        })
    }

    fn append<'a>(
        &'a self,
        session: &'a str,
        lines: &'a [String],
        ttl: Duration,
        budget: &'a mut Budget,
    ) -> Pending<'a, ()> {
        self.timed(
            Operation::Append,
            Name::Trail(session),
            budget,
            move |redis, name, until| async move { redis.append(&name, lines, ttl, until).await },
        )
    }

    fn list<'a>(&'a self, session: &'a str, budget: &'a mut Budget) -> Pending<'a, Vec<String>> {
        self.timed(
            Operation::List,
            Name::Trail(session),
            budget,
            move |redis, name, until| async move { redis.list(&name, until).await },
        )
    }

    fn exchange_membership<'a>(
        &'a self,
        report: &'a MemberReport<'a>,
        is_early: bool,
        budget: &'a mut Budget,
    ) -> Pending<'a, MembershipReply> {
        self.timed(
            Operation::Roll,
            Name::Membership,
            budget,
            move |redis, name, until| async move {
                redis.exchange_membership(&name, report, is_early, until).await
            },
        )
    }

    fn exchange_board<'a>(
        &'a self,
        report: &'a BoardReport<'a>,
        budget: &'a mut Budget,
    ) -> Pending<'a, Board> {
        self.timed(Operation::Board, Name::Board, budget, move |redis, name, until| async move {
            redis.exchange_board(&name, report, until).await
        })
    }

    fn health(&self) -> watch::Receiver<bool> {
        self.redis.health()
    }

    fn fault(&self) -> Option<String> {
        self.redis.fault()
    }

    fn announcements(&self) -> broadcast::Receiver<Announcement> {
        self.redis.announcements()
    }

    fn resubscribed(&self) -> watch::Receiver<u64> {
        self.redis.resubscribed()
    }

    fn scan(&self) -> Result<Scan, Unavailable> {
        self.redis.scan()
    }
}
