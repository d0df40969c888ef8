//! A timeout for a stream on which nothing arrives.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// One timer per stream. The timer is reset only when it fires.
pub struct Idle {
    timeout: Duration,
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, last: Instant::now(), timer: None }
    }

    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Notes that something arrived. Returns how long the stream was silent before.
    pub fn note_arrival(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.last, now)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Waker;
    use tokio::time::{advance, timeout};

    const SECOND: Duration = Duration::from_secs(1);

    /// Returns how long from now until the timeout is reported.
    async fn time_to_timeout(idle: &mut Idle) -> Duration {
        let began = Instant::now();
        timeout(SECOND * 9, poll_fn(|context| idle.poll_over(context)))
            .await
            .expect("the polling task is woken");
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn idle_wakes_the_last_task_that_polled() {
        let mut idle = Idle::new(SECOND);
        assert!(idle.poll_over(&mut Context::from_waker(Waker::noop())).is_pending());
        advance(SECOND / 2).await;
        idle.note_arrival();
        assert_eq!(time_to_timeout(&mut idle).await, SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn timer_that_fired_unpolled_is_reset() {
        let mut idle = Idle::new(SECOND);
        assert!(poll_fn(|context| Poll::Ready(idle.poll_over(context))).await.is_pending());
        advance(SECOND * 3 / 2).await;
        assert_eq!(idle.note_arrival(), SECOND * 3 / 2);
        assert_eq!(time_to_timeout(&mut idle).await, SECOND);
    }
}
