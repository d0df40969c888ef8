//! Writes every turn down, and tells what was written: a bounded queue, and tasks that own what is
//! behind it.
//!
//! No turn waits for the ledger. While the database is away, turns are kept up to a bound and
//! counted beyond it. Decides what a row holds and when it is written; how, is decided in
//! `database`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::client::tokens::Roster;
use crate::current::Current;
use crate::database::read::By;
use crate::database::row::TurnRow;
use crate::database::{Database, DatabaseAddress, DatabaseConnection};
use crate::metrics::Metrics;
use crate::setting::{SecretSource, Span};
use crate::task::Tasks;
use crate::usage::price::Prices;
use crate::usage::record::Record;

pub mod row;
pub mod report;
pub mod tokens;
mod teller;
mod writer;

use report::Report;
use teller::Teller;
use writer::Writer;

/// Rows that wait for the database, at the most: 30 MB, or eleven minutes at 100 turns a second.
const WAITING: usize = 65_536;
/// A start waits so long for the database, so that the tokens in it are known to the first turns.
const START: Duration = Duration::from_secs(2);
/// A leaving replica writes down what it still has for so long.
const FAREWELL: Duration = Duration::from_secs(3);
/// The turns of a session that are shown.
const SHOWN: i64 = 100;

/// `[ledger]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Without it: a file, or nothing where replicas share a store.
    pub url: Option<SecretSource>,
    pub retention: Span,
    pub rollup_retention: Span,
    pub time_zone: String,
}

impl Settings {
    /// Where the ledger is; `None`: there is none.
    pub fn address(&self, is_shared: bool) -> Result<Option<DatabaseAddress>, String> {
        let Some(source) = &self.url else {
            // A file of one replica says nothing of the others.
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

    /// The zone in which days are cut.
    pub fn zone(&self) -> Result<TimeZone, String> {
        TimeZone::get(&self.time_zone)
            .map_err(|_| "ledger.time_zone: no such time zone: write \"Europe/Berlin\"".into())
    }
}

/// What one replica's ledger is made of.
pub struct Setup<'s> {
    pub settings: &'s Settings,
    pub address: Option<DatabaseAddress>,
    pub zone: TimeZone,
    pub prices: Arc<Current<Prices>>,
    pub roster: Arc<Roster>,
    pub metrics: Arc<Metrics>,
}

/// The ledger of a replica.
pub struct Ledger {
    database: Option<Arc<Database>>,
    zone: TimeZone,
    retention: Duration,
    tasks: Tasks,
    closing: CancellationToken,
}

/// Why the ledger tells nothing.
#[derive(Debug, PartialEq, Eq)]
pub enum Untold {
    /// There is no ledger.
    None,
    Away(String),
    /// What was asked has no answer.
    Meaningless(String),
}

impl Ledger {
    /// Starts to write down what comes from `records`. Where the database is away the start goes
    /// on.
    pub async fn start(setup: Setup<'_>, records: mpsc::Receiver<Record>) -> Arc<Self> {
        let Setup { settings, address, zone, prices, roster, metrics } = setup;
        let database =
            address.map(|address| Arc::new(Database::at(&address, settings.url.as_ref())));
        let (tasks, closing) = (Tasks::new(), CancellationToken::new());
        let rows = database.as_ref().map(|_| mpsc::channel::<TurnRow>(WAITING)).unzip();
        let teller = Teller::new(rows.0, prices, Arc::clone(&metrics));
        tasks.spawn(teller.run(records, closing.clone()));
        if let (Some(database), Some(rows)) = (&database, rows.1) {
            let connection = first_connection(database, &roster).await;
            let writer =
                Writer::new(Arc::clone(database), settings, zone.clone(), metrics, closing.clone());
            tasks.spawn(writer.run(connection, rows));
            tasks.spawn_until_stopped(tokens::follow(Arc::clone(database), roster));
        }
        Arc::new(Self { database, zone, retention: settings.retention.0, tasks, closing })
    }

    /// Writes down what is there, as long as that takes no time, and ends.
    pub async fn close(&self) {
        self.closing.cancel();
        if !self.tasks.join(FAREWELL).await {
            tracing::warn!("the ledger is left before everything is written down");
        }
    }

    /// The sums by one of their names, from the first day to the last one.
    pub async fn usage(
        &self,
        by: By,
        from: Option<Date>,
        to: Option<Date>,
    ) -> Result<Report, Untold> {
        let database = self.database.as_ref().ok_or(Untold::None)?;
        report::read(database, &self.zone, by, from, to).await
    }

    /// The newest turns of a session, oldest first.
    pub async fn turns(&self, session: &str) -> Result<Vec<TurnRow>, Untold> {
        let database = self.database.as_ref().ok_or(Untold::None)?;
        let since = now().saturating_sub(micros(self.retention));
        database
            .turns(session, since, SHOWN)
            .await
            .map_err(|failure| Untold::Away(failure.to_string()))
    }
}

/// What is in the database already counts for the first turns.
async fn first_connection(database: &Arc<Database>, roster: &Roster) -> Option<DatabaseConnection> {
    let opening = async {
        let connection = database.connect_migrated().await?;
        if let Ok(valid) = database.valid_tokens().await {
            tokens::publish(roster, &valid);
        }
        Ok(connection)
    };
    // The writer tells of a failure, and tries again.
    timeout(START, opening)
        .await
        .ok()
        .and_then(|opened: Result<_, crate::database::fault::DatabaseFailure>| opened.ok())
}

/// Microseconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, micros)
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
