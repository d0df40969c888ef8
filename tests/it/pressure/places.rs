//! Tests the places for long texts: an answer that waits for memory holds none.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::answers::dense;
use crate::world::cluster::{ALICE, Cluster};
use crate::world::recorder::answer;
use crate::world::socket::{Upstream, create, session, turn};
use crate::world::waiting::within;
use crate::world::wire::{Connection, Request, ask};

const MIB: usize = 1 << 20;
const MEMORY: &str = "warmkey_body_memory_bytes";
const CHAT: &str = r#"{"model":"gpt-5.4","messages":[{"role":"user","content":"hello"}]}"#;

/// Lets an answer of the client wait for memory for thirty seconds. With the memory, the answer
/// would take the client's one place.
async fn wait_for_memory(
    cluster: &crate::world::cluster::Running,
    upstream: &Upstream,
) -> JoinHandle<u16> {
    let (address, request) =
        (cluster.address(), Request::turn(ALICE, CHAT).target("/chat/completions"));
    let asking = tokio::spawn(async move { ask(address, &request).await.status });
    let mut asked = upstream.asked().await;
    let document = dense(5 * MIB);
    let json = "content-type: application/json\r\n";
    let _ = timeout(Duration::from_millis(50), asked.stream.read(&mut [0; 4096])).await;
    let whole = answer("200 OK", json, document.as_bytes());
    asked.stream.write_all(&whole).await.expect("the answer is taken");
    asking
}

#[tokio::test]
async fn message_passes_while_answers_of_its_client_wait_for_memory() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new()
        .upstream_at(&upstream.url())
        .upstream("speaks = [\"responses\", \"websocket\"]")
        .server("replay_total", "\"16MiB\"")
        .server("max_body", "\"8MiB\"")
        .start()
        .await;
    let (mut client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    // This body never ends. The memory that it leaves is too little to translate an answer.
    let mut other = Connection::open(cluster.address()).await;
    let head = format!(
        "POST /responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ALICE}\r\ncontent-length: {}\r\n\r\n",
        6 * MIB
    );
    other.send_raw(head.as_bytes()).await.expect("it is taken");
    other.send_raw(&vec![b' '; 5 * MIB + 300_000]).await.expect("it is taken");
    cluster.replica().shows_at_least(MEMORY, (5 * MIB) as f64).await;
    // Two answers wait at once.
    let first = wait_for_memory(&cluster, &upstream).await;
    cluster.replica().shows_at_least(MEMORY, (10 * MIB) as f64).await;
    let second = wait_for_memory(&cluster, &upstream).await;
    cluster.replica().shows_at_least(MEMORY, (15 * MIB) as f64).await;
    let began = Instant::now();
    let long = format!("\"stream_id\":\"lane\",\"text\":\"{}\",\"model\"", "x".repeat(300_000));
    client.send(&create(None).replace("\"model\"", &long)).await;
    let come = within(Duration::from_secs(50), "the message", there.text()).await;
    assert!(come.len() > 300_000, "it passes whole");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    // The connection goes on.
    turn(&mut client, &mut there, "resp_1").await;
    drop(other);
    for answer in [first, second] {
        let status = within(Duration::from_secs(50), "an end", answer).await;
        assert!(matches!(status.expect("the client runs"), 200 | 503));
    }
}
