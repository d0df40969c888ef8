//! What a turn cost: read from copies of what passes, never by changing it.

pub mod cold;
pub mod price;
pub mod tap;
pub mod record;
pub mod books;
