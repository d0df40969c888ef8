//! Guarantees of the database, in both dialects: a repeated batch counts once, concurrent writers
//! lose nothing, and expired rows are deleted.

use std::time::Instant;

use jiff::tz::TimeZone;
use sqlx::{AssertSqlSafe, Connection as _};
use warmkey::database::read::By;
use warmkey::database::row::{Tokens, TurnRow};
use warmkey::database::write::WriterMemory;
use warmkey::database::{Database, DatabaseAddress};
use warmkey::setting::Secret;

use crate::world::postgres::Postgres;
use crate::world::process::Folder;
use crate::world::waiting::{ANSWER, SOON};

/// 2026-12-01 in UTC.
pub const DAY: i64 = 1_796_083_200;
pub const MICROS: i64 = 1_000_000;
pub const HOUR: i64 = 3_600 * MICROS;

/// A database of each dialect, empty.
pub struct Both {
    folder: Folder,
    pub postgres: Postgres,
}

impl Both {
    pub async fn start() -> Self {
        let folder = Folder::new();
        let postgres = Postgres::start(folder.path()).await;
        Self { folder, postgres }
    }

    pub fn urls(&self) -> [String; 2] {
        let file = format!("sqlite:{}", self.folder.path().join("ledger.db").display());
        [file, self.postgres.url()]
    }

    pub fn addresses(&self) -> [DatabaseAddress; 2] {
        self.urls()
            .map(|url| DatabaseAddress::parse(&Secret::new(url)).expect("a URL").expect("a ledger"))
    }

    /// The partitions of PostgreSQL's table of turns.
    pub async fn partitions(&self) -> Vec<String> {
        let names = "SELECT CAST(c.relname AS TEXT) FROM pg_inherits i \
                     JOIN pg_class c ON c.oid = i.inhrelid \
                     WHERE i.inhparent = 'turns'::regclass ORDER BY 1";
        let mut connection = self.postgres.connect().await;
        sqlx::query_scalar(names).fetch_all(&mut connection).await.expect("names")
    }
}

/// Turn `number`, one a second from the beginning of the day on.
pub fn turn(number: i64) -> TurnRow {
    TurnRow {
        at: DAY * MICROS + number * MICROS,
        id: -number,
        client: format!("client-{}", number % 7),
        session: Some(format!("session-{}", number % 3)),
        key: Some(format!("key-{}", number % 2)),
        organization: Some("org-a".into()),
        model: "gpt-5.4".into(),
        transport: "http".into(),
        outcome: "completed".into(),
        tokens: Some(Tokens { input: 100, cached: 90, written: 1, output: 10, reasoning: 5 }),
        tier: Some("default".into()),
        cost_nano: Some(3),
        duration_us: 1_500,
        trace: format!("{number:032x}"),
        ..TurnRow::default()
    }
}

async fn total(database: &Database) -> [i64; 3] {
    let sums = database.sums(By::Organization, DAY, DAY + 86_400).await.expect("sums");
    sums.first().map_or([0; 3], |(_, totals)| [totals.turns, totals.input_tokens, totals.cost_nano])
}

#[tokio::test]
async fn batch_that_is_written_twice_counts_once() {
    let both = Both::start().await;
    for address in both.addresses() {
        let database = Database::at(&address, None);
        let mut connection = database.connect_migrated().await.expect("a connection");
        let rows: Vec<_> = (0..500).map(turn).collect();
        let (zone, mut memory) = (TimeZone::UTC, WriterMemory::default());
        assert_eq!(
            connection.write(&rows, &zone, &mut memory).await.expect("written"),
            500,
            "{address}"
        );
        assert_eq!(
            connection.write(&rows, &zone, &mut memory).await.expect("written"),
            0,
            "{address}"
        );
        assert_eq!(total(&database).await, [500, 50_000, 1_500], "{address}");
        // Half of a batch may be stored before, in another order.
        let rows: Vec<_> = (250..750).rev().map(turn).collect();
        assert_eq!(
            connection.write(&rows, &zone, &mut WriterMemory::default()).await.expect("written"),
            250,
            "{address}"
        );
        assert_eq!(total(&database).await, [750, 75_000, 2_250], "{address}");
        let turns = database.turns("session-1", DAY * MICROS, 100).await.expect("turns");
        assert_eq!(
            (turns.len(), turns.last()),
            (100, Some(&turn(748))),
            "{address}: the newest, oldest first"
        );
        assert_eq!(turns[0].at, turn(748 - 99 * 3).at, "{address}");
        let mut by: Vec<_> = database.sums(By::Key, DAY, DAY + 86_400).await.expect("sums");
        by.sort_by(|(one, _), (other, _)| one.cmp(other));
        assert_eq!(
            by.iter().map(|(name, totals)| (name.as_str(), totals.turns)).collect::<Vec<_>>(),
            [("key-0", 375), ("key-1", 375)]
        );
    }
}

/// Unknown values are read back as unknown.
#[tokio::test]
async fn row_is_read_back_as_it_was_written() {
    let both = Both::start().await;
    for address in both.addresses() {
        let database = Database::at(&address, None);
        let mut connection = database.connect_migrated().await.expect("a connection");
        let full = TurnRow {
            project: Some("p".into()),
            kind: Some("prewarm".into()),
            status: Some(200),
            binding: Some("existing".into()),
            attempts: Some(2),
            price_id: Some("gpt-5.4/default".into()),
            cold_reason: Some("expired".into()),
            expected_cached_tokens: Some(99),
            diagnostic: Some("tools_changed".into()),
            first_byte_us: Some(1),
            overhead_us: Some(2),
            ..turn(1)
        };
        let bare = TurnRow {
            session: full.session.clone(),
            at: full.at + 1,
            trace: "t".into(),
            ..TurnRow::default()
        };
        let rows = [full, bare];
        connection
            .write(&rows, &TimeZone::UTC, &mut WriterMemory::default())
            .await
            .expect("written");
        assert_eq!(database.turns("session-1", 0, 100).await.expect("turns"), rows, "{address}");
    }
}

/// Replicas start together, and write the same sums at the same time.
#[tokio::test]
async fn writers_at_once_lose_nothing() {
    let both = Both::start().await;
    for address in both.addresses() {
        let writers = (0..4).map(|writer| {
            let database = Database::at(&address, None);
            tokio::spawn(async move {
                let began = Instant::now();
                let mut connection = loop {
                    // Of two writers that create one SQLite file, one has to wait.
                    if let Ok(connection) = database.connect_migrated().await {
                        break connection;
                    }
                    assert!(began.elapsed() < SOON, "a writer cannot connect");
                };
                let mut memory = WriterMemory::default();
                for batch in 0..20 {
                    // Each writer writes the rows in an order of its own.
                    let mut rows: Vec<_> =
                        (0..25).map(|row| turn(writer + 4 * (batch * 25 + row))).collect();
                    rows.rotate_left(usize::try_from(writer * 7).expect("small"));
                    while let Err(failure) =
                        connection.write(&rows, &TimeZone::UTC, &mut memory).await
                    {
                        assert!(began.elapsed() < ANSWER, "a batch conflicts for ever");
                        assert_eq!(
                            failure.kind,
                            warmkey::database::fault::FailureKind::Conflict,
                            "{failure}"
                        );
                    }
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.expect("it writes");
        }
        assert_eq!(
            total(&Database::at(&address, None)).await,
            [2_000, 200_000, 6_000],
            "{address}"
        );
    }
}

#[tokio::test]
async fn old_rows_go_and_their_sums_stay_longer() {
    let both = Both::start().await;
    for address in both.addresses() {
        let database = Database::at(&address, None);
        let mut connection = database.connect_migrated().await.expect("a connection");
        // Eight days, one turn an hour.
        let rows: Vec<_> = (0..192)
            .map(|hour| TurnRow { at: DAY * MICROS + hour * HOUR, ..turn(hour * 3) })
            .collect();
        connection
            .write(&rows, &TimeZone::UTC, &mut WriterMemory::default())
            .await
            .expect("written");
        let (turns, sums) = (DAY * MICROS + 120 * HOUR, DAY + 48 * 3_600);
        let mut sweeps = 0;
        while connection.sweep(turns, sums).await.expect("swept") {
            sweeps += 1;
            assert!(sweeps < 1_000, "a sweep never ends");
        }
        let left = database.turns("session-0", 0, 1_000).await.expect("turns");
        assert_eq!((left.len(), left.first().map(|row| row.at)), (72, Some(turns)), "{address}");
        let days = database.sums(By::Day, 0, i64::MAX).await.expect("sums");
        assert_eq!(
            days.iter().map(|(_, totals)| totals.turns).collect::<Vec<_>>(),
            [24; 6],
            "{address}: two days are gone"
        );
        if matches!(address, DatabaseAddress::Postgres(_)) {
            // Whole partitions are gone. Three days have partitions before any turn of these days
            // has come.
            let days = [6, 7, 8, 9, 10, 11].map(|day| format!("turns_202612{day:02}"));
            assert_eq!(both.partitions().await, days);
        }
        // A row that comes late is still written.
        let late = TurnRow { id: 1, ..rows[130].clone() };
        assert_eq!(
            connection
                .write(&[late], &TimeZone::UTC, &mut WriterMemory::default())
                .await
                .expect("written"),
            1
        );
    }
}

/// A newer version has added to the tables, and this version still works with them.
#[tokio::test]
async fn newer_database_is_used_as_it_is() {
    let both = Both::start().await;
    for address in both.addresses() {
        let database = Database::at(&address, None);
        drop(database.connect_migrated().await.expect("a connection"));
        let newer = [
            "ALTER TABLE turns ADD COLUMN later TEXT",
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (9999, 'later', TRUE, 'x', 0)",
        ];
        for statement in newer {
            match &address {
                DatabaseAddress::Sqlite(path) => {
                    let mut connection =
                        sqlx::SqliteConnection::connect(&path.display().to_string())
                            .await
                            .expect("the file");
                    sqlx::query(AssertSqlSafe(statement))
                        .execute(&mut connection)
                        .await
                        .expect("a change");
                }
                DatabaseAddress::Postgres(_) => {
                    let mut connection = both.postgres.connect().await;
                    sqlx::query(AssertSqlSafe(statement))
                        .execute(&mut connection)
                        .await
                        .expect("a change");
                }
            }
        }
        let mut connection =
            database.connect_migrated().await.expect("a newer database is no fault");
        assert_eq!(
            connection
                .write(&[turn(1)], &TimeZone::UTC, &mut WriterMemory::default())
                .await
                .expect("written"),
            1
        );
    }
}
