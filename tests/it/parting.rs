//! How a WebSocket ends: by either end, or by the gateway. What both are told of a close or a breach: `rfc6455`.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::cluster::{ALICE, BOB, Cluster, Running};
use crate::patience::{ANSWER, SOON, eventually, ms, within};
use crate::socket::{Socket, Upstream, completed, create, created, open, session, turn};

async fn connected(cluster: Cluster) -> (Running, Upstream, Socket, Socket) {
    let upstream = Upstream::start().await;
    let cluster = cluster.upstream_at(&upstream.url()).start().await;
    let (client, there) = tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    (cluster, upstream, client, there)
}

/// A response that has begun.
async fn begun(client: &mut Socket, there: &mut Socket) {
    client.send(&create(None)).await;
    there.text().await;
    there.send(&created("resp_1")).await;
    client.text().await;
}

#[tokio::test]
async fn a_client_that_leaves_closes_upstream() {
    for in_flight in [false, true] {
        let (cluster, _upstream, mut client, mut there) = connected(Cluster::new()).await;
        if in_flight {
            begun(&mut client, &mut there).await;
        }
        let left = Instant::now();
        // Codex never says a word.
        drop(client);
        assert_eq!(there.closed().await, 1001);
        assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
        cluster.replica().shows("warmkey_active_websockets", 0.0).await;
        cluster.replica().shows("warmkey_active_turns", 0.0).await;
    }
}

#[tokio::test]
async fn an_upstream_that_is_lost_between_responses_is_a_reason_to_connect_anew() {
    let (cluster, upstream, mut client, mut there) = connected(Cluster::new()).await;
    turn(&mut client, &mut there, "resp_1").await;
    drop(there);
    assert_eq!(client.closed().await, 1001);
    let (mut client, mut there) = tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    turn(&mut client, &mut there, "resp_2").await;
    assert_eq!(cluster.replica().metrics().await.get(r#"warmkey_bindings_total{result="existing"}"#), 1.0);
}

#[tokio::test]
async fn an_upstream_that_is_lost_in_mid_response_is_an_error_with_a_status() {
    for word in [None, Some(1011)] {
        let (cluster, _upstream, mut client, mut there) = connected(Cluster::new()).await;
        begun(&mut client, &mut there).await;
        client.send(&create(None).replace("\"model\"", "\"stream_id\":\"a\",\"model\"")).await;
        there.text().await;
        match word {
            Some(code) => there.close(code, "restart").await,
            None => drop(there),
        }
        let frames = [client.json().await, client.json().await];
        assert_eq!(frames.iter().map(|frame| &frame["stream_id"]).collect::<Vec<_>>(), [&json!(null), &json!("a")]);
        for frame in frames {
            assert_eq!((&frame["type"], &frame["status"]), (&json!("error"), &json!(503)));
            assert_eq!(
                (&frame["error"]["code"], &frame["headers"]["retry-after"]),
                (&json!("upstream_interrupted"), &json!("1"))
            );
        }
        assert_eq!(client.closed().await, 1011);
        cluster.replica().shows(r#"warmkey_turns_total{transport="websocket",outcome="cut"}"#, 2.0).await;
    }
}

#[tokio::test]
async fn a_message_of_the_largest_size_passes() {
    let (_cluster, _upstream, mut client, mut there) = connected(Cluster::new()).await;
    let text = format!("\"{}\"", "x".repeat((16 << 20) - 2));
    let (mut sent, mut come) = (0, 0);
    let sending = async {
        client.send(&text).await;
        sent += 1;
    };
    let coming = async {
        come = there.text().await.len();
    };
    tokio::join!(sending, coming);
    assert_eq!((sent, come), (1, text.len()));
}

#[tokio::test]
async fn a_silent_peer_is_asked_and_kept_and_a_dead_one_is_found() {
    let quick = || Cluster::new().server("ping", "\"300ms\"");
    // Both answer, since they are read from.
    let (cluster, _upstream, mut client, mut there) = connected(quick()).await;
    let began = Instant::now();
    tokio::select! {
        other = client.next() => panic!("silence and not {other:?}"),
        other = there.next() => panic!("silence and not {other:?}"),
        () = tokio::time::sleep(ms(2_000)) => {}
    }
    assert!(began.elapsed() > ms(1_900));
    turn(&mut client, &mut there, "resp_1").await;
    // A client that does not read its pings is dead to us, and its upstream is let go.
    assert_eq!(there.closed().await, 1001);
    cluster.replica().shows("warmkey_active_websockets", 0.0).await;
    drop(client);

    let (cluster, _upstream, mut client, there) = connected(quick()).await;
    assert_eq!(client.closed().await, 1001);
    cluster.replica().shows("warmkey_active_websockets", 0.0).await;
    drop(there);
}

#[tokio::test]
async fn a_leaving_replica_finishes_what_is_in_flight() {
    let (mut cluster, upstream, mut client, mut there) = connected(Cluster::new().server("drain_delay", "\"1s\"")).await;
    begun(&mut client, &mut there).await;
    let (mut idle, mut there_too) = tokio::join!(session(cluster.address(), ALICE, "idle"), upstream.accept());
    let asked = Instant::now();
    cluster.replica().terminate().await;
    eventually(SOON, "not ready", async || (cluster.replica().probe("/readyz").await.status == 503).then_some(())).await;
    // While the balancer looks away everything is served.
    let (late, mut late_there) = tokio::join!(session(cluster.address(), BOB, "late"), upstream.accept());
    let mut late = late;
    turn(&mut late, &mut late_there, "resp_9").await;
    assert_eq!((idle.closed().await, there_too.closed().await), (1001, 1001));
    assert!(asked.elapsed() > ms(900), "{:?}", asked.elapsed());
    assert_eq!(late.closed().await, 1001);
    // In flight, for longer than any of them had.
    tokio::select! {
        other = client.next() => panic!("an answer and not {other:?}"),
        () = tokio::time::sleep((asked + Duration::from_secs(12)).saturating_duration_since(Instant::now())) => {}
    }
    there.send(&completed("resp_1")).await;
    assert_eq!(client.text().await, completed("resp_1"));
    assert_eq!(client.closed().await, 1001);
    drop((client, there));
    assert_eq!(cluster.replicas[0].exit(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn what_outlasts_the_grace_is_cut() {
    let (mut cluster, _upstream, mut client, mut there) = connected(Cluster::new().server("drain", "\"1s\"")).await;
    begun(&mut client, &mut there).await;
    let asked = Instant::now();
    cluster.replica().terminate().await;
    within(ANSWER, "the end", client.closed()).await;
    assert!(asked.elapsed() > ms(900), "it had its grace: {:?}", asked.elapsed());
    cluster.replicas[0].exit(SOON).await;
}

#[tokio::test]
async fn a_revoked_token_ends_its_connections() {
    let (mut cluster, upstream, mut client, mut there) = connected(Cluster::new()).await;
    let (other, other_there) = tokio::join!(open(cluster.address(), BOB, &[]), upstream.accept());
    let (mut other, mut other_there) = (other.expect("a WebSocket").0, other_there);
    begun(&mut client, &mut there).await;
    let clients = format!("[[client]]\nid = \"bob\"\ntoken = {BOB:?}\n");
    cluster.change(|cluster| cluster.clients(&clients));
    cluster.reload(0).await;
    assert_eq!(client.closed().await, 1008);
    assert_eq!(there.closed().await, 1001);
    turn(&mut other, &mut other_there, "resp_2").await;
}
