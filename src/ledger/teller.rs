//! Takes records from the queue, prices each, counts the cost, and hands on its row and its trace.
//!
//! The teller never waits for the database. If the writer's queue is full, the row is counted as
//! dropped, and the log says so once.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::row::{cost, row};
use super::since_epoch;
use crate::current::Current;
use crate::database::row::TurnRow;
use crate::metrics::Metrics;
use crate::usage::price::Prices;
use crate::usage::record::Record;
use crate::usage::tracer::Tracer;

pub struct Teller {
    /// `None`: there is no ledger.
    rows: Option<mpsc::Sender<TurnRow>>,
    /// `None`: no turn is traced.
    tracer: Option<Tracer>,
    prices: Arc<Current<Prices>>,
    metrics: Arc<Metrics>,
    /// Whether the last row found no room.
    is_full: bool,
    told: u64,
}

impl Teller {
    pub const fn new(
        rows: Option<mpsc::Sender<TurnRow>>,
        tracer: Option<Tracer>,
        prices: Arc<Current<Prices>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { rows, tracer, prices, metrics, is_full: false, told: 0 }
    }

    /// Runs until no further record can come, or until `closing`. Records that wait are still
    /// handled.
    pub async fn run(mut self, mut records: mpsc::Receiver<Record>, closing: CancellationToken) {
        loop {
            let record = tokio::select! {
                record = records.recv() => record,
                () = closing.cancelled() => break,
            };
            match record {
                Some(record) => self.tell(&record),
                None => return,
            }
        }
        records.close();
        while let Some(record) = records.recv().await {
            self.tell(&record);
        }
    }

    fn tell(&mut self, record: &Record) {
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
        self.told = self.told.wrapping_add(1);
        let Some(row) = row(record, cost, began, random(self.told)) else { return };
        match rows.try_send(row) {
            Ok(()) => self.is_full = false,
            Err(_) => {
                self.metrics.ledger_dropped(1);
                if !std::mem::replace(&mut self.is_full, true) {
                    tracing::error!(
                        "the ledger keeps no more turns: further ones are not written down, and counted"
                    );
                }
            }
        }
    }
}

/// By the keys that the standard library draws: the system is not asked for each turn.
fn random(number: u64) -> i64 {
    i64::from_ne_bytes(RandomState::new().hash_one(number).to_ne_bytes())
}
