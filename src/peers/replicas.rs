//! How many replicas live, as far as this one has heard.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of live replicas, this one among them.
pub struct Replicas(AtomicUsize);

impl Default for Replicas {
    fn default() -> Self {
        Self(AtomicUsize::new(1))
    }
}

impl Replicas {
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// So many others have told that they live.
    pub fn hear(&self, others: usize) {
        self.0.store(others + 1, Ordering::Relaxed);
    }
}
