//! How long nothing has come on a stream.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// One timer a stream, moved only when it goes off, and looked at only when it may have.
pub struct Idle {
    timeout: Duration,
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    /// Something has come since the timer was asked to wake the stream's task.
    is_stirred: bool,
}

impl Idle {
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, last: Instant::now(), timer: None, is_stirred: false }
    }

    pub fn stir(&mut self) {
        self.last = Instant::now();
        self.is_stirred = true;
    }

    /// To be asked by one task, which the timer wakes.
    pub fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::take(&mut self.is_stirred) && self.timer.as_ref().is_some_and(|timer| self.last < timer.deadline()) {
            return Poll::Pending;
        }
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
