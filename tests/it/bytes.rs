//! A request's bytes arrive upstream as they were sent. Otherwise the client learns why not.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::world::cluster::{ALICE, Cluster};
use crate::world::codex::sha256;
use crate::world::fixtures::shapes;
use crate::world::recorder::{Recorder, completed};
use crate::world::wire::{Request, ask};

#[tokio::test]
async fn recorded_request_arrives_as_it_was_sent() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    for (number, shape) in shapes().iter().enumerate() {
        let answer = ask(cluster.address(), &shape.request(ALICE)).await;
        assert_eq!(answer.status, 200, "{}: {}", shape.name, answer.text());
        let seen = &upstream.seen()[number];
        assert_eq!(seen.line, "POST /v1/responses HTTP/1.1", "{}", shape.name);
        assert!(seen.body == shape.body, "{}: the same bytes", shape.name);
        assert_eq!(
            seen.header("content-length"),
            Some(shape.body.len().to_string().as_str()),
            "{}",
            shape.name
        );
    }
}

#[tokio::test]
async fn judge_sees_the_same_hash() {
    let cluster = Cluster::new().start().await;
    for (number, shape) in shapes().iter().enumerate() {
        let answer = ask(cluster.address(), &shape.request(ALICE)).await;
        // Another organization's sealed reasoning is refused upstream, in the upstream's own words.
        let foreign = number != 0
            && (shape.holds("encrypted_content\":\"") || shape.name == "zstd-tool-round");
        assert_eq!(
            answer.status,
            if foreign { 400 } else { 200 },
            "{}: {}",
            shape.name,
            answer.text()
        );
        let record = cluster.upstream().recorded(number + 1).await;
        assert_eq!(record[number].body_sha256, sha256(&shape.body), "{}", shape.name);
        assert!(
            record[number].headers.iter().any(|name| name == "user-agent"),
            "{}: the request is known",
            shape.name
        );
        let own = record[number]
            .headers
            .iter()
            .find(|name| name.contains("warmkey") || name.contains("yai"));
        assert_eq!(own, None, "{}: the gateway says nothing of itself", shape.name);
    }
}

#[tokio::test]
async fn body_in_chunks_arrives_whole() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let body = shapes().remove(0).body;
    let chunks = body.chunks(1_000).map(<[u8]>::to_vec).collect();
    let request = Request::new("POST", "/v1/responses")
        .bearer(ALICE)
        .header("content-type", "application/json")
        .chunks(chunks);
    assert_eq!(ask(cluster.address(), &request).await.status, 200);
    assert!(upstream.only().body == body, "the same bytes");
}

#[tokio::test]
async fn body_that_is_no_json_is_refused_and_never_sent() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let plain: [&[u8]; 8] = [
        b"",
        b"nope",
        b"{",
        br#"{"model":"gpt-5.4""#,
        br#"{"model":"gpt-5.4","input":[}"#,
        br#"{"a":1}x"#,
        br#"{"a":"b}"#,
        &[0xff, 0xfe],
    ];
    for body in plain {
        let answer = ask(cluster.address(), &Request::turn(ALICE, body)).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "invalid_json"),
            "{:?}",
            String::from_utf8_lossy(body)
        );
    }
    for encoding in ["zstd", "gzip"] {
        let request =
            Request::turn(ALICE, *b"not what the label says").header("content-encoding", encoding);
        let answer = ask(cluster.address(), &request).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_json"), "{encoding}");
    }
    assert!(upstream.seen().is_empty(), "no request went upstream");
}

#[tokio::test]
async fn deep_nesting_passes_and_harms_nothing() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    for depth in [100, 10_000, 1_000_000] {
        let before = upstream.seen().len();
        let body = format!(
            r#"{{"model":"gpt-5.4","prompt_cache_key":"deep","input":{}{}}}"#,
            "[".repeat(depth),
            "]".repeat(depth)
        );
        let answer = ask(cluster.address(), &Request::turn(ALICE, body.clone())).await;
        assert_eq!(answer.status, 200, "{depth}: {}", answer.text());
        assert!(upstream.seen()[before].body == body.as_bytes(), "{depth}: the same bytes");
    }
    assert_eq!(cluster.replica().probe("/livez").await.status, 200);
}

/// A JSON text in odd spelling: odd numbers, needless escapes, duplicate names, spaces anywhere.
fn json() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        Just("1.0e2".to_owned()),
        Just("-0".to_owned()),
        Just("-0.0E-0".to_owned()),
        Just("1e400".to_owned()),
        Just("0.10".to_owned()),
        "-?[1-9][0-9]{0,60}",
        "[0-9]\\.[0-9]{1,30}[eE][+-]?[0-9]{1,4}",
    ];
    let leaf = prop_oneof![
        number,
        text(),
        Just("true".to_owned()),
        Just("false".to_owned()),
        Just("null".to_owned())
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            (prop::collection::vec(inner.clone(), 0..6), space()).prop_map(|(values, space)| {
                format!("[{space}{}{space}]", values.join(&format!("{space},")))
            }),
            (prop::collection::vec((name(), inner), 0..6), space())
                .prop_map(|(fields, space)| object(&fields, &space)),
        ]
    })
}

fn object(fields: &[(String, String)], space: &str) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{space}{name}{space}:{space}{value}{space}"))
        .collect();
    format!("{{{}{space}}}", fields.join(","))
}

fn space() -> impl Strategy<Value = String> {
    "[ \t\r\n]{0,3}"
}

fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-z]{1,8}",
        "[^\\x00-\\x1f\"\\\\]{1,4}",
        prop::sample::select(vec![
            r"\ud800",
            r"\udc00\ud800",
            r"\u0000",
            r"\u0041",
            r"\/",
            r#"\""#,
            r"\\",
            r"\b\f\n\r\t",
            r"\uD83D\uDE00",
            "😀",
            "é"
        ])
        .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..5).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

/// Names that the gateway reads, in two spellings, among names that it ignores.
fn name() -> impl Strategy<Value = String> {
    let known = [
        "model",
        "input",
        "prompt_cache_key",
        "client_metadata",
        "conversation",
        "stream",
        "session_id",
        "instructions",
    ];
    let known = known
        .iter()
        .map(|name| format!("\"{name}\""))
        .chain([r#""\u006dodel""#.to_owned(), r#""\u0069nput""#.to_owned()]);
    prop_oneof![prop::sample::select(known.collect::<Vec<_>>()), text()]
}

#[derive(Clone, Copy, Debug)]
enum Coding {
    Identity,
    Zstd,
    Gzip,
}

fn encoded(coding: Coding, body: &[u8]) -> Vec<u8> {
    match coding {
        Coding::Identity => body.to_vec(),
        Coding::Zstd => zstd::encode_all(body, 1).expect("memory is enough"),
        Coding::Gzip => {
            let mut encoder = flate2::read::GzEncoder::new(body, flate2::Compression::fast());
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut encoder, &mut bytes).expect("memory is enough");
            bytes
        }
    }
}

#[test]
fn json_arrives_as_it_was_spelled() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    let (upstream, cluster) = runtime.block_on(async {
        let upstream = Recorder::answering(completed()).await;
        let cluster =
            Cluster::new().recorded_by(&upstream).server("foreign_ids", "\"pass\"").start().await;
        (upstream, cluster)
    });
    let codings = prop::sample::select(vec![Coding::Identity, Coding::Zstd, Coding::Gzip]);
    let bodies = (prop::collection::vec((name(), json()), 0..8), space(), codings);
    let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&bodies, |(fields, space, coding)| {
        let body = encoded(coding, format!("{space}{}{space}", object(&fields, &space)).as_bytes());
        let request = Request::turn(ALICE, body.clone());
        let request = match coding {
            Coding::Identity => request,
            Coding::Zstd => request.header("content-encoding", "zstd"),
            Coding::Gzip => request.header("content-encoding", "gzip"),
        };
        let answer = runtime.block_on(ask(cluster.address(), &request));
        prop_assert_eq!(answer.status, 200, "{}", answer.text());
        let seen = upstream.seen().pop().expect("it was seen");
        prop_assert!(seen.body == body, "the same bytes");
        let length = body.len().to_string();
        prop_assert_eq!(seen.header("content-length"), Some(length.as_str()));
        Ok(())
    });
    assert!(
        outcome.is_ok(),
        "{}",
        outcome.err().map(|error| error.to_string()).unwrap_or_default()
    );
    // The runtime is entered, so that its reactor can still report the ends of the processes.
    let _entered = runtime.enter();
    drop((upstream, cluster));
}
