//! Tests of the frames of a connection, over an in-memory one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use proptest::prelude::*;
use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::setting::Size;
use crate::turn::memory::BodyMemory;
use crate::turn::websocket::meter::Source;

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

type Ours = Frames<DuplexStream>;
type Theirs = WebSocketStream<DuplexStream>;

async fn pair(role: Role, room: usize) -> (Ours, Theirs) {
    let (near, far) = duplex(room);
    let meter = Meter::new(Source::Upstream, BodyMemory::new(Size(64 << 20)));
    let other = if role == Role::Server { Role::Client } else { Role::Server };
    let config = WebSocketConfig::default().read_buffer_size(4096);
    let theirs = WebSocketStream::from_raw_socket(far, other, None).await;
    (Frames::new(near, role, config, meter), theirs)
}

fn text(length: usize) -> Message {
    Message::text("x".repeat(length))
}

/// Polls once for a message that has not come.
async fn waits(frames: &mut Ours) {
    let mut poll = std::future::poll_fn(|context| Poll::Ready(frames.poll_next_unpin(context)));
    assert!((&mut poll).await.is_pending());
}

#[tokio::test]
async fn large_buffers_go_once_nothing_is_in_them() {
    for role in [Role::Server, Role::Client] {
        let (mut ours, mut theirs) = pair(role, 1 << 20).await;
        theirs.send(text(KEPT)).await.unwrap();
        assert_eq!(ours.next().await.unwrap().unwrap(), text(KEPT));
        assert!(!ours.is_large, "such a message is usual");
        theirs.send(text(200_000)).await.unwrap();
        assert_eq!(ours.next().await.unwrap().unwrap(), text(200_000));
        assert!(ours.is_large);
        waits(&mut ours).await;
        assert!(!ours.is_large, "after a message that was read");

        ours.feed(text(200_000)).await.unwrap();
        let reader = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&reader));
        assert!(ours.poll_next_unpin(&mut Context::from_waker(&waker)).is_pending());
        assert!(ours.is_large && ours.is_unsent && !reader.0.load(Ordering::Relaxed));
        ours.flush().await.unwrap();
        assert!(reader.0.load(Ordering::Relaxed), "the reader is told");
        waits(&mut ours).await;
        assert!(!ours.is_large, "after a message that was sent");
        assert_eq!(theirs.next().await.unwrap().unwrap(), text(200_000));
    }
}

#[tokio::test]
async fn long_message_goes_out_in_frames_and_stays_one_message() {
    for role in [Role::Server, Role::Client] {
        long_message_stays_one(role).await;
    }
}

/// Each write of a long message is short, even if the peer takes everything at once.
#[tokio::test]
async fn long_message_is_written_in_parts() {
    for role in [Role::Server, Role::Client] {
        let (mut ours, mut theirs) = pair(role, 64 << 20).await;
        let (mut polls, mut all, mut come) = (0, 0, vec![0; 32 << 20]);
        let mut sending = std::pin::pin!(ours.send(text(16 << 20)));
        let mut is_sent = false;
        while !is_sent {
            is_sent = futures_util::poll!(sending.as_mut()).is_ready();
            let reading = tokio::io::AsyncReadExt::read(theirs.get_mut(), &mut come);
            let length = reading.now_or_never().map_or(0, Result::unwrap);
            assert!(length <= (AT_ONCE + 2) * (FRAME + 16), "{length} at once");
            (polls, all) = (polls + 1, all + length);
            assert!(polls < 10_000, "it ends");
            // The runtime limits how often a task may read and write before it yields.
            tokio::task::yield_now().await;
        }
        assert!(all > 16 << 20 && polls >= (16 << 20) / FRAME / AT_ONCE, "{all} in {polls}");
    }
}

async fn long_message_stays_one(role: Role) {
    let (mut ours, theirs) = pair(role, 30_000).await;
    let long = format!("{}\u{e9}{}", "x".repeat(FRAME - 1), "y".repeat(8 << 20));
    let (mut to, mut got) = theirs.split();
    let sent = Message::text(long.clone());
    let sending = async {
        ours.send(sent).await.unwrap();
        ours.send(text(5)).await.unwrap();
    };
    let receiving = async {
        to.send(Message::Ping("p".into())).await.unwrap();
        let first = got.next().await.unwrap().unwrap();
        (first, got.next().await.unwrap().unwrap())
    };
    let ((), (first, second)) = tokio::join!(sending, receiving);
    assert!(first == Message::text(long) && second == text(5));
    assert!(ours.rest.is_empty());
}

#[tokio::test]
async fn buffers_stay_while_anything_is_underway() {
    let (mut ours, mut theirs) = pair(Role::Server, 1 << 20).await;
    ours.send(text(200_000)).await.unwrap();
    // The first half of a frame has come.
    let half = [0x81, 0x80 | 2, 1, 2, 3, 4, b'h' ^ 1];
    tokio::io::AsyncWriteExt::write_all(theirs.get_mut(), &half).await.unwrap();
    waits(&mut ours).await;
    assert!(ours.is_large, "its bytes would be lost");
    tokio::io::AsyncWriteExt::write_all(theirs.get_mut(), &[b'i' ^ 2]).await.unwrap();
    assert_eq!(ours.next().await.unwrap().unwrap(), Message::text("hi"));
    theirs.send(Message::Ping("p".into())).await.unwrap();
    assert!(ours.next().await.unwrap().unwrap().is_ping());
    assert!(ours.is_unsent, "a pong is due");
    ours.flush().await.unwrap();
    assert_eq!(theirs.next().await.unwrap().unwrap(), text(200_000));
    assert!(theirs.next().await.unwrap().unwrap().is_pong());
    ours.send(Message::Close(None)).await.unwrap();
    waits(&mut ours).await;
    assert!(ours.is_large, "the library has to know of the close");
    assert!(theirs.next().await.unwrap().unwrap().is_close());
    let _ = theirs.flush().await;
    assert!(ours.next().await.unwrap().unwrap().is_close());
    assert!(ours.next().await.is_none());
}

/// Sends all messages, with a ping after some of them, then waits until the other side is done.
async fn send(mut sink: SplitSink<Ours, Message>, lengths: Vec<usize>) -> SplitSink<Ours, Message> {
    for length in lengths {
        sink.send(text(length)).await.unwrap();
        tokio::task::yield_now().await;
    }
    sink
}

async fn receive(mut from: SplitStream<Ours>, count: usize) -> (SplitStream<Ours>, Vec<usize>) {
    let mut found = Vec::new();
    while found.len() < count {
        match from.next().await.unwrap().unwrap() {
            Message::Text(text) => found.push(text.len()),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
    (from, found)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn message_passes_whole_and_in_order(
        up in proptest::collection::vec(0..60_000_usize, 0..12),
        down in proptest::collection::vec(0..60_000_usize, 0..12),
        room in 1..30_000_usize,
        is_server: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let role = if is_server { Role::Server } else { Role::Client };
        let playing = async {
            let (ours, theirs) = pair(role, room.max(200)).await;
            let (sink, from) = ours.split();
            let (mut to, mut got) = theirs.split();
            let (sent, asked) = (up.clone(), down.clone());
            let them = async {
                for length in asked {
                    to.send(text(length)).await.unwrap();
                    to.send(Message::Ping("p".into())).await.unwrap();
                }
            };
            let they = async {
                let mut found = Vec::new();
                while found.len() < sent.len() {
                    if let Message::Text(text) = got.next().await.unwrap().unwrap() {
                        found.push(text.len());
                    }
                }
                found
            };
            let (_, received, (), found) =
                tokio::join!(send(sink, up.clone()), receive(from, down.len()), them, they);
            (received.1, found)
        };
        let bounded = async { tokio::time::timeout(Duration::from_secs(20), playing).await };
        let done = runtime.unwrap().block_on(bounded);
        let (received, found) = done.expect("nothing waits in vain");
        prop_assert_eq!(received, down);
        prop_assert_eq!(found, up);
    }
}
