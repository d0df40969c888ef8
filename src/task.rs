//! Every task has an owner that drain can join.
//!
//! Decides nothing: it only makes sure that no task outlives the process's intention to end.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of one replica: spawned here, told to stop here, joined here.
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

    /// Runs `task` until it ends or the owner says stop, whichever comes first.
    pub fn spawn_until_stopped(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Says stop, then waits for all tasks, at most `grace`. Returns whether all of them ended.
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
    async fn tasks_are_waited_for_and_not_without_end() {
        for (length, is_done, took) in [(SECOND, true, SECOND), (9 * SECOND, false, 3 * SECOND)] {
            let (tasks, began) = (Tasks::new(), Instant::now());
            tasks.spawn(sleep(length));
            // One that would go on for ever ends when it is told to.
            tasks.spawn_until_stopped(std::future::pending());
            assert_eq!((tasks.clone().join(3 * SECOND).await, began.elapsed()), (is_done, took));
        }
    }
}
