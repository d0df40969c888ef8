//! Finds out what a turn cost. The readers work on copies of the bytes that pass, and never change
//! the bytes.

pub mod price;
pub(crate) mod sieve;
pub(crate) mod tap;
pub(crate) mod timeline;
pub(crate) mod record;
pub(crate) mod promise;
pub(crate) mod cold;
pub(crate) mod assess;
pub(crate) mod spans;
pub(crate) mod tracer;
pub(crate) mod books;
