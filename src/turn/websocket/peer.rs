//! One peer of a WebSocket: limits for its message size and its silence, and how to close its
//! connection.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt, SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::turn::idle::Idle;

/// Largest message that is accepted from a client. OpenAI's own limit is not known; a Codex turn
/// has a few megabytes at most.
const LARGEST: usize = 16 * 1024 * 1024;
/// Largest message that is accepted from an upstream: an event may hold a picture, or several.
const LARGEST_EVENT: usize = 256 * 1024 * 1024;
/// Size of the read buffer. The default would cost a quarter of a megabyte per connection.
const READ: usize = 4 * 1024;
/// Bytes that are joined into one write.
const WRITE: usize = 4 * 1024;
/// Most pongs that may wait for a peer that does not read. Beyond that, the gateway stops reading
/// from the peer, because each further ping would add a pong.
const UNSENT_PONGS: usize = 256;

pub type Frames = WebSocketStream<TokioIo<Upgraded>>;
pub type Sink = SplitSink<Frames, Message>;

/// Returns the frames of a connection.
pub async fn frames(connection: Upgraded, role: Role) -> Frames {
    let largest = if role == Role::Server { LARGEST } else { LARGEST_EVENT };
    let config = WebSocketConfig::default()
        .read_buffer_size(READ)
        .write_buffer_size(WRITE)
        .max_message_size(Some(largest))
        .max_frame_size(Some(largest));
    WebSocketStream::from_raw_socket(TokioIo::new(connection), role, Some(config)).await
}

/// How a peer was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The peer closed the connection.
    Closed(Option<CloseFrame>),
    /// The connection ended without a close frame, or the peer was silent for too long.
    Gone,
    /// The peer broke the protocol. The gateway closes with this code.
    Broke(CloseCode),
}

impl Lost {
    fn of(error: &Error) -> Self {
        match error {
            Error::Capacity(_) => Self::Broke(CloseCode::Size),
            Error::Utf8(_) => Self::Broke(CloseCode::Invalid),
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Self::Gone,
            Error::Protocol(_) => Self::Broke(CloseCode::Protocol),
            _ => Self::Gone,
        }
    }
}

/// The messages from a peer.
pub struct Incoming {
    frames: SplitStream<Frames>,
    silence: Idle,
    /// A ping was sent, and nothing has arrived since.
    is_pinged: bool,
    /// Pongs that could not be sent at once.
    unsent_pongs: usize,
}

impl Incoming {
    pub fn new(frames: SplitStream<Frames>, ping: Duration) -> Self {
        Self { frames, silence: Idle::new(ping), is_pinged: false, unsent_pongs: 0 }
    }

    /// Returns the next message to forward. Pings a silent peer through `sink`.
    pub async fn next(&mut self, sink: &Mutex<Sink>) -> Result<Message, Lost> {
        loop {
            let Self { frames, silence, .. } = self;
            let received = poll_fn(|context| match frames.poll_next_unpin(context) {
                Poll::Ready(item) => Poll::Ready(Some(item)),
                Poll::Pending => silence.poll_over(context).map(|()| None),
            });
            let message = match received.await {
                Some(Some(Ok(message))) => message,
                Some(Some(Err(error))) => return Err(Lost::of(&error)),
                Some(None) => return Err(Lost::Gone),
                None if self.is_pinged => return Err(Lost::Gone),
                None => {
                    self.silence.note_arrival();
                    self.is_pinged = ping(sink);
                    continue;
                }
            };
            self.silence.note_arrival();
            self.is_pinged = false;
            match message {
                Message::Close(frame) => return Err(Lost::Closed(frame)),
                Message::Ping(_) => self.answer(sink).await,
                Message::Pong(_) => {}
                // OpenAI's messages are text. Nothing that no rule can read passes (RFC 6455,
                // section 7.4.1).
                Message::Binary(_) => return Err(Lost::Broke(CloseCode::Unsupported)),
                message => return Ok(message),
            }
        }
    }

    /// Flushes the pong that the frames have prepared. The gateway waits only for a peer with many
    /// unsent pongs, because a peer that is sending may briefly not read.
    async fn answer(&mut self, sink: &Mutex<Sink>) {
        let is_out = sink
            .try_lock()
            .is_ok_and(|mut sink| matches!(sink.flush().now_or_never(), Some(Ok(()))));
        self.unsent_pongs = if is_out { 0 } else { self.unsent_pongs + 1 };
        if self.unsent_pongs > UNSENT_PONGS {
            // If the peer is gone, reading from it will fail.
            let _ = sink.lock().await.flush().await;
            self.unsent_pongs = 0;
        }
    }
}

/// Sends a ping. Returns whether it went out. If other data blocks the sink, the peer reads slowly
/// and cannot be expected to answer.
fn ping(sink: &Mutex<Sink>) -> bool {
    let Ok(mut sink) = sink.try_lock() else { return false };
    matches!(sink.send(Message::Ping(Bytes::new())).now_or_never(), Some(Ok(())))
}

/// The last message to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// The peer is gone.
    None,
    /// The peer closed the connection itself; the library answers its close frame.
    Echo,
    Say(Option<CloseFrame>),
}

/// Closes a peer's connection within `timeout`, after the messages `last`.
pub async fn leave(
    sink: Mutex<Sink>,
    from: Incoming,
    last: Vec<Message>,
    farewell: Farewell,
    timeout: Duration,
) {
    let Ok(mut frames) = sink.into_inner().reunite(from.frames) else { return };
    let close = match farewell {
        Farewell::None => return,
        Farewell::Echo => None,
        Farewell::Say(frame) => Some(Message::Close(frame)),
    };
    let is_broken = close.as_ref().is_some_and(is_protocol_error);
    let leaving = async {
        for message in last.into_iter().chain(close) {
            frames.send(message).await?;
        }
        frames.flush().await?;
        if is_broken {
            // The peer's bytes cannot be understood any more. But if they stayed unread, the
            // connection would be reset and the close frame lost.
            let (stream, mut unread) = (frames.get_mut(), [0; 1024]);
            stream.shutdown().await?;
            while stream.read(&mut unread).await.is_ok_and(|count| count > 0) {}
        }
        while let Some(Ok(_)) = frames.next().await {}
        Ok::<(), Error>(())
    };
    // A peer that does not read in time misses the close frame.
    let _ = tokio::time::timeout(timeout, leaving).await;
}

/// Whether the message says that the peer broke the protocol.
fn is_protocol_error(message: &Message) -> bool {
    let Message::Close(Some(frame)) = message else { return false };
    matches!(frame.code, CloseCode::Size | CloseCode::Invalid | CloseCode::Protocol)
}
