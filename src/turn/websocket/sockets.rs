//! The WebSockets of one replica: who owns them, how many are open, and when each ends as the
//! replica leaves.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::task::Tasks;

/// The WebSockets of one replica: what they share, and how they end with it.
pub struct Sockets {
    /// Owns them. The end of the replica waits for them as for any connection.
    pub tasks: Tasks,
    /// No further WebSocket is opened, and those that are open end.
    pub closing: CancellationToken,
    /// Within this time, each at a moment of its own: otherwise all clients would be back at once.
    pub spread: Duration,
    /// A silent peer is asked after this time, and given up after twice that.
    pub ping: Duration,
}

impl Sockets {
    /// When, after the replica began to leave, one of them may end.
    pub fn moment(&self) -> Duration {
        let mut random = [0; 2];
        // Without randomness all go at once: they are served again all the same.
        let _ = getrandom::fill(&mut random);
        self.spread.mul_f64(f64::from(u16::from_be_bytes(random)) / f64::from(u16::MAX))
    }
}

/// Counts as open until it is dropped.
pub struct Open(Arc<Metrics>);

impl Open {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        metrics.websocket_opened();
        Self(metrics)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.websocket_closed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_spread_over_the_time_that_there_is() {
        let (tasks, closing, spread, ping) = (
            Tasks::new(),
            CancellationToken::new(),
            Duration::from_secs(8),
            Duration::from_secs(30),
        );
        let sockets = Sockets { tasks, closing, spread, ping };
        let moments: Vec<_> = (0..200).map(|_| sockets.moment()).collect();
        assert!(moments.iter().all(|moment| *moment <= spread), "{moments:?}");
        for quarter in 0..4 {
            let part = spread / 4 * quarter..spread / 4 * (quarter + 1);
            assert!(
                moments.iter().any(|moment| part.contains(moment)),
                "some leave within {part:?}"
            );
        }
    }
}
