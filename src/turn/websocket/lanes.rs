//! The turns in flight on a WebSocket, by lane, and the response ids issued on it. Pure.
//!
//! A lane (`stream_id`) answers one response after the other; lanes interleave. The upstream
//! queues, cancels and steers responses. This module only follows the upstream's events.

use std::collections::VecDeque;

/// Most response ids that the socket remembers as issued: more than the upstream itself keeps.
const ISSUED: usize = 1024;
/// Most turns in flight or queued: far more than an upstream accepts.
const IN_FLIGHT: usize = 256;

/// A turn in flight. `account` is any data that the caller keeps with the turn.
#[derive(Debug, PartialEq, Eq)]
pub struct Turn<T> {
    pub account: T,
    /// Whether the turn asks for no output.
    pub is_warm_up: bool,
    /// Whether the turn's response is not stored.
    pub is_unstored: bool,
    /// Whether the turn carries content that only its organization can open.
    pub shows_sealed: bool,
    /// Whether the turn refers to content that only this project can find.
    pub needs_project: bool,
    /// Whether the upstream has said that the response began.
    pub has_begun: bool,
}

impl<T> Turn<T> {
    /// Returns a turn of which nothing but its account is known.
    pub const fn new(account: T) -> Self {
        Self {
            account,
            is_warm_up: false,
            is_unstored: false,
            shows_sealed: false,
            needs_project: false,
            has_begun: false,
        }
    }
}

pub struct Lanes<T> {
    /// The turns in flight of each lane, oldest first. A lane without turns has no entry.
    lanes: Vec<(Option<String>, VecDeque<Turn<T>>)>,
    issued: VecDeque<String>,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { lanes: Vec::new(), issued: VecDeque::new() }
    }
}

impl<T> Lanes<T> {
    pub fn is_idle(&self) -> bool {
        self.lanes.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.lanes.iter().map(|(_, turns)| turns.len()).sum::<usize>() >= IN_FLIGHT
    }

    /// Adds a turn that the client asks for.
    pub fn ask(&mut self, lane: Option<&str>, turn: Turn<T>) {
        let at = self.find(lane).unwrap_or_else(|| {
            self.lanes.push((lane.map(str::to_owned), VecDeque::new()));
            self.lanes.len() - 1
        });
        self.lanes[at].1.push_back(turn);
    }

    /// Returns the current turn of a lane.
    pub fn current(&mut self, lane: Option<&str>) -> Option<&mut Turn<T>> {
        let at = self.find(lane)?;
        self.lanes[at].1.front_mut()
    }

    /// Removes the current turn of a lane, which has ended.
    pub fn end_turn(&mut self, lane: Option<&str>) -> Option<Turn<T>> {
        let at = self.find(lane)?;
        let turn = self.lanes[at].1.pop_front();
        if self.lanes[at].1.is_empty() {
            self.lanes.swap_remove(at);
        }
        turn
    }

    /// Takes all turns in flight, with their lanes.
    pub fn take_all(&mut self) -> Vec<(Option<String>, Turn<T>)> {
        let lanes = std::mem::take(&mut self.lanes);
        lanes
            .into_iter()
            .flat_map(|(lane, turns)| turns.into_iter().map(move |turn| (lane.clone(), turn)))
            .collect()
    }

    pub fn issue(&mut self, id: String) {
        if !self.has_issued(&id) {
            if self.issued.len() == ISSUED {
                self.issued.pop_front();
            }
            self.issued.push_back(id);
        }
    }

    /// Whether `id` was issued on this socket. Most lookups are for the latest ids, so the search
    /// starts there.
    pub fn has_issued(&self, id: &str) -> bool {
        self.issued.iter().rev().any(|issued| issued == id)
    }

    fn find(&self, lane: Option<&str>) -> Option<usize> {
        self.lanes.iter().position(|(name, _)| name.as_deref() == lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lane_answers_in_order_and_lanes_interleave() {
        let mut lanes = Lanes::default();
        for (lane, turn) in [(None, 1), (Some("a"), 2), (None, 3)] {
            lanes.ask(lane, Turn { is_warm_up: turn == 1, ..Turn::new(turn) });
        }
        let turn = lanes.current(None).unwrap();
        assert!(turn.is_warm_up && !turn.has_begun);
        assert_eq!(lanes.current(Some("a")).map(|turn| turn.account), Some(2));
        assert_eq!(lanes.end_turn(None).map(|turn| turn.account), Some(1));
        assert_eq!(lanes.end_turn(None).map(|turn| turn.account), Some(3));
        assert_eq!((lanes.end_turn(None), lanes.current(Some("b"))), (None, None));
        assert!(!lanes.is_idle());
        assert_eq!(lanes.take_all().len(), 1);
        assert!(lanes.is_idle());
    }

    #[test]
    fn issued_ids_are_known_and_the_oldest_are_forgotten() {
        let mut lanes = Lanes::<()>::default();
        for number in 0..=ISSUED {
            lanes.issue(format!("r{number}"));
        }
        for _ in 0..ISSUED {
            // Each event of a response names the response's id, so the id is issued again.
            lanes.issue("r9".into());
        }
        assert!(
            !lanes.has_issued("r0")
                && lanes.has_issued("r1")
                && lanes.has_issued(&format!("r{ISSUED}"))
        );
    }

    #[test]
    fn turns_in_flight_are_counted_over_all_lanes() {
        let mut lanes = Lanes::default();
        for number in 0..IN_FLIGHT {
            assert!(!lanes.is_full(), "{number}");
            let lane = (number % 3).to_string();
            lanes.ask(Some(&lane), Turn::new(()));
        }
        assert!(lanes.is_full());
        lanes.end_turn(Some("1"));
        assert!(!lanes.is_full());
    }
}
