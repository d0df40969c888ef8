//! Prices each recorded turn, so that no turn waits for its own price. The pricer logs the record,
//! compares the turn with its session's last turn, and counts the turn's cost. The pricer then
//! hands the turn's row to the writer, and its record to the tracer.
//!
//! The pricer waits for the store for at most a second, and never for the database. If the writer's
//! queue is full, the row is counted as dropped, and the log says so once.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::row::{cost, row};
use super::since_epoch;
use crate::current::Current;
use crate::database::row::TurnRow;
use crate::metrics::Metrics;
use crate::usage::assess::Assessor;
use crate::usage::books::log_turn;
use crate::usage::price::Prices;
use crate::usage::record::Record;
use crate::usage::tracer::Tracer;

/// Maximum number of records that are compared with the store at the same time.
const AT_ONCE: usize = 256;

pub struct Pricer {
    /// `None`: there is no ledger.
    rows: Option<mpsc::Sender<TurnRow>>,
    assessor: Assessor,
    /// `None`: no turn is traced.
    tracer: Option<Tracer>,
    prices: Arc<Current<Prices>>,
    metrics: Arc<Metrics>,
    /// The queue was full when the last row came.
    is_full: bool,
    rows_made: u64,
}

impl Pricer {
    pub const fn new(
        rows: Option<mpsc::Sender<TurnRow>>,
        assessor: Assessor,
        tracer: Option<Tracer>,
        prices: Arc<Current<Prices>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { rows, assessor, tracer, prices, metrics, is_full: false, rows_made: 0 }
    }

    /// Runs until every sender is gone, or until `closing`. Also handles the records that are then
    /// in the queue.
    pub async fn run(&mut self, records: &mut mpsc::Receiver<Record>, closing: CancellationToken) {
        let mut some = Vec::new();
        loop {
            let count = tokio::select! {
                count = records.recv_many(&mut some, AT_ONCE) => count,
                () = closing.cancelled() => break,
            };
            if count == 0 {
                return;
            }
            // The log lines come first, because they need not wait for the store.
            some.iter().for_each(log_turn);
            self.tell_all(std::mem::take(&mut some)).await;
        }
        records.close();
        while records.recv_many(&mut some, AT_ONCE).await > 0 {}
        some.iter().for_each(log_turn);
        while !some.is_empty() {
            let rest = some.split_off(some.len().min(AT_ONCE));
            self.tell_all(std::mem::replace(&mut some, rest)).await;
        }
    }

    async fn tell_all(&mut self, some: Vec<Record>) {
        for record in self.assessor.assess(some).await {
            self.pass_on(&record);
        }
    }

    fn pass_on(&mut self, record: &Record) {
        let began = since_epoch(record.at);
        let cost = cost(record, &self.prices.get(), began);
        if let Some(service) = &record.service {
            match &cost {
                Some(cost) => self.metrics.cost(&service.key.id, cost.nano_usd),
                None if record.usage.is_some() => self.metrics.unpriced(),
                None => {}
            }
        }
        if let Some(tracer) = &self.tracer {
            tracer.tell(record);
        }
        let Some(rows) = &self.rows else { return };
        self.rows_made = self.rows_made.wrapping_add(1);
        let Some(row) = row(record, cost, began, random(self.rows_made)) else { return };
        match rows.try_send(row) {
            Ok(()) => self.is_full = false,
            Err(_) => {
                self.metrics.ledger_dropped(1);
                if !std::mem::replace(&mut self.is_full, true) {
                    tracing::error!(
                        "the ledger's queue is full: further turns are dropped and counted"
                    );
                }
            }
        }
    }
}

/// A random number from the hash keys that the standard library seeds once a thread. This needs no
/// system call for each turn.
fn random(number: u64) -> i64 {
    i64::from_ne_bytes(RandomState::new().hash_one(number).to_ne_bytes())
}
