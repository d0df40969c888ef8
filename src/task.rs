//! Owns background tasks, so that drain can join every one of them.
//!
//! Decides nothing. Ensures that no task outlives a drain.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of one replica. `Tasks` spawns, stops and joins them.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task);
    }

    /// Runs `task` until the task ends or [`Self::join`] stops it, whichever comes first.
    pub fn spawn_until_stopped(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Stops the tasks, then waits at most `grace` for all of them. Returns whether all ended.
    pub async fn join(&self, grace: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep};

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn tasks_are_joined_within_the_grace_time() {
        for (length, is_done, took) in [(SECOND, true, SECOND), (9 * SECOND, false, 3 * SECOND)] {
            let (tasks, began) = (Tasks::new(), Instant::now());
            tasks.spawn(sleep(length));
            // An endless task ends at the stop.
            tasks.spawn_until_stopped(std::future::pending());
            assert_eq!((tasks.clone().join(3 * SECOND).await, began.elapsed()), (is_done, took));
        }
    }
}
