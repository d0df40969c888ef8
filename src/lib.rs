//! Warmkey keeps each session on the upstream key whose prompt cache is warm.
//!
//! The life of a turn, which is also the order of the modules below and of their dependencies: a module uses only what is
//! declared before it.
//!
//! 1. `server` accepts a request and hands it to `turn`, the spine.
//! 2. `client` says who is calling, from the headers alone.
//! 3. `session` says which session the turn belongs to: a pure function of what the client sent.
//! 4. `binding` says which `key` that session is bound to, and binds it on its first turn, with one winner among all replicas.
//! 5. `upstream` sends the client's own bytes with that key's identity, and reports the `outcome`.
//! 6. `turn::verdict` decides: deliver, move to another key, or give up. Once a byte has gone to the client, nothing moves.
//! 7. `turn::http::relay` passes the answer on as it comes, while `usage` reads a copy.
//! 8. `turn::account` tells what happened, once, however the turn ends.

// Vocabulary.
pub mod error;
pub mod setting;
pub mod current;
pub mod metrics;
pub mod telemetry;
pub mod task;
pub mod limit;
pub mod wire;
pub mod outcome;
pub mod store;
pub mod peers;
pub mod database;

// The sentence.
pub mod client;
pub mod session;
pub mod key;
pub mod health;
pub mod binding;
pub mod upstream;
pub mod usage;
pub mod ledger;

// The telling.
pub mod turn;
pub mod server;

// The proof, and the whole.
pub mod properties;
pub mod simulator;
pub mod config;
pub mod reload;
pub mod app;
pub mod check;
pub mod operate;
pub mod demo;
