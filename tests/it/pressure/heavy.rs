//! Long bodies, also compressed ones, do not delay the turns of others.

use std::io::Write;

use super::paced::{holds_up_nobody, on_one_thread};
use crate::world::cluster::{ALICE, Cluster};
use crate::world::recorder::{Recorder, Step, answer, completed};
use crate::world::waiting::ms;
use crate::world::wire::{Request, ask};

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

/// An answer that decodes to gigabytes does not pass, and takes hardly any time or memory.
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
        assert_eq!((told.status, told.whole), (502, true), "nothing passes that cannot be read");
        let grown = cluster.replica().process().peak().saturating_sub(before);
        assert!(grown < 24 << 20, "{grown} bytes more");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_body_holds_up_nobody() {
    hold_up_nobody(foldable(60 << 20), |body| Request::turn(ALICE, body), "").await;
}

/// The same holds for a chat body that is translated for its upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_chat_body_holds_up_nobody() {
    let text = String::from_utf8(foldable(60 << 20)).expect("JSON is UTF-8");
    let text = text.replace(r#""input":""#, r#""messages":[{"role":"user","content":""#);
    let text = text.trim_end_matches('}').to_owned() + "}]}";
    let chat = |body| Request::turn(ALICE, body).target("/chat/completions");
    hold_up_nobody(text.into_bytes(), chat, "speaks = [\"responses\"]").await;
}

/// Checks that another client's events come in time while compressed bodies of this `text` are
/// served.
async fn hold_up_nobody(text: Vec<u8>, request: impl Fn(Vec<u8>) -> Request, options: &str) {
    let (upstream, cluster) = on_one_thread(completed(), options).await;
    let folded = zstd::encode_all(&text[..], 3).expect("memory is enough");
    assert!(folded.len() > text.len() / 190, "{} of {}", folded.len(), text.len());
    holds_up_nobody(&upstream, &cluster, async || {
        let request = request(folded.clone()).header("content-encoding", "zstd");
        assert_eq!(ask(cluster.address(), &request).await.status, 200);
    })
    .await;
}
