//! Writes rows in batches. This one task holds the connection that writes.
//!
//! The writer repeats a batch until it is written: soon after a conflict, later while the database
//! is away. After a commit without an answer, the writer writes the same batch again, which changes
//! nothing if the commit had succeeded.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument, info_span};

use super::{LedgerSettings, micros, now};
use crate::database::fault::{DatabaseFailure, FailureKind};
use crate::database::row::TurnRow;
use crate::database::write::WriterMemory;
use crate::database::{Database, DatabaseConnection};
use crate::limit::chance;
use crate::metrics::Metrics;
use crate::telemetry::work::WORK;

/// Maximum rows of one transaction.
const BATCH: usize = 500;
/// Time that the first row of a batch waits for others.
const GATHER: Duration = Duration::from_millis(500);
/// Pause between two attempts to reach a database that is away.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];
/// Pause after a conflict with another replica.
const CONFLICT: Duration = Duration::from_millis(20);
/// Maximum attempts after conflicts; beyond them the failure is treated as an outage.
const CONFLICTS: u32 = 50;
/// Interval between two deletions of expired rows.
const SWEEP: Duration = Duration::from_secs(3_600);
/// Pause between two parts of one deletion.
const SWEEP_ON: Duration = Duration::from_millis(50);
/// Pause after a deletion that failed.
const SWEEP_AGAIN: Duration = Duration::from_secs(60);
/// Timeout of a leaving replica's last writes. Rows beyond it are lost.
const LEAVING: Duration = Duration::from_secs(2);

pub struct Writer {
    database: Arc<Database>,
    zone: TimeZone,
    /// Time for which turns are kept, and time for which sums are kept.
    retention: [Duration; 2],
    metrics: Arc<Metrics>,
    closing: CancellationToken,
    connection: Option<DatabaseConnection>,
    memory: WriterMemory,
    /// The number of rows that are being written.
    in_hand: usize,
    /// The database is away, and the log says so.
    is_away: bool,
    /// The log says that rows cannot be written.
    is_loss_logged: bool,
}

impl Writer {
    pub fn new(
        database: Arc<Database>,
        settings: &LedgerSettings,
        zone: TimeZone,
        metrics: Arc<Metrics>,
        closing: CancellationToken,
    ) -> Self {
        let retention = [settings.retention.0, settings.rollup_retention.0];
        let (connection, memory) = (None, WriterMemory::default());
        Self {
            database,
            zone,
            retention,
            metrics,
            closing,
            connection,
            memory,
            in_hand: 0,
            is_away: false,
            is_loss_logged: false,
        }
    }

    /// Runs until no further row can come.
    pub async fn run(
        &mut self,
        connection: Option<DatabaseConnection>,
        rows: &mut mpsc::Receiver<TurnRow>,
    ) {
        self.connection = connection;
        self.memory = WriterMemory::default();
        // A run that panicked may have panicked because of these rows.
        let lost = std::mem::take(&mut self.in_hand);
        if lost > 0 {
            self.lose(lost, "the writer panicked");
        }
        // Tables are made as soon as the database answers, even before the first turn.
        self.deliver(&[]).await;
        let (mut batch, mut sweep) = (Vec::with_capacity(BATCH), Instant::now());
        loop {
            let first = tokio::select! {
                biased;
                first = rows.recv() => first,
                () = sleep_until(sweep) => {
                    sweep = Instant::now() + self.sweep().await;
                    continue;
                }
            };
            let Some(first) = first else { break };
            batch.push(first);
            let until = Instant::now() + GATHER;
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                match timeout_at(until, rows.recv_many(&mut batch, room)).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
            self.in_hand = batch.len();
            self.deliver(&batch).await;
            self.in_hand = 0;
            batch.clear();
        }
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }

    /// Writes `rows`, and retries until the database has taken or refused each of them.
    async fn deliver(&mut self, rows: &[TurnRow]) {
        let (mut pause, mut conflicts, mut leaving) = (PAUSES[0], 0, None);
        loop {
            let failure = match self.write(rows).await {
                Ok(()) => return self.is_there(),
                Err(failure) => failure,
            };
            match failure.kind {
                FailureKind::Refused => return self.salvage(rows, &failure).await,
                FailureKind::Conflict if conflicts < CONFLICTS => {
                    conflicts += 1;
                    // Two replicas in a conflict must not retry at the same moment.
                    sleep(CONFLICT.mul_f64(1.0 + chance())).await;
                    continue;
                }
                FailureKind::Conflict | FailureKind::Away => {}
            }
            self.is_gone(&failure);
            if self.closing.is_cancelled() {
                let end = *leaving.get_or_insert_with(|| Instant::now() + LEAVING);
                if Instant::now() >= end {
                    return self.lose(rows.len(), "the replica leaves while the ledger is away");
                }
                sleep(PAUSES[0]).await;
                continue;
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.closing.cancelled() => {}
            }
            pause = (pause * 2).min(PAUSES[1]);
        }
    }

    async fn write(&mut self, rows: &[TurnRow]) -> Result<(), DatabaseFailure> {
        if self.connection.is_none() {
            self.connection = Some(self.database.connect_migrated().await?);
        }
        let Some(connection) = &mut self.connection else { return Ok(()) };
        if rows.is_empty() {
            return Ok(());
        }
        let span = info_span!(target: WORK, "flush", rows = rows.len(), otel.status_code = Empty);
        let writing = connection.write(rows, &self.zone, &mut self.memory);
        let written = writing.instrument(span.clone()).await;
        if written.is_err() {
            span.record("otel.status_code", "ERROR");
        }
        if written.as_ref().is_err_and(|failure| failure.kind == FailureKind::Away) {
            // Dropping the connection closes it, even in the middle of a statement.
            self.connection = None;
        }
        written.map(|_| ())
    }

    /// Drops the row that the database will never take, so that the others are written.
    async fn salvage(&mut self, rows: &[TurnRow], failure: &DatabaseFailure) {
        if let [_] | [] = rows {
            return self.lose(rows.len(), &failure.to_string());
        }
        let (front, back) = rows.split_at(rows.len() / 2);
        Box::pin(self.deliver(front)).await;
        Box::pin(self.deliver(back)).await;
    }

    fn lose(&mut self, count: usize, why: &str) {
        self.metrics.ledger_dropped(count as u64);
        if count > 0 && !std::mem::replace(&mut self.is_loss_logged, true) {
            tracing::error!(
                turns = count,
                why,
                "turns are not written down; further ones are only counted"
            );
        }
    }

    fn is_there(&mut self) {
        self.metrics.ledger_up(true);
        if std::mem::take(&mut self.is_away) {
            tracing::info!("the ledger is there again");
        }
    }

    fn is_gone(&mut self, failure: &DatabaseFailure) {
        self.metrics.ledger_up(false);
        if !std::mem::replace(&mut self.is_away, true) {
            tracing::warn!(why = %failure, "the ledger is away: turns are served, and kept for it up to a bound");
        }
    }

    /// Deletes a part of the expired rows. Returns the pause until the next part.
    async fn sweep(&mut self) -> Duration {
        let Some(connection) = &mut self.connection else { return SWEEP_AGAIN };
        let [turns, sums] = self.retention.map(|kept| now().saturating_sub(micros(kept)));
        match connection.sweep(turns, sums / 1_000_000).await {
            Ok(true) => SWEEP_ON,
            Ok(false) => SWEEP,
            Err(failure) => {
                tracing::info!(why = %failure, "old turns are not deleted yet");
                if failure.kind != FailureKind::Conflict {
                    self.connection = None;
                }
                SWEEP_AGAIN
            }
        }
    }
}
