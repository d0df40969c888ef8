//! Secrets: no core holds them, and tokens cannot be tried quickly.

use std::time::Duration;

use tokio::time::Instant;

use crate::world::cluster::{ALICE, BOB, Cluster, SECRET};
use crate::world::waiting::{Budget, SOON, ms};
use crate::world::wire::{Request, ask};

const BODY: &str =
    r#"{"model":"gpt-5.4","prompt_cache_key":"prompt-canary","stream":true,"input":"body-canary"}"#;

#[tokio::test]
async fn process_that_aborts_leaves_no_core() {
    let mut cluster = Cluster::new().shell("ulimit -c unlimited").start().await;
    assert_eq!(ask(cluster.address(), &Request::turn(ALICE, BODY)).await.status, 200);
    let pid = cluster.replica().process().pid();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let numbers: Vec<_> = line.split_whitespace().skip(4).take(2).collect();
    assert_eq!(numbers, ["0", "0"], "{line}");
    cluster.replica().process().signal("ABRT").await;
    let status = cluster.replicas[0].exit(SOON).await;
    assert!(!status.to_string().contains("core dumped"), "{status}");
    let folder = cluster.replica().file().parent().unwrap().to_owned();
    for file in std::fs::read_dir(folder).unwrap().flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        assert!(!name.contains("core"), "{name}");
        if name.ends_with(".toml") || !file.path().is_file() {
            continue;
        }
        let bytes = std::fs::read(file.path()).unwrap_or_default();
        for canary in [ALICE, BOB, SECRET, "prompt-canary", "body-canary"] {
            assert!(
                memchr::memmem::find(&bytes, canary.as_bytes()).is_none(),
                "{canary} in {name}"
            );
        }
    }
}

/// Behind a balancer, everybody has one address: only wrong tokens wait.
#[tokio::test]
async fn wrong_token_is_refused_more_and_more_slowly_and_a_valid_one_never() {
    let cluster = Cluster::new().start().await;
    let address = cluster.address();
    let wrong = Request::turn("sk-wrong", BODY);
    for _ in 0..10 {
        assert_eq!(ask(address, &wrong).await.status, 401);
    }
    assert_eq!(cluster.replica().metrics().await.get("warmkey_refusals_slowed_total"), 0.0);
    let began = Instant::now();
    for _ in 0..6 {
        assert_eq!(ask(address, &wrong).await.status, 401);
    }
    assert!(began.elapsed() > ms(50 + 100 + 200 + 400 + 800 + 1_000), "{:?}", began.elapsed());
    assert_eq!(cluster.replica().metrics().await.get("warmkey_refusals_slowed_total"), 6.0);
    let flood: Vec<_> = (0..50)
        .map(|_| {
            let wrong = wrong.clone();
            tokio::spawn(async move { ask(address, &wrong).await.status })
        })
        .collect();
    let budget = Budget::begin(Duration::from_millis(700));
    assert_eq!(ask(address, &Request::turn(ALICE, BODY)).await.status, 200);
    budget.holds("a turn with a valid token");
    for one in flood {
        assert_eq!(one.await.unwrap(), 401);
    }
}
