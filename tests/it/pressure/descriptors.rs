//! Tests file descriptors: the limit is raised, strangers do not take all of them, and errors name
//! a lack of them.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::refusals::written_first;
use crate::world::certificates::Certificates;
use crate::world::cluster::{ALICE, Cluster};
use crate::world::process::{Folder, WARMKEY};
use crate::world::recorder::{COMPLETED, Recorder, Step, chunk, stream_head};
use crate::world::waiting::{Budget, SOON, eventually, within};
use crate::world::wire::{Connection, Request, ask};

const BODY: &str = r#"{"model":"gpt-5.4","prompt_cache_key":"s","stream":true,"input":"hello"}"#;
const CREATED: &[u8] = b"event: response.created\ndata: {\"type\":\"response.created\"}\n\n";
const REFUSED: &str = "warmkey_connections_refused_total";

/// An upstream that holds every answer open.
async fn holding() -> Recorder {
    Recorder::start(|_| {
        vec![
            Step::Send(stream_head("")),
            Step::Send(chunk(CREATED)),
            Step::Hold,
            Step::Send(chunk(COMPLETED.as_bytes())),
            Step::Send(b"0\r\n\r\n".to_vec()),
        ]
    })
    .await
}

#[tokio::test]
async fn limit_of_descriptors_is_raised() {
    let upstream = holding().await;
    let cluster = Cluster::new().recorded_by(&upstream).shell("ulimit -Sn 256").start().await;
    let mut streams = Vec::new();
    for number in 0..160 {
        let mut client = Connection::open(cluster.address()).await;
        let answer = client.ask(&Request::turn(ALICE, BODY)).await.expect("an answer");
        assert_eq!(answer.status, 200, "stream {number}");
        streams.push((client, answer));
    }
    let metrics = cluster.replica().metrics().await;
    assert!(metrics.get("warmkey_connections_limit") > 1_000.0);
    assert_eq!(metrics.get(r#"warmkey_connections{listener="clients"}"#), 160.0);
    upstream.release(160);
    for (client, answer) in &mut streams {
        client.finish(answer).await;
        assert!(answer.whole);
    }
    drop(streams);
    cluster.replica().shows(r#"warmkey_connections{listener="clients"}"#, 0.0).await;
}

#[tokio::test]
async fn check_tells_the_limit_of_descriptors() {
    let cluster = Cluster::new().shell("ulimit -Sn 256").start().await;
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -Sn 256; exec \"$0\" check --config \"$1\"", WARMKEY]);
    command.arg(cluster.replica().file());
    let output = within(SOON, "the command", command.output()).await.expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("raised from 256"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// Silent strangers take every place, and are ended one after the other.
#[tokio::test]
async fn silent_stranger_gives_way_to_a_client() {
    let upstream = holding().await;
    let cluster = Cluster::new()
        .recorded_by(&upstream)
        .server("header_timeout", "\"60s\"")
        .shell("ulimit -n 256");
    let cluster = cluster.start().await;
    // A stream runs before the strangers come.
    let mut running = Connection::open(cluster.address()).await;
    let mut answer = running.ask(&Request::turn(ALICE, BODY)).await.expect("an answer");
    let mut strangers = Vec::new();
    for number in 0..400 {
        let mut stranger = Connection::open(cluster.address()).await;
        if number % 2 == 0 {
            let _ = stranger.send_raw(b"GET / HTTP/1.1\r\nx-slow: ").await;
        }
        strangers.push(stranger);
    }
    assert_eq!(cluster.replica().probe("/livez").await.status, 200);
    let budget = Budget::begin(Duration::from_secs(20));
    let mut client = Connection::open(cluster.address()).await;
    let mut other = client.ask(&Request::turn(ALICE, BODY)).await.expect("it is served");
    assert_eq!(other.status, 200);
    budget.holds("a new client is served");
    let metrics = cluster.replica().metrics().await;
    assert!(metrics.get(&format!("{REFUSED}{{reason=\"silent\"}}")) > 300.0);
    assert!(metrics.get(r#"warmkey_connections{listener="clients"}"#) <= 97.0);
    cluster.replica().says("connections are at their limit").await;
    let lines = cluster.logs().matches("connections are at their limit").count();
    assert_eq!(lines, 1, "the log says it once");
    upstream.release(2);
    for (client, answer) in [(&mut running, &mut answer), (&mut client, &mut other)] {
        client.finish(answer).await;
        assert!(answer.whole, "a stream that runs is not ended");
    }
    drop(strangers);
    cluster.replica().shows(r#"warmkey_connections{listener="clients"}"#, 2.0).await;
}

/// The first part of a ClientHello, whose rest never comes: a record of 512 bytes is announced.
const HELLO: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];

/// With TLS, strangers never begin the handshake, or never end it.
#[tokio::test]
async fn silent_stranger_before_tls_gives_way_to_a_client() {
    let upstream = holding().await;
    let folder = Folder::new();
    let made = Certificates::make(folder.path(), "one").await;
    let files = format!(
        "{{ cert_file = {:?}, key_file = {:?} }}",
        made.path("server.pem"),
        made.path("server.key")
    );
    let cluster = Cluster::new()
        .recorded_by(&upstream)
        .server("tls", &files)
        .server("header_timeout", "\"60s\"")
        .shell("ulimit -n 128")
        .start()
        .await;
    let clients = r#"warmkey_connections{listener="clients"}"#;
    let most = cluster.replica().metrics().await.get("warmkey_connections_limit") as usize;
    let mut strangers = Vec::new();
    for number in 0..most {
        let mut stranger = TcpStream::connect(cluster.address()).await.expect("it is accepted");
        if number % 2 == 0 {
            stranger.write_all(HELLO).await.expect("it is taken");
        }
        cluster.replica().shows(clients, (number + 1) as f64).await;
        strangers.push(stranger);
    }
    let authority = std::fs::read(made.authority()).expect("the authority is there");
    let authority = reqwest::Certificate::from_pem(&authority).expect("the authority is PEM");
    let url = format!("https://{}/v1/responses", cluster.address());
    // Streams that still run are not silent.
    let mut running = Vec::new();
    for (turn, stranger) in strangers.iter_mut().take(2).enumerate() {
        let budget = Budget::begin(Duration::from_secs(20));
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([authority.clone()]);
        let client = client.build().expect("a client");
        let request = client.post(&url).bearer_auth(ALICE).body(BODY);
        let answer = within(SOON, "an answer", request.send()).await.expect("it is served");
        assert_eq!(answer.status(), 200);
        budget.holds("a new client is served");
        // The strangers that were silent for longest are gone: one that had begun a request, and
        // then one that had not.
        let _ = within(SOON, "a stranger's end", stranger.read_to_end(&mut Vec::new())).await;
        let metrics = cluster.replica().metrics().await;
        assert_eq!(metrics.get(&format!("{REFUSED}{{reason=\"silent\"}}")), (turn + 1) as f64);
        running.push(answer);
    }
    for stranger in &mut strangers[2..] {
        let read = tokio::time::timeout(Duration::ZERO, stranger.read(&mut [0; 1])).await;
        assert!(read.is_err(), "nobody else is ended");
    }
    upstream.release(2);
}

/// Over HTTP/2, a stranger may grant no window for the refusal that he receives.
#[tokio::test]
async fn stranger_who_reads_no_refusal_gives_way_to_a_client() {
    let upstream = holding().await;
    let cluster = Cluster::new()
        .recorded_by(&upstream)
        .server("header_timeout", "\"60s\"")
        .shell("ulimit -n 128")
        .start()
        .await;
    let most = cluster.replica().metrics().await.get("warmkey_connections_limit") as usize;
    // The preface, settings with INITIAL_WINDOW_SIZE 0, and `GET / HTTP/2` on stream 1.
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
    bytes.extend([0, 0, 6, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x41, 1, b'x']);
    let mut strangers = Vec::new();
    for _ in 0..most {
        let mut stranger = TcpStream::connect(cluster.address()).await.expect("it is accepted");
        stranger.write_all(&bytes).await.expect("it is taken");
        let mut come = Vec::new();
        // HEADERS on stream 1: the refusal has begun.
        while !come.windows(6).any(|frame| frame[0] == 1 && frame[2..] == [0, 0, 0, 1]) {
            let read = within(SOON, "a refusal", stream_read(&mut stranger, &mut come)).await;
            assert!(read > 0, "the connection is open");
        }
        strangers.push(stranger);
    }
    let mut client = Connection::open(cluster.address()).await;
    let answer = client.ask(&Request::turn(ALICE, BODY)).await.expect("it is served");
    assert_eq!(answer.status, 200);
    let metrics = cluster.replica().metrics().await;
    assert_eq!(metrics.get(&format!("{REFUSED}{{reason=\"silent\"}}")), 1.0);
    upstream.release(1);
}

async fn stream_read(stream: &mut TcpStream, come: &mut Vec<u8>) -> usize {
    stream.read_buf(come).await.expect("the connection is open")
}

/// If every connection is busy, the next client receives a refusal.
#[tokio::test]
async fn connection_beyond_the_limit_is_told() {
    let upstream = holding().await;
    let cluster = Cluster::new().recorded_by(&upstream).shell("ulimit -n 128").start().await;
    let most = cluster.replica().metrics().await.get("warmkey_connections_limit") as usize;
    let mut streams = Vec::new();
    for _ in 0..most {
        let mut client = Connection::open(cluster.address()).await;
        let answer = client.ask(&Request::turn(ALICE, BODY)).await.expect("an answer");
        assert_eq!(answer.status, 200);
        streams.push((client, answer));
    }
    let refused = ask(cluster.address(), &Request::turn(ALICE, BODY)).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "no_key_available"));
    assert_eq!(refused.retry_after(), 1);
    let long = written_first(&cluster, "POST /responses", ALICE, 12 << 20).await;
    assert_eq!(long, Some((503, "no_key_available".into())), "a client that writes first");
    assert_eq!(cluster.replica().probe("/livez").await.status, 200);
    streams.pop();
    eventually(SOON, "a place is free again", async || {
        let mut client = Connection::open(cluster.address()).await;
        let answer = client.ask(&Request::turn(ALICE, BODY)).await?;
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn lack_of_descriptors_is_called_what_it_is() {
    let upstream = holding().await;
    let cluster =
        Cluster::new().recorded_by(&upstream).server("header_timeout", "\"60s\"").start().await;
    let (mut streams, mut lacks) = (Vec::new(), 0);
    let process = cluster.replica().process();
    // If there is no descriptor even for the client's connection, a silent one is ended.
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(Connection::open(cluster.address()).await);
    }
    cluster.replica().shows(r#"warmkey_connections{listener="clients"}"#, 6.0).await;
    // Room for some streams, whatever the process has open by itself.
    process.limit_descriptors(process.descriptors() + 11).await;
    for _ in 0..12 {
        let open = process.descriptors();
        let mut client = Connection::open(cluster.address()).await;
        let Some(mut answer) = client.ask(&Request::turn(ALICE, BODY)).await else { continue };
        if answer.status == 200 {
            streams.push((client, answer));
            continue;
        }
        client.finish(&mut answer).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "no_key_available"));
        assert_eq!(answer.retry_after(), 1);
        assert!(answer.text().contains("too many open files"), "{}", answer.text());
        lacks += 1;
        drop(client);
        eventually(SOON, "the refused connection is closed", async || {
            (process.descriptors() <= open).then_some(())
        })
        .await;
    }
    assert!(lacks > 0 && !streams.is_empty(), "{lacks} of {}", streams.len());
    drop(silent);
    let log = eventually(SOON, "the log says why", async || {
        Some(cluster.logs()).filter(|log| log.contains("Too many open files"))
    })
    .await;
    assert!(!log.contains("could not be reached"), "{log}");
}
