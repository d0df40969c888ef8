//! Tests what one client may use: bytes of one body and of all bodies, time for its headers, memory
//! for a stream that it ignores.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::world::cluster::{ALICE, Cluster};
use crate::world::codex::sha256;
use crate::world::recorder::{Recorder, Step, chunk, completed, stream_head};
use crate::world::waiting::{ANSWER, SOON, eventually, ms, within};
use crate::world::wire::{Connection, Request, ask};

/// A JSON body of exactly `size` bytes.
fn body(size: usize) -> Vec<u8> {
    let frame = r#"{"model":"gpt-5.4","prompt_cache_key":"s","stream":true,"input":""}"#;
    let (head, tail) = frame.split_at(frame.len() - 2);
    [head.as_bytes(), &vec![b'a'; size - frame.len()], tail.as_bytes()].concat()
}

#[tokio::test]
async fn body_of_64_mib_passes_and_one_more_byte_does_not() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let whole = body(64 << 20);
    let answer = ask(cluster.address(), &Request::turn(ALICE, whole.clone())).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(sha256(&upstream.only().body), sha256(&whole));
    let answer = ask(cluster.address(), &Request::turn(ALICE, body((64 << 20) + 1))).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "request_too_large"));
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn body_over_the_limit_is_refused_however_it_is_framed() {
    let upstream = Recorder::answering(completed()).await;
    let cluster =
        Cluster::new().recorded_by(&upstream).server("max_body", "\"1MiB\"").start().await;
    let large = body((1 << 20) + 1);
    let chunks = large.chunks(10_000).map(<[u8]>::to_vec).collect();
    for request in [Request::turn(ALICE, large), Request::turn(ALICE, "").chunks(chunks)] {
        let answer = ask(cluster.address(), &request).await;
        assert_eq!((answer.status, answer.code().as_str()), (413, "request_too_large"));
    }
    assert!(upstream.seen().is_empty());
    assert_eq!(
        ask(cluster.address(), &Request::turn(ALICE, body(1 << 20))).await.status,
        200,
        "the limit itself passes"
    );
    // A length that is only announced is refused, too.
    let mut connection = Connection::open(cluster.address()).await;
    let head = format!(
        "POST /responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ALICE}\r\ncontent-length: 99999999999\r\n\r\n"
    );
    connection.send_raw(head.as_bytes()).await.expect("the head is taken");
    assert_eq!(
        within(SOON, "an answer to the head alone", connection.head())
            .await
            .expect("an answer")
            .status,
        413
    );
}

#[tokio::test]
async fn compressed_bomb_is_not_unpacked() {
    let upstream = Recorder::answering(completed()).await;
    let cluster =
        Cluster::new().recorded_by(&upstream).server("max_body", "\"1MiB\"").start().await;
    let bomb = zstd::encode_all(body(200 << 20).as_slice(), 1).expect("memory is enough");
    assert!(bomb.len() < 1 << 20);
    let before = cluster.replica().process().peak();
    let answer =
        ask(cluster.address(), &Request::turn(ALICE, bomb).header("content-encoding", "zstd"))
            .await;
    assert!(matches!(answer.status, 200 | 400 | 413), "{}", answer.text());
    let grown = cluster.replica().process().peak().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
}

/// Many small bodies count with their decoded size. The decoded text is not kept while the upstream
/// works.
#[tokio::test]
async fn compressed_bodies_share_the_memory_for_bodies() {
    let mut script = vec![Step::Hold];
    script.extend(completed());
    let upstream = Recorder::answering(script).await;
    let cluster = Cluster::new()
        .recorded_by(&upstream)
        .server("replay_total", "\"16MiB\"")
        .server("max_body", "\"16MiB\"")
        .start()
        .await;
    let before = cluster.replica().process().peak();
    let folded = zstd::encode_all(body(7 << 20).as_slice(), 1).expect("memory is enough");
    let address = cluster.address();
    let turns: Vec<_> = (0..20)
        .map(|_| {
            let request = Request::turn(ALICE, folded.clone()).header("content-encoding", "zstd");
            tokio::spawn(async move { ask(address, &request).await.status })
        })
        .collect();
    upstream.reached(1).await;
    upstream.release(turns.len());
    for turn in turns {
        let status = turn.await.expect("the client runs");
        assert!(matches!(status, 200 | 503), "{status}");
    }
    let grown = cluster.replica().process().peak().saturating_sub(before);
    assert!(grown < 48 << 20, "{} MiB more", grown >> 20);
}

#[tokio::test]
async fn bodies_in_flight_have_a_limit_together() {
    let mut script = vec![Step::Hold];
    script.extend(completed());
    let upstream = Recorder::answering(script).await;
    let cluster = Cluster::new()
        .recorded_by(&upstream)
        .server("replay_total", "\"1MiB\"")
        .server("max_body", "\"1MiB\"")
        .start()
        .await;
    let address = cluster.address();
    let turn = || Request::turn(ALICE, body(700 << 10));
    let first = tokio::spawn(async move { ask(address, &turn()).await });
    upstream.reached(1).await;
    let refused = ask(address, &turn()).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (503, "no_key_available"),
        "{}",
        refused.text()
    );
    assert!((1..=60).contains(&refused.retry_after()));
    upstream.release(2);
    assert_eq!(first.await.expect("the client runs").status, 200);
    // The memory of the first body is free again, so another body fits.
    eventually(SOON, "room again", async || {
        (ask(address, &turn()).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn headers_that_do_not_come_end_the_connection() {
    let cluster = Cluster::new().server("header_timeout", "\"1s\"").start().await;
    for start in ["", "PR", "POST /responses HTTP/1.1\r\nhost: x\r\nx-slow: "] {
        let began = Instant::now();
        let mut connection = Connection::open(cluster.address()).await;
        connection.send_raw(start.as_bytes()).await.expect("the connection is open");
        within(Duration::from_secs(5), &format!("the end after {start:?}"), connection.closed())
            .await;
        assert!(began.elapsed() > ms(900), "{start:?} had its time: {:?}", began.elapsed());
    }
}

/// A load balancer keeps connections open, so the time for headers does not run between requests.
#[tokio::test]
async fn connection_that_has_asked_before_may_be_idle() {
    let upstream = Recorder::answering(completed()).await;
    let cluster =
        Cluster::new().recorded_by(&upstream).server("header_timeout", "\"1s\"").start().await;
    let mut connection = Connection::open(cluster.address()).await;
    for pause in [ms(0), ms(2_500)] {
        sleep(pause).await;
        let turn = Request::turn(ALICE, body(100));
        let mut answer =
            within(ANSWER, "an answer", connection.ask(&turn)).await.expect("it is open");
        connection.finish(&mut answer).await;
        assert_eq!((answer.status, answer.whole), (200, true));
    }
}

#[tokio::test]
async fn headers_that_drip_end_the_connection() {
    let cluster = Cluster::new().server("header_timeout", "\"1s\"").start().await;
    let mut connection = Connection::open(cluster.address()).await;
    within(Duration::from_secs(6), "the end of a dripping peer", async {
        // A write fails once the other side has answered with a reset.
        while connection.send_raw(b"P").await.is_ok() {
            sleep(ms(100)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn reader_that_does_not_read_costs_at_most_a_mebibyte() {
    const READERS: u64 = 40;
    let event = format!(
        "event: response.output_text.delta\ndata: {{\"delta\":\"{}\"}}\n\n",
        "x".repeat(4_000)
    );
    let upstream = Recorder::answering(vec![
        Step::Send(stream_head("")),
        Step::Flood(chunk(event.as_bytes())),
    ])
    .await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let before = cluster.replica().process().resident();
    let mut readers = Vec::new();
    for session in 0..READERS {
        let mut reader = Connection::open(cluster.address()).await;
        let body = r#"{"model":"gpt-5.4","stream":true,"input":"hello"}"#;
        let request = Request::turn(ALICE, body).header("session-id", &session.to_string());
        assert_eq!(
            within(ANSWER, "a head", reader.ask(&request)).await.expect("an answer").status,
            200
        );
        readers.push(reader);
    }
    // All readers hold the gateway back. It could read bytes from the upstream for each of them,
    // but waits.
    upstream.rests(READERS as usize, cluster.replica().process()).await;
    assert!(upstream.repeats() > READERS);
    let grown = cluster.replica().process().resident().saturating_sub(before);
    assert!(grown < READERS << 20, "{} KiB a reader", grown / READERS / 1024);
    // The turns end with their readers.
    drop(readers);
    cluster.replica().shows("warmkey_active_turns", 0.0).await;
}
