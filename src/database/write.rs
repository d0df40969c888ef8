//! Writes turns and their sums in one transaction, and deletes expired rows.
//!
//! Only new rows are counted, so a batch that is written twice changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use sqlx::{AssertSqlSafe, Connection as _};

use super::fault::DatabaseFailure;
use super::row::TurnRow;
use super::statement::{Placeholder, add_sums, groups, insert_turns};
use super::sums::{Models, SumKey, SumPeriod, Totals, buckets, roll_up};
use super::{DatabaseConnection, WRITE, postgres, within};

/// Days ahead for which partitions are made.
const AHEAD: i64 = 3;
/// Maximum rows that one statement deletes.
const DELETED: i64 = 1_000;

/// A writer's cache between batches. The database can fill it again.
#[derive(Default)]
pub struct WriterMemory {
    models: Models,
    partitions: BTreeSet<Date>,
}

/// Defines the functions of this file for one dialect. Both dialects share the same code.
macro_rules! in_dialect {
    ($dialect:ident, $connection:ty, $placeholder:expr) => {
        mod $dialect {
            use super::*;

            pub async fn write(
                connection: &mut $connection,
                begin: &'static str,
                rows: &[TurnRow],
                zone: &TimeZone,
                models: &mut Models,
            ) -> Result<usize, sqlx::Error> {
                let mut transaction = connection.begin_with(begin).await?;
                let mut new: Vec<_> = rows.iter().collect();
                if insert(&mut transaction, rows).await? < rows.len() {
                    // Some rows were there already. Writing the rows one by one shows which are
                    // new.
                    transaction.rollback().await?;
                    transaction = connection.begin_with(begin).await?;
                    new.clear();
                    for row in rows {
                        if insert(&mut transaction, std::slice::from_ref(row)).await? > 0 {
                            new.push(row);
                        }
                    }
                }
                for (span, start) in buckets(&new, zone)
                    .into_iter()
                    .filter(|bucket| !models.knows(*bucket))
                    .collect::<Vec<_>>()
                {
                    let known = "SELECT DISTINCT model FROM sums WHERE span = $1 AND start = $2";
                    let known =
                        sqlx::query_scalar::<_, String>(known).bind(span.name()).bind(start);
                    models.learn((span, start), known.fetch_all(&mut *transaction).await?);
                }
                add(&mut transaction, &roll_up(&new, zone, models)).await?;
                transaction.commit().await?;
                Ok(new.len())
            }

            /// Returns how many of `rows` were not there yet.
            async fn insert(
                connection: &mut $connection,
                rows: &[TurnRow],
            ) -> Result<usize, sqlx::Error> {
                let (mut new, mut rest) = (0, rows);
                for size in groups(rows.len()) {
                    let (group, behind) = rest.split_at(size);
                    rest = behind;
                    let mut query = sqlx::query(AssertSqlSafe(insert_turns(size, $placeholder)));
                    for row in group {
                        let tokens = |count: fn(&super::super::row::Tokens) -> i64| {
                            row.tokens.as_ref().map(count)
                        };
                        query = query
                            .bind(row.at)
                            .bind(row.id)
                            .bind(&row.client)
                            .bind(row.session.as_deref())
                            .bind(row.key.as_deref())
                            .bind(row.organization.as_deref())
                            .bind(row.project.as_deref())
                            .bind(&row.model)
                            .bind(&row.transport)
                            .bind(row.kind.as_deref())
                            .bind(&row.outcome)
                            .bind(row.status)
                            .bind(row.binding.as_deref())
                            .bind(row.attempts)
                            .bind(tokens(|tokens| tokens.input))
                            .bind(tokens(|tokens| tokens.cached))
                            .bind(tokens(|tokens| tokens.written))
                            .bind(tokens(|tokens| tokens.output))
                            .bind(tokens(|tokens| tokens.reasoning))
                            .bind(row.tier.as_deref())
                            .bind(row.cost_nano)
                            .bind(row.price_id.as_deref())
                            .bind(row.cold_reason.as_deref())
                            .bind(row.expected_cached_tokens)
                            .bind(row.diagnostic.as_deref())
                            .bind(row.first_byte_us)
                            .bind(row.overhead_us)
                            .bind(row.duration_us)
                            .bind(&row.trace)
                            .bind(row.used_hosted_tools.map(i64::from));
                    }
                    new += query.execute(&mut *connection).await?.rows_affected();
                }
                Ok(usize::try_from(new).unwrap_or(usize::MAX))
            }

            async fn add(
                connection: &mut $connection,
                sums: &BTreeMap<SumKey, Totals>,
            ) -> Result<(), sqlx::Error> {
                let mut rest = sums.iter();
                for size in groups(sums.len()) {
                    let mut query = sqlx::query(AssertSqlSafe(add_sums(size, $placeholder)));
                    for (key, totals) in rest.by_ref().take(size) {
                        query = query
                            .bind(key.span.name())
                            .bind(key.start)
                            .bind(&key.client)
                            .bind(&key.key)
                            .bind(&key.organization)
                            .bind(&key.model)
                            .bind(&key.tier)
                            .bind(&key.transport);
                        for value in totals.values() {
                            query = query.bind(value);
                        }
                    }
                    query.execute(&mut *connection).await?;
                }
                Ok(())
            }

            /// Deletes the sums of one hour or day that began before `before`. Returns how many.
            pub async fn delete_sums(
                connection: &mut $connection,
                span: SumPeriod,
                before: i64,
            ) -> Result<u64, sqlx::Error> {
                let delete = "DELETE FROM sums WHERE span = $1 AND start = \
                              (SELECT min(start) FROM sums WHERE span = $1 AND start < $2)";
                let done =
                    sqlx::query(delete).bind(span.name()).bind(before).execute(connection).await?;
                Ok(done.rows_affected())
            }
        }
    };
}
in_dialect!(in_sqlite, sqlx::SqliteConnection, Placeholder::Plain);
in_dialect!(in_postgres, sqlx::PgConnection, Placeholder::Numbered);

impl DatabaseConnection {
    /// Writes `rows` and adds to the sums of the hours and days in `zone`. Returns how many rows
    /// were new.
    pub async fn write(
        &mut self,
        rows: &[TurnRow],
        zone: &TimeZone,
        memory: &mut WriterMemory,
    ) -> Result<usize, DatabaseFailure> {
        let writing = async {
            match self {
                Self::Sqlite(connection) => {
                    in_sqlite::write(connection, "BEGIN IMMEDIATE", rows, zone, &mut memory.models)
                        .await
                }
                Self::Postgres(connection) => {
                    let needed = needed_partitions(rows);
                    if !needed.is_subset(&memory.partitions) {
                        memory.partitions = postgres::partition(connection, &needed).await?;
                    }
                    in_postgres::write(connection, "BEGIN", rows, zone, &mut memory.models).await
                }
            }
        };
        let written = within(WRITE, writing).await;
        if written.is_err() {
            // The cache may hold facts of a transaction that was undone.
            *memory = WriterMemory::default();
        }
        written
    }

    /// Deletes some of the turns from before `turns` (in microseconds since 1970) and of the sums
    /// from before `sums` (in seconds). Returns whether there may be more.
    pub async fn sweep(&mut self, turns: i64, sums: i64) -> Result<bool, DatabaseFailure> {
        let sweeping = async {
            let mut deleted = 0;
            match self {
                Self::Sqlite(connection) => {
                    let delete = "DELETE FROM turns WHERE (at, id) IN \
                                  (SELECT at, id FROM turns WHERE at < $1 ORDER BY at, id LIMIT $2)";
                    let done = sqlx::query(delete)
                        .bind(turns)
                        .bind(DELETED)
                        .execute(&mut *connection)
                        .await?;
                    deleted += done.rows_affected();
                    for span in SumPeriod::ALL {
                        deleted += in_sqlite::delete_sums(connection, span, sums).await?;
                    }
                    sqlx::raw_sql("PRAGMA incremental_vacuum(1000)")
                        .execute(&mut *connection)
                        .await?;
                }
                Self::Postgres(connection) => {
                    postgres::drop_before(connection, turns).await?;
                    for span in SumPeriod::ALL {
                        deleted += in_postgres::delete_sums(connection, span, sums).await?;
                    }
                }
            }
            Ok(deleted > 0)
        };
        within(WRITE, sweeping).await
    }
}

/// The days of `rows`, and those that follow the last one.
fn needed_partitions(rows: &[TurnRow]) -> BTreeSet<Date> {
    let mut days: BTreeSet<_> = rows.iter().filter_map(|row| postgres::day_of(row.at)).collect();
    let mut last = days.last().copied();
    for _ in 0..AHEAD {
        last = last.and_then(|day| day.tomorrow().ok());
        days.extend(last);
    }
    days
}
