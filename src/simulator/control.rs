//! Lets a client on a WebSocket cancel or steer an answer in flight, and decides when it is too
//! late for that.
//!
//! An answer over HTTP cannot be controlled.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Steers that wait for one answer.
const MOST_STEERS: usize = 16;

/// Input that a client adds to an answer in flight. The answer's successor takes it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steer {
    pub id: String,
    /// The input as the client sent it: a string or an array of messages, in JSON.
    pub input: String,
    /// Hash of the frame that carried the steer.
    pub sha256: String,
}

#[derive(Debug, Default)]
struct Queue {
    steers: Vec<Steer>,
    is_over: bool,
}

/// The control of one answer.
#[derive(Debug, Default)]
pub struct Control {
    /// The number of the next event. Events about steers share the numbers of their answer's
    /// events.
    number: AtomicU64,
    cancelled: CancellationToken,
    queue: Mutex<Queue>,
}

/// Why a steer failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooLate {
    Over,
    TooMany,
}

impl Control {
    pub fn number(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    pub fn cancel(&self) {
        self.cancelled.cancel();
    }

    pub async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }

    pub fn steer(&self, steer: Steer) -> Result<(), TooLate> {
        let mut queue = self.queue();
        if queue.is_over {
            return Err(TooLate::Over);
        }
        if queue.steers.len() >= MOST_STEERS {
            return Err(TooLate::TooMany);
        }
        queue.steers.push(steer);
        Ok(())
    }

    pub fn is_steered(&self) -> bool {
        !self.queue().steers.is_empty()
    }

    /// Ends the time for steering, and returns the steers that came in time.
    pub fn finish(&self) -> Vec<Steer> {
        let mut queue = self.queue();
        queue.is_over = true;
        std::mem::take(&mut queue.steers)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steer(id: usize) -> Steer {
        Steer { id: format!("steer_{id}"), input: "\"more\"".into(), sha256: String::new() }
    }

    #[test]
    fn steer_is_taken_until_the_answer_is_over_and_not_too_many_of_them() {
        let control = Control::default();
        assert!((0..MOST_STEERS).all(|id| control.steer(steer(id)).is_ok()));
        assert_eq!(control.steer(steer(MOST_STEERS)), Err(TooLate::TooMany));
        assert_eq!(control.finish().len(), MOST_STEERS);
        assert_eq!((control.steer(steer(0)), control.is_steered()), (Err(TooLate::Over), false));
    }
}
