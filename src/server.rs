//! Listeners, and what is served on them.

pub mod listener;
