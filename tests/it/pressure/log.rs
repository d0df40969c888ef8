//! No turn waits for the log. Standard error is on a full disk, or on a pipe whose reader has gone
//! or stopped. In another test, strangers flood the log.

use serde_json::Value;

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::simulator::siblings;
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Request, ask};

const BODY: &str = r#"{"model":"gpt-5.4","prompt_cache_key":"s","stream":true,"input":"hello"}"#;
const DROPPED: &str = "warmkey_log_lines_dropped_total";

/// Where standard error goes, as commands of a shell.
const FULL_DISK: &str = "exec 2>/dev/full";
const READER_GONE: &str = "mkfifo log; (head -c 1 log >/dev/null &); exec 2>log; echo x >&2";
/// Both ends of the pipe are open, and no process reads.
const READER_STOPPED: &str = "mkfifo log; exec 2<>log";

async fn turns(cluster: &Running, count: usize) {
    for number in 0..count {
        let answer = ask(cluster.address(), &Request::turn(ALICE, BODY)).await;
        assert!(answer.status == 200 && answer.whole, "turn {number}: {}", answer.text());
    }
}

#[tokio::test]
async fn log_that_cannot_be_written_costs_no_turn() {
    for shell in [FULL_DISK, READER_GONE, READER_STOPPED] {
        let cluster = Cluster::new().keys(siblings("org-a", 2)).redis().shell(shell);
        let mut cluster = cluster.start().await;
        cluster.replica().shows("warmkey_store_up", 1.0).await;
        // A pipe holds 64 KiB: nearly two hundred turns.
        turns(&cluster, 400).await;
        assert_eq!(cluster.replica().probe("/livez").await.status, 200, "{shell}");
        // A task that ends meanwhile is begun again.
        cluster.redis().kill().await;
        cluster.replica().shows("warmkey_store_up", 0.0).await;
        turns(&cluster, 5).await;
        cluster.redis().restart().await;
        cluster.replica().shows("warmkey_store_up", 1.0).await;
        turns(&cluster, 5).await;
        let metrics = cluster.replica().metrics().await;
        // The stopped reader's lines wait, up to the queue's limit.
        assert_eq!(metrics.get(DROPPED) > 0.0, shell != READER_STOPPED, "{shell}");
        assert_eq!(metrics.get("warmkey_task_restarts_total"), 0.0, "{shell}");
        cluster.replica().terminate().await;
        assert_eq!(cluster.replicas[0].exit(SOON).await.code(), Some(0), "{shell}");
    }
}

#[tokio::test]
async fn line_that_was_dropped_is_counted_and_told() {
    // The disk fills after 10 KiB (20 in some shells), and has room again once the file is empty.
    let shell = "ulimit -f 20; trap '' XFSZ; exec 2>>small.log";
    let cluster = Cluster::new().keys(siblings("org-a", 1)).shell(shell).start().await;
    turns(&cluster, 100).await;
    let dropped = eventually(SOON, "lines are dropped", async || {
        let dropped = cluster.replica().metrics().await.get(DROPPED);
        (dropped > 10.0).then_some(dropped)
    })
    .await;
    let file = cluster.replica().file().with_file_name("small.log");
    assert!(std::fs::metadata(&file).unwrap().len() <= 20 * 1024, "the disk is full");
    std::fs::write(&file, "").unwrap();
    // The line may itself be lost to the full disk. The next one is due after ten seconds.
    let line = eventually(SOON * 4, "the log tells of what it lost", async || {
        turns(&cluster, 1).await;
        let log = std::fs::read_to_string(&file).unwrap();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is_it =
            |line: &Value| line["message"].as_str().is_some_and(|it| it.contains("dropped"));
        let found = lines.find(is_it);
        // Lines that had waited meanwhile may have filled the disk again.
        if found.is_none() && log.len() > 5 * 1024 {
            std::fs::write(&file, "").unwrap();
        }
        found
    })
    .await;
    assert!(line["lines"].as_f64() >= Some(dropped), "{line}");
}

/// A refused request without a valid token writes no line of its own.
#[tokio::test]
async fn stranger_refused_costs_no_line() {
    let cluster = Cluster::new().keys(siblings("org-a", 1)).start().await;
    let before = cluster.logs().lines().count();
    let strangers = [
        Request::turn("sk-wrong", BODY),
        Request::new("GET", "/wp-login.php"),
        Request::new("POST", "/responses").body(BODY),
        Request::new("GET", "/models"),
    ];
    // Only a few tokens are wrong, because more wrong ones would be slowed down.
    for number in 0..100 {
        let request = if number < 9 { &strangers[number % 4] } else { &strangers[1] };
        assert!(ask(cluster.address(), request).await.status >= 401);
    }
    let metrics = cluster.replica().metrics().await;
    assert_eq!(metrics.sum("warmkey_refused_total"), 100.0);
    assert_eq!(metrics.get(r#"warmkey_turns_total{transport="http",outcome="refused"}"#), 100.0);
    assert_eq!(metrics.get(r#"warmkey_refused_total{reason="unknown_url"}"#), 93.0);
    assert_eq!(metrics.get(r#"warmkey_refused_total{reason="invalid_api_key"}"#), 7.0);
    turns(&cluster, 1).await;
    let log = eventually(SOON, "a known client's turn is logged", async || {
        Some(cluster.logs()).filter(|log| log.contains("\"outcome\":\"completed\""))
    })
    .await;
    let lines = log.lines().count() - before;
    assert!(lines <= 3, "{lines} lines\n{log}");
    assert!(log.contains("requests without a valid token"), "{log}");
}
