//! How an upstream is called: what is sent to it, what comes back, and what may be passed on.

pub mod call;
pub mod headers;
pub mod probe;
