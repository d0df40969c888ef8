//! Warmkey keeps each session on the upstream key whose prompt cache is warm.

pub mod error;
pub mod metrics;
pub mod outcome;
pub mod setting;
pub mod store;
pub mod task;
pub mod telemetry;

pub mod binding;
pub mod client;
pub mod key;
pub mod session;
pub mod upstream;
pub mod usage;

pub mod server;
pub mod turn;

pub mod simulator;

pub mod app;
pub mod config;
