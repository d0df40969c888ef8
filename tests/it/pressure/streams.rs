//! Tests requests over HTTP/2: many come on one connection, and each needs a descriptor for its
//! upstream.

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, StatusCode};
use tokio::net::TcpStream;

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::recorder::{COMPLETED, Recorder, Step, chunk, stream_head};
use crate::world::waiting::{ANSWER, SOON, eventually, within};
use crate::world::wire::{Request as Plain, ask};

const BODY: &str = r#"{"model":"gpt-5.4","prompt_cache_key":"s","stream":true,"input":"hello"}"#;
const CREATED: &[u8] = b"event: response.created\ndata: {\"type\":\"response.created\"}\n\n";
const REFUSED: &str = r#"warmkey_connections_refused_total{reason="requests"}"#;

/// A client over HTTP/2 with prior knowledge.
pub async fn client(cluster: &Running) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(cluster.address()).await.expect("it listens");
    let (client, running) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(running);
    client
}

/// Sends a turn. Returns its answer, whose body may still come.
pub async fn turn(
    client: &SendRequest<Bytes>,
) -> Result<http::Response<h2::RecvStream>, h2::Error> {
    let request = Request::post("http://gateway/v1/responses")
        .header("authorization", format!("Bearer {ALICE}"))
        .body(())
        .expect("a valid request");
    let mut client = within(ANSWER, "a free stream", client.clone().ready()).await?;
    let (answer, mut body) = client.send_request(request, false)?;
    body.send_data(Bytes::from_static(BODY.as_bytes()), true)?;
    within(ANSWER, "an answer", answer).await
}

/// The rest of an answer.
pub async fn rest(answer: http::Response<h2::RecvStream>) -> Result<String, h2::Error> {
    let (mut body, mut text) = (answer.into_body(), Vec::new());
    while let Some(data) = within(ANSWER, "the body", body.data()).await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        text.extend_from_slice(&data);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn streams_of_few_connections_leave_descriptors_to_the_admin_listener() {
    let upstream = Recorder::start(|_| {
        vec![
            Step::Send(stream_head("")),
            Step::Send(chunk(CREATED)),
            Step::Hold,
            Step::Send(chunk(COMPLETED.as_bytes())),
            Step::Send(b"0\r\n\r\n".to_vec()),
        ]
    })
    .await;
    let cluster = Cluster::new().recorded_by(&upstream).shell("ulimit -n 256").start().await;
    let most = cluster.replica().metrics().await.get("warmkey_connections_limit") as usize;
    let clients = [client(&cluster).await, client(&cluster).await, client(&cluster).await];
    let (mut streams, mut refused) = (Vec::new(), 0);
    for number in 0..3 * most {
        // No connection has more streams than it may.
        let answer = turn(&clients[number / most]).await.expect("an answer");
        if answer.status() == StatusCode::OK {
            streams.push(answer);
            continue;
        }
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers()["retry-after"], "1");
        let said = rest(answer).await.expect("a whole answer");
        assert!(said.contains("no_key_available") && said.contains("another request"), "{said}");
        refused += 1;
    }
    assert_eq!((streams.len(), refused), (most, 2 * most));
    for _ in 0..8 {
        assert_eq!(cluster.replica().probe("/livez").await.status, 200);
    }
    let other = ask(cluster.address(), &Plain::turn(ALICE, BODY)).await;
    assert_eq!((other.status, other.retry_after()), (503, 1), "{}", other.text());
    assert!(!cluster.logs().contains("Too many open files"), "{}", cluster.logs());
    cluster.replica().shows(REFUSED, (2 * most + 1) as f64).await;
    upstream.release(2 * most);
    for answer in streams {
        let said = rest(answer).await.expect("a whole answer");
        assert!(said.contains("response.completed"), "{said}");
    }
    eventually(SOON, "there is room again", async || {
        let answer = turn(&clients[0]).await.ok()?;
        (answer.status() == StatusCode::OK).then_some(())
    })
    .await;
}

/// A client that lets no byte of an answer's body come.
async fn without_window(cluster: &Running) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(cluster.address()).await.expect("it listens");
    let handshake = h2::client::Builder::new().initial_window_size(0).handshake(stream);
    let (client, running) = handshake.await.expect("HTTP/2");
    tokio::spawn(running);
    client
}

/// Strangers take no place from a turn, however many streams they open.
#[tokio::test]
async fn streams_of_strangers_take_no_place_of_a_turn() {
    let upstream = Recorder::answering(crate::world::recorder::completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).shell("ulimit -n 256").start().await;
    let most = cluster.replica().metrics().await.get("warmkey_connections_limit") as usize;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stranger = without_window(&cluster).await.ready().await.expect("it is open");
        for _ in 0..most - 1 {
            let request = Request::post("http://gateway/v1/responses")
                .header("authorization", "Bearer sk-wrong")
                .body(())
                .expect("a valid request");
            stranger = stranger.ready().await.expect("a free stream");
            // The body never comes, and nothing of the answer is read.
            held.push(stranger.send_request(request, false).expect("a stream"));
        }
    }
    let client = client(&cluster).await;
    eventually(SOON, "a turn is served", async || {
        let answer = turn(&client).await.expect("an answer");
        (answer.status() == StatusCode::OK).then_some(())
    })
    .await;
    drop(held);
}
