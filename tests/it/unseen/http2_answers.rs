//! Numbers 10 and 12: an answer over HTTP/2 is complete only if its upstream has said so. It passes
//! like an answer over HTTP/1.1.

use std::time::Duration;

use serde_json::json;

use super::{BODY, turn, two, understands_encoded_error};
use crate::world::chat::Chat;
use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::http2::{
    AT_ONCE, CANCEL, DOCUMENT, INTERNAL_ERROR, NO_ERROR, Part, REFUSED_STREAM, Upstream, served,
};
use crate::world::recorder::COMPLETED;
use crate::world::simulator::siblings;
use crate::world::waiting::{ANSWER, Budget, within};
use crate::world::wire::{Connection, Request, ask};

const JSON: &str = "application/json";
const STREAM: &str = "text/event-stream";
const COMPLETED_DOCUMENT: &str = r#"{"id":"resp_1","status":"completed","output":[],"usage":{"input_tokens":9,"output_tokens":7}}"#;
const CREATED: &[u8] =
    b"event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\"}}\n\n";

fn over_http2(cluster: Cluster, upstream: &Upstream, options: &str) -> Cluster {
    cluster
        .keys(siblings("org-a", 1))
        .upstream_at(&upstream.url())
        .upstream(&format!("http2 = true\n{options}"))
}

/// The ways in which an answer stops without its end.
fn cuts() -> Vec<Vec<Part>> {
    let codes = [NO_ERROR, CANCEL, INTERNAL_ERROR, REFUSED_STREAM];
    let resets = codes.iter().map(|code| vec![Part::Reset(*code)]);
    let leaves = [NO_ERROR, INTERNAL_ERROR];
    let unprocessed = leaves.iter().map(|code| vec![Part::Leave(*code), Part::Close]);
    let processed = leaves.iter().map(|code| vec![Part::LeaveAfter(*code), Part::Close]);
    resets.chain(unprocessed).chain(processed).chain([vec![Part::Close]]).collect()
}

/// An answer that is cut in this way after `data`.
fn cut(status: u16, kind: &'static str, data: &[u8], how: &[Part]) -> Vec<Part> {
    let mut parts = vec![Part::Head(status, kind, None), Part::Data(data.to_vec())];
    parts.extend_from_slice(how);
    parts
}

/// Asks for one turn, and checks that it was sent once.
async fn judged(cluster: &Running, upstream: &Upstream, request: &Request) -> (u16, bool) {
    let before = upstream.bodies().len();
    let told = ask(cluster.address(), request).await;
    assert_eq!(upstream.bodies().len(), before + 1, "sent once");
    (told.status, told.whole)
}

#[tokio::test]
async fn answer_without_its_end_never_looks_whole() {
    let error = br#"{"error":{"code":"server_error"}}"#;
    for how in cuts() {
        for (status, kind, data, expected) in [
            (200, JSON, DOCUMENT, (200, false)),
            (200, STREAM, CREATED, (200, false)),
            (200, STREAM, COMPLETED.as_bytes(), (200, false)),
            (200, JSON, b"", (200, false)),
            // The gateway must read these answers before it can deliver them.
            (400, JSON, error, (502, true)),
            (404, JSON, error, (502, true)),
            (500, JSON, error, (502, true)),
            (413, JSON, error, (413, false)),
        ] {
            let upstream = Upstream::start(vec![cut(status, kind, data, &how)]).await;
            let cluster = over_http2(two(), &upstream, "").start().await;
            let told = judged(&cluster, &upstream, &turn(BODY)).await;
            assert_eq!(told, expected, "{status} {kind} {how:?}");
        }
    }
}

#[tokio::test]
async fn answer_that_is_cut_is_translated_into_no_whole_one() {
    let chat = r#"{"model":"gpt-5.4","messages":[{"role":"user","content":"hello"}]}"#;
    let streamed = chat.replacen('{', r#"{"stream":true,"#, 1);
    for how in cuts() {
        for (body, kind, data, expected) in
            [(chat, JSON, DOCUMENT, (503, true)), (&streamed, STREAM, CREATED, (200, false))]
        {
            let upstream = Upstream::start(vec![cut(200, kind, data, &how)]).await;
            let options = "speaks = [\"responses\"]\n";
            let cluster = over_http2(two(), &upstream, options).start().await;
            let request = turn(body).target("/chat/completions");
            let told = judged(&cluster, &upstream, &request).await;
            assert_eq!(told, expected, "{kind} {how:?}");
        }
    }
}

#[tokio::test]
async fn answer_that_has_ended_is_whole_whatever_follows() {
    let head = |length| Part::Head(200, JSON, length);
    let last = || Part::Last(DOCUMENT.to_vec());
    for parts in [
        vec![head(None), last()],
        vec![head(Some(DOCUMENT.len())), last()],
        vec![head(None), Part::Data(DOCUMENT.to_vec()), Part::Last(Vec::new())],
        vec![head(None), Part::Data(DOCUMENT.to_vec()), Part::Trailers],
        // RFC 9113, section 8.1: the answer is complete, and the request's rest is not needed.
        vec![head(None), last(), Part::Reset(NO_ERROR)],
        vec![head(None), last(), Part::LeaveAfter(NO_ERROR), Part::Close],
    ] {
        let upstream = Upstream::start(vec![parts.clone()]).await;
        let cluster = over_http2(two(), &upstream, "").start().await;
        let told = ask(cluster.address(), &turn(BODY)).await;
        assert_eq!(
            (told.status, told.whole, told.body.as_slice()),
            (200, true, DOCUMENT),
            "{parts:?}"
        );
    }
}

/// If a head states another length than its data has, it is no answer (RFC 9113, section 8.1.1).
#[tokio::test]
async fn answer_of_another_length_never_looks_whole() {
    for length in [DOCUMENT.len() - 1, DOCUMENT.len() + 1] {
        let head = Part::Head(200, JSON, Some(length));
        let upstream = Upstream::start(vec![vec![head, Part::Last(DOCUMENT.to_vec())]]).await;
        let cluster = over_http2(two(), &upstream, "").start().await;
        assert_eq!(judged(&cluster, &upstream, &turn(BODY)).await, (200, false), "{length}");
    }
}

/// A head that breaks HTTP/2 is no lost connection: its turn may have been served.
#[tokio::test]
async fn malformed_head_is_a_502_and_its_turn_is_not_sent_again() {
    for (status, length) in [(None, "48"), (Some("200"), "48, 48"), (Some("200"), "+48")] {
        for resends in ["ambiguous = false", "ambiguous = true"] {
            let parts = vec![Part::Malformed(status, length), Part::Last(DOCUMENT.to_vec())];
            let upstream = Upstream::start(vec![parts]).await;
            let cluster = two().binding(&format!("[failover]\n{resends}"));
            let cluster = over_http2(cluster, &upstream, "").start().await;
            let told = judged(&cluster, &upstream, &turn(BODY)).await;
            assert_eq!(told, (502, true), "{status:?} {length} {resends}");
        }
    }
}

/// A client that knows the length takes the last byte for the end, before the upstream ends its
/// stream. A coding that goes on there is cut before that byte.
#[tokio::test]
async fn answer_whose_coding_goes_on_is_never_whole_by_its_length() {
    use std::io::Write;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(DOCUMENT).expect("memory is enough");
    let gzip = gzip.finish().expect("memory is enough");
    let zstd = zstd::encode_all(DOCUMENT, 1).expect("memory is enough");
    for (coding, bytes) in [("gzip", gzip), ("zstd", zstd)] {
        for kind in [JSON, STREAM] {
            for (length, is_whole) in [(bytes.len(), true), (bytes.len() - 1, false)] {
                // The parts come apart, so that the last one is read as it passes.
                let (first, last) = bytes[..length].split_at(length - 4);
                for held in [vec![], vec![Part::Hold]] {
                    let coded = Part::Coded(kind, coding, length);
                    let [first, last] = [first, last].map(|part| Part::Data(part.to_vec()));
                    let ends = [vec![last], held, vec![Part::Last(Vec::new())]].concat();
                    let upstream = Upstream::start(vec![[vec![coded, first], ends].concat()]).await;
                    let cluster = over_http2(two(), &upstream, "").start().await;
                    let request = turn(BODY).header("accept-encoding", "gzip, zstd");
                    let told = ask(cluster.address(), &request).await;
                    let case = format!("{coding} {kind} {length}: {}", told.status);
                    assert_eq!(told.status == 200 && told.whole, is_whole, "{case}");
                    upstream.release();
                }
            }
        }
    }
}

/// A client that knows the length leaves with the last byte. Its turn was served all the same.
#[tokio::test]
async fn client_that_leaves_with_the_last_byte_was_served() {
    let document = COMPLETED_DOCUMENT.as_bytes();
    let head = Part::Head(200, JSON, Some(document.len()));
    let parts = vec![head, Part::Data(document.to_vec()), Part::Hold];
    let upstream = Upstream::start(vec![parts]).await;
    let cluster = over_http2(two(), &upstream, "").start().await;
    let told = ask(cluster.address(), &turn(BODY)).await;
    assert_eq!((told.status, told.whole, &*told.body), (200, true, document));
    cluster.shows("warmkey_active_turns", 0.0).await;
    let metrics = cluster.replica().metrics().await;
    let completed = r#"warmkey_turns_total{transport="http",outcome="completed"}"#;
    assert_eq!((metrics.get(completed), metrics.sum("warmkey_usage_missing_total")), (1.0, 0.0));
    assert_eq!(metrics.sum("warmkey_output_tokens_total"), 7.0);
}

/// The upstream takes a few kilobytes at a time, on a connection that other turns share.
#[tokio::test]
async fn long_body_passes_a_narrow_window_whole() {
    let padding = "x".repeat(12 * 1024 * 1024);
    let long = format!(r#"{{"model":"gpt-5.4","input":"{padding}"}}"#);
    let upstream = Upstream::narrow(vec![served()], 16 * 1024).await;
    let cluster = over_http2(two(), &upstream, "").start().await;
    let (long_one, short_one) = (turn(&long), turn(BODY));
    let (first, second) =
        tokio::join!(ask(cluster.address(), &long_one), ask(cluster.address(), &short_one));
    assert_eq!((first.status, second.status), (200, 200), "{}", first.text());
    let mut bodies = upstream.bodies();
    bodies.sort_by_key(Vec::len);
    assert!(bodies == [BODY.as_bytes(), long.as_bytes()], "the same bytes");
}

/// If a client leaves, only its own stream upstream is reset. The connection stays, for other
/// clients.
#[tokio::test]
async fn client_that_leaves_ends_its_stream_alone() {
    let begun = vec![Part::Head(200, STREAM, None), Part::Data(CREATED.to_vec()), Part::Hold];
    let held = [begun.clone(), vec![Part::Last(COMPLETED.as_bytes().to_vec())]].concat();
    let upstream = Upstream::start(vec![begun, held, served()]).await;
    let cluster = over_http2(two(), &upstream, "").start().await;
    let mut leaving = Connection::open(cluster.address()).await;
    let answer = within(ANSWER, "a head", leaving.ask(&turn(BODY))).await.expect("an answer");
    assert_eq!(answer.status, 200);
    let mut staying = Connection::open(cluster.address()).await;
    let mut answer = within(ANSWER, "a head", staying.ask(&turn(BODY))).await.expect("an answer");
    let budget = Budget::begin(AT_ONCE);
    drop(leaving);
    let (when, code) = upstream.resets(1).await[0];
    budget.held_at(when, "the end upstream");
    assert_eq!(code, CANCEL);
    // The first permit is used up by the stream that was reset.
    upstream.release();
    upstream.release();
    within(ANSWER, "the rest", staying.finish(&mut answer)).await;
    assert!(answer.whole && answer.body.ends_with(COMPLETED.as_bytes()));
    assert_eq!(ask(cluster.address(), &turn(BODY)).await.status, 200);
    assert_eq!((upstream.connections(), upstream.resets(1).await.len()), (1, 1));
}

#[tokio::test]
async fn silent_upstream_is_left_in_time_before_the_head_and_after() {
    let begun = vec![Part::Head(200, STREAM, None), Part::Data(CREATED.to_vec()), Part::Hold];
    let upstream = Upstream::start(vec![vec![Part::Hold], begun, served()]).await;
    let options = "idle_timeout = \"3s\"\nfirst_byte_timeout = \"3s\"\n";
    let cluster = over_http2(two(), &upstream, options).start().await;
    let silent = ask(cluster.address(), &turn(BODY)).await;
    assert_eq!((silent.status, silent.code().as_str()), (504, "upstream_timeout"));
    let stalled = ask(cluster.address(), &turn(BODY)).await;
    assert_eq!((stalled.status, stalled.whole), (200, false));
    assert_eq!(stalled.body, CREATED);
    upstream.resets(2).await;
    assert_eq!(ask(cluster.address(), &turn(BODY)).await.status, 200);
    assert_eq!(upstream.connections(), 1, "the connection is well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encoded_error_is_understood() {
    for coding in ["gzip", "zstd"] {
        understands_encoded_error(two().upstream("http2 = true\n"), coding).await;
    }
}

#[tokio::test]
async fn stored_response_is_read_and_deleted_at_its_key() {
    let keys = [siblings("org-a", 2), siblings("org-b", 2)].concat();
    let cluster = two().keys(keys).upstream("http2 = true\n").start().await;
    let body = json!({ "model": "gpt-5.4", "input": "x" }).to_string();
    let served = ask(cluster.address(), &turn(&body)).await;
    let id = served.json()["id"].as_str().expect("an id").to_owned();
    let key = cluster.turns().await.pop().expect("it was sent").key;
    for (number, method) in ["GET", "DELETE"].into_iter().enumerate() {
        let request = Request::new(method, &format!("/responses/{id}")).bearer(ALICE);
        let replica = &cluster.replicas[number];
        assert_eq!(ask(replica.address(), &request).await.status, 200, "{method}");
        let call = cluster.upstream().calls().await.pop().expect("it went upstream");
        assert_eq!((call.key.as_str(), call.method_path.starts_with(method)), (&*key, true));
    }
}

/// A WebSocket needs a connection of its own, over HTTP/1.1. Its session stays on its key.
#[tokio::test]
async fn websocket_is_served_beside_http2() {
    let keys = [siblings("org-a", 2), siblings("org-b", 2)].concat();
    let cluster = two().keys(keys).upstream("http2 = true\n").start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("over HTTP").await.served();
    let mut talk = codex.by_websocket();
    talk.turn("over a WebSocket").await;
    let mut chat = Chat::new(cluster.address(), ALICE);
    chat.turn("a question").await.served();
    let turns = cluster.turns().await;
    let of = |transport: &str| {
        turns.iter().filter(|turn| turn.transport == transport).collect::<Vec<_>>()
    };
    let (http, websocket) = (of("http"), of("websocket"));
    assert!(http.len() == 2 && !websocket.is_empty(), "{turns:?}");
    assert!(websocket.iter().all(|turn| turn.key == http[0].key), "{turns:?}");
    assert!(websocket[0].cached_tokens > 0, "it went on from the first");
}

#[tokio::test]
async fn turn_is_limited_and_waited_for_alike() {
    let upstream =
        Upstream::start(vec![vec![Part::Head(429, JSON, None), Part::Last(limit("1s"))], served()])
            .await;
    let cluster = over_http2(two(), &upstream, "").start().await;
    let budget = Budget::begin(Duration::from_secs(20));
    assert_eq!(ask(cluster.address(), &turn(BODY)).await.status, 200);
    budget.holds("a short limit");
    let bodies = upstream.bodies();
    assert!(bodies.len() == 2 && bodies.iter().all(|body| body == BODY.as_bytes()));
}

fn limit(time: &str) -> Vec<u8> {
    let message = format!(
        "Rate limit reached for gpt-5.4 on tokens per min (TPM). Please try again in {time}."
    );
    let error =
        json!({ "error": { "message": message, "type": "tokens", "code": "rate_limit_exceeded" } });
    error.to_string().into_bytes()
}
