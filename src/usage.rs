//! What a turn cost: read from copies of what passes, never by changing it.

pub mod cold;
pub mod decoder;
pub mod tap;
pub mod terminal;
