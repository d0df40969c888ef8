//! The health of keys: what an answer says about a key, what all replicas know about it, and its
//! load.

pub(crate) mod diagnose;
pub(crate) mod condition;
pub(crate) mod conditions;
pub(crate) mod load;
pub(crate) mod headroom;
pub(crate) mod herd;
pub(crate) mod registry;
pub(crate) mod membership;
pub mod operator;
#[cfg(test)]
mod agreement;
