//! The lowest pace of a body or a message.

use std::time::Duration;

use tokio::time::Instant;

/// Lowest rate of a body or message in bytes a second.
pub const SLOWEST: u64 = 16 * 1024;
/// Longest time that a body or message may be behind the lowest rate, and that none of it comes.
pub const GRACE: Duration = Duration::from_secs(30);

/// The deadline of a body or message. Bytes that come put it off, by the time that they take at the
/// lowest rate. No number of bytes puts it off beyond the grace: what came quickly does not allow
/// the sender to be silent later.
#[derive(Clone, Copy, Debug)]
pub struct Pace(Instant);

impl Pace {
    pub fn begin() -> Self {
        Self(Instant::now() + GRACE)
    }

    pub fn note(&mut self, bytes: usize) {
        let took = Duration::from_secs_f64(bytes as f64 / SLOWEST as f64);
        self.0 = (self.0 + took).min(Instant::now() + GRACE);
    }

    pub const fn deadline(self) -> Instant {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pace_allows_a_slow_line_and_no_silence() {
        const SECOND: Duration = Duration::from_secs(1);
        let (mut pace, began) = (Pace::begin(), Instant::now());
        assert_eq!(pace.deadline(), began + GRACE);
        pace.note(1 << 30);
        assert_eq!(pace.deadline(), began + GRACE, "what came quickly allows no silence");
        // A third of the lowest rate, for as long as it lasts.
        let mut slow = Pace::begin();
        while Instant::now() < slow.deadline() {
            tokio::time::advance(SECOND).await;
            slow.note(SLOWEST as usize / 3);
        }
        assert_eq!(began.elapsed().as_secs(), 45, "two thirds of each second are lost");
        let mut enough = Pace::begin();
        for _ in 0..600 {
            tokio::time::advance(SECOND).await;
            enough.note(SLOWEST as usize);
        }
        assert_eq!(enough.deadline(), Instant::now() + GRACE);
        // A pause within the grace is made up for.
        tokio::time::advance(SECOND * 20).await;
        enough.note(SLOWEST as usize * 10);
        assert_eq!(enough.deadline(), Instant::now() + SECOND * 20);
    }
}
