//! Finds out what a turn cost. Warmkey reads copies of the bytes that pass, and never changes the
//! bytes.

pub mod price;
pub mod sieve;
pub mod tap;
pub mod timeline;
pub mod record;
pub mod promise;
pub mod cold;
pub mod assess;
pub mod spans;
pub mod tracer;
pub mod books;
