//! Keeps a row of every turn, and reports sums and turns: a bounded queue and the tasks behind it.
//!
//! No turn waits for the ledger. While the database is away, rows are kept up to a bound. Rows
//! beyond the bound are dropped and counted. This module decides what a row holds and when it is
//! written. `database` holds the SQL.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Deserialize;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::client::tokens::Roster;
use crate::clock::time_of_day;
use crate::current::Current;
use crate::database::read::By;
use crate::database::row::TurnRow;
use crate::database::{Database, DatabaseAddress, DatabaseConnection};
use crate::metrics::Metrics;
use crate::setting::{SecretSource, Span};
use crate::task::Tasks;
use crate::usage::assess::Assessor;
use crate::usage::price::Prices;
use crate::usage::record::Record;
use crate::usage::tracer::Tracer;

pub mod row;
pub mod report;
pub mod tokens;
mod pricer;
mod writer;

use pricer::Pricer;
use report::Report;
use writer::Writer;

/// Maximum rows that wait for the database: 30 MB, or eleven minutes at 100 turns a second.
const WAITING: usize = 65_536;
/// Timeout of the first connection at the start, so that the first turns know the ledger's tokens.
const START: Duration = Duration::from_secs(2);
/// Timeout for the rows that a leaving replica still holds.
const FAREWELL: Duration = Duration::from_secs(3);
/// Maximum turns of a session that are shown.
const SHOWN: i64 = 100;

/// `[ledger]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerSettings {
    /// The default is a file, or no ledger if replicas share a store.
    pub url: Option<SecretSource>,
    pub retention: Span,
    pub rollup_retention: Span,
    pub time_zone: String,
}

impl LedgerSettings {
    /// Where the ledger is; `None`: there is none.
    pub fn address(&self, is_shared: bool) -> Result<Option<DatabaseAddress>, String> {
        let Some(source) = &self.url else {
            // A file would hold the turns of one replica only.
            return Ok((!is_shared).then(|| DatabaseAddress::Sqlite(PathBuf::from("warmkey.db"))));
        };
        let url = source.read().map_err(|why| format!("ledger.url: {why}"))?;
        match DatabaseAddress::parse(&url).map_err(|why| format!("ledger.url: {why}"))? {
            Some(DatabaseAddress::Sqlite(_)) if is_shared => {
                Err("ledger.url: a Redis store cannot go with an SQLite ledger, \
                since replicas would disagree about tokens"
                    .into())
            }
            address => Ok(address),
        }
    }

    /// The time zone of hours, days and months.
    pub fn zone(&self) -> Result<TimeZone, String> {
        TimeZone::get(&self.time_zone)
            .map_err(|_| "ledger.time_zone: no such time zone: write \"Europe/Berlin\"".into())
    }
}

/// The parts that the ledger of a replica needs.
pub struct Setup<'s> {
    pub settings: &'s LedgerSettings,
    pub address: Option<DatabaseAddress>,
    pub zone: TimeZone,
    pub prices: Arc<Current<Prices>>,
    pub roster: Arc<Roster>,
    pub metrics: Arc<Metrics>,
    /// `None`: no turn is traced.
    pub tracer: Option<Tracer>,
    pub assessor: Assessor,
    /// The tasks of the ledger alone, which end after all others.
    pub tasks: Tasks,
}

/// The ledger of a replica.
pub struct Ledger {
    database: Option<Arc<Database>>,
    zone: TimeZone,
    retention: Duration,
    tasks: Tasks,
    closing: CancellationToken,
}

/// Why the ledger has no answer.
#[derive(Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// There is no ledger.
    None,
    Away(String),
    /// The request makes no sense: the text says why.
    Meaningless(String),
}

impl Ledger {
    /// Starts the tasks that keep a row of each of `records`. A start does not fail if the database
    /// is away.
    pub async fn start(setup: Setup<'_>, records: mpsc::Receiver<Record>) -> Arc<Self> {
        let Setup { settings, address, zone, prices, roster, metrics, tracer, assessor, tasks } =
            setup;
        let database =
            address.map(|address| Arc::new(Database::at(&address, settings.url.as_ref())));
        let closing = CancellationToken::new();
        let rows = database.as_ref().map(|_| mpsc::channel::<TurnRow>(WAITING)).unzip();
        let pricer = Pricer::new(rows.0, assessor, tracer, prices, Arc::clone(&metrics));
        let (pricer, end) = (Arc::new(Mutex::new((pricer, records))), closing.clone());
        tasks.spawn_kept_to_its_end("ledger_teller", move || {
            let (pricer, end) = (Arc::clone(&pricer), end.clone());
            async move {
                let (pricer, records) = &mut *pricer.lock().await;
                pricer.run(records, end).await;
            }
        });
        if let (Some(database), Some(rows)) = (&database, rows.1) {
            let connection = first_connection(database, &roster).await;
            let writer =
                Writer::new(Arc::clone(database), settings, zone.clone(), metrics, closing.clone());
            let writer = Arc::new(Mutex::new((writer, connection, rows)));
            tasks.spawn_kept_to_its_end("ledger_writer", move || {
                let writer = Arc::clone(&writer);
                async move {
                    let (writer, connection, rows) = &mut *writer.lock().await;
                    writer.run(connection.take(), rows).await;
                }
            });
            let database = Arc::clone(database);
            tasks.spawn_kept("ledger_tokens", move || {
                tokens::follow(Arc::clone(&database), Arc::clone(&roster))
            });
        }
        Arc::new(Self { database, zone, retention: settings.retention.0, tasks, closing })
    }

    /// Writes the rows that wait, within a short timeout, and ends the tasks.
    pub async fn close(&self) {
        self.closing.cancel();
        if !self.tasks.join(FAREWELL).await {
            tracing::warn!("the replica stops before the ledger has written all rows");
        }
    }

    /// The sums from one day to another, grouped `by` client, key, organization, model or day.
    pub async fn usage(
        &self,
        by: By,
        from: Option<Date>,
        to: Option<Date>,
    ) -> Result<Report, NoAnswer> {
        let database = self.database.as_ref().ok_or(NoAnswer::None)?;
        report::read(database, &self.zone, by, from, to).await
    }

    /// The newest turns of a session, oldest first.
    pub async fn turns(&self, session: &str) -> Result<Vec<TurnRow>, NoAnswer> {
        let database = self.database.as_ref().ok_or(NoAnswer::None)?;
        let since = now().saturating_sub(micros(self.retention));
        database
            .turns(session, since, SHOWN)
            .await
            .map_err(|failure| NoAnswer::Away(failure.to_string()))
    }
}

/// Connects once and reads the tokens, so that the first turns can use them.
async fn first_connection(database: &Arc<Database>, roster: &Roster) -> Option<DatabaseConnection> {
    let opening = async {
        let connection = database.connect_migrated().await?;
        if let Ok(valid) = database.valid_tokens().await {
            tokens::publish(roster, &valid);
        }
        Ok(connection)
    };
    // The writer logs a failure, and tries again.
    timeout(START, opening)
        .await
        .ok()
        .and_then(|opened: Result<_, crate::database::fault::DatabaseFailure>| opened.ok())
}

/// Microseconds since 1970.
pub fn now() -> i64 {
    since_epoch(time_of_day())
}

/// Microseconds since 1970.
fn since_epoch(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, micros)
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// Today's date in `zone`.
fn today(zone: &TimeZone) -> Date {
    Timestamp::from_microsecond(now())
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_zoned_datetime(zone.clone())
        .date()
}

#[cfg(test)]
mod tests;
