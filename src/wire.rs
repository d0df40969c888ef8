//! OpenAI's dialect, as bytes: JSON that is scanned and never rebuilt, events, error bodies. Pure.

mod quotes;
pub mod references;
pub mod scan;
pub mod peek;
pub mod error_body;
pub mod decoder;
pub mod terminal;
pub mod event;
