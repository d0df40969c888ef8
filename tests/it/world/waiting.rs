//! Bounded waiting: every wait of a test has a limit and a name, and waits for a state instead of a
//! time.

use std::future::Future;
use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// The limit for anything that takes hardly any time, on a machine that also compiles.
pub const SOON: Duration = Duration::from_secs(20);
/// The limit for a whole answer.
pub const ANSWER: Duration = Duration::from_secs(60);

/// Most attempts to find an outcome that one attempt in four finds.
const ATTEMPTS: usize = 100;

/// The limit for a whole test. The test's own waits end long before it.
const TEST: Duration = Duration::from_secs(5 * 60);
const LONG_TEST: Duration = Duration::from_secs(40 * 60);

/// Whether the long versions of tests are asked for.
pub fn is_long() -> bool {
    std::env::var_os("WARMKEY_LONG").is_some()
}

/// Ends the process and names the test, unless it is dropped in time, so that a test that hangs is
/// noticed.
pub struct Watchdog {
    _is_over: Sender<()>,
}

impl Watchdog {
    pub fn new() -> Self {
        let (is_over, ending) = channel::<()>();
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        let limit = if is_long() { LONG_TEST } else { TEST };
        std::thread::spawn(move || {
            if ending.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                // The line is written to standard error directly, because output of tests is
                // captured.
                let _ = writeln!(std::io::stderr(), "{test}: not over within {limit:?}");
                std::process::exit(101);
            }
        });
        Self { _is_over: is_over }
    }
}

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

/// Tries until an attempt succeeds. Each attempt has a good chance, so that so many failures
/// would be no accident.
pub async fn found<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..ATTEMPTS {
        if let Some(value) = attempt().await {
            return value;
        }
    }
    panic!("{what}: not in {ATTEMPTS} attempts");
}

/// The time that something may take, for a test whose subject is the clock.
///
/// `WARMKEY_SLOWNESS` is the one factor for slow machines: with `3`, every budget is three times as
/// long.
pub struct Budget {
    began: Instant,
    limit: Duration,
}

impl Budget {
    pub fn begin(limit: Duration) -> Self {
        let factor = std::env::var("WARMKEY_SLOWNESS").ok().and_then(|text| text.parse().ok());
        Self { began: Instant::now(), limit: limit * factor.unwrap_or(1) }
    }

    /// Fails the test if the budget is spent.
    #[track_caller]
    pub fn holds(&self, what: &str) {
        self.held_at(Instant::now(), what);
    }

    /// Fails the test if the budget was spent at this moment.
    #[track_caller]
    pub fn held_at(&self, end: Instant, what: &str) {
        let took = end - self.began;
        assert!(took < self.limit, "{what}: {took:?}, at most {:?}", self.limit);
    }
}

/// Asks again until `state` answers, and fails the test if it does not within `limit`.
pub async fn eventually<T>(
    limit: Duration,
    what: &str,
    mut state: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = state().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        sleep(ms(10)).await;
    }
}
