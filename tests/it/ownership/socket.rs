//! Tests ownership on a WebSocket, which has one key for life. A turn continues from the socket's
//! own ids, and from ids that its key finds.

use super::*;
use crate::world::simulator::Turn;
use crate::world::socket::{Socket, session};

/// Plays a turn on a socket. Returns its terminal event, or its error.
async fn turn(socket: &mut Socket, previous: Option<&str>, store: bool) -> Value {
    let mut frame =
        json!({ "type": "response.create", "model": "gpt-5.4", "input": uuid(), "store": store });
    if let Some(id) = previous {
        frame["previous_response_id"] = json!(id);
    }
    socket.send(&frame.to_string()).await;
    socket.event(&["response.completed", "error"]).await
}

/// The id of the response that this event completes.
fn id(event: &Value) -> String {
    assert_eq!(event["type"], "response.completed", "{event}");
    event["response"]["id"].as_str().expect("a response has an id").to_owned()
}

fn not_found(id: &str) -> Value {
    json!({ "type": "error", "status": 400, "error": { "type": "invalid_request_error", "code": "previous_response_not_found",
        "message": format!("Previous response with id '{id}' not found."), "param": "previous_response_id" } })
}

/// D10, and E28.
#[tokio::test]
async fn d10_ids_of_other_connections() {
    let cluster = Cluster::new().keys(two_projects()).replicas(2).redis().start().await;
    let (one, two) = (stored_by(&cluster, "a-1").await, stored_by(&cluster, "a-3").await);
    let turns = cluster.turns().await;
    let name = |id: &str| made(&turns, id).session.clone().expect("it has a session");
    for (own, elsewhere, key) in [(&one, &two, "a-1"), (&two, &one, "a-3")] {
        for replica in &cluster.replicas {
            let mut socket = session(replica.address(), ALICE, &name(own)).await;
            // This id was made over HTTP on another replica, for the same client, and this key
            // finds it.
            let next = id(&turn(&mut socket, Some(own), true).await);
            // One id of the same client is stored elsewhere, and another is unknown. The socket
            // still goes on.
            assert_eq!(turn(&mut socket, Some(elsewhere), true).await, not_found(elsewhere));
            assert_eq!(turn(&mut socket, Some("resp_never"), true).await, not_found("resp_never"));
            let next = id(&turn(&mut socket, Some(&next), true).await);
            assert_eq!(made(&cluster.turns().await, &next).key, key);
        }
        // The id is another client's, whose session has the same name.
        let mut socket = session(cluster.replicas[1].address(), BOB, &name(own)).await;
        for id in [own, elsewhere] {
            assert_eq!(turn(&mut socket, Some(id), true).await, not_found(id));
        }
        id(&turn(&mut socket, None, true).await);
    }
    let sent = cluster.turns().await;
    let is_asked = |turn: &&Turn| turn.previous_response_id.is_some();
    assert!(
        sent.iter().filter(is_asked).all(|turn| turn.status == 200),
        "no id that is not found there went upstream"
    );
}

#[tokio::test]
async fn id_issued_on_a_socket_is_good_on_every_replica_if_it_is_stored() {
    let mut cluster = Cluster::new().keys(keys(0)).replicas(2).redis().start().await;
    let (here, there) = (cluster.replicas[0].address(), cluster.replicas[1].address());
    let mut socket = session(here, ALICE, "s").await;
    for is_stored in [true, false] {
        let before = asked_of_the_store(&cluster).await;
        let made = id(&turn(&mut socket, None, is_stored).await);
        let next = id(&turn(&mut socket, Some(&made), is_stored).await);
        let asked = asked_of_the_store(&cluster).await - before;
        // The session is sealed once. Each answer has three ids: its own, and those of two items.
        assert_eq!(asked, if is_stored { 7.0 } else { 0.0 }, "the store is not asked for own ids");
        for id in [made, next] {
            let answer = Chain::new(there).after(&id).asks(json!({})).await;
            assert_eq!(answer.status, if is_stored { 200 } else { 400 }, "{}", answer.text());
            let mut other = session(there, ALICE, "s").await;
            let event = turn(&mut other, Some(&id), false).await;
            assert_eq!(event["type"] == "response.completed", is_stored, "{event}");
        }
    }
    assert_eq!(
        owners(cluster.redis()).await.len(),
        4,
        "two made here, and two that went on from them over HTTP"
    );
}

#[tokio::test]
async fn id_of_a_socket_is_stored_before_its_client_reads_it() {
    let folder = Folder::new();
    let redis = Redis::start(folder.path()).await;
    let slow = Cable::to(redis.address()).await;
    let cluster = Cluster::new().keys(keys(0)).replicas(2).stores_at(&[slow.url(), redis.url()]);
    let cluster = cluster.simulator("event_delay = \"50ms\"").start().await;
    let mut socket = session(cluster.replicas[0].address(), ALICE, "s").await;
    id(&turn(&mut socket, None, true).await);
    slow.set(Weather::Slow(ms(25)));
    for known in 2..5 {
        socket.send(r#"{"type":"response.create","model":"gpt-5.4","input":"x"}"#).await;
        socket.event(&["response.created"]).await;
        assert_eq!(owners(&redis).await.len(), known);
        socket.event(&["response.completed"]).await;
    }
}

#[tokio::test]
async fn socket_without_the_store_continues_from_its_own_ids() {
    let mut cluster =
        Cluster::new().keys(keys(0)).redis().store("timeout = \"300ms\"").start().await;
    let mut socket = session(cluster.address(), ALICE, "s").await;
    let mut last = id(&turn(&mut socket, None, true).await);
    cluster.redis().kill().await;
    for _ in 0..3 {
        last = id(&turn(&mut socket, Some(&last), true).await);
    }
    // The id may belong to the same client, but the store, which knows the owner, is away.
    let refused = turn(&mut socket, Some("resp_never"), true).await;
    assert_eq!(
        (&refused["status"], &refused["error"]["code"]),
        (&json!(503), &json!("no_key_available"))
    );
    assert_eq!(refused["headers"]["retry-after"], "1");
    // This replica remembers the ids that it has issued.
    let mut other = session(cluster.address(), ALICE, "s").await;
    id(&turn(&mut other, Some(&last), true).await);
}

#[tokio::test]
async fn unknown_ids_pass_on_a_socket_too_where_the_operator_says_so() {
    let cluster =
        Cluster::new().keys(two_projects()).server("foreign_ids", "\"pass\"").start().await;
    let mut socket = session(cluster.address(), ALICE, "s").await;
    id(&turn(&mut socket, None, true).await);
    let refused = turn(&mut socket, Some("resp_never"), true).await;
    assert_eq!(refused["error"]["code"], "previous_response_not_found");
    let turns = cluster.turns().await;
    assert!(
        turns.iter().any(|turn| turn.previous_response_id.as_deref() == Some("resp_never")),
        "the upstream was asked"
    );
}
