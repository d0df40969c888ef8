//! The lanes of one WebSocket, and which of the waiting requests is served next.
//!
//! Requests of one lane keep their order, but one lane may overtake another. All lanes together
//! have a limit of requests in flight; further requests wait without notice. Over its life, a
//! connection has a limit of lane names. Pure.

use std::collections::{HashSet, VecDeque};

use super::refusal::Refusal;

/// Most named lanes of a connection, over its whole life. The default lane does not count.
const MOST_NAMED: usize = 32;
const MOST_IN_FLIGHT: usize = 16;
const LONGEST_NAME: usize = 256;

/// A lane's name. The default lane has none.
pub type Lane = Option<String>;

#[derive(Debug)]
pub struct Lanes<T> {
    named: HashSet<String>,
    busy: HashSet<Lane>,
    /// In order of arrival.
    waiting: VecDeque<(Lane, T)>,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { named: HashSet::new(), busy: HashSet::new(), waiting: VecDeque::new() }
    }
}

impl<T> Lanes<T> {
    /// Checks that the client may use this lane.
    pub fn admit(&mut self, lane: Option<&str>) -> Result<(), Refusal> {
        let Some(name) = lane else { return Ok(()) };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(allowed) {
            let message = "The 'stream_id' field must be a non-empty string with at most 256 characters and may only contain letters, numbers, underscores, hyphens, and periods.";
            return Err(Refusal::invalid(Some("invalid_stream_id"), Some("stream_id"), message));
        }
        if !self.named.contains(name) && self.named.len() >= MOST_NAMED {
            let message = "This WebSocket connection has reached its maximum number of distinct stream IDs (32). Reuse an existing stream_id or open a new WebSocket connection.";
            return Err(Refusal::invalid(
                Some("websocket_stream_limit_reached"),
                Some("stream_id"),
                message,
            ));
        }
        self.named.insert(name.to_owned());
        Ok(())
    }

    pub fn push(&mut self, lane: Lane, request: T) {
        self.waiting.push_back((lane, request));
    }

    /// The next request that may be served. Its lane stays busy until `done`.
    pub fn next(&mut self) -> Option<(Lane, T)> {
        if self.busy.len() >= MOST_IN_FLIGHT {
            return None;
        }
        let free = self.waiting.iter().position(|(lane, _)| !self.busy.contains(lane))?;
        let (lane, request) = self.waiting.remove(free)?;
        self.busy.insert(lane.clone());
        Some((lane, request))
    }

    pub fn done(&mut self, lane: &Lane) {
        self.busy.remove(lane);
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing is in flight and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.busy.is_empty() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(name: &str) -> Lane {
        (!name.is_empty()).then(|| name.to_owned())
    }

    #[test]
    fn lane_keeps_its_order_and_others_pass_it() {
        let mut lanes = Lanes::default();
        for (name, request) in [("", 1), ("", 2), ("side", 3), ("side", 4)] {
            lanes.push(lane(name), request);
        }
        let mut next = || lanes.next().map(|(_, request)| request);
        assert_eq!((next(), next(), next()), (Some(1), Some(3), None));
        lanes.done(&lane("side"));
        assert_eq!(lanes.next(), Some((lane("side"), 4)));
        lanes.done(&lane(""));
        assert_eq!(lanes.next(), Some((lane(""), 2)));
        assert!(!lanes.is_idle());
        lanes.done(&lane(""));
        lanes.done(&lane("side"));
        assert!(lanes.is_idle());
    }

    #[test]
    fn sixteen_are_in_flight_and_the_seventeenth_waits() {
        let mut lanes = Lanes::default();
        (0..=MOST_IN_FLIGHT).for_each(|number| lanes.push(lane(&format!("lane-{number}")), number));
        assert_eq!(std::iter::from_fn(|| lanes.next()).count(), MOST_IN_FLIGHT);
        assert_eq!(lanes.waiting(), 1);
        lanes.done(&lane("lane-3"));
        assert_eq!(lanes.next().map(|(_, number)| number), Some(MOST_IN_FLIGHT));
    }

    #[test]
    fn connection_has_a_limit_of_lane_names() {
        let mut lanes = Lanes::<()>::default();
        assert!((0..MOST_NAMED).all(|number| lanes.admit(Some(&format!("lane-{number}"))).is_ok()));
        assert_eq!((lanes.admit(None), lanes.admit(Some("lane-0"))), (Ok(()), Ok(())));
        let code =
            |lanes: &mut Lanes<()>, name: &str| lanes.admit(Some(name)).expect_err(name).code;
        assert_eq!(code(&mut lanes, "one-more").as_deref(), Some("websocket_stream_limit_reached"));
        for wrong in ["", "a b", "é", &"x".repeat(257)] {
            assert_eq!(code(&mut lanes, wrong).as_deref(), Some("invalid_stream_id"), "{wrong}");
        }
    }
}
