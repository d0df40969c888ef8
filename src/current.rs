//! Holds the current value of something that is replaced as a whole while in use.
//!
//! A caller keeps the value that it got until its work is done. A replacement never affects work in
//! progress.

use std::sync::Arc;

use tokio::sync::watch;

/// A shared value that [`Current::set`] replaces.
pub struct Current<T>(watch::Sender<Arc<T>>);

impl<T> Current<T> {
    pub fn new(value: Arc<T>) -> Self {
        Self(watch::Sender::new(value))
    }

    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.borrow())
    }

    pub fn set(&self, value: Arc<T>) {
        self.0.send_replace(value);
    }

    /// Follows the value: the receiver wakes at each replacement.
    pub fn follow(&self) -> watch::Receiver<Arc<T>> {
        self.0.subscribe()
    }
}
