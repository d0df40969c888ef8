//! Warmkey keeps each session on the upstream key whose prompt cache is warm.

pub mod error;
pub mod setting;
pub mod metrics;
pub mod telemetry;
pub mod task;
pub mod outcome;
pub mod store;

pub mod client;
pub mod session;
pub mod key;
pub mod binding;

pub mod server;
