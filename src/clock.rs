//! The time of day, which only this module reads. Decisions receive it as an argument. Spans are
//! measured with `tokio::time::Instant`, which a test can pause.

use std::time::SystemTime;

use tokio::time::Instant;

#[expect(clippy::disallowed_methods, reason = "the one place that reads the time of day")]
pub fn time_of_day() -> SystemTime {
    SystemTime::now()
}

/// The time of day at an upstream, as its last answer over HTTP stated it. Messages on a WebSocket
/// state none.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamClock {
    stated: Option<SystemTime>,
    at: Instant,
}

impl UpstreamClock {
    /// A clock that shows the `stated` time now. `None`: the gateway's own time.
    pub fn set(stated: Option<SystemTime>) -> Self {
        Self { stated, at: Instant::now() }
    }

    pub fn time(&self) -> SystemTime {
        let shown = self.stated.and_then(|stated| stated.checked_add(self.at.elapsed()));
        shown.unwrap_or_else(time_of_day)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn upstreams_clock_goes_on() {
        let minute = Duration::from_secs(60);
        let clock = UpstreamClock::set(Some(SystemTime::UNIX_EPOCH));
        tokio::time::advance(minute).await;
        assert_eq!(clock.time(), SystemTime::UNIX_EPOCH + minute);
        let own = UpstreamClock::set(None).time();
        assert!(time_of_day().duration_since(own).is_ok_and(|passed| passed < minute));
    }
}
