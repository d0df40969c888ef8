//! What a turn cost. Warmkey reads copies of the bytes that pass and never changes the bytes.

pub mod cold;
pub mod price;
pub mod tap;
pub mod timeline;
pub mod record;
pub mod spans;
pub mod tracer;
pub mod books;
