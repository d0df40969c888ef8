//! OpenAI's protocol as bytes: endpoints, events, errors, and JSON that is scanned and never
//! rebuilt. Pure.
//!
//! `properties` asserts what each reader guarantees for any bytes.

pub mod endpoint;
pub(crate) mod quotes;
pub(crate) mod query;
pub mod references;
pub mod scan;
pub mod imprint;
pub mod peek;
pub(crate) mod rename;
pub(crate) mod models;
pub mod error_body;
pub mod edit;
pub mod decoder;
pub mod terminal;
pub mod completion;
pub mod event;
pub mod items;
