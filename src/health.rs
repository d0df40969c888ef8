//! How keys are: what an answer says about a key, what all replicas know of it, and how much it
//! carries.

pub mod diagnose;
pub mod condition;
pub mod conditions;
pub mod load;
pub mod headroom;
pub mod herd;
pub mod registry;
pub mod membership;
pub mod operator;
#[cfg(test)]
mod agreement;
#[cfg(test)]
mod heartbeat;
