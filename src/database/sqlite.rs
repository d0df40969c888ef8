//! How an SQLite file is opened: one connection writes, others read, in this process and in others.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, SqlitePool};

/// How long a writer waits for another one.
const BUSY: Duration = Duration::from_secs(4);

fn options(path: &Path) -> SqliteConnectOptions {
    // Reading a statement back takes a line of the log for each slow one, whatever the log's level.
    SqliteConnectOptions::new().filename(path).busy_timeout(BUSY).disable_statement_logging()
}

/// Commits survive the process at once and the machine within a checkpoint.
pub fn writer(path: &Path) -> SqliteConnectOptions {
    options(path)
        .create_if_missing(true)
        // What is deleted is given back. It must be said before the first table.
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
}

pub fn readers(path: &Path) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(2)
        .acquire_timeout(super::CONNECT)
        .idle_timeout(Duration::from_secs(60))
        .connect_lazy_with(options(path))
}
