//! Tests from outside which session a turn belongs to: whether its binding existed already shows
//! that.

use serde_json::json;

use crate::world::cluster::{ALICE, BOB, Cluster, Running};
use crate::world::recorder::{Recorder, completed};
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Request, ask};

/// A turn with a new text each time, so that no two turns share a prefix.
fn turn(body: serde_json::Value) -> Request {
    let mut whole = json!({ "model": "gpt-5.4", "stream": true, "input": [{ "role": "user", "content": crate::world::codex::uuid() }] });
    for (name, value) in body.as_object().expect("fields") {
        whole[name] = value.clone();
    }
    Request::turn(ALICE, whole.to_string())
}

/// Returns how many bindings a request made, and how many it found.
async fn bound(cluster: &Running, request: &Request) -> (f64, f64) {
    let counts = async || {
        let metrics = cluster.replica().metrics().await;
        let count =
            |result: &str| metrics.get(&format!("warmkey_bindings_total{{result=\"{result}\"}}"));
        (count("created"), count("existing"), metrics.sum("warmkey_bindings_total"))
    };
    let before = counts().await;
    assert_eq!(ask(cluster.address(), request).await.status, 200);
    eventually(SOON, "the turn is counted", async || {
        let now = counts().await;
        (now.2 > before.2).then_some((now.0 - before.0, now.1 - before.1))
    })
    .await
}

const NEW: (f64, f64) = (1.0, 0.0);
const KNOWN: (f64, f64) = (0.0, 1.0);

#[tokio::test]
async fn signals_name_a_session_and_the_strongest_wins() {
    let upstream = Recorder::answering(completed()).await;
    let cluster =
        Cluster::new().recorded_by(&upstream).server("foreign_ids", "\"pass\"").start().await;
    let by_header =
        ["session-id", "session_id", "x-session-id", "conversation-id", "conversation_id"];
    for name in by_header {
        let request = |value: &str| {
            turn(json!({ "prompt_cache_key": crate::world::codex::uuid() })).header(name, value)
        };
        assert_eq!(bound(&cluster, &request(name)).await, NEW, "{name}");
        assert_eq!(bound(&cluster, &request(name)).await, KNOWN, "{name}");
        assert_eq!(bound(&cluster, &request(&format!("{name}-2"))).await, NEW, "{name}");
    }
    let by_body = [
        json!({ "prompt_cache_key": "p" }),
        json!({ "client_metadata": { "session_id": "m" } }),
        json!({ "conversation": "conv_1" }),
        json!({ "conversation": { "id": "conv_2" } }),
    ];
    for body in by_body {
        assert_eq!(bound(&cluster, &turn(body.clone())).await, NEW, "{body}");
        assert_eq!(bound(&cluster, &turn(body.clone())).await, KNOWN, "{body}");
    }
}

#[tokio::test]
async fn malformed_signal_is_skipped() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    for (number, wrong) in
        ["x".repeat(257), "with space".into(), "sch\u{f6}n".into(), String::new()]
            .into_iter()
            .enumerate()
    {
        let request = || {
            turn(json!({ "prompt_cache_key": format!("p{number}") })).header("session-id", &wrong)
        };
        assert_eq!(bound(&cluster, &request()).await, NEW, "{wrong:?}");
        assert_eq!(bound(&cluster, &request()).await, KNOWN, "{wrong:?}");
    }
    cluster.shows("warmkey_malformed_session_signals_total", 8.0).await;
    let longest = turn(json!({})).header("session-id", &"y".repeat(256));
    assert_eq!(bound(&cluster, &longest).await, NEW);
    assert_eq!(bound(&cluster, &longest).await, KNOWN);
}

#[tokio::test]
async fn compressed_body_names_its_session_too() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let body = |text: &str| {
        format!(r#"{{"model":"gpt-5.4","input":"{text}","prompt_cache_key":"packed"}}"#)
            .into_bytes()
    };
    let packed = |text: &str| zstd::encode_all(body(text).as_slice(), 3).expect("memory is enough");
    assert_eq!(
        bound(&cluster, &Request::turn(ALICE, packed("one")).header("content-encoding", "zstd"))
            .await,
        NEW
    );
    assert_eq!(
        bound(&cluster, &Request::turn(ALICE, packed("two")).header("content-encoding", "zstd"))
            .await,
        KNOWN
    );
    assert_eq!(bound(&cluster, &Request::turn(ALICE, body("three"))).await, KNOWN);
}

#[tokio::test]
async fn body_is_read_as_its_upstream_reads_it() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let bodies = [
        (r#"{"input":"1","prompt_cache_key":"a"}"#, NEW),
        // An escaped name or value is the same one. Of two fields with the same name, the last one
        // counts. A nested field does not count.
        (r#"{"input":"2","prompt\u005fcache_key":"\u0061"}"#, KNOWN),
        (r#"{"input":"3","prompt_cache_key":"zzz","prompt_cache_key":"a"}"#, KNOWN),
        (r#"{"input":[{"prompt_cache_key":"a"}],"prompt_cache_key":"b"}"#, NEW),
        (r#"{"prompt_cache_key":"b","input":[{"prompt_cache_key":"a"},"}{",[]]}"#, KNOWN),
        // A value that is no text is no signal, so the next signal counts.
        (r#"{"prompt_cache_key":7,"input":"4","client_metadata":{"session_id":"m"}}"#, NEW),
        (
            r#"{"prompt_cache_key":null,"input":"5","client_metadata":{"x":1,"session_id":"m"}}"#,
            KNOWN,
        ),
    ];
    for (body, expected) in bodies {
        assert_eq!(bound(&cluster, &Request::turn(ALICE, body)).await, expected, "{body}");
    }
}

#[tokio::test]
async fn stable_prefix_is_the_signal_where_there_is_no_other() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let chat = |model: &str, system: &str, user: &str, later: &str| {
        let input = json!([{ "role": "developer", "content": system }, { "role": "user", "content": user },
            { "role": "assistant", "content": later }, { "role": "user", "content": later }]);
        Request::turn(
            ALICE,
            json!({ "model": model, "input": input, "tools": [{ "type": "function", "name": "f" }] }).to_string(),
        )
    };
    assert_eq!(bound(&cluster, &chat("gpt-5.4", "be kind", "hello", "one")).await, NEW);
    assert_eq!(
        bound(&cluster, &chat("gpt-5.4", "be kind", "hello", "two")).await,
        KNOWN,
        "it grows at its end"
    );
    assert_eq!(
        bound(&cluster, &chat("gpt-5.4", "be kind", "good day", "one")).await,
        NEW,
        "another first text"
    );
    assert_eq!(
        bound(&cluster, &chat("gpt-5.4", "be brief", "hello", "one")).await,
        NEW,
        "another system text"
    );
    assert_eq!(
        bound(&cluster, &chat("gpt-5.6-sol", "be kind", "hello", "one")).await,
        NEW,
        "another model"
    );
}

#[tokio::test]
async fn b14_isolation() {
    let keys = crate::world::simulator::siblings("org-a", 4);
    let upstream = Recorder::answering(completed()).await;
    let mut cluster = Cluster::new().keys(keys).recorded_by(&upstream).redis().start().await;
    for session in 0..12 {
        for token in [ALICE, BOB, ALICE] {
            let body = r#"{"model":"gpt-5.4","input":"x"}"#;
            let request =
                Request::turn(token, body).header("session-id", &format!("equal-{session}"));
            assert_eq!(ask(cluster.address(), &request).await.status, 200);
        }
    }
    let seen = upstream.seen();
    let differ = seen.chunks(3).filter(|turns| turns[0].key() != turns[1].key()).count();
    assert!(differ > 0, "bob's sessions are bound for themselves");
    assert!(
        seen.chunks(3).all(|turns| turns[0].key() == turns[2].key()),
        "bob moves none of alice's"
    );
    cluster.shows(r#"warmkey_bindings_total{result="created"}"#, 24.0).await;
    let names = cluster.redis().bindings().await;
    assert_eq!(names.len(), 24, "{names:?}");
    assert!(
        names.iter().all(|name| !name.contains("equal-") && !name.contains("alice")),
        "no raw id is stored: {names:?}"
    );
}
