//! One hop of a WebSocket: how large and how silent a peer may be, and how it is left.

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

/// A larger message is refused. The real service's own limit is not known; a Codex turn is a few
/// megabytes at the most.
const LARGEST: usize = 16 * 1024 * 1024;
/// What is read at a time. Defaults would cost a quarter of a megabyte a connection.
const READ: usize = 4 * 1024;
/// So much is joined into one write.
const WRITE: usize = 4 * 1024;
/// So many answers to pings may wait for a peer that does not read. Beyond it no more is read from
/// that peer either: the frames themselves would pile up answers without end.
const OWED: usize = 256;

pub type Frames = WebSocketStream<TokioIo<Upgraded>>;
pub type Sink = SplitSink<Frames, Message>;

/// The frames of a connection.
pub async fn frames(connection: Upgraded, role: Role) -> Frames {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ)
        .write_buffer_size(WRITE)
        .max_message_size(Some(LARGEST))
        .max_frame_size(Some(LARGEST));
    WebSocketStream::from_raw_socket(TokioIo::new(connection), role, Some(config)).await
}

/// How a peer was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It said so.
    Closed(Option<CloseFrame>),
    /// It is gone without a word, or silent for too long.
    Gone,
    /// It broke the protocol, and is told by this code.
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

/// What a peer sends.
pub struct Incoming {
    frames: SplitStream<Frames>,
    silence: Idle,
    /// It was asked whether it is there, and has sent nothing since.
    is_asked: bool,
    /// Pings whose answers could not get out at once.
    owed: usize,
}

impl Incoming {
    pub fn new(frames: SplitStream<Frames>, ping: Duration) -> Self {
        Self { frames, silence: Idle::new(ping), is_asked: false, owed: 0 }
    }

    /// The next message to pass on. A silent peer is asked through `sink` whether it is there.
    pub async fn next(&mut self, sink: &Mutex<Sink>) -> Result<Message, Lost> {
        loop {
            let Self { frames, silence, .. } = self;
            let heard = poll_fn(|context| match frames.poll_next_unpin(context) {
                Poll::Ready(heard) => Poll::Ready(Some(heard)),
                Poll::Pending => silence.poll_over(context).map(|()| None),
            });
            let message = match heard.await {
                Some(Some(Ok(message))) => message,
                Some(Some(Err(error))) => return Err(Lost::of(&error)),
                Some(None) => return Err(Lost::Gone),
                None if self.is_asked => return Err(Lost::Gone),
                None => {
                    self.silence.stir();
                    self.is_asked = ping(sink);
                    continue;
                }
            };
            self.silence.stir();
            self.is_asked = false;
            match message {
                Message::Close(word) => return Err(Lost::Closed(word)),
                Message::Ping(_) => self.answer(sink).await,
                Message::Pong(_) => {}
                message => return Ok(message),
            }
        }
    }

    /// Sees to it that the answer to a ping, which the frames have ready, gets out. Only somebody
    /// who is owed many is waited for: a peer may well read no more for now because it has so much
    /// to say.
    async fn answer(&mut self, sink: &Mutex<Sink>) {
        let is_out = sink
            .try_lock()
            .is_ok_and(|mut sink| matches!(sink.flush().now_or_never(), Some(Ok(()))));
        self.owed = if is_out { 0 } else { self.owed + 1 };
        if self.owed > OWED {
            // A peer that is gone is found by whoever reads from it.
            let _ = sink.lock().await.flush().await;
            self.owed = 0;
        }
    }
}

/// Whether the question went out. Where something else cannot get out, the peer is slow to read: it
/// cannot be expected to answer.
fn ping(sink: &Mutex<Sink>) -> bool {
    let Ok(mut sink) = sink.try_lock() else { return false };
    matches!(sink.send(Message::Ping(Bytes::new())).now_or_never(), Some(Ok(())))
}

/// What a peer is told at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// It is gone.
    None,
    /// It has said so itself, and has its answer.
    Echo,
    Say(Option<CloseFrame>),
}

/// Leaves a peer, after these last messages, within `patience`.
pub async fn leave(
    sink: Mutex<Sink>,
    from: Incoming,
    last: Vec<Message>,
    farewell: Farewell,
    patience: Duration,
) {
    let Ok(mut frames) = sink.into_inner().reunite(from.frames) else { return };
    let word = match farewell {
        Farewell::None => return,
        Farewell::Echo => None,
        Farewell::Say(word) => Some(Message::Close(word)),
    };
    let is_broken = word.as_ref().is_some_and(is_reproach);
    let leaving = async {
        for message in last.into_iter().chain(word) {
            frames.send(message).await?;
        }
        frames.flush().await?;
        if is_broken {
            // It is not understood any more; but were its bytes left unread, the connection would
            // be reset under our last word.
            let (stream, mut unread) = (frames.get_mut(), [0; 1024]);
            stream.shutdown().await?;
            while stream.read(&mut unread).await.is_ok_and(|count| count > 0) {}
        }
        while let Some(Ok(_)) = frames.next().await {}
        Ok::<(), Error>(())
    };
    // Whoever does not hear the last word in time does not.
    let _ = tokio::time::timeout(patience, leaving).await;
}

/// Whether it says that the peer broke the protocol.
fn is_reproach(word: &Message) -> bool {
    let Message::Close(Some(word)) = word else { return false };
    matches!(word.code, CloseCode::Size | CloseCode::Invalid | CloseCode::Protocol)
}
