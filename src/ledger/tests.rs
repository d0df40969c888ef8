//! Tests of the ledger that a configuration names, and of the way from a record to a row.

use super::*;
use crate::client::Clients;
use crate::key::table::Table;
use crate::metrics::Ending;
use crate::setting::Secret;
use crate::store::Store;
use crate::store::memory::Memory;
use crate::task::Tasks;
use crate::usage::books::Books;

fn settings(url: Option<&str>) -> Settings {
    Settings {
        url: url.map(|url| SecretSource::Text(Secret::new(url))),
        retention: Span(Duration::from_secs(86_400)),
        rollup_retention: Span(Duration::from_secs(86_400)),
        time_zone: "UTC".into(),
    }
}

fn record() -> Record {
    let table = Table::sketch("a org-a 1 sk-a");
    Record {
        session: None,
        service: None,
        model: String::new(),
        status: None,
        ending: Ending::Refused,
        duration: Duration::ZERO,
        ..Record::sketch(&table.keys()[0], None)
    }
}

#[test]
fn ledger_is_a_file_unless_replicas_share_a_store() {
    let named = |url: Option<&str>, is_shared: bool| {
        settings(url).address(is_shared).map(|address| address.map(|address| address.to_string()))
    };
    let file = |path: &str| Ok(Some(format!("the file {path}")));
    assert_eq!(named(None, false), file("warmkey.db"));
    assert_eq!(named(None, true), Ok(None));
    assert_eq!(named(Some("none:"), false), Ok(None));
    assert_eq!(named(Some("sqlite:l.db"), false), file("l.db"));
    assert!(
        named(Some("sqlite:l.db"), true)
            .is_err_and(|why| why.starts_with("ledger.url: a Redis store"))
    );
    assert!(named(Some("postgres://u:canary@h/d"), true).is_ok_and(|address| address.is_some()));
    assert!(
        named(Some("redis://u:canary@h"), true)
            .is_err_and(|why| why.starts_with("ledger.url:") && !why.contains("canary"))
    );
    let zone = |name: &str| Settings { time_zone: name.into(), ..settings(None) }.zone().is_ok();
    assert!(zone("UTC") && zone("Asia/Kolkata") && !zone("Nowhere/AtAll"));
}

fn setup(settings: &Settings, metrics: &Arc<Metrics>) -> Setup<'static> {
    // Settings live as long as the test.
    let settings: &'static Settings = Box::leak(Box::new(settings.clone()));
    Setup {
        settings,
        address: settings.address(false).expect("an address"),
        zone: TimeZone::UTC,
        prices: Arc::new(Current::new(Arc::new(Prices::default()))),
        roster: Arc::new(Roster::new(Clients::new(&[]).expect("nobody"))),
        metrics: Arc::clone(metrics),
        tracer: None,
        assessor: Assessor::new(
            Arc::new(Store::in_memory(Arc::new(Memory::new(8)), Arc::clone(metrics))),
            Duration::from_secs(60),
            Arc::clone(metrics),
        ),
        tasks: Tasks::new(),
    }
}

fn dropped(metrics: &Metrics) -> String {
    let page = metrics.render();
    let line = page.lines().find_map(|line| line.strip_prefix("warmkey_ledger_dropped_total "));
    line.expect("the metric is there from the start").to_owned()
}

#[tokio::test]
async fn queued_records_are_written_before_the_end() {
    let path = std::env::temp_dir().join(format!("warmkey-ledger-{}.db", std::process::id()));
    let metrics = Arc::new(Metrics::new());
    let settings = settings(Some(&format!("sqlite:{}", path.display())));
    let (books, records) = Books::queued(Arc::clone(&metrics), false);
    let ledger = Ledger::start(setup(&settings, &metrics), records).await;
    for _ in 0..1_200 {
        books.open();
        books.close(record());
    }
    ledger.close().await;
    let report = ledger.usage(By::Client, None, None).await.expect("sums");
    assert_eq!(
        (report.total.turns, report.rows.len(), dropped(&metrics).as_str()),
        (1_200, 1, "0")
    );
    assert_eq!(report.total.unpriced_turns, 0, "nothing was sent upstream");
    books.open();
    books.close(record());
    assert_eq!(dropped(&metrics), "1", "nobody keeps books any more");
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", path.display()));
    }
}

#[tokio::test]
async fn records_are_only_counted_without_a_ledger() {
    let metrics = Arc::new(Metrics::new());
    let (books, records) = Books::queued(Arc::clone(&metrics), false);
    let ledger = Ledger::start(setup(&settings(Some("none:")), &metrics), records).await;
    books.open();
    books.close(record());
    ledger.close().await;
    assert_eq!(dropped(&metrics), "0");
    assert_eq!(ledger.usage(By::Client, None, None).await.map(|_| ()), Err(NoAnswer::None));
}

/// No turn waits for the readers of its record, even if they are slow.
#[tokio::test]
async fn full_queue_is_counted() {
    let metrics = Arc::new(Metrics::new());
    let (books, _records) = Books::queued(Arc::clone(&metrics), false);
    for _ in 0..10_000 {
        books.open();
        books.close(record());
    }
    assert_eq!(dropped(&metrics), (10_000 - 8_192).to_string());
}
