//! Long bodies, compressed ones among them, do not hold up the turns of others.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::world::cluster::{ALICE, Cluster};
use crate::world::recorder::{Recorder, Step, answer, completed};
use crate::world::waiting::{SOON, eventually, found, ms};
use crate::world::wire::{Connection, Request, ask};

const BODY: &str = r#"{"model":"gpt-5.4","prompt_cache_key":"s","input":"hello"}"#;

/// JSON of about this size that zstd compresses about a hundred times.
pub fn foldable(size: usize) -> Vec<u8> {
    let mut text = br#"{"model":"gpt-5.4","prompt_cache_key":"s","input":""#.to_vec();
    let mut seed = 1_u64;
    while text.len() < size {
        let mut line = Vec::new();
        for _ in 0..24 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let _ = write!(line, "{:08x}", seed >> 32);
        }
        for _ in 0..60 {
            text.extend(&line);
        }
    }
    text.extend(br#""}"#);
    text
}

#[tokio::test]
async fn body_that_unfolds_too_far_is_refused() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let bomb = zstd::encode_all(&vec![b' '; 63 << 20][..], 3).expect("memory is enough");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&vec![b' '; 63 << 20]).expect("memory is enough");
    let before = cluster.replica().process().peak();
    for (encoding, body) in [("zstd", bomb), ("gzip", gzip.finish().expect("memory is enough"))] {
        assert!(body.len() < 100 << 10, "{}", body.len());
        let request = Request::turn(ALICE, body).header("content-encoding", encoding);
        let answer = ask(cluster.address(), &request).await;
        assert_eq!((answer.status, answer.code().as_str()), (413, "request_too_large"));
        assert!(answer.text().contains("200 times"), "{}", answer.text());
    }
    let grown = cluster.replica().process().peak().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
}

/// How long short requests take, one after the other, until `is_over`. The slowest tenth's median.
pub async fn slowest(address: std::net::SocketAddr, is_over: &AtomicBool) -> Duration {
    slowest_of(address, &Request::new("GET", "/models").bearer(ALICE), is_over).await
}

/// As [`slowest`], for this request.
pub async fn slowest_of(
    address: std::net::SocketAddr,
    request: &Request,
    is_over: &AtomicBool,
) -> Duration {
    let (mut laps, mut connection) = (Vec::new(), Connection::open(address).await);
    while !is_over.load(Ordering::Relaxed) {
        let began = Instant::now();
        let mut answer = connection.ask(request).await.expect("an answer");
        connection.finish(&mut answer).await;
        laps.push(began.elapsed());
        sleep(ms(2)).await;
    }
    laps.sort();
    laps[laps.len() - laps.len() / 20 - 1]
}

/// An answer that decodes to gigabytes passes as it is, and is not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answer_that_unfolds_too_far_holds_up_nobody() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..512 {
        gzip.write_all(&vec![b' '; 2 << 20]).expect("memory is enough");
    }
    let gzip = gzip.finish().expect("memory is enough");
    let zstd = zstd::encode_all(&vec![b' '; 1 << 30][..], 3).expect("memory is enough");
    for (coding, bomb) in [("gzip", gzip), ("zstd", zstd)] {
        let head = format!("content-type: application/json\r\ncontent-encoding: {coding}\r\n");
        let steps = vec![Step::Send(answer("200 OK", &head, &bomb))];
        let upstream = Recorder::answering(steps).await;
        let cluster = Cluster::new().recorded_by(&upstream).start().await;
        let process = cluster.replica().process();
        let (before, worked) = (process.peak(), process.worked());
        let request = Request::turn(ALICE, BODY).header("accept-encoding", coding);
        let told = ask(cluster.address(), &request).await;
        let worked = process.worked() - worked;
        assert!(worked < ms(250), "{worked:?} of a core for {coding}");
        assert!(told.status == 200 && told.whole && told.body == bomb, "as it came");
        let grown = cluster.replica().process().peak().saturating_sub(before);
        assert!(grown < 24 << 20, "{grown} bytes more");
        let missing = "warmkey_usage_missing_total";
        eventually(SOON, "its usage is missing", async || {
            (cluster.replica().metrics().await.sum(missing) > 0.0).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_body_holds_up_nobody() {
    hold_up_nobody(foldable(60 << 20), |body| Request::turn(ALICE, body), "").await;
}

/// The same for a chat body, which an upstream without chat gets translated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_chat_body_holds_up_nobody() {
    let text = String::from_utf8(foldable(60 << 20)).expect("JSON is UTF-8");
    let text = text.replace(r#""input":""#, r#""messages":[{"role":"user","content":""#);
    let text = text.trim_end_matches('}').to_owned() + "}]}";
    let chat = |body| Request::turn(ALICE, body).target("/chat/completions");
    hold_up_nobody(text.into_bytes(), chat, "speaks = [\"responses\"]").await;
}

/// Checks that no other client waits for the thread of turns while folded bodies of this `text`
/// are served.
async fn hold_up_nobody(text: Vec<u8>, request: impl Fn(Vec<u8>) -> Request, options: &str) {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new()
        .recorded_by(&upstream)
        .upstream(options)
        .shell("export TOKIO_WORKER_THREADS=1")
        .start()
        .await;
    let address = cluster.address();
    let folded = zstd::encode_all(&text[..], 3).expect("memory is enough");
    assert!(folded.len() > text.len() / 190, "{} of {}", folded.len(), text.len());
    // A machine that compiles meanwhile has slow moments of its own.
    found("a run in which nobody waits", async || {
        let is_over = Arc::new(AtomicBool::new(false));
        let others = tokio::spawn({
            let is_over = Arc::clone(&is_over);
            async move { slowest(address, &is_over).await }
        });
        for _ in 0..6 {
            let request = request(folded.clone()).header("content-encoding", "zstd");
            assert_eq!(ask(address, &request).await.status, 200);
        }
        is_over.store(true, Ordering::Relaxed);
        let slowest = others.await.expect("the client runs");
        (slowest < ms(50)).then_some(())
    })
    .await;
}
