//! How long nothing has come on a stream.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// One timer a stream, moved only when it goes off, and looked at only when it may have.
pub struct Idle {
    timeout: Duration,
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whom the timer wakes.
    waker: Option<Waker>,
    /// Something has come since the timer was looked at.
    is_stirred: bool,
}

impl Idle {
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, last: Instant::now(), timer: None, waker: None, is_stirred: false }
    }

    /// Something has come. Returns how long nothing had.
    pub fn stir(&mut self) -> Duration {
        let now = Instant::now();
        self.is_stirred = true;
        now - std::mem::replace(&mut self.last, now)
    }

    pub fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::take(&mut self.is_stirred) && self.is_asleep(context.waker()) {
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
        self.waker.get_or_insert_with(|| context.waker().clone()).clone_from(context.waker());
        Poll::Pending
    }

    /// Whether the timer had not gone off when something came last, and will wake `waker` when it does.
    fn is_asleep(&self, waker: &Waker) -> bool {
        let is_ahead = self.timer.as_ref().is_some_and(|timer| self.last < timer.deadline());
        is_ahead && self.waker.as_ref().is_some_and(|asked| asked.will_wake(waker))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::time::{advance, timeout};

    const SECOND: Duration = Duration::from_secs(1);

    /// How long after now silence is noticed.
    async fn silence(idle: &mut Idle) -> Duration {
        let began = Instant::now();
        timeout(SECOND * 9, poll_fn(|context| idle.poll_over(context))).await.expect("whoever asks is woken");
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn it_wakes_whoever_asked_last() {
        let mut idle = Idle::new(SECOND);
        assert!(idle.poll_over(&mut Context::from_waker(Waker::noop())).is_pending());
        advance(SECOND / 2).await;
        idle.stir();
        assert_eq!(silence(&mut idle).await, SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_went_off_unheard_is_set_again() {
        let mut idle = Idle::new(SECOND);
        assert!(poll_fn(|context| Poll::Ready(idle.poll_over(context))).await.is_pending());
        advance(SECOND * 3 / 2).await;
        assert_eq!(idle.stir(), SECOND * 3 / 2);
        assert_eq!(silence(&mut idle).await, SECOND);
    }
}
