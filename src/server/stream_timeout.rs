//! Resets an HTTP/2 stream if its client takes nothing of its answer for too long.
//!
//! All streams of a connection share its writes, so `send_timeout` does not notice that one stream
//! waits for its window. Such a stream would hold its answer, its upstream's connection and an
//! in-flight place of its key for as long as the connection lives. Only that stream is reset,
//! because the others may belong to other clients behind a load balancer.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use tokio::time::{Instant, Sleep, sleep};

use crate::server::send_timeout::TIMEOUT;

tokio::task_local! {
    /// The account of the stream that runs in this task.
    static GIVEN: Arc<Given>;
}

/// Counts the parts of an answer that its stream was given to send.
#[derive(Default)]
pub struct Given {
    parts: AtomicU64,
    /// Whether the stream has taken each part and waits for the next one.
    is_taken: AtomicBool,
}

impl Given {
    /// Returns the account of this task's stream, if the task runs one.
    pub fn of_this_task() -> Option<Arc<Self>> {
        GIVEN.try_with(Arc::clone).ok()
    }

    /// Notes that the stream was given one more part (`is_part`), or that it waits for the next
    /// one.
    pub fn note(&self, is_part: bool) {
        self.is_taken.store(!is_part, Ordering::Relaxed);
        self.parts.fetch_add(u64::from(is_part), Ordering::Relaxed);
    }

    /// Returns the number of the part that waits for the client.
    fn untaken(&self) -> Option<u64> {
        let parts = self.parts.load(Ordering::Relaxed);
        (parts > 0 && !self.is_taken.load(Ordering::Relaxed)).then_some(parts)
    }
}

/// Runs the streams of connections, and drops each stream whose client takes nothing. HTTP/2 then
/// resets that stream.
#[derive(Clone, Copy)]
pub struct Streams;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        TokioExecutor::new().execute(in_time(stream));
    }
}

async fn in_time(stream: impl Future<Output = ()>) {
    let (given, mut timer) = (Arc::<Given>::default(), None);
    let mut stream = pin!(GIVEN.scope(Arc::clone(&given), stream));
    poll_fn(|context| match stream.as_mut().poll(context) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => poll_late(given.untaken(), &mut timer, context),
    })
    .await;
}

/// The number of a part, and the time that is left for its client to take it.
type Timer = (u64, Pin<Box<Sleep>>);

/// Ready when the part `untaken` has been waiting for too long.
fn poll_late(
    untaken: Option<u64>,
    timer: &mut Option<Timer>,
    context: &mut Context<'_>,
) -> Poll<()> {
    let Some(part) = untaken else { return Poll::Pending };
    let (timed, sleeping) = timer.get_or_insert_with(|| (part, Box::pin(sleep(TIMEOUT))));
    if *timed != part {
        *timed = part;
        sleeping.as_mut().reset(Instant::now() + TIMEOUT);
    }
    sleeping.as_mut().poll(context)
}

#[cfg(test)]
mod tests;
