//! The time of day, which only this module reads. Decisions receive it as an argument. Spans are
//! measured with `tokio::time::Instant`, which a test can pause.

use std::time::SystemTime;

#[expect(clippy::disallowed_methods, reason = "the one place that reads the time of day")]
pub fn time_of_day() -> SystemTime {
    SystemTime::now()
}
