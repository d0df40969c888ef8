//! Trails: the newest lines about a session, which the store keeps for a time. No turn waits for a
//! trail, and no decision reads one.

/// The maximum number of lines of a trail.
pub const LONGEST: usize = 32;
