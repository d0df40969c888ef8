//! Opens connections to PostgreSQL, and keeps its table of turns with one partition a day.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, PgConnection, PgPool};

use super::url;

/// The advisory lock of a replica that changes tables: "warmkey" in ASCII.
pub const LOCK: i64 = 0x0077_6172_6d6b_6579;
/// Limits how long a change of partitions waits for a table that a long read has locked. The writer
/// tries again later.
const SCHEMA_SETTINGS: &str =
    "SET LOCAL lock_timeout = '3s'; SET LOCAL client_min_messages = warning";

pub fn options(text: &str) -> Result<PgConnectOptions, String> {
    let options = url::options(text, |name| std::env::var_os(name).is_some())?;
    // The log needs no statements, because a failure's own text says enough.
    Ok(options.application_name("warmkey").disable_statement_logging())
}

pub fn readers(options: &PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(3)
        // Shorter than the timeout of a read, so that a caller learns early of an outage.
        .acquire_timeout(Duration::from_secs(2))
        .idle_timeout(Duration::from_secs(300))
        .connect_lazy_with(options.clone())
}

/// The partition of the day on which `at` lies, in UTC. `None`: no partition can hold it.
pub fn day_of(at: i64) -> Option<Date> {
    let at = Timestamp::from_microsecond(at).ok()?;
    Some(at.to_zoned_datetime(TimeZone::UTC).date())
}

fn name(day: Date) -> String {
    format!("turns_{:04}{:02}{:02}", day.year(), day.month(), day.day())
}

fn day_of_name(name: &str) -> Option<Date> {
    let digits = name.strip_prefix("turns_").filter(|digits| digits.len() == 8)?;
    let number = |range: std::ops::Range<usize>| digits.get(range)?.parse().ok();
    Date::new(number(0..4)?, i8::try_from(number(4..6)?).ok()?, i8::try_from(number(6..8)?).ok()?)
        .ok()
}

/// Microseconds since 1970 at which a day begins in UTC.
fn start(day: Date) -> Option<i64> {
    Some(day.to_zoned_datetime(TimeZone::UTC).ok()?.timestamp().as_microsecond())
}

/// Creates the missing partitions of `days`. Returns all existing partitions.
pub async fn partition(
    connection: &mut PgConnection,
    days: &BTreeSet<Date>,
) -> Result<BTreeSet<Date>, sqlx::Error> {
    let mut there = partitions(connection).await?;
    if days.is_subset(&there) {
        return Ok(there);
    }
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql(SCHEMA_SETTINGS).execute(&mut *transaction).await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
    // Another replica may have made the partition first.
    there = partitions(&mut transaction).await?;
    for day in days.difference(&there.clone()) {
        let Some((from, to)) = start(*day).zip(day.tomorrow().ok().and_then(start)) else {
            continue;
        };
        let name = name(*day);
        let create =
            format!("CREATE TABLE {name} PARTITION OF turns FOR VALUES FROM ({from}) TO ({to})");
        sqlx::query(AssertSqlSafe(create)).execute(&mut *transaction).await?;
        there.insert(*day);
    }
    transaction.commit().await?;
    Ok(there)
}

/// Drops the partitions that end before `before`, in microseconds since 1970. Returns how many.
pub async fn drop_before(connection: &mut PgConnection, before: i64) -> Result<usize, sqlx::Error> {
    let is_over = |day: &Date| day.tomorrow().ok().and_then(start).is_some_and(|end| end <= before);
    let over: Vec<_> = partitions(connection).await?.into_iter().filter(is_over).collect();
    if over.is_empty() {
        return Ok(0);
    }
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql(SCHEMA_SETTINGS).execute(&mut *transaction).await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
    for day in &over {
        let drop = format!("DROP TABLE IF EXISTS {}", name(*day));
        sqlx::query(AssertSqlSafe(drop)).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(over.len())
}

async fn partitions(connection: &mut PgConnection) -> Result<BTreeSet<Date>, sqlx::Error> {
    let names = "SELECT CAST(c.relname AS TEXT) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
                 WHERE i.inhparent = 'turns'::regclass";
    let names: Vec<String> = sqlx::query_scalar(names).fetch_all(connection).await?;
    Ok(names.iter().filter_map(|name| day_of_name(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    #[test]
    fn partition_is_named_by_its_day() {
        let day = date(2026, 3, 1);
        assert_eq!(
            (name(day).as_str(), day_of_name("turns_20260301")),
            ("turns_20260301", Some(day))
        );
        for other in [
            "turns",
            "turns_",
            "turns_2026030",
            "turns_202603011",
            "turns_20260230",
            "sums_20260301",
            "turns_2026\u{e9}01",
        ] {
            assert_eq!(day_of_name(other), None, "{other}");
        }
        assert_eq!(day_of(start(day).unwrap()), Some(day));
        assert_eq!(day_of(start(day).unwrap() - 1), Some(date(2026, 2, 28)));
        assert_eq!(day_of(i64::MAX), None);
    }

    #[test]
    fn address_is_read_without_its_password() {
        let options = options("postgres://u:canary@h:1/d").expect("it is one");
        assert_eq!(
            (options.get_host(), options.get_port(), options.get_database()),
            ("h", 1, Some("d"))
        );
        assert!(super::options("postgres://u:canary@h:port/d").is_err());
    }
}
