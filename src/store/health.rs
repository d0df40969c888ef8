//! Reports whether every part of the store answers. Counts the links that do not answer.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::metrics::Metrics;

/// The count of missing parts, and its readers.
pub struct Health {
    missing: Mutex<usize>,
    up: watch::Sender<bool>,
    metrics: Arc<Metrics>,
}

impl Health {
    /// Starts with no part missing.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        metrics.store_up(true);
        Self { missing: Mutex::new(0), up: watch::Sender::new(true), metrics }
    }

    /// Counts a part that no longer answers.
    pub fn loses(&self) {
        self.count(|missing| missing + 1);
    }

    /// Counts a part that answers again, or that left the store.
    pub fn regains(&self) {
        self.count(|missing| missing.saturating_sub(1));
    }

    pub fn watch(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }

    pub fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// Counts, and publishes under the lock, so that the published state is always the current one.
    fn count(&self, next: impl FnOnce(usize) -> usize) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        *missing = next(*missing);
        let up = *missing == 0;
        self.metrics.store_up(up);
        self.up.send_if_modified(|watching| std::mem::replace(watching, up) != up);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_is_up_when_no_part_of_it_is_missing() {
        let health = Health::new(Arc::new(Metrics::new()));
        let mut watching = health.watch();
        let mut is_up = |change: fn(&Health)| {
            change(&health);
            let is_notified = watching.has_changed().unwrap();
            let up = *watching.borrow_and_update();
            let shown = health.metrics.render().contains("\nwarmkey_store_up 1\n");
            assert_eq!([up, shown], [health.is_up(); 2]);
            (up, is_notified)
        };
        assert_eq!(is_up(|_| ()), (true, false));
        assert_eq!(is_up(Health::loses), (false, true));
        assert_eq!(is_up(Health::loses), (false, false));
        assert_eq!(is_up(Health::regains), (false, false), "another part is still missing");
        assert_eq!(is_up(Health::regains), (true, true));
    }
}
