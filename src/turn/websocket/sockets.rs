//! The WebSockets of one replica: their owner, the number of open ones, and how they end when the
//! replica leaves.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::task::Tasks;
use crate::turn::Gateway;
use crate::turn::http::heavy_places::HeavyPlaces;
use crate::turn::memory::BodyMemory;

/// The parts that the WebSockets of one replica share.
pub struct WebSocketTurns {
    pub gateway: Arc<Gateway>,
    /// Owns the WebSockets. A replica that stops waits for them as for any connection.
    pub connections: Tasks,
    /// Canceled when the replica leaves: no further WebSocket is opened, and the open ones end.
    pub closing: CancellationToken,
    /// Owns the answers that refuse handshakes, which are relayed like other answers.
    pub answers: Tasks,
    pub timing: SocketTiming,
    /// The memory for messages, which request bodies share.
    pub memory: BodyMemory,
    /// Places for long messages, which other threads read. Long request bodies share them.
    pub heavy: Arc<HeavyPlaces>,
}

/// When WebSockets end, and when silent peers are pinged.
#[derive(Clone, Copy)]
pub struct SocketTiming {
    /// When the replica leaves, each WebSocket ends at a random moment within this time. Otherwise
    /// all clients would reconnect at once.
    pub spread: Duration,
    /// A silent peer is pinged after this time, and given up after twice this time.
    pub ping: Duration,
}

impl SocketTiming {
    /// Returns a random moment within `spread`.
    pub fn moment(self) -> Duration {
        let mut random = [0; 2];
        // Without randomness, all WebSockets end at once, and other replicas still serve their
        // clients.
        let _ = getrandom::fill(&mut random);
        self.spread.mul_f64(f64::from(u16::from_be_bytes(random)) / f64::from(u16::MAX))
    }
}

/// Counts a WebSocket as open until this is dropped.
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
pub mod tests {
    use super::*;
    use crate::turn::tests::gateway;

    /// The WebSockets of a replica with these keys.
    pub fn turns(keys: &[(&str, &str, &str)]) -> WebSocketTurns {
        let ping = Duration::from_secs(5);
        WebSocketTurns {
            gateway: Arc::new(gateway(keys)),
            connections: Tasks::new(),
            closing: CancellationToken::new(),
            answers: Tasks::new(),
            timing: SocketTiming { spread: Duration::ZERO, ping },
            memory: BodyMemory::new(crate::setting::Size(1 << 20)),
            heavy: Arc::new(HeavyPlaces::new(1)),
        }
    }

    #[test]
    fn moments_are_spread_over_the_whole_time() {
        let (spread, ping) = (Duration::from_secs(8), Duration::from_secs(30));
        let timing = SocketTiming { spread, ping };
        let moments: Vec<_> = (0..200).map(|_| timing.moment()).collect();
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
