//! OpenAI's protocol as bytes: endpoints, events, errors, and JSON that is scanned and never
//! rebuilt. Pure.
//!
//! `properties` states what each reader guarantees for any bytes, and checks it.

pub(crate) mod endpoint;
pub(crate) mod quotes;
pub(crate) mod query;
pub(crate) mod references;
pub(crate) mod scan;
pub(crate) mod imprint;
pub(crate) mod peek;
pub(crate) mod rename;
pub(crate) mod models;
pub(crate) mod error_body;
pub(crate) mod edit;
pub(crate) mod decoder;
pub mod terminal;
pub(crate) mod completion;
pub(crate) mod event;
pub(crate) mod items;
