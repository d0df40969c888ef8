//! Brings the tables to the schema that this version needs. One folder, `migrations/`, serves both
//! dialects.
//!
//! A migration only adds, because old and new replicas use one database during a roll-out. A later
//! version removes the replaced parts. Migrations of a newer version are left alone.

use std::borrow::Cow;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqlSafeStr, SqliteConnection};

use super::postgres::LOCK;

/// Version, name, text. An applied migration is never changed.
const MIGRATIONS: [(i64, &str, &str); 2] = [
    (1, "ledger", include_str!("../../migrations/0001_ledger.sql")),
    (2, "hosted_tools", include_str!("../../migrations/0002_hosted_tools.sql")),
];

/// Whether a run of the migrations is kept, or undone because it was a trial.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Keep,
    Undo,
}

pub async fn sqlite(connection: &mut SqliteConnection, then: Then) -> Result<(), sqlx::Error> {
    // No other process can begin before this one is done.
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    migrator("sqlite").run_direct(None, &mut *transaction, false).await.map_err(failed)?;
    if then == Then::Keep { transaction.commit().await } else { transaction.rollback().await }
}

pub async fn postgres(connection: &mut PgConnection, then: Then) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    sqlx::query("SET LOCAL client_min_messages = warning").execute(&mut *transaction).await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
    migrator("postgres").run_direct(None, &mut *transaction, false).await.map_err(failed)?;
    if then == Then::Keep { transaction.commit().await } else { transaction.rollback().await }
}

fn migrator(dialect: &str) -> Migrator {
    let migration = |(version, name, text): (i64, &'static str, &str)| {
        let sql = AssertSqlSafe(in_dialect(text, dialect)).into_sql_str();
        Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, sql, false)
    };
    let mut migrator = Migrator::with_migrations(MIGRATIONS.map(migration).into());
    // sqlx's own lock would end before the transaction that holds all migrations is committed.
    migrator.set_locking(false).set_ignore_missing(true);
    migrator
}

/// Uncomments the lines for `dialect`.
fn in_dialect(text: &str, dialect: &str) -> String {
    let mark = format!("--{dialect} ");
    let line = |line: &str| line.strip_prefix(&mark).unwrap_or(line).to_owned() + "\n";
    text.lines().map(line).collect()
}

fn failed(error: MigrateError) -> sqlx::Error {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error,
        other => sqlx::Error::Protocol(format!("migrations: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_of_a_dialect_counts_in_it_alone() {
        let text =
            "CREATE TABLE t (a TEXT)\n--postgres PARTITION BY RANGE (a)\n--sqlite WITHOUT ROWID\n;";
        assert_eq!(
            in_dialect(text, "postgres"),
            "CREATE TABLE t (a TEXT)\nPARTITION BY RANGE (a)\n--sqlite WITHOUT ROWID\n;\n"
        );
        assert_eq!(
            in_dialect(text, "sqlite"),
            "CREATE TABLE t (a TEXT)\n--postgres PARTITION BY RANGE (a)\nWITHOUT ROWID\n;\n"
        );
    }

    #[test]
    fn migration_of_the_folder_is_applied() {
        let mut files: Vec<_> =
            std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations"))
                .expect("the folder is there")
                .map(|file| file.expect("it can be read").file_name().into_string().expect("ASCII"))
                .collect();
        files.sort();
        let known = MIGRATIONS.map(|(version, name, _)| format!("{version:04}_{name}.sql"));
        assert_eq!(files, known);
    }
}
