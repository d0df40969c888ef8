//! Simulated time, by which caches, overflow and limits of the simulated upstream go.
//!
//! The clock runs `time_scale` times faster than tokio's, so that a test sees an hour of cache life
//! in seconds. Pauses between events and scripted stalls use real time, as a client would feel
//! them.

use std::time::Duration;

use tokio::time::Instant;

/// Simulated time since the simulator began.
#[derive(Debug)]
pub struct Clock {
    began: Instant,
    scale: f64,
}

impl Clock {
    /// `scale` is at least 1 and finite, as the settings have checked.
    pub fn new(scale: f64) -> Self {
        Self { began: Instant::now(), scale }
    }

    pub fn now(&self) -> Duration {
        self.began.elapsed().mul_f64(self.scale)
    }

    /// The real time that a client waits while `span` passes on this clock.
    pub fn real(&self, span: Duration) -> Duration {
        span.div_f64(self.scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clock_runs_faster_by_its_scale() {
        let clock = Clock::new(60.0);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(clock.now(), Duration::from_secs(120));
        assert_eq!(clock.real(Duration::from_secs(60)), Duration::from_secs(1));
    }
}
