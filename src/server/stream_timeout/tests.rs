//! Tests of streams whose clients take nothing, with a real HTTP/2 client.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http::Request;
use tokio::io::duplex;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::metrics::{ListenerName, Metrics};
use crate::server::connection::connection;
use crate::server::connections::Connections;

const SECOND: Duration = Duration::from_secs(1);
/// Length of an answer that exceeds all buffers between a client and its server.
const LONG: usize = 1 << 20;

/// Returns a client whose streams have a window of this size. It is connected to a server that
/// answers each request with `LONG` bytes.
async fn client(window: u32) -> h2::client::SendRequest<Bytes> {
    let (near, far) = duplex(64 * 1024);
    let all = Connections::new(ListenerName::Clients, 9, Arc::new(Metrics::new()));
    let seat = all.enter().unwrap();
    let service = Router::new().fallback(|| async { vec![b'x'; LONG] });
    let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let ending = CancellationToken::new().into();
    tokio::spawn(connection(far, peer, service, 10 * SECOND, ending, seat));
    let built = h2::client::Builder::new()
        .initial_window_size(window)
        .initial_connection_window_size(16 << 20)
        .handshake(near)
        .await;
    let (client, running) = built.unwrap();
    tokio::spawn(running);
    client
}

async fn ask(client: &mut h2::client::SendRequest<Bytes>) -> h2::RecvStream {
    let request = Request::get("http://h/").body(()).unwrap();
    let (answer, _) = client.send_request(request, true).unwrap();
    answer.await.unwrap().into_body()
}

#[tokio::test(start_paused = true)]
async fn stream_whose_client_takes_nothing_is_reset_alone() {
    for window in [0, 1, 70_000] {
        let mut client = client(window).await;
        let mut stalled = ask(&mut client).await;
        let began = Instant::now();
        let error = loop {
            // The client does not return the bytes that it has received to the window.
            match stalled.data().await.expect("a reset") {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.reason(), Some(h2::Reason::CANCEL), "{window}: {error}");
        let took = began.elapsed();
        assert!(took >= TIMEOUT && took < TIMEOUT + 2 * SECOND, "{window}: {took:?}");
        // The rest of the connection still works.
        drop(stalled);
        drop(ask(&mut client).await);
    }
}

#[tokio::test(start_paused = true)]
async fn stream_of_a_slow_client_comes_to_its_end_beside_a_stalled_one() {
    let mut client = client(70_000).await;
    let _stalled = ask(&mut client).await;
    let (mut read, mut count) = (ask(&mut client).await, 0);
    while let Some(data) = read.data().await {
        let length = data.expect("it is never reset").len();
        tokio::time::sleep(SECOND * u32::try_from(length).unwrap() / 1_000).await;
        read.flow_control().release_capacity(length).unwrap();
        count += length;
    }
    assert_eq!(count, LONG);
}
