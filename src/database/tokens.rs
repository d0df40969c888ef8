//! The tokens of clients in the database, by their hash. A token itself is never stored.

use sqlx::Connection as _;

use super::fault::DatabaseFailure;
use super::read::reading;
use super::{Database, DatabaseConnection, READ, Readers, WRITE, within};

/// One token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// SHA-256 of the token, in hex.
    pub hash: String,
    /// The name by which operators list and revoke the token.
    pub id: String,
    pub client: String,
    /// Microseconds since 1970.
    pub added_at: i64,
    pub revoked_at: Option<i64>,
}

type Columns = (String, String, String, i64, Option<i64>);

impl Stored {
    fn of((hash, id, client, added_at, revoked_at): Columns) -> Self {
        Self { hash, id, client, added_at, revoked_at }
    }
}

const COLUMNS: &str = "SELECT hash, id, client, added_at, revoked_at FROM client_tokens";

impl Database {
    /// The tokens that are valid, in the order of their hashes.
    pub async fn valid_tokens(&self) -> Result<Vec<Stored>, DatabaseFailure> {
        self.read_tokens("WHERE revoked_at IS NULL ORDER BY hash").await
    }

    /// All tokens there ever were, by client.
    pub async fn all_tokens(&self) -> Result<Vec<Stored>, DatabaseFailure> {
        self.read_tokens("ORDER BY client, added_at, id").await
    }

    async fn read_tokens(&self, which: &'static str) -> Result<Vec<Stored>, DatabaseFailure> {
        let text = format!("{COLUMNS} {which}");
        let rows: Vec<Columns> = reading!(self, connection => {
            sqlx::query_as(sqlx::AssertSqlSafe(text)).fetch_all(connection)
        })?;
        Ok(rows.into_iter().map(Stored::of).collect())
    }
}

/// The statements of this file for one dialect.
macro_rules! in_dialect {
    ($dialect:ident, $connection:ty) => {
        mod $dialect {
            use super::*;

            pub async fn add(
                connection: &mut $connection,
                token: &Stored,
            ) -> Result<(), sqlx::Error> {
                let insert = "INSERT INTO client_tokens (hash, id, client, added_at) VALUES ($1, $2, $3, $4)";
                let query = sqlx::query(insert).bind(&token.hash).bind(&token.id);
                let query = query.bind(&token.client).bind(token.added_at);
                query.execute(connection).await.map(|_| ())
            }

            pub async fn revoke(
                connection: &mut $connection,
                name: &str,
                at: i64,
            ) -> Result<Vec<Stored>, sqlx::Error> {
                let mut transaction = connection.begin().await?;
                let which = "WHERE (id = $1 OR client = $1) AND revoked_at IS NULL ORDER BY client, added_at, id";
                let query = sqlx::query_as(sqlx::AssertSqlSafe(format!("{COLUMNS} {which}"))).bind(name);
                let found: Vec<Columns> = query.fetch_all(&mut *transaction).await?;
                let update = "UPDATE client_tokens SET revoked_at = $1 WHERE hash = $2 AND revoked_at IS NULL";
                for (hash, ..) in &found {
                    sqlx::query(update).bind(at).bind(hash).execute(&mut *transaction).await?;
                }
                transaction.commit().await?;
                Ok(found.into_iter().map(Stored::of).collect())
            }
        }
    };
}
in_dialect!(in_sqlite, sqlx::SqliteConnection);
in_dialect!(in_postgres, sqlx::PgConnection);

impl DatabaseConnection {
    pub async fn add_token(&mut self, token: &Stored) -> Result<(), DatabaseFailure> {
        within(WRITE, async {
            match self {
                Self::Sqlite(connection) => in_sqlite::add(connection, token).await,
                Self::Postgres(connection) => in_postgres::add(connection, token).await,
            }
        })
        .await
    }

    /// Revokes the token `name`, or all tokens of the client `name`. Returns those that were valid.
    pub async fn revoke_tokens(
        &mut self,
        name: &str,
        at: i64,
    ) -> Result<Vec<Stored>, DatabaseFailure> {
        within(WRITE, async {
            match self {
                Self::Sqlite(connection) => in_sqlite::revoke(connection, name, at).await,
                Self::Postgres(connection) => in_postgres::revoke(connection, name, at).await,
            }
        })
        .await
    }
}
