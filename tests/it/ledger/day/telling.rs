//! Compares what the ledger tells of a day with what happened.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use warmkey::metrics::ColdReason;

use super::{Story, Told};
use crate::ledger::{agrees, written};
use crate::world::admin::asked;
use crate::world::cluster::Running;
use crate::world::waiting::{SOON, eventually};

/// Waits until so many turns are compared with the ones before them. Their promises are stored a
/// moment later.
pub async fn compared(cluster: &Running, turns: usize) {
    eventually(SOON, &format!("{turns} turns are compared"), async || {
        let mut found = 0.0;
        for replica in &cluster.replicas {
            let metrics = replica.metrics().await;
            found += metrics.get("warmkey_expected_turns_total");
            found += metrics.get("warmkey_cold_turns_total{reason=\"first_turn\"}");
        }
        (found as usize == turns).then_some(())
    })
    .await;
}

/// Returns what the ledger states of a session, asked by the id that its client sent.
async fn told(cluster: &Running, client: &str, session: &str) -> Value {
    let target = format!("/sessions?client={client}&id={session}");
    let answer = asked(cluster.replica().admin(), "GET", &target).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

pub async fn hash(cluster: &Running, client: &str, session: &str) -> String {
    told(cluster, client, session).await["session"].as_str().expect("a hash").to_owned()
}

/// Makes the promises of these sessions half an hour older. Returns false for a store in memory,
/// which a test cannot change.
pub async fn age(cluster: &Running, hashes: &[String]) -> bool {
    let Some(store) = cluster.shared_store() else { return false };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    for hash in hashes {
        let name = format!("warmkey:{hash}.last");
        let text: String = store.ask(&["GET", &name]).await;
        let mut words: Vec<_> = text.split(' ').map(str::to_owned).collect();
        let at = u64::from_str_radix(&words[2], 36).expect("a time");
        assert!(now.abs_diff(at) < 3_600, "{text}");
        words[2] = base36(at - 31 * 60);
        store.run(&["SET", &name, &words.join(" "), "KEEPTTL"]).await;
    }
    true
}

fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    while number > 0 {
        digits.push(b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize]);
        number /= 36;
    }
    digits.reverse();
    String::from_utf8(digits).expect("ASCII")
}

/// Compares what the ledger states of the day with what must be there.
pub async fn judge(cluster: &Running, day: Vec<(Story, BTreeMap<String, Vec<Told>>)>) {
    let turns: usize = day.iter().flat_map(|(_, all)| all.values()).map(Vec::len).sum();
    let admin = cluster.replica().admin();
    let sums = written(admin, turns).await;
    for replica in &cluster.replicas {
        agrees(cluster, replica.admin()).await;
        assert_eq!(replica.metrics().await.get("warmkey_ledger_dropped_total"), 0.0);
    }
    let (mut lost, mut traces) = (BTreeMap::<String, (u64, u64)>::new(), BTreeSet::new());
    for (story, sessions) in day {
        for (session, expected) in sessions {
            let page = told(cluster, story.client(), &session).await;
            let turns = page["turns"].as_array().expect("turns");
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let found: Vec<Told> = turns
                .iter()
                .map(|turn| (text(&turn["kind"]).unwrap_or_default(), text(&turn["cold_reason"])))
                .collect();
            assert_eq!(found, expected, "{story:?}: {turns:#?}");
            for turn in turns {
                traces.extend(text(&turn["trace"]));
                let Some(reason) = turn["cold_reason"].as_str() else { continue };
                let count = |name: &str| turn[name].as_u64();
                let missed = count("expected_cached_tokens")
                    .map(|expected| expected - count("cached_tokens").expect("usage"));
                let is_no_loss = matches!(reason, "first_turn" | "below_minimum");
                assert_eq!(missed.is_none(), is_no_loss, "{turn}");
                let (turns, tokens) = lost.entry(reason.to_owned()).or_default();
                *turns += 1;
                *tokens += missed.unwrap_or(0);
            }
        }
    }
    // In a store in memory, a test cannot make half an hour pass.
    let is_expected =
        |reason: &ColdReason| *reason != ColdReason::Expired || cluster.shared_store().is_some();
    let reasons = ColdReason::ALL.iter().filter(|reason| is_expected(reason));
    let reasons: BTreeSet<_> = reasons.map(|reason| reason.name()).collect();
    assert_eq!(lost.keys().map(String::as_str).collect::<BTreeSet<_>>(), reasons);
    for reason in ColdReason::ALL.iter().map(|reason| reason.name()) {
        let (turns, tokens) = lost.get(reason).copied().unwrap_or_default();
        for (name, expected) in [("turns", turns), ("tokens", tokens)] {
            let series = format!("warmkey_cold_{name}_total{{reason={reason:?}}}");
            cluster.shows(&series, expected as f64).await;
        }
    }
    assert_eq!(sums["total"]["cold_turns"], lost.values().map(|(turns, _)| turns).sum::<u64>());
    assert_eq!(sums["total"]["cold_tokens"], lost.values().map(|(_, tokens)| tokens).sum::<u64>());
    logged(cluster, turns, &traces).await;
}

/// Checks that the log has one line for each turn, under the same id as the ledger.
async fn logged(cluster: &Running, turns: usize, traces: &BTreeSet<String>) {
    assert_eq!(traces.len(), turns, "each turn has a trace of its own");
    let ids = eventually(SOON, "all turns are in the log", async || {
        let logs = cluster.logs();
        let lines = logs.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines = lines.filter(|line| line["message"] == "turn");
        let ids: Vec<_> =
            lines.map(|line| line["turn"].as_str().expect("an id").to_owned()).collect();
        (ids.len() >= turns).then_some(ids)
    })
    .await;
    assert_eq!(ids.len(), turns);
    assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), *traces);
}
