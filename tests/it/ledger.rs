//! Tests the ledger from outside: every turn is written down once, whatever happens to its
//! database, and all sums are right.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::Value;
use tokio::process::Command;
use warmkey::database::row::TurnRow;
use warmkey::database::{Database, DatabaseAddress};
use warmkey::setting::Secret;
use warmkey::usage::price::{Prices, Sale};
use warmkey::wire::terminal::Usage;

use crate::world::admin::{TOKEN, asked};
use crate::world::cluster::{Cluster, Running};
use crate::world::process::WARMKEY;
use crate::world::waiting::{SOON, eventually, within};
use crate::world::wire::get;

mod background;
mod causes;
mod database;
mod day;
mod many;
mod outage;
mod sums;
mod tokens;

/// A cluster whose admin listeners ask for a token, and whose ledger is at `url`.
pub fn written_at(url: &str) -> Cluster {
    Cluster::new().server("admin_token", &format!("{TOKEN:?}")).ledger(&format!("url = {url:?}"))
}

/// Returns the sums over all days by this dimension. One of them is `total`.
async fn usage(admin: SocketAddr, by: &str) -> BTreeMap<String, Value> {
    let answer = asked(admin, "GET", &format!("/usage?by={by}&from=2026-01-01")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let report = answer.json();
    assert_eq!((&report["by"], &report["from"]), (&by.into(), &"2026-01-01".into()));
    let rows = report["rows"].as_array().expect("rows").iter().chain([&report["total"]]);
    rows.map(|row| (row["name"].as_str().expect("a name").to_owned(), row.clone())).collect()
}

/// Waits until so many turns are written down.
pub async fn written(admin: SocketAddr, turns: usize) -> BTreeMap<String, Value> {
    eventually(SOON, &format!("{turns} turns are written down"), async || {
        let sums = usage(admin, "client").await;
        (sums["total"]["turns"] == turns).then_some(sums)
    })
    .await
}

/// The upstream's own counts of the turns that it served, and their cost by the price table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Judged {
    turns: u64,
    input: u64,
    cached: u64,
    written: u64,
    output: u64,
    nano: u64,
}

impl Judged {
    fn of(row: &Value) -> Self {
        let count = |name: &str| row[name].as_u64().expect(name);
        let usd = row["cost_usd"].as_str().expect("a decimal");
        let (whole, part) = usd.split_once('.').expect("a point");
        assert_eq!(part.len(), 9, "{usd}");
        Self {
            turns: count("turns"),
            input: count("input_tokens"),
            cached: count("cached_tokens"),
            written: count("written_tokens"),
            output: count("output_tokens"),
            nano: format!("{whole}{part}").parse().expect("digits"),
        }
    }

    fn add(&mut self, turn: &Value) {
        let count = |name: &str| turn[name].as_u64().expect(name);
        let usage = Usage {
            input: count("input_tokens"),
            cached: count("cached_tokens"),
            written: count("cache_write_tokens"),
            output: count("output_tokens"),
            ..Usage::default()
        };
        // Prices begin and end by days in UTC.
        let day = day(turn, &TimeZone::UTC);
        let model = turn["model"].as_str().expect("a model");
        let sale = Sale { model, tier: None, region: "us", day, usage: &usage };
        self.nano += Prices::default().cost(&sale).expect("a price").nano_usd;
        self.turns += 1;
        self.input += usage.input;
        self.cached += usage.cached;
        self.written += usage.written;
        self.output += usage.output;
    }
}

/// Sums up the turns on the upstream's record by the name that `name_of` gives each. `total` is the
/// sum of all.
async fn judged(cluster: &Running, name_of: impl Fn(&Value) -> String) -> BTreeMap<String, Judged> {
    let turns = get(cluster.upstream().address(), "/_sim/turns").await.json();
    let mut all = BTreeMap::<String, Judged>::new();
    for turn in turns.as_array().expect("turns").iter().filter(|turn| turn["status"] == 200) {
        for name in [name_of(turn), "total".into()] {
            all.entry(name).or_default().add(turn);
        }
    }
    all
}

/// The day of a turn on the upstream's record.
fn day(turn: &Value, zone: &TimeZone) -> Date {
    let at = turn["at"].as_i64().and_then(|at| Timestamp::from_millisecond(at).ok());
    at.expect("a time").to_zoned_datetime(zone.clone()).date()
}

/// Returns the sums that the ledger has by one dimension.
async fn told(admin: SocketAddr, by: &str) -> BTreeMap<String, Judged> {
    let rows = usage(admin, by).await.into_iter();
    rows.map(|(name, row)| (name, Judged::of(&row))).collect()
}

/// Checks that the ledger's sums are the upstream's, to the token and to the nano-USD.
pub async fn agrees(cluster: &Running, admin: SocketAddr) {
    agrees_in(cluster, admin, &TimeZone::UTC).await;
}

/// As [`agrees`], with the days of `zone`.
async fn agrees_in(cluster: &Running, admin: SocketAddr, zone: &TimeZone) {
    for by in ["key", "organization", "model"] {
        let name_of = |turn: &Value| turn[by].as_str().expect("a name").to_owned();
        assert_eq!(told(admin, by).await, judged(cluster, name_of).await, "by {by}");
    }
    let days = judged(cluster, |turn| day(turn, zone).to_string()).await;
    assert_eq!(told(admin, "day").await, days, "by day");
}

/// Returns the ledger that is a file beside the first replica's configuration.
fn database_of(cluster: &Running) -> Database {
    let file = cluster.replica().file().with_file_name("ledger.db");
    let url = Secret::new(format!("sqlite:{}", file.display()));
    let address = DatabaseAddress::parse(&url).expect("a URL").expect("a ledger");
    Database::at(&address, None)
}

/// Returns the rows of one of alice's sessions in the cluster's [`database_of`], oldest first.
async fn rows(cluster: &Running, session: &str) -> Vec<TurnRow> {
    let target = format!("/sessions?client=alice&id={session}");
    let page = asked(cluster.replica().admin(), "GET", &target).await.json();
    let hash = page["session"].as_str().expect("a hash");
    database_of(cluster).turns(hash, 0, 100).await.expect("turns")
}

/// Runs a command on the first replica's configuration.
pub async fn command(cluster: &Running, words: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(WARMKEY);
    let file = cluster.replica().file();
    let folder = file.parent().expect("a folder");
    command.args(words).arg("--config").arg(&file).current_dir(folder).kill_on_drop(true);
    let output = within(SOON, "the end of a command", command.output()).await.expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("it ends by itself"), text(&output.stdout), text(&output.stderr))
}
