//! Turns on a WebSocket: the handshake, the connection with its one key for life, and the turns in
//! flight on it.

pub mod frame;
pub mod replace_error;
pub mod reach;
pub mod lanes;
pub mod state;
pub mod meter;
pub mod frames;
pub mod peer;
pub mod closing;
pub mod yielding;
pub mod sockets;
pub mod socket;
pub mod handshake;
