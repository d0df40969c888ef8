//! Turns over HTTP: the body that is read once, and the answer that is passed on as it comes.

pub mod replay;
pub mod response_id;
pub mod id_gate;
pub mod passage;
pub mod relay;
pub mod exchange;
