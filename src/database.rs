//! The ledger's database, SQLite or PostgreSQL: its connections, the meaning of its failures, and
//! all SQL.
//!
//! Every operation has a deadline. A connection that misses one is closed, because its state is
//! unknown. The ledger decides when to write and what to do after a failure.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection as _, PgConnection, PgPool, SqliteConnection, SqlitePool};
use tokio::time::timeout;

use crate::setting::{Secret, SecretSource};

pub mod fault;
pub mod row;
pub mod sums;
mod migrate;
mod url;
mod postgres;
mod sqlite;
mod statement;
pub mod read;
pub mod tokens;
pub mod write;

use fault::DatabaseFailure;
use migrate::Then;

/// Timeout of a new connection, its handshake included.
const CONNECT: Duration = Duration::from_secs(5);
/// Timeout of a read. Sums over a year take a tenth of a second.
const READ: Duration = Duration::from_secs(5);
/// Timeout of one batch of rows with its sums.
const WRITE: Duration = Duration::from_secs(10);
/// Timeout of all migrations, and of the wait for another replica that applies them.
const MIGRATE: Duration = Duration::from_secs(60);

/// The address of a ledger.
#[derive(Clone)]
pub enum DatabaseAddress {
    Sqlite(PathBuf),
    Postgres(Box<PgConnectOptions>),
}

impl DatabaseAddress {
    /// Parses `ledger.url`. `None` stands for `none:`, which means no ledger. The error does not
    /// show the value, which may hold a password.
    pub fn parse(url: &Secret) -> Result<Option<Self>, String> {
        let text = url.expose();
        if text == "none:" {
            return Ok(None);
        }
        if let Some(path) = text.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path {
                "" | ":memory:" => Err("names no file: write \"sqlite:warmkey.db\"".into()),
                _ => Ok(Some(Self::Sqlite(path.into()))),
            };
        }
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            let options = postgres::options(text)?;
            return Ok(Some(Self::Postgres(Box::new(options))));
        }
        Err("must be \"sqlite:FILE\", \"postgres://...\" or \"none:\"".into())
    }
}

impl fmt::Display for DatabaseAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "the file {}", path.display()),
            Self::Postgres(options) => {
                let database = options.get_database().unwrap_or("the user's own");
                write!(
                    f,
                    "PostgreSQL at {}:{}, database {database}",
                    options.get_host(),
                    options.get_port()
                )
            }
        }
    }
}

impl fmt::Debug for DatabaseAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseAddress({self})")
    }
}

/// A database and its pool of connections for reading. The first read connects.
pub struct Database {
    address: DatabaseAddress,
    /// The option that holds the address. A password may be rotated there.
    source: Option<SecretSource>,
    readers: Readers,
}

enum Readers {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// A connection that writes. The caller that opened it owns it.
pub enum DatabaseConnection {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Database {
    /// Call this inside the runtime, which the pools need.
    pub fn at(address: &DatabaseAddress, source: Option<&SecretSource>) -> Self {
        let readers = match address {
            DatabaseAddress::Sqlite(path) => Readers::Sqlite(sqlite::readers(path)),
            DatabaseAddress::Postgres(options) => Readers::Postgres(postgres::readers(options)),
        };
        Self { address: address.clone(), source: source.cloned(), readers }
    }

    pub const fn address(&self) -> &DatabaseAddress {
        &self.address
    }

    /// A connection that writes. A missing SQLite file is created.
    pub async fn connect(&self) -> Result<DatabaseConnection, DatabaseFailure> {
        let connecting = async {
            Ok(match &self.address {
                DatabaseAddress::Sqlite(path) => {
                    DatabaseConnection::Sqlite(sqlite::writer(path).connect().await?)
                }
                DatabaseAddress::Postgres(options) => {
                    DatabaseConnection::Postgres(self.renewed(options).connect().await?)
                }
            })
        };
        let connected = within(CONNECT, connecting).await;
        connected.map_err(|failure| match &self.address {
            DatabaseAddress::Sqlite(path) => {
                failure.at(&format!("cannot open or create {}", path.display()))
            }
            DatabaseAddress::Postgres(_) => failure,
        })
    }

    /// Reads the options again, for all further connections.
    fn renewed(&self, options: &PgConnectOptions) -> PgConnectOptions {
        let written = self.source.as_ref().and_then(|source| source.read().ok());
        match (written.map(|url| DatabaseAddress::parse(&url)), &self.readers) {
            (Some(Ok(Some(DatabaseAddress::Postgres(renewed)))), Readers::Postgres(pool)) => {
                pool.set_connect_options((*renewed).clone());
                *renewed
            }
            _ => options.clone(),
        }
    }

    /// A connection to a database with the tables of this version.
    pub async fn connect_migrated(&self) -> Result<DatabaseConnection, DatabaseFailure> {
        let mut connection = self.connect().await?;
        connection.migrate().await?;
        Ok(connection)
    }
}

impl DatabaseConnection {
    /// Applies the missing migrations under a lock.
    pub async fn migrate(&mut self) -> Result<(), DatabaseFailure> {
        within(MIGRATE, async {
            match self {
                Self::Sqlite(connection) => migrate::sqlite(connection, Then::Keep).await,
                Self::Postgres(connection) => migrate::postgres(connection, Then::Keep).await,
            }
        })
        .await
    }

    /// Tries every statement that serving needs, and undoes it.
    pub async fn rehearse(&mut self) -> Result<(), DatabaseFailure> {
        within(MIGRATE, async {
            match self {
                Self::Sqlite(connection) => migrate::sqlite(connection, Then::Undo).await,
                Self::Postgres(connection) => migrate::postgres(connection, Then::Undo).await,
            }
        })
        .await
    }

    /// Closes the connection within a short timeout.
    pub async fn close(self) {
        let closing = async {
            match self {
                Self::Sqlite(connection) => connection.close().await,
                Self::Postgres(connection) => connection.close().await,
            }
        };
        // Commits are safe, however the connection ends.
        let _ = timeout(Duration::from_secs(1), closing).await;
    }
}

/// Gives up after `limit`.
async fn within<T>(
    limit: Duration,
    asking: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, DatabaseFailure> {
    match timeout(limit, asking).await {
        Ok(result) => result.map_err(|error| DatabaseFailure::of(&error)),
        Err(_) => Err(DatabaseFailure::silent(limit)),
    }
}

#[cfg(test)]
mod tests;
