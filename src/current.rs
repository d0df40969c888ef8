//! The present value of something that is replaced as a whole while it is in use.
//!
//! Whoever asks keeps what it got to the end of what it is doing: a replacement comes before it or
//! after it, never amid it.

use std::sync::Arc;

use tokio::sync::watch;

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

    /// For whoever lives longer than one value: tells of each one that follows.
    pub fn follow(&self) -> watch::Receiver<Arc<T>> {
        self.0.subscribe()
    }
}
