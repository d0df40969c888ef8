//! Bounded waiting. Every wait of a test has a limit and a name, and waits for a state, never for time to pass.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// How long anything may take that should take no time, on a machine that also compiles.
pub const SOON: Duration = Duration::from_secs(20);
/// How long a whole answer may take.
pub const ANSWER: Duration = Duration::from_secs(60);

pub const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Fails the test if `what` takes longer than `limit`.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {limit:?}"),
    }
}

/// Asks again until `state` answers, and fails the test if it does not within `limit`.
pub async fn eventually<T>(limit: Duration, what: &str, mut state: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = state().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        sleep(ms(10)).await;
    }
}
