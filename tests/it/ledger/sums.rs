//! Reports from the ledger: sums, sessions, and the commands that show them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::{Judged, agrees, agrees_in, command, judged, rows, told, usage, written, written_at};
use crate::world::admin::{TOKEN, asked};
use crate::world::cluster::{ALICE, BOB, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::postgres::Postgres;
use crate::world::process::Folder;
use crate::world::recorder::{Recorder, completed};
use crate::world::simulator::{Fault, Turn, siblings, statuses};
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Request, ask};

/// Plays sessions of two clients, over both transports and with two models. Returns the number of
/// turns, and the client of each session.
async fn play(cluster: &Running) -> (usize, BTreeMap<String, &'static str>) {
    let (address, other) =
        (cluster.replicas[0].address(), cluster.replicas.last().expect("one").address());
    let mut alice = Codex::new(address, ALICE);
    let mut bob = Codex::new(other, BOB).model("gpt-5.6-sol");
    for turn in 0..3 {
        alice.turn(&format!("over HTTP {turn}")).await.served();
        bob.turn(&format!("over HTTP, too {turn}")).await.served();
    }
    let mut talk = Codex::new(other, BOB).by_websocket();
    for turn in 0..2 {
        talk.turn(&format!("over WebSocket {turn}")).await;
    }
    let clients =
        [(alice.session, "alice"), (bob.session, "bob"), (talk.codex.session, "bob")].into();
    let is_counted = |turn: &&Turn| turn.is_served() && !turn.key.is_empty();
    (cluster.turns().await.iter().filter(is_counted).count(), clients)
}

/// Checks that the ledger's sums are the judge's by every dimension, and a client's sums those of
/// its sessions.
async fn agrees_by_client(cluster: &Running, admin: SocketAddr, played: &BTreeMap<String, &str>) {
    let client_of = |turn: &Value| played[turn["session"].as_str().expect("a session")].to_owned();
    assert_eq!(told(admin, "client").await, judged(cluster, client_of).await, "by client");
}

#[tokio::test]
async fn sums_are_what_the_judge_counted_in_a_file() {
    let cluster = written_at("sqlite:ledger.db")
        .keys([siblings("org-a", 2), siblings("org-b", 1)].concat())
        .start()
        .await;
    let (turns, clients) = play(&cluster).await;
    let admin = cluster.replica().admin();
    let sums = written(admin, turns).await;
    assert_eq!(sums.keys().collect::<Vec<_>>(), ["alice", "bob", "total"]);
    assert_eq!(sums["alice"]["turns"], 3);
    agrees(&cluster, admin).await;
    agrees_by_client(&cluster, admin, &clients).await;
    // The command prints the same sums, while the replica runs and when it does not.
    let (code, said, errors) =
        command(&cluster, &["usage", "--json", "--by", "client", "--from", "2026-01-01"]).await;
    assert_eq!(code, 0, "{errors}");
    let report: Value = serde_json::from_str(&said).expect("JSON");
    let asked = asked(admin, "GET", "/usage?from=2026-01-01").await.json();
    assert_eq!(report, asked);
    let (code, said, _) = command(&cluster, &["usage", "--by", "day"]).await;
    assert!(code == 0 && said.lines().count() == 4 && said.contains("days of UTC\nDAY "), "{said}");
    let days = usage(admin, "day").await;
    assert!(days.keys().any(|day| day.len() == 10 && day.starts_with("20")), "{days:?}");
}

#[tokio::test]
async fn sums_of_two_replicas_are_what_the_judge_counted() {
    let folder = Folder::new();
    let postgres = Postgres::start(folder.path()).await;
    let cluster = written_at(&postgres.url()).redis().replicas(2).start().await;
    let (turns, clients) = play(&cluster).await;
    for replica in &cluster.replicas {
        written(replica.admin(), turns).await;
        agrees(&cluster, replica.admin()).await;
        agrees_by_client(&cluster, replica.admin(), &clients).await;
    }
}

/// Days begin as the configured zone says. These zones lie five and a half hours from UTC.
#[tokio::test]
async fn days_are_those_of_the_configured_zone() {
    let folder = Folder::new();
    for name in ["Asia/Kolkata", "Pacific/Kiritimati", "Pacific/Marquesas"] {
        let file = folder.path().join(name.replace('/', "-"));
        let lines = format!("url = \"sqlite:{}\"\ntime_zone = {name:?}", file.display());
        let cluster = written_at("none:").ledger(&lines).start().await;
        let (turns, _) = play(&cluster).await;
        let admin = cluster.replica().admin();
        written(admin, turns).await;
        agrees_in(&cluster, admin, &TimeZone::get(name).expect("a zone")).await;
        let report = asked(admin, "GET", "/usage").await.json();
        assert_eq!(
            (&report["time_zone"], &report["total"]["turns"]),
            (&json!(name), &json!(turns))
        );
    }
}

/// A turn that was sent twice is one row. Its cost is that of the attempt that served it.
#[tokio::test]
async fn retried_turn_is_one_row() {
    let cluster = written_at("sqlite:ledger.db").start().await;
    cluster.upstream().fails_with(Fault::down(502).times(1)).await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("again").await.served();
    assert_eq!(statuses(&cluster.turns().await), BTreeMap::from([(200, 1), (502, 1)]));
    let admin = cluster.replica().admin();
    written(admin, 1).await;
    let rows = rows(&cluster, &codex.session).await;
    let [row] = &rows[..] else { panic!("one turn: {rows:?}") };
    assert_eq!((row.attempts, row.status), (Some(2), Some(200)));
    let judged = &judged(&cluster, |_| "all".into()).await["all"];
    assert_eq!(row.cost_nano.map(i64::unsigned_abs), Some(judged.nano));
    agrees(&cluster, admin).await;
}

#[tokio::test]
async fn session_is_found_by_its_hash_and_by_what_its_client_sent() {
    let cluster = written_at("sqlite:ledger.db").start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    for turn in ["first", "second"] {
        codex.turn(turn).await.served();
    }
    let admin = cluster.replica().admin();
    written(admin, 2).await;
    let target = format!("/sessions?client=alice&id={}", codex.session);
    let story = asked(admin, "GET", &target).await.json();
    let hash = story["session"].as_str().expect("a hash");
    assert_eq!(cluster.replica().session(hash).await, story);
    let turns = story["turns"].as_array().expect("turns");
    assert_eq!((turns.len(), &story["ledger"]), (2, &json!("read")));
    let [first, second] = &turns[..] else { panic!("two turns") };
    assert!(first["at"].as_i64() < second["at"].as_i64(), "oldest first: {turns:?}");
    let judge = cluster.turns().await;
    for (turn, judged) in turns.iter().zip(&judge) {
        assert_eq!(turn["input_tokens"], judged.input_tokens);
        assert_eq!(turn["cached_tokens"], judged.cached_tokens);
        assert_eq!((&turn["key"], &turn["model"]), (&json!(judged.key), &json!("gpt-5.4")));
        assert_eq!((&turn["status"], &turn["transport"]), (&json!(200), &json!("http")));
        assert!(
            turn["cost_usd"].is_string()
                && turn["trace"].as_str().is_some_and(|trace| trace.len() == 32),
            "{turn}"
        );
    }
    assert_eq!(
        (&first["cold_reason"], &first["binding"]),
        (&json!("first_turn"), &json!("created"))
    );
    assert_eq!((&second["cold_reason"], &second["binding"]), (&json!(null), &json!("existing")));
    // The command takes the same two forms.
    let (code, said, errors) = command(&cluster, &["session", "--json", hash]).await;
    assert_eq!(
        (code, serde_json::from_str::<Value>(&said).ok()),
        (0, Some(story.clone())),
        "{errors}"
    );
    let (code, said, errors) =
        command(&cluster, &["session", "--client", "alice", "--id", &codex.session]).await;
    assert!(
        code == 0 && said.contains("first_turn") && said.lines().count() == 5,
        "{said}{errors}"
    );
    for (target, status) in [
        (format!("/sessions?client=bob&id={}", codex.session), 404),
        ("/sessions?client=alice".into(), 400),
        ("/sessions?client=alice&id=two%20words".into(), 404),
        ("/usage?by=session".into(), 400),
        ("/usage?from=yesterday".into(), 400),
        ("/usage?from=2026-12-02&to=2026-12-01".into(), 400),
        ("/usage?since=2026-12-02".into(), 400),
    ] {
        assert_eq!(asked(admin, "GET", &target).await.status, status, "{target}");
    }
    for target in ["/usage", "/sessions?client=alice&id=x"] {
        assert_eq!(ask(admin, &Request::new("GET", target)).await.status, 401, "{target}");
    }
}

/// A turn without a known price is a row without a cost, and counts as unpriced.
#[tokio::test]
async fn unknown_cost_is_no_cost() {
    let usage_of = r#""usage":{"input_tokens":9000,"input_tokens_details":{"cached_tokens":8832},"output_tokens":7}"#;
    let event = format!(
        "event: response.completed\ndata: {{\"type\":\"response.completed\",\"response\":{{{usage_of}}}}}\n\n"
    );
    let upstream = Recorder::answering(crate::world::recorder::stream(&[event.as_bytes()])).await;
    let cluster = written_at("sqlite:ledger.db").recorded_by(&upstream).start().await;
    let admin = cluster.replica().admin();
    for model in ["gpt-5.4", "nobody-knows", "priced-later"] {
        let body = format!(r#"{{"model":"{model}","stream":true,"input":"hello"}}"#);
        assert_eq!(ask(cluster.address(), &Request::turn(ALICE, body)).await.status, 200);
    }
    let sums = written(admin, 3).await;
    let cost = 168 * 2_750 + 8_832 * 275 + 7 * 16_500;
    assert_eq!(
        (Judged::of(&sums["total"]).nano, &sums["total"]["unpriced_turns"]),
        (cost, &json!(2))
    );
    assert_eq!(usage(admin, "model").await["nobody-knows"]["cost_usd"], "0.000000000");
    let metrics = cluster.replica().metrics().await;
    assert_eq!(metrics.get("warmkey_unpriced_turns_total"), 2.0);
    let counted = metrics.sum("warmkey_cost_usd_total");
    assert!((counted - cost as f64 / 1e9).abs() < 1e-9, "{counted}");
}

#[tokio::test]
async fn price_is_taken_over_by_a_reload() {
    let upstream = Recorder::answering(completed()).await;
    let mut cluster = written_at("sqlite:ledger.db").recorded_by(&upstream).start().await;
    let admin = cluster.replica().admin();
    let turn = Request::turn(ALICE, r#"{"model":"ours","stream":true,"input":"hello"}"#);
    ask(cluster.address(), &turn).await;
    let sums = written(admin, 1).await;
    assert_eq!((&sums["total"]["unpriced_turns"], Judged::of(&sums["total"]).nano), (&json!(1), 0));
    cluster
        .change(|cluster| cluster.prices("[[price]]\nmodel = \"ours\"\ninput = 0.3\noutput = 0\n"));
    cluster.reload(0).await;
    ask(cluster.address(), &turn).await;
    let sums = written(admin, 2).await;
    let (input, nano) =
        (sums["total"]["input_tokens"].as_u64().expect("tokens"), Judged::of(&sums["total"]).nano);
    assert_eq!(
        (nano, &sums["total"]["unpriced_turns"]),
        (input / 2 * 300, &json!(1)),
        "history is not priced again"
    );
}

/// A stranger's request is no turn.
#[tokio::test]
async fn refused_stranger_is_not_written_down() {
    let cluster = written_at("sqlite:ledger.db").start().await;
    let body = r#"{"model":"gpt-5.4","input":"hello"}"#;
    assert_eq!(ask(cluster.address(), &Request::turn("unknown", body)).await.status, 401);
    assert_eq!(ask(cluster.address(), &Request::turn(ALICE, "no JSON")).await.status, 400);
    let sums = written(cluster.replica().admin(), 1).await;
    assert_eq!((&sums["alice"]["turns"], &sums["total"]["unpriced_turns"]), (&json!(1), &json!(0)));
}

#[tokio::test]
async fn shared_store_without_a_ledger_says_so() {
    let cluster = Cluster::new().server("admin_token", &format!("{TOKEN:?}")).redis().start().await;
    cluster.replica().says("no ledger").await;
    Codex::new(cluster.address(), ALICE).turn("first").await.served();
    let admin = cluster.replica().admin();
    let answer = asked(admin, "GET", "/usage").await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_url"), "{}", answer.text());
    let (code, said, errors) = command(&cluster, &["usage"]).await;
    assert!(code == 64 && said.is_empty() && errors.contains("ledger.url"), "{said}{errors}");
    let (_, said, _) = command(&cluster, &["check"]).await;
    assert!(said.contains("Keeps no ledger of turns"), "{said}");
}

/// A leaving replica writes all its turns.
#[tokio::test]
async fn last_turn_is_written_before_the_replica_ends() {
    let mut cluster = written_at("sqlite:ledger.db").start().await;
    Codex::new(cluster.address(), ALICE).turn("the last one").await.served();
    cluster.replica().terminate().await;
    assert!(cluster.replicas[0].exit(SOON).await.success());
    let (code, said, errors) = command(&cluster, &["usage", "--json"]).await;
    assert_eq!(code, 0, "{errors}");
    let report: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(report["total"]["turns"], 1, "{report}");
}

/// If the ledger's folder cannot be written, `check` refuses it in one line, and a replica serves
/// turns and logs the fault.
#[tokio::test]
async fn ledger_that_cannot_be_made_is_told() {
    let cluster = written_at("sqlite:nowhere/ledger.db").start().await;
    cluster.replica().says("cannot open or create nowhere/ledger.db").await;
    Codex::new(cluster.address(), ALICE).turn("served").await.served();
    let (code, _, errors) = command(&cluster, &["check"]).await;
    assert!(
        code == 64 && errors.lines().count() == 1 && errors.contains("nowhere/ledger.db"),
        "{errors}"
    );
    let admin = cluster.replica().admin();
    let answer =
        eventually(SOON, "an answer", async || Some(asked(admin, "GET", "/usage").await)).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "ledger_unavailable"));
}
