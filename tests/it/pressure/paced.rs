//! A client that reads a paced stream, and measures how late each event comes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::world::recorder::{Step, chunk, stream_head};
use crate::world::waiting::ms;
use crate::world::wire::{Connection, Piece, Request};

/// Time between two events of a paced stream.
pub const PACE: Duration = ms(20);

/// The answer of a [`Recorder`](crate::world::recorder::Recorder) that paces its events for ever.
pub fn paced() -> Vec<Step> {
    let event =
        b"event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\"}\n\n";
    vec![Step::Send(stream_head("")), Step::Drip(chunk(event), PACE)]
}

/// Asks for paced streams, one after the other, until `is_over`. How late each event came after
/// the one before.
pub async fn events(address: SocketAddr, request: &Request, is_over: &AtomicBool) -> Vec<Duration> {
    let mut late = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let mut connection = Connection::open(address).await;
        let answer = connection.ask(request).await.expect("an answer");
        assert_eq!(answer.status, 200, "a paced stream");
        let mut last = None;
        while let Piece::Bytes(_) = connection.piece().await {
            let now = Instant::now();
            late.extend(last.map(|last: Instant| (now - last).saturating_sub(PACE)));
            last = Some(now);
            if is_over.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    late
}

/// The median of the worst tenth.
pub fn worst_tenth(mut late: Vec<Duration>) -> Duration {
    late.sort();
    assert!(late.len() >= 20, "{} events", late.len());
    late[late.len() - late.len() / 20 - 1]
}

/// The worst of all.
pub fn worst(late: &[Duration]) -> Duration {
    late.iter().max().copied().unwrap_or_default()
}
