//! Turns on a WebSocket: its handshake, the connection with one key for life, and what is in flight
//! on it.

pub mod frame;
pub mod replace_error;
pub mod reach;
pub mod lanes;
pub mod state;
pub mod peer;
pub mod closing;
pub mod sockets;
pub mod socket;
pub mod handshake;
