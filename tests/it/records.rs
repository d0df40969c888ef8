//! Tests what a replica records of its turns: how each ended, and what it cost.

use std::sync::Mutex;

use serde_json::Value;

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::recorder::{
    COMPLETED, Recorder, Step, answer, chunk, completed, stream, stream_head,
};
use crate::world::simulator::{Key, siblings};
use crate::world::socket::{self, Upstream, create, created, session};
use crate::world::waiting::{SOON, eventually, ms};
use crate::world::wire::{Request, ask, get};

const BODY: &str = r#"{"model":"gpt-5.4","prompt_cache_key":"s","stream":true,"input":"hello"}"#;
const USAGE: &str = r#""usage":{"input_tokens":9000,"input_tokens_details":{"cached_tokens":8832,"cache_write_tokens":100},"output_tokens":7,"output_tokens_details":{"reasoning_tokens":1},"total_tokens":9007}"#;

/// Returns the fields of the log line of the only turn.
async fn line(cluster: &Running) -> Value {
    eventually(SOON, "the turn is logged", async || {
        let log = cluster.logs();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line["message"] == "turn")
    })
    .await
}

/// Plays one turn, and checks its outcome in the metrics and in the log.
async fn ends(what: &str, outcome: &str, request: &Request, steps: Vec<Step>) -> Running {
    let upstream = Recorder::answering(steps).await;
    let options = "idle_timeout = \"500ms\"\nfirst_byte_timeout = \"500ms\"";
    let cluster = Cluster::new()
        .keys(siblings("org-a", 1))
        .recorded_by(&upstream)
        .upstream(options)
        .start()
        .await;
    ask(cluster.address(), request).await;
    assert_eq!(line(&cluster).await["outcome"], outcome, "{what}");
    let metrics = cluster.replica().metrics().await;
    assert_eq!(
        metrics.get(&format!("warmkey_turns_total{{transport=\"http\",outcome=\"{outcome}\"}}")),
        1.0,
        "{what}"
    );
    assert_eq!(
        (metrics.sum("warmkey_turns_total"), metrics.get("warmkey_active_turns")),
        (1.0, 0.0),
        "{what}"
    );
    assert_eq!(metrics.get("warmkey_turn_seconds_count{transport=\"http\"}"), 1.0, "{what}");
    cluster
}

fn json(status: &str, body: &str) -> Vec<Step> {
    vec![Step::Send(answer(status, "content-type: application/json\r\n", body.as_bytes()))]
}

fn event(name: &str, rest: &str) -> String {
    format!("event: {name}\ndata: {{\"type\":\"{name}\"{rest}}}\n\n")
}

#[tokio::test]
async fn end_of_a_turn_has_its_name() {
    let turn = Request::turn(ALICE, BODY);
    let error = r#"{"error":{"message":"no","type":"invalid_request_error","param":null,"code":"some_code"}}"#;
    let limited =
        r#"{"error":{"message":"no","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#;
    let cut = vec![
        Step::Send(stream_head("")),
        Step::Send(chunk(b"data: 1\n\n")),
        Step::Pause(ms(50)),
        Step::Close,
    ];
    let short = vec![
        Step::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{".to_vec()),
        Step::Pause(ms(50)),
        Step::Close,
    ];
    let quiet = vec![Step::Send(stream_head("")), Step::Send(chunk(b"data: 1\n\n")), Step::Hold];
    ends("a stream", "completed", &turn, completed()).await;
    ends("a document", "completed", &turn, json("200 OK", r#"{"status":"completed"}"#)).await;
    ends(
        "an incomplete one",
        "incomplete",
        &turn,
        stream(&[event("response.incomplete", "").as_bytes()]),
    )
    .await;
    ends("a failed one", "failed", &turn, stream(&[event("response.failed", "").as_bytes()])).await;
    ends("an end without an end", "cut", &turn, stream(&[b"data: 1\n\n"])).await;
    ends("a cut stream", "cut", &turn, cut).await;
    ends("a cut document", "cut", &turn, short).await;
    ends("a quiet stream", "timed_out", &turn, quiet).await;
    ends("an upstream's refusal", "upstream_error", &turn, json("400 Bad Request", error)).await;
    ends("an upstream's limit", "unserved", &turn, json("429 Too Many Requests", limited)).await;
    ends(
        "an upstream's failure",
        "upstream_error",
        &turn,
        json("500 Internal Server Error", "oops"),
    )
    .await;
    ends("no JSON", "refused", &Request::turn(ALICE, "no JSON"), completed()).await;
    ends("an unknown path", "refused", &Request::turn(ALICE, BODY).target("/nowhere"), completed())
        .await;
    ends("no answer", "unserved", &turn, vec![Step::Hold]).await;
}

#[tokio::test]
async fn cost_of_a_turn_is_counted() {
    let turn = Request::turn(ALICE, BODY);
    let streamed = stream(&[event(
        "response.completed",
        &format!(",\"response\":{{\"status\":\"completed\",{USAGE}}}"),
    )
    .as_bytes()]);
    let document = json("200 OK", &format!("{{\"status\":\"completed\",{USAGE}}}"));
    for (what, steps) in [("a stream", streamed), ("a document", document)] {
        let cluster = ends(what, "completed", &turn, steps).await;
        let metrics = cluster.replica().metrics().await;
        let input = |cache: &str| {
            metrics.get(&format!("warmkey_input_tokens_total{{key=\"org-a-1\",cache=\"{cache}\"}}"))
        };
        assert_eq!(
            (input("read"), input("written"), input("uncached")),
            (8832.0, 100.0, 68.0),
            "{what}"
        );
        assert_eq!(metrics.get("warmkey_output_tokens_total{key=\"org-a-1\"}"), 7.0, "{what}");
        assert_eq!(metrics.get("warmkey_usage_missing_total"), 0.0, "{what}");
        let line = line(&cluster).await;
        assert_eq!(
            (&line["input_tokens"], &line["cached_tokens"], &line["output_tokens"]),
            (&9000.into(), &8832.into(), &7.into())
        );
        assert_eq!(
            (&line["key"], &line["client"], &line["status"]),
            (&"org-a-1".into(), &"alice".into(), &200.into())
        );
    }
    let cluster =
        ends("a silent one", "completed", &turn, json("200 OK", r#"{"status":"completed"}"#)).await;
    assert_eq!(cluster.replica().metrics().await.get("warmkey_usage_missing_total"), 1.0);
}

#[tokio::test]
async fn compressed_answer_is_counted_too() {
    let packed = zstd::encode_all(COMPLETED.as_bytes(), 3).expect("memory is enough");
    let headers = "content-type: text/event-stream\r\ncontent-encoding: zstd\r\n";
    let steps = vec![Step::Send(answer("200 OK", headers, &packed))];
    let cluster =
        ends("a compressed stream", "completed", &Request::turn(ALICE, BODY), steps).await;
    let uncached = r#"warmkey_input_tokens_total{key="org-a-1",cache="uncached"}"#;
    assert_eq!(cluster.replica().metrics().await.get(uncached), 10.0);
}

#[tokio::test]
async fn first_turn_is_cold_for_a_reason_and_a_warm_one_is_not() {
    let cluster = Cluster::new().start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    let cold = async || cluster.replica().metrics().await.sum("warmkey_cold_turns_total");
    codex.turn("first").await.served();
    cluster.replica().shows(r#"warmkey_cold_turns_total{reason="first_turn"}"#, 1.0).await;
    codex.turn("second").await.served();
    cluster
        .replica()
        .shows(r#"warmkey_turns_total{transport="http",outcome="completed"}"#, 2.0)
        .await;
    assert_eq!(cold().await, 1.0);
    let turns = cluster.turns().await;
    let read = cluster.replica().metrics().await.sum("warmkey_input_tokens_total");
    assert_eq!(
        read,
        turns.iter().map(|turn| turn.input_tokens).sum::<u64>() as f64,
        "as the upstream counts them"
    );
}

/// How a turn is counted if its session leaves its key, for the same cache or for another one. The
/// session's next turn does not count as moved, even if it stays on a socket of a spilled session.
#[tokio::test]
async fn turn_that_has_moved_is_cold_for_that() {
    let two = vec![Key::new("org-a-1", "org-a"), Key::new("org-a-2", "org-a").of_region("eu")];
    // Nothing is read from the cache, and nearly everything is written.
    let cold = |usage: &str| {
        usage.replace("8832", "0").replace(":100,", ":8900,").replace(":100}", ":8900}")
    };
    let usage = cold(USAGE);
    for (keys, reason) in [(two, "domain_moved"), (siblings("org-a", 2), "key_moved")] {
        let done = event(
            "response.completed",
            &format!(",\"response\":{{\"status\":\"completed\",{usage}}}"),
        );
        // The first key serves one turn, and is dead after that.
        let dead = Mutex::new((None::<String>, 0));
        let upstream = Recorder::start(move |seen| {
            let mut dead = dead.lock().expect("no holder panics");
            let is_first = seen.key() == *dead.0.get_or_insert_with(|| seen.key().to_owned());
            dead.1 += usize::from(is_first);
            match is_first && dead.1 > 1 {
                true => json("401 No", r#"{"error":{"message":"no","type":"t","param":null,"code":"invalid_api_key"}}"#),
                false => stream(&[done.as_bytes()]),
            }
        })
        .await;
        let cluster = Cluster::new().keys(keys.clone()).recorded_by(&upstream).start().await;
        for turn in 1..=3 {
            assert_eq!(
                ask(cluster.address(), &Request::turn(ALICE, BODY)).await.status,
                200,
                "{reason}: {turn}"
            );
        }
        let series = |reason: &str| format!("warmkey_cold_turns_total{{reason={reason:?}}}");
        for reason in ["first_turn", reason, "upstream"] {
            cluster.replica().shows(&series(reason), 1.0).await;
        }

        let upstream = Upstream::start().await;
        let cluster = Cluster::new().keys(keys).upstream_at(&upstream.url()).start().await;
        let there = async {
            upstream.asked().await.refuse("401 No", "invalid_api_key").await;
            upstream.accept().await
        };
        let (mut client, mut there) = tokio::join!(session(cluster.address(), ALICE, "s"), there);
        for id in ["resp_1", "resp_2", "resp_3"] {
            client.send(&create(None)).await;
            there.text().await;
            for event in [created(id), cold(&socket::completed(id))] {
                there.send(&event).await;
                assert_eq!(client.text().await, event);
            }
        }
        cluster.replica().shows(&series("first_turn"), 1.0).await;
        cluster.replica().shows(&series("upstream"), 2.0).await;
    }
}

/// The page has no label for a session, a model or a path.
#[tokio::test]
async fn series_do_not_grow_with_sessions_models_or_paths() {
    let cluster = Cluster::new().keys(siblings("org-a", 1)).start().await;
    let count = async || {
        let page = get(cluster.replica().admin(), "/metrics").await.text();
        page.lines().filter(|line| !line.starts_with('#')).count()
    };
    Codex::new(cluster.address(), ALICE).turn("first").await.served();
    let before = count().await;
    for model in ["gpt-5.4", "gpt-5.2", "gpt-6-sol", "nobody-knows-it"] {
        Codex::new(cluster.address(), ALICE).model(model).turn("first").await;
    }
    Codex::new(cluster.address(), ALICE).by_websocket().turn("first").await;
    for path in ["/responses/resp_1", "/v1/unknown", "/another"] {
        ask(cluster.address(), &Request::new("GET", path).bearer(ALICE)).await;
    }
    assert_eq!(count().await, before);
}
