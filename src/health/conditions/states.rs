//! Derives the states of keys, as operators see them, from all conditions at once.
//!
//! A heartbeat does so several times a second: one pass over the conditions serves all keys.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use crate::health::condition::{Condition, Subject};
use crate::health::conditions::{Conditions, Fitness};
use crate::key::Key;
use crate::metrics::KeyState;

/// Which conditions hold for something.
#[derive(Clone, Copy, Default)]
struct Held {
    is_limited: bool,
    is_recovering: bool,
}

impl Conditions {
    /// The state of each of `keys`.
    pub fn states(&self, keys: &[Arc<Key>]) -> Vec<KeyState> {
        let held = self.held();
        keys.iter().map(|key| self.state(key, &held)).collect()
    }

    /// The state of one key.
    pub fn state_of(&self, key: &Key) -> KeyState {
        self.state(key, &self.held())
    }

    /// What holds for each subject, where a project stands for the use of its models, too.
    fn held(&self) -> HashMap<Subject, Held> {
        let (known, now) = (self.read(), Instant::now());
        let mut all: HashMap<_, Held> = HashMap::new();
        for (place, entry) in known.entries.iter().filter(|(_, entry)| !entry.is_over(now)) {
            let subject = place.0.project_of_model().map_or(place.0, Subject::Project);
            match entry.condition {
                Condition::Limited | Condition::NoAccess => {
                    all.entry(subject).or_default().is_limited = true;
                }
                Condition::Recovering => all.entry(subject).or_default().is_recovering = true,
                _ => {}
            }
        }
        all
    }

    fn state(&self, key: &Key, all: &HashMap<Subject, Held>) -> KeyState {
        let held = Subject::all_of(key).map(|subject| all.get(&subject).copied());
        let is_any = |is: fn(Held) -> bool| held.into_iter().flatten().any(is);
        match () {
            () if matches!(self.fitness(key, ""), Fitness::Bypassed(_) | Fitness::Dead(_)) => {
                KeyState::Disabled
            }
            () if is_any(|held| held.is_limited) => KeyState::Cooling,
            () if is_any(|held| held.is_recovering) => KeyState::Probing,
            () => KeyState::Ready,
        }
    }
}
