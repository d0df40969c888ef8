//! How long nothing has come on a stream.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// One timer a stream, moved only when it goes off.
pub struct Idle {
    timeout: Duration,
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, last: Instant::now(), timer: None }
    }

    pub fn stir(&mut self) {
        self.last = Instant::now();
    }

    pub fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
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
