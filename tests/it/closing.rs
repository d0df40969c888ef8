//! Tests how a WebSocket ends: by either end, or by the gateway. `rfc6455` tests what both ends
//! learn of a close or of a breach of the protocol.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use crate::world::cluster::{ALICE, BOB, Cluster, Running};
use crate::world::simulator::siblings;
use crate::world::socket::{Socket, Upstream, completed, create, created, open, session, turn};
use crate::world::waiting::{Budget, SOON, eventually, ms};

async fn connected(cluster: Cluster) -> (Running, Upstream, Socket, Socket) {
    let upstream = Upstream::start().await;
    let cluster = cluster.upstream_at(&upstream.url()).start().await;
    let (client, there) = tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    (cluster, upstream, client, there)
}

/// Begins a response.
async fn begun(client: &mut Socket, there: &mut Socket) {
    client.send(&create(None)).await;
    there.text().await;
    there.send(&created("resp_1")).await;
    client.text().await;
}

#[tokio::test]
async fn client_that_leaves_closes_upstream() {
    for in_flight in [false, true] {
        let (cluster, _upstream, mut client, mut there) = connected(Cluster::new()).await;
        if in_flight {
            begun(&mut client, &mut there).await;
        }
        let budget = Budget::begin(ms(1_000));
        // Codex leaves without a close frame.
        drop(client);
        assert_eq!(there.closed().await, 1001);
        budget.holds("the close upstream");
        cluster.replica().shows("warmkey_active_websockets", 0.0).await;
        cluster.replica().shows("warmkey_active_turns", 0.0).await;
    }
}

#[tokio::test]
async fn upstream_lost_between_responses_makes_the_client_reconnect() {
    let (cluster, upstream, mut client, mut there) = connected(Cluster::new()).await;
    turn(&mut client, &mut there, "resp_1").await;
    drop(there);
    assert_eq!(client.closed().await, 1001);
    let (mut client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    turn(&mut client, &mut there, "resp_2").await;
    assert_eq!(
        cluster.replica().metrics().await.get(r#"warmkey_bindings_total{result="existing"}"#),
        1.0
    );
}

#[tokio::test]
async fn upstream_lost_in_mid_response_is_an_error_with_a_status() {
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
        assert_eq!(
            frames.iter().map(|frame| &frame["stream_id"]).collect::<Vec<_>>(),
            [&json!(null), &json!("a")]
        );
        for frame in frames {
            assert_eq!((&frame["type"], &frame["status"]), (&json!("error"), &json!(503)));
            assert_eq!(
                (&frame["error"]["code"], &frame["headers"]["retry-after"]),
                (&json!("upstream_interrupted"), &json!("1"))
            );
        }
        assert_eq!(client.closed().await, 1011);
        cluster
            .replica()
            .shows(r#"warmkey_turns_total{transport="websocket",outcome="cut"}"#, 2.0)
            .await;
    }
}

#[tokio::test]
async fn message_of_the_largest_size_passes() {
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
async fn silent_peer_is_pinged_and_kept_and_a_dead_one_is_found() {
    let quick = || Cluster::new().server("ping", "\"300ms\"");
    // Both ends answer pings while the test reads from them.
    let (cluster, _upstream, mut client, mut there) = connected(quick()).await;
    let began = Instant::now();
    tokio::select! {
        other = client.next() => panic!("silence and not {other:?}"),
        other = there.next() => panic!("silence and not {other:?}"),
        () = tokio::time::sleep(ms(2_000)) => {}
    }
    assert!(began.elapsed() > ms(1_900));
    turn(&mut client, &mut there, "resp_1").await;
    // A client that does not read its pings counts as gone, and its upstream connection is
    // released.
    assert_eq!(there.closed().await, 1001);
    cluster.replica().shows("warmkey_active_websockets", 0.0).await;
    drop(client);

    let (cluster, _upstream, mut client, there) = connected(quick()).await;
    assert_eq!(client.closed().await, 1001);
    cluster.replica().shows("warmkey_active_websockets", 0.0).await;
    drop(there);
}

#[tokio::test]
async fn leaving_replica_finishes_turns_in_flight() {
    let (mut cluster, upstream, mut client, mut there) =
        connected(Cluster::new().server("drain_delay", "\"1s\"")).await;
    begun(&mut client, &mut there).await;
    let (mut idle, mut there_too) =
        tokio::join!(session(cluster.address(), ALICE, "idle"), upstream.accept());
    let asked = Instant::now();
    cluster.replica().terminate().await;
    eventually(SOON, "not ready", async || {
        (cluster.replica().probe("/readyz").await.status == 503).then_some(())
    })
    .await;
    // Until the load balancer notices, the replica serves everything.
    let (late, mut late_there) =
        tokio::join!(session(cluster.address(), BOB, "late"), upstream.accept());
    let mut late = late;
    turn(&mut late, &mut late_there, "resp_9").await;
    assert_eq!((idle.closed().await, there_too.closed().await), (1001, 1001));
    assert!(asked.elapsed() > ms(900), "{:?}", asked.elapsed());
    assert_eq!(late.closed().await, 1001);
    // The turn is in flight for longer than all time limits of the sockets.
    tokio::select! {
        other = client.next() => panic!("an answer and not {other:?}"),
        () = tokio::time::sleep_until(asked + Duration::from_secs(12)) => {}
    }
    there.send(&completed("resp_1")).await;
    assert_eq!(client.text().await, completed("resp_1"));
    assert_eq!(client.closed().await, 1001);
    drop((client, there));
    assert_eq!(cluster.replicas[0].exit(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn turn_that_outlasts_the_grace_is_cut() {
    let (mut cluster, _upstream, mut client, mut there) =
        connected(Cluster::new().server("drain", "\"1s\"")).await;
    begun(&mut client, &mut there).await;
    let asked = Instant::now();
    cluster.replica().terminate().await;
    let error = client.json().await;
    assert!(asked.elapsed() > ms(900), "the turn had its grace: {:?}", asked.elapsed());
    assert_eq!(
        (
            &error["type"],
            &error["status"],
            &error["error"]["code"],
            &error["headers"]["retry-after"]
        ),
        (&json!("error"), &json!(503), &json!("no_key_available"), &json!("1"))
    );
    assert_eq!(client.closed().await, 1001);
    let budget = Budget::begin(ms(1_000));
    cluster.replicas[0].exit(SOON).await;
    budget.holds("the end after the grace");
    assert!(cluster.logs().contains(r#""outcome":"cut""#), "{}", cluster.logs());
}

#[tokio::test]
async fn revoked_token_ends_its_connections() {
    let (mut cluster, upstream, mut client, mut there) = connected(Cluster::new()).await;
    let (other, other_there) = tokio::join!(open(cluster.address(), BOB, &[]), upstream.accept());
    let (mut other, mut other_there) = (other.expect("a WebSocket").0, other_there);
    begun(&mut client, &mut there).await;
    let clients = format!("[[client]]\nid = \"bob\"\ntoken = {BOB:?}\n");
    cluster.change(|cluster| cluster.clients(&clients));
    cluster.reload(0).await;
    assert_eq!(client.json().await["status"], 401, "the client waits for an answer");
    assert_eq!(client.closed().await, 1008);
    assert_eq!(there.closed().await, 1001);
    turn(&mut other, &mut other_there, "resp_2").await;
}

/// A client's current rights decide what it may ask, on an old connection as on a new one.
#[tokio::test]
async fn client_has_the_rights_of_now_on_an_open_connection() {
    let clients =
        |rights: &str| format!("[[client]]\nid = \"alice\"\ntoken = {ALICE:?}\n{rights}\n");
    let (mut cluster, _upstream, mut client, mut there) =
        connected(Cluster::new().clients(&clients(""))).await;
    begun(&mut client, &mut there).await;
    cluster.change(|cluster| cluster.clients(&clients("models = [\"gpt-6\"]")));
    cluster.reload(0).await;
    // A response that has begun is sent to its end.
    there.send(&completed("resp_1")).await;
    assert_eq!(client.text().await, completed("resp_1"));
    client.send(&create(None)).await;
    let refused = client.json().await;
    assert_eq!(
        (&refused["status"], &refused["error"]["code"]),
        (&json!(403), &json!("model_not_allowed"))
    );
    // A client without the right to a turn learns nothing about what the turn refers to.
    client.send(&create(Some("resp_of_another"))).await;
    assert_eq!(client.json().await["error"]["code"], "model_not_allowed");
    let other = create(None).replace("gpt-5.4", "gpt-6");
    client.send(&other).await;
    assert_eq!(there.text().await, other);
    for event in [created("resp_2"), completed("resp_2")] {
        there.send(&event).await;
        assert_eq!(client.text().await, event);
    }
    // A right that comes back counts at once.
    cluster.change(|cluster| cluster.clients(&clients("")));
    cluster.reload(0).await;
    turn(&mut client, &mut there, "resp_3").await;
}

/// A connection ends if its client could not open it now, because the token is another client's or
/// the client lost the key's organization. Another token of the same client, or another right, does
/// not end it.
#[tokio::test]
async fn connection_that_its_client_could_not_open_now_ends() {
    let clients = |sections: &[(&str, &str, &str)]| -> String {
        let section = |(id, token, more): &(&str, &str, &str)| {
            format!("[[client]]\nid = {id:?}\ntoken = {token:?}\n{more}\n")
        };
        sections.iter().map(section).collect()
    };
    let keys = [siblings("org-a", 1), siblings("org-b", 1)].concat();
    let upstream = Upstream::start().await;
    let cluster = Cluster::new().keys(keys).upstream_at(&upstream.url());
    let mut cluster =
        cluster.clients(&clients(&[("alice", ALICE, ""), ("alice", BOB, "")])).start().await;
    let there = async {
        let asked = upstream.asked().await;
        (asked.key(), asked.accept("").await)
    };
    let (mut client, (key, mut there)) =
        tokio::join!(session(cluster.address(), ALICE, "s"), there);
    turn(&mut client, &mut there, "resp_1").await;
    let (own, other) = if key.contains("org-a") { ("org-a", "org-b") } else { ("org-b", "org-a") };
    let only = |organization: &str| format!("organizations = [{organization:?}]");
    let (mine, not_mine) = (only(own), only(other));
    for (what, sections) in [
        ("another token is gone", vec![("alice", ALICE, "")]),
        ("held to its own organization", vec![("alice", ALICE, mine.as_str())]),
    ] {
        cluster.change(|cluster| cluster.clients(&clients(&sections)));
        cluster.reload(0).await;
        turn(&mut client, &mut there, what).await;
    }
    for (what, sections) in [
        ("held to another organization", vec![("alice", ALICE, not_mine.as_str())]),
        ("the token is another client's", vec![("bob", ALICE, "")]),
    ] {
        cluster.change(|cluster| cluster.clients(&clients(&sections)));
        cluster.reload(0).await;
        assert_eq!((client.closed().await, there.closed().await), (1008, 1001), "{what}");
        cluster.change(|cluster| cluster.clients(&clients(&[("alice", ALICE, "")])));
        cluster.reload(0).await;
        (client, there) = tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
        turn(&mut client, &mut there, "resp_2").await;
    }
}

/// A client that reads slowly cannot answer pings in time, but it is not gone.
#[tokio::test]
async fn client_that_is_slow_to_read_is_waited_for() {
    let (cluster, _upstream, mut client, mut there) =
        connected(Cluster::new().server("ping", "\"1s\"")).await;
    begun(&mut client, &mut there).await;
    let event =
        format!(r#"{{"type":"response.output_text.delta","delta":"{}"}}"#, "z".repeat(60_000));
    let mut sent = 0_usize;
    eventually(SOON, "the upstream is held back", async || {
        // By this message the client shows that it lives.
        client.send("{}").await;
        match tokio::time::timeout(ms(500), there.0.send(Message::text(event.as_str()))).await {
            Ok(taken) => {
                taken.expect("the connection is open");
                sent += 1;
                assert!(sent < 1_000, "{sent} events are on their way");
                None
            }
            Err(_) => Some(()),
        }
    })
    .await;
    // Longer than a silent client would be kept.
    tokio::time::sleep(ms(2_500)).await;
    let speaking = async {
        there.send(&completed("resp_1")).await;
        while let Some(Ok(_)) = there.0.next().await {}
        std::future::pending().await
    };
    let reading = async {
        let mut read = 0;
        while client.text().await != completed("resp_1") {
            read += 1;
            assert!(read < 1_000, "{read} events and not the last one");
        }
        read
    };
    tokio::select! {
        read = reading => assert!(read >= sent, "{read} of {sent}"),
        () = speaking => {}
    }
    assert_eq!(cluster.replica().metrics().await.get("warmkey_active_websockets"), 1.0);
}
