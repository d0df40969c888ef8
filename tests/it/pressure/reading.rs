//! The memory for bodies counts what is held only to read an answer. If there is no memory for
//! that, the answer passes unread.

use std::io::Write;

use tokio::task::JoinHandle;

use crate::world::cluster::{ALICE, BOB, Cluster};
use crate::world::recorder::{COMPLETED, Recorder, Step, chunk, stream_head};
use crate::world::waiting::{ANSWER, within};
use crate::world::wire::{Answer, Connection, Request, ask};

const MIB: usize = 1 << 20;
const MEMORY: &str = "warmkey_body_memory_bytes";
const MISSING: &str = "warmkey_usage_missing_total";
const BODY: &str = r#"{"model":"gpt-5.4","stream":true,"store":false,"input":"hello"}"#;
const CREATED: &[u8] = b"event: response.created\ndata: {\"type\":\"response.created\"}\n\n";

/// The event that ends an answer, with about half a megabyte of an answer's text.
fn long_end() -> String {
    let text = "x".repeat(450_000);
    COMPLETED.replace("\"output\":[]", &format!("\"output\":[],\"text\":\"{text}\""))
}

/// Sends a turn in a task of its own.
fn asks(cluster: &crate::world::cluster::Running, request: Request) -> JoinHandle<Answer> {
    let address = cluster.address();
    tokio::spawn(async move { ask(address, &request).await })
}

#[tokio::test]
async fn answer_without_memory_to_be_read_passes_unread() {
    let upstream = Recorder::start(|_| {
        let mut steps = vec![Step::Send(stream_head("")), Step::Send(chunk(CREATED)), Step::Hold];
        steps.extend(long_end().as_bytes().chunks(50_000).map(|part| Step::Send(chunk(part))));
        steps.push(Step::Send(b"0\r\n\r\n".to_vec()));
        steps
    })
    .await;
    let cluster = Cluster::new()
        .recorded_by(&upstream)
        .server("replay_total", "\"1MiB\"")
        .server("max_body", "\"1MiB\"")
        .start()
        .await;
    let expected = [CREATED, long_end().as_bytes()].concat();
    for is_full in [false, true] {
        let before = cluster.replica().metrics().await.get(MISSING);
        let turn = asks(&cluster, Request::turn(ALICE, BODY));
        upstream.reached(1 + usize::from(is_full)).await;
        // The body of another client, which never ends, leaves a quarter for answers.
        let mut other = Connection::open(cluster.address()).await;
        if is_full {
            let head = format!(
                "POST /responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {BOB}\r\ncontent-length: {MIB}\r\n\r\n"
            );
            other.send_raw(head.as_bytes()).await.expect("it is taken");
            other.send_raw(&vec![b' '; MIB - 20_000]).await.expect("it is taken");
            cluster.replica().shows_at_least(MEMORY, (MIB - 40_000) as f64).await;
        }
        upstream.release(1);
        let told = within(ANSWER, "an answer", turn).await.expect("the client runs");
        assert!(told.status == 200 && told.whole && told.body == expected, "as it came");
        let missing = f64::from(u8::from(is_full));
        cluster.replica().shows(MISSING, before + missing).await;
        drop(other);
        cluster.replica().shows(MEMORY, 0.0).await;
    }
}

#[tokio::test]
async fn window_of_an_encoded_answer_counts_in_the_memory_for_bodies() {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).expect("there is memory");
    encoder.window_log(23).expect("a valid window");
    encoder.write_all(CREATED).expect("it is taken");
    encoder.flush().expect("it is taken");
    let begun = encoder.get_ref().clone();
    encoder.write_all(COMPLETED.as_bytes()).expect("it is taken");
    let whole = encoder.finish().expect("it is taken");
    let rest = whole[begun.len()..].to_vec();
    let steps = vec![
        Step::Send(stream_head("content-encoding: zstd\r\n")),
        Step::Send(chunk(&begun)),
        Step::Hold,
        Step::Send(chunk(&rest)),
        Step::Send(b"0\r\n\r\n".to_vec()),
    ];
    let upstream = Recorder::answering(steps).await;
    let cluster =
        Cluster::new().recorded_by(&upstream).server("replay_total", "\"32MiB\"").start().await;
    let request = || Request::turn(ALICE, BODY).header("accept-encoding", "zstd");
    // The windows of four answers fit, with a quarter more memory for answers. A fifth one does
    // not.
    let turns: Vec<_> = (0..6).map(|_| asks(&cluster, request())).collect();
    cluster.replica().shows_at_least(MEMORY, (32 * MIB) as f64).await;
    upstream.reached(6).await;
    let held = cluster.replica().metrics().await.get(MEMORY);
    assert!(held <= (40 * MIB) as f64, "{held}");
    upstream.release(6);
    for turn in turns {
        let told = within(ANSWER, "an answer", turn).await.expect("the client runs");
        assert!(told.status == 200 && told.whole && told.body == whole, "as it came");
    }
    let metrics = cluster.replica().metrics().await;
    let (missing, read) = (metrics.get(MISSING), metrics.sum("warmkey_output_tokens_total"));
    assert!(missing >= 1.0 && missing + read == 6.0, "{missing} are missing, {read} are read");
    cluster.replica().shows(MEMORY, 0.0).await;
}
