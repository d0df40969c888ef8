//! Tests of the ledger that a configuration names, and of the way from a record to a row.

use super::*;
use crate::client::Clients;
use crate::key::table::Table;
use crate::metrics::Ending;
use crate::setting::Secret;
use crate::store::Store;
use crate::store::memory::Memory;
use crate::task::Tasks;
use crate::telemetry::Share;
use crate::usage::books::{Books, log_turn};
use crate::usage::tracer::TraceRule;

fn settings(url: Option<&str>) -> LedgerSettings {
    LedgerSettings {
        url: url.map(|url| SecretSource::Text(Secret::new(url))),
        retention: Span(Duration::from_secs(86_400)),
        rollup_retention: Span(Duration::from_secs(86_400)),
        time_zone: "UTC".into(),
    }
}

fn record() -> Record {
    // Made once: a key has connections of its own, and some tests make thousands of records.
    static KEY: std::sync::LazyLock<Arc<crate::key::Key>> =
        std::sync::LazyLock::new(|| Arc::clone(&Table::sketch("a org-a 1 sk-a").keys()[0]));
    Record {
        session: None,
        service: None,
        model: String::new(),
        status: None,
        ending: Ending::Refused,
        duration: Duration::ZERO,
        ..Record::sketch(&KEY, None)
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
    let zone =
        |name: &str| LedgerSettings { time_zone: name.into(), ..settings(None) }.zone().is_ok();
    assert!(zone("UTC") && zone("Asia/Kolkata") && !zone("Nowhere/AtAll"));
}

fn setup(settings: &LedgerSettings, metrics: &Arc<Metrics>) -> Setup<'static> {
    // Settings live as long as the test.
    let settings: &'static LedgerSettings = Box::leak(Box::new(settings.clone()));
    Setup {
        settings,
        address: settings.address(false).expect("an address"),
        zone: TimeZone::UTC,
        prices: Arc::new(Current::new(Arc::new(Prices::default()))),
        roster: Arc::new(Roster::new(Clients::new(&[]).expect("nobody"))),
        metrics: Arc::clone(metrics),
        tracer: None,
        assessor: assessor(metrics),
        tasks: Tasks::new(),
    }
}

fn assessor(metrics: &Arc<Metrics>) -> Assessor {
    let store = Store::in_memory(Arc::new(Memory::new(8)), Arc::clone(metrics));
    Assessor::new(Arc::new(store), Duration::from_secs(60), Arc::clone(metrics))
}

fn shown(metrics: &Metrics, name: &str) -> String {
    let page = metrics.render();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.expect("the metric is there from the start").to_owned()
}

fn dropped(metrics: &Metrics) -> String {
    shown(metrics, "warmkey_ledger_dropped_total")
}

#[tokio::test]
async fn queued_records_are_written_before_the_end() {
    let path = std::env::temp_dir().join(format!("warmkey-ledger-{}.db", std::process::id()));
    let metrics = Arc::new(Metrics::new());
    let settings = settings(Some(&format!("sqlite:{}", path.display())));
    let (books, records) = Books::queued(Arc::clone(&metrics), None);
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
    let (books, records) = Books::queued(Arc::clone(&metrics), None);
    let ledger = Ledger::start(setup(&settings(Some("none:")), &metrics), records).await;
    books.open();
    books.close(record());
    ledger.close().await;
    assert_eq!(dropped(&metrics), "0");
    assert_eq!(ledger.usage(By::Client, None, None).await.map(|_| ()), Err(NoAnswer::None));
}

/// No turn waits for the readers of its record, even if they are slow. Every turn is in the log.
#[tokio::test]
async fn full_queue_is_counted() {
    const LOST: usize = 10_000 - 8_192;
    let all = TraceRule { share: Share::ALL, slow: Duration::from_secs(120) };
    let rare = TraceRule { share: Share::NONE, ..all };
    let completed = || Record { ending: Ending::Completed, ..record() };
    // A trace is lost only where there would have been one.
    for (rule, record, traces) in [
        (None, record as fn() -> Record, 0),
        (Some(all), completed, LOST),
        (Some(rare), completed, 0),
        (Some(rare), record, LOST),
    ] {
        let (lines, _guard) = log();
        let metrics = Arc::new(Metrics::new());
        let (books, _records) = Books::queued(Arc::clone(&metrics), rule);
        for _ in 0..10_000 {
            books.open();
            books.close(record());
        }
        assert_eq!(dropped(&metrics), LOST.to_string());
        assert_eq!(shown(&metrics, "warmkey_traces_dropped_total"), traces.to_string());
        assert_eq!(count(&lines, "records are dropped and counted"), 1, "once");
        assert_eq!(count(&lines, "transport="), LOST, "what the ledger's task cannot log");
    }
}

type Lines = Arc<std::sync::Mutex<Vec<u8>>>;

struct LinesWriter(Lines);

impl std::io::Write for LinesWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no holder panics").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The log of this thread.
fn log() -> (Lines, tracing::subscriber::DefaultGuard) {
    let lines = Lines::default();
    let writer = Arc::clone(&lines);
    let log = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || LinesWriter(Arc::clone(&writer)))
        .finish();
    let guard = tracing::subscriber::set_default(log);
    // A thread without a log may be the first to reach a line, and turn it off for all others.
    for _ in 0..1_000 {
        log_turn(&record());
        if count(&lines, "transport=") > 0 {
            break;
        }
        tracing::callsite::rebuild_interest_cache();
    }
    lines.lock().expect("no holder panics").clear();
    (lines, guard)
}

fn count(lines: &Lines, text: &str) -> usize {
    let lines = lines.lock().expect("no holder panics");
    String::from_utf8_lossy(&lines).lines().filter(|line| line.contains(text)).count()
}

/// Rows that wait for a database that is away are kept up to a bound. The others are counted, and
/// the log says so once.
#[tokio::test]
async fn row_beyond_the_writers_queue_is_counted() {
    let (lines, _guard) = log();
    let metrics = Arc::new(Metrics::new());
    let (rows, mut written) = mpsc::channel(1);
    let prices = Arc::new(Current::new(Arc::new(Prices::default())));
    let (metered, assessor) = (Arc::clone(&metrics), assessor(&metrics));
    let mut pricer = Pricer::new(Some(rows), assessor, None, prices, metered);
    for (round, lost) in [(1, 9), (2, 18)] {
        let (queue, mut records) = mpsc::channel(10);
        for _ in 0..10 {
            queue.try_send(record()).expect("there is room");
        }
        drop(queue);
        pricer.run(&mut records, CancellationToken::new()).await;
        assert_eq!(dropped(&metrics), lost.to_string());
        assert_eq!(count(&lines, "the ledger's queue is full"), round, "once an outage");
        assert_eq!(count(&lines, "transport="), 10 * round, "each turn is in the log");
        assert!(written.try_recv().is_ok() && written.try_recv().is_err());
    }
}
