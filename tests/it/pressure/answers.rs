//! Long answers and long messages of upstreams do not delay the turns of others, and the memory
//! counts what the gateway holds of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::paced::{Median, holds_up_nobody, on_one_thread, worst};
use crate::world::cluster::{ALICE, Cluster};
use crate::world::lateness::Lateness;
use crate::world::recorder::{Recorder, Step, answer, chunk, stream_head};
use crate::world::socket::{Upstream, create, created, session};
use crate::world::waiting::{ANSWER, Budget, SOON, ms, within};
use crate::world::wire::{Request, ask};

const MIB: usize = 1 << 20;
const MEMORY: &str = "warmkey_body_memory_bytes";
const CHAT: &str = r#"{"model":"gpt-5.4","messages":[{"role":"user","content":"hello"}]}"#;

/// A response of about this size that takes long to read, and whose client receives little of it.
pub fn dense(size: usize) -> String {
    let part = r#"{"type":"summary_text","text":"a"},"#;
    let parts = part.repeat(size / part.len());
    format!(
        r#"{{"id":"resp_1","object":"response","created_at":1,"model":"gpt-5.4","status":"completed","error":null,"output":[{{"type":"reasoning","id":"rs_1","summary":[{}]}},{{"type":"message","role":"assistant","content":[{{"type":"output_text","text":"hi","annotations":[]}}]}}],"usage":{{"input_tokens":10,"output_tokens":1,"total_tokens":11}}}}"#,
        parts.trim_end_matches(',')
    )
}

fn chat(more: &str) -> Request {
    let body = CHAT.replace("\"messages\"", &format!("{more}\"messages\""));
    Request::turn(ALICE, body).target("/chat/completions")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_answer_to_a_chat_client_holds_up_nobody() {
    let document = dense(40 * MIB);
    let json = "content-type: application/json\r\n";
    let steps = vec![Step::Send(answer("200 OK", json, document.as_bytes()))];
    let (upstream, cluster) = on_one_thread(steps, "speaks = [\"responses\"]").await;
    holds_up_nobody(&upstream, &cluster, async || {
        let told = ask(cluster.address(), &chat("")).await;
        assert_eq!(told.status, 200, "{}", told.text());
        assert_eq!(told.json()["choices"][0]["message"]["content"], "hi");
        assert_eq!(told.json()["usage"]["prompt_tokens"], 10);
    })
    .await;
    cluster.replica().shows(MEMORY, 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_event_of_a_chat_stream_holds_up_nobody() {
    let event = format!(
        "event: response.completed\ndata: {{\"type\":\"response.completed\",\"response\":{}}}\n\n",
        dense(40 * MIB)
    );
    let mut steps = vec![Step::Send(stream_head(""))];
    steps.extend(event.as_bytes().chunks(MIB).map(|part| Step::Send(chunk(part))));
    steps.push(Step::Send(b"0\r\n\r\n".to_vec()));
    let (upstream, cluster) = on_one_thread(steps, "speaks = [\"responses\"]").await;
    holds_up_nobody(&upstream, &cluster, async || {
        let told = ask(cluster.address(), &chat("\"stream\":true,")).await;
        let text = told.text();
        assert!(told.whole && text.ends_with("data: [DONE]\n\n"), "{text}");
        assert!(text.contains(r#""content":"hi""#), "{text}");
    })
    .await;
    cluster.replica().shows(MEMORY, 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_message_of_an_upstream_holds_up_nobody() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new()
        .upstream_at(&upstream.url())
        .shell("export TOKIO_WORKER_THREADS=1")
        .start()
        .await;
    let accepted =
        async |name: &str| tokio::join!(session(cluster.address(), ALICE, name), upstream.accept());
    let (mut heavy, mut there) = accepted("heavy").await;
    let (mut other, mut paced) = accepted("paced").await;
    let message = format!(r#"{{"type":"response.completed","response":{}}}"#, dense(30 * MIB));
    let (mut median, lateness) = (Median::default(), Lateness::watch());
    loop {
        let from = std::time::Instant::now();
        let is_over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&is_over);
        let delta = r#"{"type":"response.output_text.delta","delta":"x"}"#;
        // The others run in a task of their own, so that the test's own work on the long message
        // does not delay them.
        let others = tokio::spawn(async move {
            let (mut last, mut late) = (Instant::now(), Vec::new());
            while !ended.load(Ordering::Relaxed) {
                tokio::time::sleep(ms(20)).await;
                let sent = Instant::now();
                paced.send(delta).await;
                assert_eq!(other.text().await, delta);
                late.push(last.max(sent).elapsed());
                last = Instant::now();
            }
            (worst(&late), other, paced)
        });
        let mut took = Duration::MAX;
        for _ in 0..3 {
            let began = Instant::now();
            heavy.send(&create(None)).await;
            there.text().await;
            there.send(&created("resp_1")).await;
            heavy.text().await;
            let (came, ()) = tokio::join!(heavy.text(), there.send(&message));
            assert!(came == message, "unchanged");
            took = took.min(began.elapsed());
        }
        is_over.store(true, Ordering::Relaxed);
        let late;
        (late, other, paced) = others.await.expect("the other client runs");
        if median.note(took, late, lateness.longest(from)) {
            break;
        }
    }
    cluster.replica().shows(MEMORY, 0.0).await;
}

/// If it were kept as a list, a list of short elements would take many times the memory of its
/// text.
#[tokio::test]
async fn answer_of_many_short_elements_takes_no_more_than_is_counted() {
    let zeros = "0,".repeat(12 * MIB);
    let document = dense(0).replace("\"output\":[", &format!("\"output\":[{zeros}"));
    assert!(document.len() > 24 * MIB);
    let json = "content-type: application/json\r\n";
    let steps = vec![Step::Send(answer("200 OK", json, document.as_bytes()))];
    let upstream = Recorder::answering(steps).await;
    let cluster =
        Cluster::new().recorded_by(&upstream).upstream("speaks = [\"responses\"]").start().await;
    let before = cluster.replica().process().resident();
    let told = ask(cluster.address(), &chat("")).await;
    assert_eq!(told.json()["choices"][0]["message"]["content"], "hi", "{}", told.text());
    let grown = cluster.replica().process().peak().saturating_sub(before) >> 20;
    // Three times the length of the text is counted.
    assert!(grown < 24 * 4, "{grown} MiB more");
    cluster.replica().shows(MEMORY, 0.0).await;
}

/// An answer that is translated as a whole counts while it arrives, and waits for memory.
#[tokio::test]
async fn collected_answer_counts_in_the_memory_for_bodies() {
    let document = dense(6 * MIB);
    let (first, rest) = document.split_at(3 * MIB);
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{first}",
        document.len()
    );
    let steps = vec![Step::Send(head.into_bytes()), Step::Hold, Step::Send(rest.into())];
    let upstream = Recorder::answering(steps).await;
    let cluster = Cluster::new()
        .recorded_by(&upstream)
        .upstream("speaks = [\"responses\"]")
        .server("replay_total", "\"20MiB\"")
        .start()
        .await;
    let address = cluster.address();
    let one = tokio::spawn(async move { ask(address, &chat("")).await });
    cluster.replica().shows_at_least(MEMORY, (3 * MIB) as f64).await;
    let two = tokio::spawn(async move { ask(address, &chat("")).await });
    cluster.replica().shows_at_least(MEMORY, (6 * MIB) as f64).await;
    // The first answer has memory for its text and its translation. After it, the second one has
    // the same memory.
    upstream.release(2);
    for told in [one, two] {
        let told = within(ANSWER, "an answer", told).await.expect("the client runs");
        assert_eq!(told.status, 200, "{}", told.text());
    }
    cluster.replica().shows(MEMORY, 0.0).await;
    let peak = cluster.replica().process().peak() >> 20;
    assert!(peak < 120, "{peak} MiB");
}

/// An answer that finds no memory is refused in time, with an error that says what its client can
/// do.
#[tokio::test]
async fn collected_answer_without_memory_is_refused() {
    let document = dense(6 * MIB);
    let json = "content-type: application/json\r\n";
    let steps = vec![Step::Send(answer("200 OK", json, document.as_bytes()))];
    let upstream = Recorder::answering(steps).await;
    let cluster = Cluster::new()
        .recorded_by(&upstream)
        .upstream("speaks = [\"responses\"]")
        .server("replay_total", "\"4MiB\"")
        .server("max_body", "\"1MiB\"")
        .start()
        .await;
    let budget = Budget::begin(Duration::from_secs(20));
    let told = ask(cluster.address(), &chat("")).await;
    budget.holds("an answer that never fits waits for nothing");
    assert_eq!((told.status, told.code().as_str()), (503, "upstream_interrupted"));
    assert!(told.header("retry-after").is_none() && told.text().contains("replay_total"));
    cluster.replica().shows(MEMORY, 0.0).await;
    assert_eq!(upstream.seen().len(), 1, "it is billed once");
}

/// Returns a frame of a server with this first byte and length, of which only `payload` comes.
fn begun(first: u8, length: usize, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, 127];
    frame.extend((length as u64).to_be_bytes());
    frame.extend(payload);
    frame
}

/// Pings keep an upstream's connection alive, but not a message that never ends.
#[tokio::test]
async fn message_of_an_upstream_that_never_ends_has_a_deadline() {
    let upstream = Upstream::start().await;
    let cluster =
        Cluster::new().upstream_at(&upstream.url()).server("ping", "\"1s\"").start().await;
    let (mut client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    let turn = create(None).replace("\"model\"", "\"stream_id\":\"lane\",\"model\"");
    client.send(&turn).await;
    there.text().await;
    let began = Instant::now();
    there.0.get_mut().write_all(&begun(0x01, 8, b"{\"type\":")).await.expect("it is taken");
    let (error, _) = tokio::join!(client.json(), async {
        // Meanwhile pings are answered, after the first frame of the message.
        let pong = [0x8a, 0];
        while began.elapsed() < Duration::from_secs(45) {
            tokio::time::sleep(ms(500)).await;
            if there.0.get_mut().write_all(&pong).await.is_err() {
                return;
            }
        }
    });
    assert_eq!(
        (&error["status"], &error["error"]["code"], &error["stream_id"]),
        (&503.into(), &"upstream_interrupted".into(), &"lane".into())
    );
    let took = began.elapsed().as_secs();
    assert!((29..45).contains(&took), "{took} s");
    client.closed().await;
    cluster.replica().shows(MEMORY, 0.0).await;
}

/// An unfinished message of an upstream counts in the memory. If it needs more than answers may
/// take, its turn ends.
#[tokio::test]
async fn unfinished_message_of_an_upstream_counts_in_the_memory_for_bodies() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new()
        .upstream_at(&upstream.url())
        .server("replay_total", "\"16MiB\"")
        .server("max_body", "\"1MiB\"")
        .start()
        .await;
    let before = cluster.replica().process().resident();
    let (mut client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    let turn = create(None).replace("\"model\"", "\"stream_id\":\"lane\",\"model\"");
    client.send(&turn).await;
    there.text().await;
    let part = begun(0x01, 64 * MIB, &vec![b'x'; 15 * MIB]);
    there.0.get_mut().write_all(&part).await.expect("it is taken");
    cluster.replica().shows(MEMORY, (15 * MIB) as f64).await;
    // Beyond the limit, a body finds no memory, but the running answer does.
    there.0.get_mut().write_all(&vec![b'x'; 3 * MIB]).await.expect("it is taken");
    cluster.replica().shows(MEMORY, (18 * MIB) as f64).await;
    assert_eq!(ask(cluster.address(), &Request::turn(ALICE, "{}")).await.status, 503);
    let _ = there.0.get_mut().write_all(&vec![b'x'; 8 * MIB]).await;
    let error = within(SOON, "an error", client.json()).await;
    assert_eq!(
        (&error["status"], &error["error"]["code"], &error["stream_id"]),
        (&503.into(), &"no_key_available".into(), &"lane".into())
    );
    assert_eq!(client.closed().await, 1013);
    cluster.replica().shows(MEMORY, 0.0).await;
    let grown = cluster.replica().process().peak().saturating_sub(before) >> 20;
    assert!(grown < 40, "{grown} MiB more");
}
