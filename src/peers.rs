//! Exchanges between replicas through the store: liveness, loaded keys, results of attempts, and
//! turns in flight.
//!
//! No replica depends on an exchange: a replica that receives nothing learns from its own attempts.

pub mod replicas;
pub mod heartbeat;
pub mod membership;
