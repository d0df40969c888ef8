//! Warmkey keeps each session on the upstream key whose prompt cache is warm.

pub mod setting;
pub mod task;

pub mod server;

pub mod simulator;
