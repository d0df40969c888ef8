//! Reads and writes the messages of one connection, and gives the memory of large ones back.
//!
//! A long message goes out in several frames, a few at a time, between which other connections of
//! the thread have their turn. The library copies and masks a frame that it writes, and moves all
//! that is left of it after each write, which takes long for many megabytes.
//!
//! The WebSocket library keeps the buffers of the largest message for as long as the connection
//! lives. An idle socket would therefore hold a whole history. Between two messages, with nothing
//! to send, the library's buffers are empty, and new ones replace them.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use futures_util::{FutureExt, Sink, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::turn::websocket::meter::{Meter, Metered};

/// Largest message whose buffers are kept. Smaller ones are not worth the change.
const KEPT: usize = 16 * 1024;
/// Longest message that goes in one frame, and the frames of a longer one.
const LONG: usize = 1024 * 1024;
const FRAME: usize = 64 * 1024;
/// Frames of a long message that are written at once.
const AT_ONCE: usize = 8;

/// The messages of one connection, in both directions.
pub struct Frames<I> {
    /// `None` only while new buffers replace the old ones.
    stream: Option<WebSocketStream<Metered<I>>>,
    meter: Meter,
    role: Role,
    config: WebSocketConfig,
    /// A message beyond `KEPT` has passed, so the buffers are large.
    is_large: bool,
    /// Something may wait in the library's buffers to be sent.
    is_unsent: bool,
    /// A close frame was sent or received. The library then knows more than its buffers hold.
    is_closing: bool,
    /// The reader, which waits for a message although the buffers are large.
    reader: Option<Waker>,
    /// The part of a long message that is not framed yet, and its first byte.
    rest: Bytes,
    is_first: bool,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Frames<I> {
    /// Returns the frames of a connection whose handshake is over. `meter` measures it.
    pub fn new(connection: I, role: Role, config: WebSocketConfig, meter: Meter) -> Self {
        let stream = Some(over(Metered::new(connection, meter.clone()), role, config));
        let (is_large, is_unsent, is_closing) = (false, false, false);
        let (reader, rest, is_first) = (None, Bytes::new(), false);
        Self {
            stream,
            meter,
            role,
            config,
            is_large,
            is_unsent,
            is_closing,
            reader,
            rest,
            is_first,
        }
    }

    /// Ready when all frames of a long message are with the library.
    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        for _ in 0..AT_ONCE {
            if self.rest.is_empty() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.stream().poll_ready_unpin(context))?;
            let piece = self.rest.split_to(self.rest.len().min(FRAME));
            let is_first = std::mem::take(&mut self.is_first);
            let kind = OpCode::Data(if is_first { Data::Text } else { Data::Continue });
            let frame = Frame::message(piece, kind, self.rest.is_empty());
            self.stream().start_send_unpin(Message::Frame(frame))?;
        }
        if !self.rest.is_empty() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    /// Returns the connection below the frames.
    pub fn into_inner(self) -> Metered<I> {
        self.stream.expect("the stream is there between two calls").into_inner()
    }

    /// Replaces the buffers, if they are large and empty. Returns whether it did.
    ///
    /// The reader calls it while it waits: every whole frame that has come is read by then, and
    /// the meter knows of every other byte.
    fn give_back(&mut self) -> bool {
        let is_idle = !self.is_unsent && !self.is_closing && !self.meter.is_within_message();
        if !(self.is_large && is_idle) {
            return false;
        }
        if let Some(stream) = self.stream.take() {
            self.stream = Some(over(stream.into_inner(), self.role, self.config));
        }
        self.is_large = false;
        true
    }

    fn note(&mut self, message: &Message) {
        self.is_large |= message.len() > KEPT;
        self.is_closing |= message.is_close();
    }

    fn stream(&mut self) -> &mut WebSocketStream<Metered<I>> {
        self.stream.as_mut().expect("the stream is there between two calls")
    }
}

/// Returns frames with new buffers over a connection.
fn over<I>(
    connection: Metered<I>,
    role: Role,
    config: WebSocketConfig,
) -> WebSocketStream<Metered<I>>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let made = WebSocketStream::from_raw_socket(connection, role, Some(config)).now_or_never();
    made.expect("without a handshake there is nothing to wait for")
}

impl<I: AsyncRead + AsyncWrite + Unpin> Stream for Frames<I> {
    type Item = Result<Message, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.reader = None;
        let mut item = self.stream().poll_next_unpin(context);
        // The new buffers have to wait for a message as the old ones did.
        if item.is_pending() && self.give_back() {
            item = self.stream().poll_next_unpin(context);
        }
        match &item {
            Poll::Ready(Some(Ok(message))) => {
                // The library answers a ping with its next bytes.
                self.is_unsent |= message.is_ping();
                self.note(message);
                if message.is_close() {
                    // The library takes no more frames, and answers the close with its next bytes.
                    self.rest = Bytes::new();
                }
            }
            Poll::Ready(_) => self.is_closing = true,
            Poll::Pending => self.reader = self.is_large.then(|| context.waker().clone()),
        }
        item
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Sink<Message> for Frames<I> {
    type Error = Error;

    fn poll_ready(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.poll_rest(context))?;
        self.stream().poll_ready_unpin(context)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), Error> {
        self.note(&message);
        self.is_unsent = true;
        if message.len() > LONG
            && let Message::Text(text) = message
        {
            (self.rest, self.is_first) = (text.into(), true);
            return Ok(());
        }
        self.stream().start_send_unpin(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.poll_rest(context))?;
        let flushed = ready!(self.stream().poll_flush_unpin(context));
        if flushed.is_ok() {
            self.is_unsent = false;
            if self.is_large
                && let Some(reader) = self.reader.take()
            {
                reader.wake();
            }
        }
        Poll::Ready(flushed)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.poll_rest(context))?;
        self.is_closing = true;
        self.stream().poll_close_unpin(context)
    }
}

#[cfg(test)]
mod tests {
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

    /// Polls once for a message, of which there is none.
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

    /// Each write of a long message is short, also if the peer takes everything at once.
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

    /// Sends all messages, and a ping after some, then waits for the other side to be done.
    async fn send(
        mut sink: SplitSink<Ours, Message>,
        lengths: Vec<usize>,
    ) -> SplitSink<Ours, Message> {
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
}
