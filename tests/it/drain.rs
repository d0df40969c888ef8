//! Tests how a replica ends.

use tokio::time::Instant;

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::recorder::{COMPLETED, Recorder, Step, chunk, completed, stream_head};
use crate::world::simulator::siblings;
use crate::world::waiting::{ANSWER, Budget, SOON, eventually, ms, within};
use crate::world::wire::{Answer, Connection, Request, ask, try_ask};

const BODY: &str = r#"{"model":"gpt-5.4","prompt_cache_key":"s","stream":true,"input":"hello"}"#;
const CREATED: &[u8] = b"event: response.created\ndata: {\"type\":\"response.created\"}\n\n";

/// An upstream that holds its first answer open until the test releases it, and answers all others.
async fn holding() -> Recorder {
    Recorder::start(|seen| match seen.header("session-id") {
        Some("held") => vec![
            Step::Send(stream_head("")),
            Step::Send(chunk(CREATED)),
            Step::Hold,
            Step::Send(chunk(COMPLETED.as_bytes())),
            Step::Send(b"0\r\n\r\n".to_vec()),
        ],
        _ => completed(),
    })
    .await
}

/// Begins a turn and keeps it in flight.
async fn held(cluster: &Running) -> (Connection, Answer) {
    let mut client = Connection::open(cluster.address()).await;
    let request = Request::turn(ALICE, BODY).header("session-id", "held");
    let answer = within(ANSWER, "a head", client.ask(&request)).await.expect("an answer");
    assert_eq!(answer.status, 200);
    (client, answer)
}

#[tokio::test]
async fn turn_in_flight_is_finished() {
    let upstream = holding().await;
    let mut cluster =
        Cluster::new().recorded_by(&upstream).server("drain_delay", "\"2s\"").start().await;
    let address = cluster.address();
    assert_eq!(cluster.replica().probe("/readyz").await.status, 200);
    let (mut client, mut answer) = held(&cluster).await;
    let asked = Instant::now();
    cluster.replica().terminate().await;
    eventually(ms(1_000), "not ready at once", async || {
        (cluster.replica().probe("/readyz").await.status == 503).then_some(())
    })
    .await;
    assert_eq!(cluster.replica().probe("/livez").await.status, 200);
    // The load balancer notices only later. Until then everything is served, on new connections
    // too.
    while asked.elapsed() < ms(1_500) {
        assert_eq!(ask(address, &Request::turn(ALICE, BODY)).await.status, 200);
    }
    eventually(SOON, "nothing new is taken", async || {
        try_ask(address, &Request::turn(ALICE, BODY)).await.is_none().then_some(())
    })
    .await;
    assert!(asked.elapsed() > ms(1_900), "not before the delay is over");
    upstream.release(1);
    client.finish(&mut answer).await;
    assert!(answer.whole && answer.body.ends_with(COMPLETED.as_bytes()), "{}", answer.text());
    assert_eq!(cluster.replicas[0].exit(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn draining_replica_keeps_no_new_key_waiting() {
    let (upstream, keys) = (holding().await, siblings("org-a", 2));
    let cluster =
        Cluster::new().keys(keys[..1].to_vec()).replicas(2).redis().recorded_by(&upstream);
    let mut cluster = cluster.start().await;
    let (mut client, mut answer) = held(&cluster).await;
    cluster.replica().terminate().await;
    cluster.change(|cluster| cluster.keys(keys));
    cluster.reload(1).await;
    cluster.replicas[1].shows("warmkey_keys_waiting", 0.0).await;
    upstream.release(1);
    client.finish(&mut answer).await;
    assert!(answer.whole, "the turn was still in flight: {}", answer.text());
    assert_eq!(cluster.replicas[0].exit(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn second_signal_ends_the_process_at_once() {
    for signal in ["TERM", "INT"] {
        let upstream = holding().await;
        let mut cluster =
            Cluster::new().recorded_by(&upstream).server("drain_delay", "\"20s\"").start().await;
        let (mut client, mut answer) = held(&cluster).await;
        cluster.replica().process().signal(signal).await;
        eventually(SOON, "the first signal has come", async || {
            (cluster.replica().probe("/readyz").await.status == 503).then_some(())
        })
        .await;
        let budget = Budget::begin(ms(1_000));
        cluster.replica().process().signal(signal).await;
        cluster.replicas[0].exit(SOON).await;
        budget.holds(&format!("the end after two times {signal}"));
        client.finish(&mut answer).await;
        assert_eq!(
            (answer.body.as_slice(), answer.whole),
            (CREATED, false),
            "cut, and nothing made up"
        );
    }
}

#[tokio::test]
async fn turn_that_outlasts_the_grace_is_cut() {
    let upstream = holding().await;
    let mut cluster = Cluster::new().recorded_by(&upstream).server("drain", "\"1s\"").start().await;
    let (mut client, mut answer) = held(&cluster).await;
    let (asked, budget) = (Instant::now(), Budget::begin(ms(2_500)));
    cluster.replica().terminate().await;
    client.finish(&mut answer).await;
    assert_eq!(
        (answer.body.as_slice(), answer.whole),
        (CREATED, false),
        "cut, and nothing made up"
    );
    assert!(asked.elapsed() > ms(900), "the turn had its grace: {:?}", asked.elapsed());
    cluster.replicas[0].exit(SOON).await;
    budget.holds("the end after the grace");
    assert!(cluster.logs().contains(r#""outcome":"cut""#), "{}", cluster.logs());
}

#[tokio::test]
async fn drain_waits_for_no_idle_connection() {
    let upstream = Recorder::answering(completed()).await;
    let mut cluster = Cluster::new().recorded_by(&upstream).start().await;
    let mut idle = Connection::open(cluster.address()).await;
    let mut answer = idle.ask(&Request::turn(ALICE, BODY)).await.expect("an answer");
    idle.finish(&mut answer).await;
    let budget = Budget::begin(ms(3_000));
    cluster.replica().terminate().await;
    assert_eq!(cluster.replicas[0].exit(SOON).await.code(), Some(0));
    budget.holds("the end without a turn in flight");
    within(SOON, "the idle connection is closed", idle.closed()).await;
}

#[tokio::test]
async fn client_that_left_leaves_nothing_to_wait_for() {
    // The client leaves right after the terminal event. A task reads the rest, and the process
    // waits for that task, but not long.
    let upstream = holding().await;
    let mut cluster = Cluster::new().recorded_by(&upstream).start().await;
    let (client, _) = held(&cluster).await;
    drop(client);
    let budget = Budget::begin(ms(3_000));
    cluster.replica().terminate().await;
    assert_eq!(cluster.replicas[0].exit(SOON).await.code(), Some(0));
    budget.holds("the end without a turn in flight");
}
