//! Which machine serves a request: the one its beginning steers to, or the next when that one has
//! had its fill.
//!
//! Pure: the time is an argument. A machine takes about 15 requests a minute of one cache key (of
//! one beginning where there is no key); what comes beyond overflows to the next, whose memory is
//! cold. Knows nothing of what machines remember.

use std::collections::HashMap;
use std::time::Duration;

use super::prefix::Digest;

/// Requests a minute, and in one burst, that a machine takes of one lane.
const BURST: u32 = 15;
const INTERVAL: Duration = Duration::from_secs(4);
/// Lanes remembered; idle ones are forgotten first.
const MOST_LANES: usize = 100_000;

/// What the machines have been asked to do lately.
#[derive(Debug, Default)]
pub struct Machines {
    /// By lane: when each machine, in the lane's own order, will have worked off what it took.
    lanes: HashMap<Digest, Vec<Duration>>,
}

impl Machines {
    /// The machine for a request of `lane`, in the lane's own order: 0 is home. Never `count` or
    /// more.
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
        // All are full: wherever it lands, nothing was reserved for it.
        count - 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LANE: Digest = [1; 16];

    #[test]
    fn the_sixteenth_request_of_a_minute_goes_elsewhere() {
        let mut machines = Machines::default();
        let chosen: Vec<_> = (0..31).map(|_| machines.choose(Duration::ZERO, LANE, 16)).collect();
        assert_eq!((chosen[0], chosen[14], chosen[15], chosen[29], chosen[30]), (0, 0, 1, 1, 2));
        assert_eq!(machines.choose(Duration::ZERO, [2; 16], 16), 0);
        assert_eq!(machines.choose(Duration::from_secs(60), LANE, 16), 0);
    }

    #[test]
    fn a_steady_pace_of_fifteen_a_minute_stays_at_home() {
        let mut machines = Machines::default();
        assert!((0..500).all(|turn| machines.choose(INTERVAL * turn, LANE, 16) == 0));
    }

    proptest! {
        #[test]
        fn no_machine_takes_more_than_its_fill(gaps in proptest::collection::vec(0u64..3_000, 1..200)) {
            let mut machines = Machines::default();
            let mut now = Duration::ZERO;
            let mut home = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                if machines.choose(now, LANE, 1000) == 0 {
                    home.push(now);
                }
            }
            for (index, begin) in home.iter().enumerate() {
                let within = home[index..].iter().take_while(|at| **at < *begin + Duration::from_secs(60)).count();
                prop_assert!(within <= 2 * BURST as usize, "{} in one minute", within);
            }
        }
    }
}
