//! Owns background tasks, so that drain can join every one of them.
//!
//! Ensures that no task outlives a drain, and that a task on which everything depends begins again
//! if it panics.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of one replica. `Tasks` spawns, stops and joins them.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    restarts: Arc<AtomicU64>,
}

/// Pause before a task that panicked begins again, so that a panic each time costs no core.
const PAUSE: Duration = Duration::from_millis(100);

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a group of tasks that is joined separately. Restarts of both groups are counted
    /// together, because one metric shows them.
    pub fn group(&self) -> Self {
        Self { restarts: Arc::clone(&self.restarts), ..Self::default() }
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

    /// Runs the future that `make` returns until [`Self::join`] stops it, as often as it panics.
    /// State that must survive a panic belongs to `make`.
    pub fn spawn_kept<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        make: impl Fn() -> F + Send + 'static,
    ) {
        self.spawn_until_stopped(run_again(name, make, Arc::clone(&self.restarts)));
    }

    /// Like [`Self::spawn_kept`], for a task that ends by itself: a stop does not interrupt it.
    pub fn spawn_kept_to_its_end<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        make: impl Fn() -> F + Send + 'static,
    ) {
        self.spawn(run_again(name, make, Arc::clone(&self.restarts)));
    }

    /// Notes that the work `name`, which goes on, has panicked.
    pub fn note_panic(&self, name: &'static str) {
        note_panic(name, &self.restarts);
    }

    /// How often a task panicked and began again.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// Stops the tasks, then waits at most `grace` for all of them. Returns whether all ended.
    pub async fn join(&self, grace: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

/// Whether a test has ordered that the work `name` panics once.
pub fn must_panic(name: &str) -> bool {
    planted::panics(name)
}

/// Counts and logs a panic of the work `name`.
pub fn note_panic(name: &'static str, restarts: &AtomicU64) {
    restarts.fetch_add(1, Ordering::Relaxed);
    tracing::error!(task = name, "a task panicked, and begins again");
}

async fn run_again<F: Future<Output = ()>>(
    name: &'static str,
    make: impl Fn() -> F,
    restarts: Arc<AtomicU64>,
) {
    let mut panics = planted::panics(name);
    // Nothing of a run survives its panic but what `make` keeps.
    while AssertUnwindSafe(planted::run(make(), panics)).catch_unwind().await.is_err() {
        panics = false;
        note_panic(name, &restarts);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Panics that a test orders: `WARMKEY_PANIC` names tasks that panic once, shortly after their
/// start. A release build has none.
#[cfg(debug_assertions)]
mod planted {
    use std::time::Duration;

    /// Time after which an ordered panic comes: in the middle of the task's work.
    const WORK: Duration = Duration::from_millis(700);

    pub fn panics(name: &str) -> bool {
        std::env::var("WARMKEY_PANIC")
            .is_ok_and(|names| names.split(',').any(|one| one == name || one == "all"))
    }

    pub async fn run(task: impl Future<Output = ()>, panics: bool) {
        if !panics {
            return task.await;
        }
        tokio::select! {
            () = task => {}
            () = tokio::time::sleep(WORK) => panic!("a test ordered this panic"),
        }
    }
}

#[cfg(not(debug_assertions))]
mod planted {
    pub const fn panics(_: &str) -> bool {
        false
    }

    pub async fn run(task: impl Future<Output = ()>, _: bool) {
        task.await;
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

    #[tokio::test(start_paused = true)]
    async fn task_that_panics_begins_again_until_it_ends() {
        let (tasks, begun) = (Tasks::new(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&begun);
        tasks.spawn_kept("test", move || {
            let number = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                sleep(SECOND).await;
                assert!(number >= 2, "a run of a test");
            }
        });
        sleep(9 * SECOND).await;
        assert_eq!((begun.load(Ordering::Relaxed), tasks.restarts()), (3, 2));
        assert!(tasks.join(SECOND).await);
    }
}
