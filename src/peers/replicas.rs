//! The number of live replicas, from the last exchange.

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

    /// Stores the number of other replicas on the board.
    pub fn set_others(&self, others: usize) {
        self.0.store(others + 1, Ordering::Relaxed);
    }
}
