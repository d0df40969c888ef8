//! Decides which machine serves a request: the machine that the request's beginning selects, or the
//! next machine once that one is full.
//!
//! Pure: the time is an argument. A machine takes about 15 requests a minute of one cache key, or
//! of one beginning if there is no key. Further requests overflow to the next machine, whose cache
//! is cold.

use std::collections::HashMap;
use std::time::Duration;

use super::prefix::Digest;

/// Requests of one lane that a machine takes in a minute, and in one burst.
const BURST: u32 = 15;
const INTERVAL: Duration = Duration::from_secs(4);
/// Most lanes in memory. Idle lanes are forgotten first.
const MOST_LANES: usize = 100_000;

/// The recent load of the machines.
#[derive(Debug, Default)]
pub struct Machines {
    /// By lane: when each machine, in the lane's own order, will have worked off its requests.
    lanes: HashMap<Digest, Vec<Duration>>,
}

impl Machines {
    /// The machine for a request of `lane`, in the lane's own order: 0 is the prefix's own. Always
    /// below `count`.
    pub fn choose(&mut self, now: Duration, lane: Digest, count: u32) -> u32 {
        if self.lanes.len() >= MOST_LANES && !self.lanes.contains_key(&lane) {
            self.lanes.retain(|_, busy| busy.iter().any(|until| *until > now));
        }
        let busy = self.lanes.entry(lane).or_default();
        for machine in 0..count {
            if busy.len() as u32 == machine {
                busy.push(Duration::ZERO);
            }
            let until = &mut busy[machine as usize];
            if until.saturating_sub(now) <= INTERVAL * (BURST - 1) {
                *until = now.max(*until) + INTERVAL;
                return machine;
            }
        }
        // All machines are full, so the last one takes the request. The request reserves nothing
        // there.
        count - 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LANE: Digest = [1; 16];

    #[test]
    fn sixteenth_request_of_a_minute_overflows() {
        let mut machines = Machines::default();
        let chosen: Vec<_> = (0..31).map(|_| machines.choose(Duration::ZERO, LANE, 16)).collect();
        assert_eq!((chosen[0], chosen[14], chosen[15], chosen[29], chosen[30]), (0, 0, 1, 1, 2));
        assert_eq!(machines.choose(Duration::ZERO, [2; 16], 16), 0);
        assert_eq!(machines.choose(Duration::from_secs(60), LANE, 16), 0);
    }

    #[test]
    fn steady_pace_of_fifteen_a_minute_stays_on_its_own_machine() {
        let mut machines = Machines::default();
        assert!((0..500).all(|turn| machines.choose(INTERVAL * turn, LANE, 16) == 0));
    }

    proptest! {
        #[test]
        fn machine_takes_at_most_its_fill(
            gaps in proptest::collection::vec(0u64..3_000, 1..200),
        ) {
            let mut machines = Machines::default();
            let mut now = Duration::ZERO;
            let mut own = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                if machines.choose(now, LANE, 1000) == 0 {
                    own.push(now);
                }
            }
            for (index, begin) in own.iter().enumerate() {
                let end = *begin + Duration::from_secs(60);
                let within = own[index..].iter().take_while(|at| **at < end).count();
                prop_assert!(within <= 2 * BURST as usize, "{} in one minute", within);
            }
        }
    }
}
