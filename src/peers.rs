//! What replicas tell each other through the store: that they live, which keys they have, what they
//! met and what they carry.
//!
//! Nothing depends on hearing: a replica that hears nothing finds out by itself.

pub mod replicas;
pub mod heartbeat;
pub mod membership;
