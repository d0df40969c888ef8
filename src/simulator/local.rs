//! The memory of one WebSocket: the latest response of each lane, and the answers in flight.
//!
//! This file decides which responses `previous_response_id` may name besides stored ones, and when
//! such a response is forgotten. All of them end with the connection.

use std::collections::HashMap;
use std::sync::Arc;

use super::control::{Control, Steer};
use super::lanes::Lane;
use super::stored::Past;

/// Most parents whose steers wait for a request of the client.
const MOST_PENDING: usize = 64;

/// An answer in flight.
#[derive(Clone, Debug)]
pub struct Active {
    pub lane: Lane,
    pub control: Arc<Control>,
    /// The answer's model can be steered.
    pub steerable: bool,
}

#[derive(Debug, Default)]
pub struct Local {
    latest: HashMap<Lane, (String, Past)>,
    active: HashMap<String, Active>,
    pending: HashMap<String, Vec<Steer>>,
}

impl Local {
    /// Returns the history up to `id`, from any lane, because a lane may fork from another one.
    pub fn find(&self, id: &str) -> Option<Past> {
        self.latest.values().find(|(own, _)| own == id).map(|(_, past)| past.clone())
    }

    pub fn keep(&mut self, lane: &Lane, id: &str, past: Past) {
        self.latest.insert(lane.clone(), (id.to_owned(), past));
    }

    /// Drops the latest response of a lane that failed to continue from it. Another lane's response
    /// stays.
    pub fn evict(&mut self, lane: &Lane, id: &str) {
        if self.latest.get(lane).is_some_and(|(own, _)| own == id) {
            self.latest.remove(lane);
        }
    }

    pub fn begin(&mut self, id: &str, active: Active) {
        self.active.insert(id.to_owned(), active);
    }

    pub fn end(&mut self, id: &str) {
        self.active.remove(id);
    }

    pub fn active(&self, id: &str) -> Option<Active> {
        self.active.get(id).cloned()
    }

    /// The answer in flight on a lane.
    pub fn active_on(&self, lane: &Lane) -> Option<Active> {
        self.active.values().find(|active| active.lane == *lane).cloned()
    }

    /// Steers that wait until the client itself continues from `parent`.
    pub fn wait(&mut self, parent: &str, steers: Vec<Steer>) {
        if self.pending.len() < MOST_PENDING {
            self.pending.insert(parent.to_owned(), steers);
        }
    }

    pub fn waiting(&mut self, parent: &str) -> Option<Vec<Steer>> {
        self.pending.remove(parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lane_keeps_its_latest_until_its_own_failure() {
        let mut local = Local::default();
        let (main, side) = (None, Some("side".to_owned()));
        local.keep(&main, "r1", Past::default());
        local.keep(&side, "r2", Past::default());
        local.evict(&side, "r1");
        assert!(local.find("r1").is_some(), "a fork that failed leaves its source alone");
        local.evict(&main, "r1");
        assert!(local.find("r1").is_none() && local.find("r2").is_some());
        local.keep(&side, "r3", Past::default());
        assert!(local.find("r2").is_none(), "only the latest of a lane is kept");
    }
}
