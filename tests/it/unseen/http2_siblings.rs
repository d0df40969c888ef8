//! Number 10: if an upstream refuses a turn over HTTP/2 again and again, a sibling may serve it,
//! and its client notices nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{BODY, turn, two};
use crate::world::cluster::Running;
use crate::world::http2::{DOCUMENT, refuser};
use crate::world::simulator::siblings;
use crate::world::wire::ask;

async fn cluster(address: SocketAddr) -> Running {
    // One other organization, to which the turn must not go.
    two()
        .keys([siblings("org-a", 2), siblings("org-b", 2)].concat())
        .upstream_at(&format!("http://{address}/v1"))
        .upstream("http2 = true\n")
        .start()
        .await
}

#[tokio::test]
async fn turn_that_is_refused_again_is_served_by_a_sibling_unseen() {
    let (address, book) = refuser::start().await;
    let cluster = cluster(address).await;
    let told = ask(cluster.address(), &turn(BODY)).await;
    assert_eq!((told.status, told.whole, told.body.as_slice()), (200, true, DOCUMENT));
    let seen = book.lock().expect("no holder panics").clone();
    assert!(seen.iter().all(|(_, body)| body == BODY.as_bytes()), "the same bytes each time");
    let secrets: Vec<&String> = seen.iter().map(|(secret, _)| secret).collect();
    let first = secrets.iter().take_while(|secret| **secret == secrets[0]).count();
    assert!((2..=4).contains(&first), "refused again by the same key: {first}");
    assert_eq!(secrets.len(), first + 1, "and served at once by another: {secrets:?}");
    let keys: BTreeSet<String> = [secrets[0], secrets[first]]
        .map(|secret| {
            siblings("org-a", 2)
                .into_iter()
                .chain(siblings("org-b", 2))
                .find(|key| *secret == format!("Bearer {}", key.secret()))
        })
        .map(|key| key.expect("a key of ours").organization)
        .into();
    assert_eq!(keys.len(), 1, "a sibling: {keys:?}");
    // A refused stream says nothing about the key.
    for replica in &cluster.replicas {
        for key in replica.keys().await {
            assert_eq!(key["state"], "ready", "{key}");
        }
    }
}
