//! The ledger from outside: every turn is written down once, whatever happens to its database, and
//! sums are true.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::Value;
use tokio::process::Command;
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
mod outage;
mod sums;
mod tokens;

/// A cluster whose admin listeners ask for a token, and whose ledger is at `url`.
pub fn written_at(url: &str) -> Cluster {
    Cluster::new().server("admin_token", &format!("{TOKEN:?}")).ledger(&format!("url = {url:?}"))
}

/// The sums over all days, by name; `total` among them.
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

/// What the upstream itself counted of the turns that it served, and what they cost by the price
/// table.
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
        let day = jiff::Timestamp::from_millisecond(turn["at"].as_i64().expect("a time"))
            .expect("a time");
        let day = day.to_zoned_datetime(jiff::tz::TimeZone::UTC).date();
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

/// The turns on the upstream's record, summed up by the same name.
async fn judged(cluster: &Running, by: &str) -> BTreeMap<String, Judged> {
    let turns = get(cluster.upstream().address(), "/_sim/turns").await.json();
    let mut all = BTreeMap::<String, Judged>::new();
    for turn in turns.as_array().expect("turns").iter().filter(|turn| turn["status"] == 200) {
        for name in [turn[by].as_str().expect("a name"), "total"] {
            all.entry(name.to_owned()).or_default().add(turn);
        }
    }
    all
}

/// What the ledger has is what the upstream counted, to the token and to the nano-USD.
pub async fn agrees(cluster: &Running, admin: SocketAddr) {
    for by in ["key", "organization", "model"] {
        let told: BTreeMap<_, _> = usage(admin, by)
            .await
            .into_iter()
            .map(|(name, row)| (name, Judged::of(&row)))
            .collect();
        assert_eq!(told, judged(cluster, by).await, "by {by}");
    }
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
