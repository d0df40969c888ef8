//! Simulated time, which caches, overflow and limits of the simulated upstream follow.
//!
//! The clock runs `time_scale` times faster than tokio's, so that a test sees an hour of cache life
//! in seconds. Pauses between events and scripted stalls use real time, as a client would feel
//! them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use crate::setting::Span;

/// Simulated time since the simulator began.
#[derive(Debug)]
pub struct Clock {
    began: Instant,
    scale: f64,
    /// Milliseconds that were passed over at once.
    skipped: AtomicU64,
}

/// How far to set the clock forward: `POST /_sim/clock` takes it as JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advance {
    pub advance: Span,
}

impl Clock {
    /// `scale` is at least 1 and finite, as the settings have checked.
    pub fn new(scale: f64) -> Self {
        Self { began: Instant::now(), scale, skipped: AtomicU64::new(0) }
    }

    pub fn now(&self) -> Duration {
        let skipped = Duration::from_millis(self.skipped.load(Ordering::Relaxed));
        self.began.elapsed().mul_f64(self.scale) + skipped
    }

    /// Lets `span` pass at once.
    pub fn advance(&self, span: Duration) {
        let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        self.skipped.fetch_add(span, Ordering::Relaxed);
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
        clock.advance(Duration::from_secs(1_800));
        assert_eq!(clock.now(), Duration::from_secs(1_920));
    }
}
