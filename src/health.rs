//! The health of keys: what an answer says about a key, what all replicas know about it, and its
//! load.

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
