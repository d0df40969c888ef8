//! Calls upstreams: what Warmkey sends, what comes back, and what may be passed on.

pub mod headers;
pub mod splice;
pub mod request;
pub mod framing;
pub mod attempt;
pub mod models;
pub mod probe;
