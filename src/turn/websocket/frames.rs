//! Reads and writes the messages of one connection, and gives the memory of large ones back.
//!
//! A long message goes out in several frames, a few at a time. In between, the thread serves its
//! other connections. The library copies and masks each frame that it writes, and moves the frame's
//! rest after each write. For a frame of many megabytes, that takes long.
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
/// Longest message that goes out in one frame, and the size of the frames of a longer one.
const LONG: usize = 1024 * 1024;
const FRAME: usize = 64 * 1024;
/// Frames of a long message that are written before other connections run.
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
    /// Whether the library's buffers may hold bytes that are not sent yet.
    is_unsent: bool,
    /// Whether a close frame was sent or received. The library then has state that its buffers do
    /// not show.
    is_closing: bool,
    /// The reader's waker. The reader waits for a message while the buffers are still large.
    reader: Option<Waker>,
    /// The part of a long message that is not framed yet.
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

    /// Ready when the library has all frames of a long message.
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
    /// The reader calls this while it waits for a message. By then every whole frame that has come
    /// is read, and the meter knows of every other byte.
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
        // The new buffers must be polled, so that they wake this task for a message like the old
        // ones.
        if item.is_pending() && self.give_back() {
            item = self.stream().poll_next_unpin(context);
        }
        match &item {
            Poll::Ready(Some(Ok(message))) => {
                // The library sends its pong with its next bytes.
                self.is_unsent |= message.is_ping();
                self.note(message);
                if message.is_close() {
                    // The library takes no more frames, and sends its answer to the close frame
                    // with its next bytes.
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
mod tests;
