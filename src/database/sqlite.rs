//! Opens an SQLite file: one connection writes and others read, in this process and in others.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, SqlitePool};

/// Maximum time that a writer waits for another writer.
const BUSY: Duration = Duration::from_secs(4);

fn options(path: &Path) -> SqliteConnectOptions {
    // sqlx would prepare a log line for each slow statement, even if the log's level hides it.
    SqliteConnectOptions::new().filename(path).busy_timeout(BUSY).disable_statement_logging()
}

/// Options of the connection that writes. A commit survives a crash of the process at once, and a
/// crash of the machine from the next checkpoint on.
pub fn writer(path: &Path) -> SqliteConnectOptions {
    options(path)
        .create_if_missing(true)
        // Lets the file shrink after deletions. Has an effect only before the first table exists.
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
