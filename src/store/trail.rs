//! Trails: lines of which the store keeps the newest for a time. No turn waits for them, and
//! nothing is decided by them.

/// So many lines a trail has at the most.
pub const LONGEST: usize = 32;
