//! If a client takes nothing of an answer over HTTP/2, the stream of that answer ends, and no
//! other.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::client::{Builder, SendRequest};
use http::Request;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::recorder::{Recorder, Step, chunk, stream_head};
use crate::world::waiting::{ANSWER, eventually, ms, within};

const BODY: &[u8] = br#"{"model":"gpt-5.4","stream":true,"input":"hello"}"#;
const SECOND: Duration = Duration::from_secs(1);

async fn client(cluster: &Running) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(cluster.address()).await.expect("it listens");
    let (client, running) = Builder::new()
        .initial_window_size(40_000)
        .initial_connection_window_size(16 << 20)
        .handshake(stream)
        .await
        .expect("HTTP/2 with prior knowledge");
    tokio::spawn(running);
    client
}

/// Asks for a turn, and returns its answer's body.
async fn begin(client: &mut SendRequest<Bytes>, session: &str) -> h2::RecvStream {
    let request = Request::post("http://gateway/v1/responses")
        .header("authorization", format!("Bearer {ALICE}"))
        .header("session-id", session)
        .body(())
        .expect("a valid request");
    let (answer, mut body) = client.send_request(request, false).expect("a stream");
    body.send_data(Bytes::from_static(BODY), true).expect("it is taken");
    let answer = within(ANSWER, "a head", answer).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    answer.into_body()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_whose_client_takes_nothing_ends_and_no_other() {
    let event = chunk(format!("data: {}\n\n", "x".repeat(2_000)).as_bytes());
    let upstream = Recorder::start(move |seen| {
        let steps = match seen.header("session-id") {
            Some("stalled") => Step::Flood(event.clone()),
            _ => Step::Drip(event.clone(), ms(20)),
        };
        vec![Step::Send(stream_head("")), steps]
    })
    .await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let mut client = client(&cluster).await;
    let mut stalled = begin(&mut client, "stalled").await;
    let began = Instant::now();
    let mut slow = begin(&mut client, "slow").await;
    // This client takes four kilobytes a second.
    let reading = tokio::spawn(async move {
        while let Some(data) = slow.data().await {
            let length = data.expect("it is never reset").len();
            slow.flow_control().release_capacity(length).expect("it was received");
            sleep(SECOND * u32::try_from(length).expect("a frame") / 4_000).await;
        }
    });
    let leaving = timeout(90 * SECOND, async {
        // The upstream notices by a write or by a read, whichever comes first.
        while upstream.seen()[0].left.is_none() && !upstream.seen()[0].answered {
            sleep(ms(100)).await;
        }
    });
    leaving.await.expect("the stalled stream's upstream is left");
    let took = began.elapsed();
    assert!(took > 50 * SECOND, "{took:?}");
    let error = loop {
        match within(ANSWER, "a reset", stalled.data()).await.expect("a reset") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason(), Some(Reason::CANCEL), "{error}");
    assert!(upstream.seen()[1].left.is_none() && !reading.is_finished(), "the other goes on");
    cluster.replica().shows("warmkey_active_turns", 1.0).await;
    // The connection still serves other streams.
    drop(begin(&mut client, "third").await);
    reading.abort();
    drop(client);
    eventually(ANSWER, "nothing is left", async || upstream.is_idle().then_some(())).await;
}
