//! Many rows, and old ones, through a replica and its commands.

use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use serde_json::Value;
use warmkey::database::read::By;
use warmkey::database::row::TurnRow;
use warmkey::database::write::WriterMemory;
use warmkey::database::{Database, DatabaseAddress};

use super::database::{Both, DAY, HOUR, MICROS, turn};
use super::{command, told, written_at};
use crate::world::admin::asked;
use crate::world::lateness::Lateness;
use crate::world::waiting::{Budget, SOON, eventually, is_long};

/// A month of a busy gateway. With `WARMKEY_LONG`, it has a million turns, and the contract's limit
/// applies.
#[tokio::test]
async fn usage_of_many_rows_is_quick() {
    let (count, limit) = if is_long() { (1_000_000, 100) } else { (20_000, 1_000) };
    let (both, lateness) = (Both::start().await, Lateness::watch());
    for (address, url) in both.addresses().into_iter().zip(both.urls()) {
        let database = Database::at(&address, None);
        let mut connection = database.connect_migrated().await.expect("a connection");
        let mut memory = WriterMemory::default();
        let began = Instant::now();
        for batch in 0..count / 500 {
            let row = |row: i64| {
                let number = batch * 500 + row;
                let at = DAY * MICROS + number * (30 * 24 * HOUR / count);
                let session = format!("{:022}", number / 100);
                let client = format!("client-{}", number / 100 % 200);
                let key = format!("key-{}", number / 100 % 12);
                TurnRow { at, session: Some(session), client, key: Some(key), ..turn(number) }
            };
            let rows: Vec<_> = (0..500).map(row).collect();
            connection.write(&rows, &TimeZone::UTC, &mut memory).await.expect("written");
        }
        let written = began.elapsed();
        let mut slowest = 0;
        for by in By::ALL {
            database.sums(by, DAY, DAY + 31 * 86_400).await.expect("sums");
            let began = Instant::now();
            let sums = database.sums(by, DAY, DAY + 31 * 86_400).await.expect("sums");
            // The database and this process may each wait for a core.
            let took = began.elapsed().saturating_sub(lateness.total(began) * 2);
            slowest = slowest.max(took.as_millis());
            assert_eq!(
                sums.iter().map(|(_, totals)| totals.turns).sum::<i64>(),
                count,
                "{address} by {}",
                by.name()
            );
        }
        let bytes = bytes(&both, &address).await;
        say(&format!(
            "{address}: {count} rows, {} bytes a row with all sums, {written:?} to write, {slowest} ms",
            bytes / count
        ));
        assert!(slowest < u128::from(limit), "{address}: {slowest} ms");
        drop(connection);
        answers(&url, count, Duration::from_millis(limit)).await;
    }
}

/// Checks that a replica with this ledger answers in time, and that the command does, too.
async fn answers(url: &str, count: i64, limit: Duration) {
    let lines = format!("url = {url:?}\nretention = \"3650d\"\nrollup_retention = \"3650d\"");
    let cluster = written_at(url).ledger(&lines).start().await;
    let (admin, lateness) = (cluster.replica().admin(), Lateness::watch());
    for by in By::ALL.map(By::name) {
        let target = format!("/usage?by={by}&from=2026-12-01&to=2026-12-31");
        asked(admin, "GET", &target).await;
        let (budget, began) = (Budget::begin(limit), Instant::now());
        let answer = asked(admin, "GET", &target).await;
        budget.held_at(tokio::time::Instant::now() - lateness.of_a_turn(began), &target);
        assert_eq!(answer.json()["total"]["turns"], count, "{url} {target}: {}", answer.text());
        let words = ["usage", "--json", "--by", by, "--from", "2026-12-01", "--to", "2026-12-31"];
        let (budget, began) = (Budget::begin(limit), Instant::now());
        let (code, said, errors) = command(&cluster, &words).await;
        let end = tokio::time::Instant::now() - lateness.of_a_turn(began);
        budget.held_at(end, &format!("{words:?} of {url}"));
        assert_eq!(code, 0, "{errors}");
        let report: Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(report["total"]["turns"], count, "{url} {words:?}: {said}");
    }
}

/// A replica deletes turns after one span of time and sums after another, each with its own unit.
#[tokio::test]
async fn replica_deletes_what_its_retention_says() {
    const DAY_LONG: i64 = 24 * HOUR;
    let both = Both::start().await;
    for (address, url) in both.addresses().into_iter().zip(both.urls()) {
        let database = Database::at(&address, None);
        let mut connection = database.connect_migrated().await.expect("a connection");
        let now = jiff::Timestamp::now().as_microsecond();
        let rows = [20, 3, 0].map(|days| {
            let session = Some(format!("session-{days}"));
            TurnRow { at: now - days * DAY_LONG, session, ..turn(days) }
        });
        let written = connection.write(&rows, &TimeZone::UTC, &mut WriterMemory::default()).await;
        assert_eq!(written.expect("written"), 3);
        drop(connection);
        let lines = format!("url = {url:?}\nretention = \"1d\"\nrollup_retention = \"10d\"");
        let cluster = written_at(&url).ledger(&lines).start().await;
        eventually(SOON, "the oldest sums are deleted, and the old turns", async || {
            let days = database.sums(By::Day, 0, i64::MAX).await.expect("sums");
            let old = database.turns("session-3", 0, 10).await.expect("turns");
            assert!(days.len() >= 2, "{address}: the sums of three days ago stay: {days:?}");
            (days.len() == 2 && old.is_empty()).then_some(())
        })
        .await;
        for (session, count) in [("session-20", 0), ("session-0", 1)] {
            let turns = database.turns(session, 0, 10).await.expect("turns");
            assert_eq!(turns.len(), count, "{address}: {session}");
        }
        let sums = told(cluster.replica().admin(), "day").await;
        assert_eq!(sums["total"].turns, 2, "{address}");
    }
    let of_today = jiff::Timestamp::now().to_zoned_datetime(TimeZone::UTC).date();
    let first = both.partitions().await.first().cloned().expect("today's");
    let [today, yesterday] = [of_today, of_today.yesterday().expect("a day")]
        .map(|day| format!("turns_{}", day.strftime("%Y%m%d")));
    assert!(first == today || first == yesterday, "{first} is the first partition");
}

async fn bytes(both: &Both, address: &DatabaseAddress) -> i64 {
    match address {
        DatabaseAddress::Sqlite(path) => {
            i64::try_from(std::fs::metadata(path).expect("the file").len()).expect("not so large")
        }
        DatabaseAddress::Postgres(_) => {
            let mut connection = both.postgres.connect().await;
            sqlx::query_scalar("SELECT pg_database_size(current_database())")
                .fetch_one(&mut connection)
                .await
                .expect("a size")
        }
    }
}

#[expect(clippy::print_stderr, reason = "a figure is for whoever asked for it")]
fn say(what: &str) {
    eprintln!("{what}");
}
