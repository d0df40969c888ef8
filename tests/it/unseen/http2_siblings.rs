//! Number 10: a turn that its upstream refuses over HTTP/2 again and again may go to a sibling, and
//! its client notices nothing.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::{Request as Asked, Response};
use tokio::net::{TcpListener, TcpStream};

use super::{BODY, turn, two};
use crate::world::cluster::Running;
use crate::world::simulator::siblings;
use crate::world::wire::ask;

/// What the upstream answers in the end.
const ANSWER: &[u8] = br#"{"id":"resp_1","status":"completed","output":[]}"#;

/// The requests that came: the credential and the body of each.
type Book = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// An upstream that speaks HTTP/2. It refuses each request with the credential that came first, and
/// serves all others.
async fn upstream() -> (SocketAddr, Book) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let (address, book) = (listener.local_addr().expect("it is bound"), Book::default());
    let kept = Arc::clone(&book);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&kept)));
        }
    });
    (address, book)
}

async fn serve(stream: TcpStream, book: Book) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(asked) = connection.accept().await {
        let (request, answer) = asked?;
        tokio::spawn(decide(request, answer, Arc::clone(&book)));
    }
    Ok(())
}

async fn decide(
    request: Asked<h2::RecvStream>,
    mut answer: SendResponse<Bytes>,
    book: Book,
) -> Result<(), h2::Error> {
    let (head, mut incoming) = request.into_parts();
    let mut body = Vec::new();
    while let Some(data) = incoming.data().await {
        let data = data?;
        incoming.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let secret = head.headers["authorization"].to_str().expect("a credential").to_owned();
    let is_refused = {
        let mut book = book.lock().expect("no holder panics");
        book.push((secret.clone(), body));
        book[0].0 == secret
    };
    if is_refused {
        answer.send_reset(Reason::REFUSED_STREAM);
        return Ok(());
    }
    let head = Response::builder().header("content-type", "application/json").body(());
    let mut sending = answer.send_response(head.expect("a valid head"), false)?;
    sending.send_data(Bytes::from_static(ANSWER), true)
}

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
    let (address, book) = upstream().await;
    let cluster = cluster(address).await;
    let told = ask(cluster.address(), &turn(BODY)).await;
    assert_eq!((told.status, told.whole, told.body.as_slice()), (200, true, ANSWER));
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
    // What was refused says nothing of the key.
    for replica in &cluster.replicas {
        for key in replica.keys().await {
            assert_eq!(key["state"], "ready", "{key}");
        }
    }
}
