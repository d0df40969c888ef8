//! The answer on its way to the client: every byte as it came, in as few writes as the upstream's own timing allows.
//!
//! hyper hands over an upstream's stream frame by frame, and writes each by itself: an event a system call. Here, frames that
//! are ready at the same moment are joined. What has come is never held back for a timer: when nothing more is ready, the
//! connection's task gets the chance to fetch more a few times, then everything goes on its way.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep, sleep_until};

use super::account::Account;
use crate::metrics::Ending;
use crate::outcome::Answer;
use crate::task::Tasks;
use crate::usage::tap::Tap;

/// So much is passed on without waiting for company.
const FULL: usize = 16 * 1024;
/// A frame of this size gains nothing from being copied.
const LARGE: usize = 8 * 1024;
/// How often the connection's task is let go before.
const YIELDS: u8 = 3;
/// How long the end of an answer is waited for when its client has left after the last word.
const EPILOGUE: Duration = Duration::from_secs(1);

/// The body that a client is sent. Dropping it before its end cancels the upstream request.
pub struct Relay {
    upstream: Option<reqwest::Body>,
    joined: BytesMut,
    yields: u8,
    idle: Idle,
    broken: Option<Broken>,
    tap: Tap,
    account: Account,
    tasks: Tasks,
}

/// Why an answer cannot go on. The connection to the client is cut, so that it sees a cut answer as what it is.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum Broken {
    #[error("the upstream's answer was cut")]
    Cut,
    #[error("the upstream's answer stalled")]
    Stalled,
}

impl Relay {
    pub fn new(answer: Answer, idle_timeout: Duration, account: Account, tasks: Tasks) -> Self {
        let mut tap = Tap::new(&answer.headers);
        tap.observe(&answer.head);
        let is_whole = answer.rest.is_none();
        let mut relay = Self {
            upstream: answer.rest,
            joined: BytesMut::from(&answer.head[..]),
            yields: 0,
            idle: Idle::new(idle_timeout),
            broken: None,
            tap,
            account,
            tasks,
        };
        if is_whole {
            // Read to its end before it was relayed: how the client takes it changes nothing about how it ended.
            relay.close(None);
        }
        relay
    }

    fn take(&mut self) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.yields = 0;
        Poll::Ready(Some(Ok(Frame::data(self.joined.split().freeze()))))
    }

    /// The upstream is done with, one way or the other.
    fn close(&mut self, broken: Option<Broken>) {
        self.upstream = None;
        self.broken = broken;
        let ending = broken.map(|broken| match broken {
            Broken::Cut => Ending::Cut,
            Broken::Stalled => Ending::TimedOut,
        });
        self.account.relayed(self.tap.finish(broken.is_none()), ending);
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

impl Body for Relay {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let relay = self.get_mut();
        loop {
            if relay.joined.len() >= FULL {
                return relay.take();
            }
            let Some(upstream) = &mut relay.upstream else {
                return match relay.broken.take() {
                    _ if !relay.joined.is_empty() => relay.take(),
                    Some(broken) => Poll::Ready(Some(Err(broken.into()))),
                    None => Poll::Ready(None),
                };
            };
            match Pin::new(upstream).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    relay.idle.stir();
                    relay.tap.observe(&data);
                    if relay.joined.is_empty() && data.len() >= LARGE {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    relay.joined.extend_from_slice(&data);
                    relay.yields = 0;
                }
                Poll::Ready(Some(Err(_))) => relay.close(Some(Broken::Cut)),
                Poll::Ready(None) => relay.close(None),
                Poll::Pending if relay.joined.is_empty() => {
                    if relay.idle.poll_over(context).is_pending() {
                        return Poll::Pending;
                    }
                    relay.close(Some(Broken::Stalled));
                }
                Poll::Pending if relay.yields < YIELDS => {
                    relay.yields += 1;
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Pending => return relay.take(),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.upstream.is_none() && self.joined.is_empty() && self.broken.is_none()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let Some(upstream) = self.upstream.take() else { return };
        let is_over = self.tap.is_over();
        self.account.relayed(self.tap.finish(false), Some(Ending::ClientLeft));
        // Codex leaves at the last word, before the last chunk: reading on to the end keeps the upstream connection alive.
        if is_over && tokio::runtime::Handle::try_current().is_ok() {
            self.tasks.spawn(tokio::time::timeout(EPILOGUE, upstream.collect()).map(drop));
        }
    }
}

/// How long nothing has come. One timer a stream, moved only when it goes off.
struct Idle {
    timeout: Duration,
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    fn new(timeout: Duration) -> Self {
        Self { timeout, last: Instant::now(), timer: None }
    }

    fn stir(&mut self) {
        self.last = Instant::now();
    }

    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let end = self.last + self.timeout;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        while timer.as_mut().poll(context).is_ready() {
            if Instant::now() >= end {
                return Poll::Ready(());
            }
            timer.as_mut().reset(end);
        }
        Poll::Pending
    }
}
