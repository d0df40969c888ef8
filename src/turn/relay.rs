//! The answer on its way to the client: every byte as it came, in as few writes as the upstream's own timing allows.
//!
//! hyper hands over an upstream's stream frame by frame, an event at a time, and a connection that is woken for each of them
//! writes each by itself. Here a task of the turn's own takes the frames, joins those that are ready at the same moment, and
//! wakes the connection once for all of them. What has come is never held back for a timer: where frames follow each other
//! closely the upstream's connection gets the chance to hand over another, and when there is none everything goes on its way.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::poll_immediate;
use http_body::{Body, Frame};

use super::account::Account;
use super::idle::Idle;
use crate::key::Key;
use crate::key::echo::Ear;
use crate::metrics::Ending;
use crate::outcome::Answer;
use crate::task::Tasks;
use crate::usage::tap::Tap;

/// So much is passed on without waiting for company.
const FULL: usize = 16 * 1024;
/// A frame that comes so long after the one before comes alone, nearly always: it goes at once.
const COMPANY: Duration = Duration::from_millis(1);
/// A frame of this size gains nothing from being copied.
const LARGE: usize = 8 * 1024;
/// So much waits for a slow reader; then the upstream waits too.
const AHEAD: usize = 64 * 1024;
/// How long the end of an answer is waited for when its client has left after the last word.
const EPILOGUE: Duration = Duration::from_secs(1);

/// The body that a client is sent. Dropping it before its end cancels the upstream request.
pub struct Relay(Arc<Pipe>);

/// Passes an answer on, to its end or until its client leaves.
pub struct Pump {
    upstream: Option<reqwest::Body>,
    joined: BytesMut,
    idle: Idle,
    tap: Tap,
    ear: Ear,
    account: Account,
    pipe: Inlet,
}

/// Why an answer cannot go on. The connection to the client is cut, so that it sees a cut answer as what it is.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum Broken {
    #[error("the upstream's answer was cut")]
    Cut,
    #[error("the upstream's answer stalled")]
    Stalled,
}

/// Both ends of an answer's way: the relay sends what the pump, once it is started, takes.
pub fn relay(answer: Answer, key: &Key, account: Account) -> (Relay, Pump) {
    let pipe = Arc::new(Pipe(Mutex::default()));
    let mut tap = Tap::new(&answer.headers);
    tap.observe(&answer.head);
    let mut ear = key.echo.listen();
    if ear.hears(&answer.head) {
        account.echoed();
    }
    let joined = BytesMut::from(&answer.head[..]);
    let idle = Idle::new(key.upstream.idle_timeout);
    // A client that knows the length leaves with the last byte: that is an end, too, here and below.
    let upstream = answer.rest.filter(|upstream| !upstream.is_end_stream());
    let pump = Pump { upstream, joined, idle, tap, ear, account, pipe: Inlet(Arc::clone(&pipe)) };
    (Relay(pipe), pump)
}

impl Pump {
    /// Passes the answer on. What is here as a whole goes with its head, in one write; the rest has a task of its own.
    pub async fn start(mut self, tasks: &Tasks) {
        match poll_immediate(poll_fn(|context| self.poll_over(context))).await {
            Some(over) => self.stop(over).await,
            None => tasks.spawn(self.run()),
        }
    }

    async fn run(mut self) {
        let over = poll_fn(|context| self.poll_over(context)).await;
        self.stop(over).await;
    }

    async fn stop(mut self, over: Over) {
        match over {
            Over::Upstream(broken) => self.end(broken),
            Over::Client if self.tap.is_over() => self.finish().await,
            Over::Client => self.account.relayed(self.tap.finish(false), Some(Ending::ClientLeft)),
        }
    }

    /// Takes one frame, or passes on what was taken before.
    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<Over> {
        let Some(upstream) = &mut self.upstream else { return Poll::Ready(Over::Upstream(None)) };
        loop {
            if self.joined.len() >= FULL {
                self.pipe.push(self.joined.split().freeze());
            }
            match self.pipe.poll_room(context) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(Over::Client),
                Poll::Pending => return Poll::Pending,
            }
            let data = match Pin::new(&mut *upstream).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Over::Upstream(Some(Broken::Cut))),
                Poll::Ready(None) => return Poll::Ready(Over::Upstream(None)),
                Poll::Pending => {
                    if !self.joined.is_empty() {
                        self.pipe.push(self.joined.split().freeze());
                    }
                    return self.idle.poll_over(context).map(|()| Over::Upstream(Some(Broken::Stalled)));
                }
            };
            self.tap.observe(&data);
            if self.ear.hears(&data) {
                self.account.echoed();
            }
            let is_first = self.joined.is_empty();
            let is_alone = is_first && (self.idle.stir() > COMPANY || data.len() >= LARGE);
            if upstream.is_end_stream() {
                self.joined.extend_from_slice(&data);
                return Poll::Ready(Over::Upstream(None));
            }
            if !is_alone {
                self.joined.extend_from_slice(&data);
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.pipe.push(data);
        }
    }

    /// The upstream is done with, one way or the other.
    fn end(mut self, broken: Option<Broken>) {
        let ending = broken.map(|broken| match broken {
            Broken::Cut => Ending::Cut,
            Broken::Stalled => Ending::TimedOut,
        });
        self.account.relayed(self.tap.finish(broken.is_none()), ending);
        // Told before the client can have read the last byte.
        drop(self.account);
        self.pipe.close(self.joined.freeze(), broken);
    }

    /// Codex leaves at the last word, before the last chunk: reading on to the end keeps the upstream's connection alive.
    async fn finish(mut self) {
        self.account.relayed(self.tap.finish(false), None);
        drop(self.account);
        if let Some(upstream) = self.upstream.take() {
            let _ = tokio::time::timeout(EPILOGUE, http_body_util::BodyExt::collect(upstream)).await;
        }
    }
}

/// What is over.
enum Over {
    Upstream(Option<Broken>),
    Client,
}

/// The pump's end of the pipe. However the pump ends, nobody waits for more.
struct Inlet(Arc<Pipe>);

impl std::ops::Deref for Inlet {
    type Target = Pipe;

    fn deref(&self) -> &Pipe {
        &self.0
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        let is_closed = self.lock().closed.is_some();
        if !is_closed {
            self.close(Bytes::new(), Some(Broken::Cut));
        }
    }
}

/// What is between the pump and the relay.
struct Pipe(Mutex<Passing>);

#[derive(Default)]
struct Passing {
    ready: VecDeque<Bytes>,
    length: usize,
    /// Nothing follows; or this follows.
    closed: Option<Option<Broken>>,
    has_left: bool,
    /// Woken when something is ready.
    reader: Option<Waker>,
    /// Woken when there is room, or nobody to read.
    writer: Option<Waker>,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, Passing> {
        // Every change is whole before anything can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, data: Bytes) {
        let mut passing = self.lock();
        passing.length += data.len();
        passing.ready.push_back(data);
        wake(passing.reader.take());
    }

    fn close(&self, rest: Bytes, broken: Option<Broken>) {
        let mut passing = self.lock();
        if !rest.is_empty() {
            passing.length += rest.len();
            passing.ready.push_back(rest);
        }
        passing.closed = Some(broken);
        wake(passing.reader.take());
    }

    /// Waits for room; `false` if there is nobody left to read. The task is woken when either changes, until it asks again.
    fn poll_room(&self, context: &mut Context<'_>) -> Poll<bool> {
        let mut passing = self.lock();
        if passing.has_left {
            return Poll::Ready(false);
        }
        if !passing.writer.as_ref().is_some_and(|writer| writer.will_wake(context.waker())) {
            passing.writer = Some(context.waker().clone());
        }
        if passing.length < AHEAD { Poll::Ready(true) } else { Poll::Pending }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut passing = self.0.lock();
        if let Some(data) = passing.ready.pop_front() {
            let was_full = passing.length >= AHEAD;
            passing.length -= data.len();
            if was_full && passing.length < AHEAD {
                wake(passing.writer.take());
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match passing.closed.as_mut() {
            Some(broken) => Poll::Ready(broken.take().map(|broken| Err(broken.into()))),
            None => {
                passing.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let passing = self.0.lock();
        passing.ready.is_empty() && matches!(passing.closed, Some(None))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let mut passing = self.0.lock();
        passing.has_left = true;
        passing.ready.clear();
        wake(passing.writer.take());
    }
}
