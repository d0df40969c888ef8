//! OpenAI's protocol, as bytes: endpoints, JSON that is scanned and never rebuilt, events, errors.
//! Pure.
//!
//! What must hold for each reader, whatever bytes come, is asserted in `properties`.

pub mod endpoint;
pub(crate) mod quotes;
pub mod references;
pub mod scan;
pub mod peek;
pub mod error_body;
pub mod decoder;
pub mod terminal;
pub mod event;
