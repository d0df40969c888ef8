//! Reads the ledger: sums by client, key, organization, model or day, and the turns of a session.

use super::fault::DatabaseFailure;
use super::row::{Tokens, TurnRow};
use super::statement::TURN;
use super::sums::{SumPeriod, Totals};
use super::{Database, READ, Readers, within};

/// The name by which sums are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Client,
    Key,
    Organization,
    Model,
    Day,
}

impl By {
    pub const ALL: [Self; 5] =
        [Self::Client, Self::Key, Self::Organization, Self::Model, Self::Day];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Key => "key",
            Self::Organization => "organization",
            Self::Model => "model",
            Self::Day => "day",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|by| by.name() == text)
    }

    const fn column(self) -> &'static str {
        match self {
            Self::Day => "CAST(start AS TEXT)",
            other => other.name(),
        }
    }
}

/// Runs a query on a connection that reads, in either dialect.
macro_rules! reading {
    ($database:expr, $connection:ident => $query:expr) => {
        match &$database.readers {
            Readers::Sqlite(pool) => super::read::reading_from!(pool, $connection => $query),
            Readers::Postgres(pool) => super::read::reading_from!(pool, $connection => $query),
        }
    };
}
pub(super) use reading;

/// Runs a query on a connection of one pool. A connection that misses its deadline is closed.
macro_rules! reading_from {
    ($pool:expr, $connection:ident => $query:expr) => {{
        let mut connection = within(READ, $pool.acquire()).await?;
        let result = {
            let $connection = &mut *connection;
            within(READ, $query).await
        };
        if result.is_err() {
            drop(connection.detach());
        }
        result
    }};
}
pub(super) use reading_from;

/// A row of the table of turns, in either dialect.
macro_rules! turn {
    ($row:expr) => {{
        use sqlx::Row as _;
        let row = $row;
        let input: Option<i64> = row.try_get("input_tokens")?;
        let count =
            |name: &str| Ok::<i64, sqlx::Error>(row.try_get::<Option<i64>, _>(name)?.unwrap_or(0));
        let tokens = match input {
            None => None,
            Some(input) => Some(Tokens {
                input,
                cached: count("cached_tokens")?,
                written: count("written_tokens")?,
                output: count("output_tokens")?,
                reasoning: count("reasoning_tokens")?,
            }),
        };
        Ok(TurnRow {
            at: row.try_get("at")?,
            id: row.try_get("id")?,
            client: row.try_get("client")?,
            session: row.try_get("session")?,
            key: row.try_get("key")?,
            organization: row.try_get("organization")?,
            project: row.try_get("project")?,
            model: row.try_get("model")?,
            transport: row.try_get("transport")?,
            kind: row.try_get("kind")?,
            outcome: row.try_get("outcome")?,
            status: row.try_get("status")?,
            binding: row.try_get("binding")?,
            attempts: row.try_get("attempts")?,
            tokens,
            tier: row.try_get("tier")?,
            cost_nano: row.try_get("cost_nano")?,
            price_id: row.try_get("price_id")?,
            cold_reason: row.try_get("cold_reason")?,
            expected_cached_tokens: row.try_get("expected_cached_tokens")?,
            diagnostic: row.try_get("diagnostic")?,
            first_byte_us: row.try_get("first_byte_us")?,
            overhead_us: row.try_get("overhead_us")?,
            duration_us: row.try_get("duration_us")?,
            trace: row.try_get("trace")?,
            used_hosted_tools: row
                .try_get::<Option<i64>, _>("hosted_tools")?
                .map(|is_used| is_used != 0),
            // A turn that was read back is already in the sums.
            is_unpriced: false,
        })
    }};
}

type SumRow = (String, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64);

impl Database {
    /// The sums of the days that begin within `from..to` (seconds since 1970), by name. A day's
    /// name is the second at which it begins.
    pub async fn sums(
        &self,
        by: By,
        from: i64,
        to: i64,
    ) -> Result<Vec<(String, Totals)>, DatabaseFailure> {
        let sums: Vec<_> =
            Totals::COLUMNS.iter().map(|name| format!("CAST(sum({name}) AS BIGINT)")).collect();
        let column = by.column();
        let text = format!(
            "SELECT {column}, {} FROM sums \
             WHERE span = $1 AND start >= $2 AND start < $3 GROUP BY 1",
            sums.join(", ")
        );
        let span = SumPeriod::Day.name();
        let rows: Vec<SumRow> = reading!(self, connection => {
            let query = sqlx::query_as(sqlx::AssertSqlSafe(text));
            query.bind(span).bind(from).bind(to).fetch_all(connection)
        })?;
        let totals = |(name, a, b, c, d, e, f, g, h, i, j): SumRow| {
            (name, Totals::of_values([a, b, c, d, e, f, g, h, i, j]))
        };
        Ok(rows.into_iter().map(totals).collect())
    }

    /// The newest `limit` turns of a session that began at `since` or later, oldest first.
    pub async fn turns(
        &self,
        session: &str,
        since: i64,
        limit: i64,
    ) -> Result<Vec<TurnRow>, DatabaseFailure> {
        let text = format!(
            "SELECT {} FROM turns WHERE session = $1 AND at >= $2 ORDER BY at DESC, id DESC LIMIT $3",
            TURN.join(", ")
        );
        let mut rows: Vec<TurnRow> = reading!(self, connection => async {
            let query = sqlx::query(sqlx::AssertSqlSafe(text));
            let query = query.bind(session).bind(since).bind(limit);
            query.fetch_all(connection).await?.iter().map(|row| turn!(row)).collect()
        })?;
        rows.reverse();
        Ok(rows)
    }
}
