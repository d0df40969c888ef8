//! Warmkey keeps each session on the upstream key whose prompt cache is warm.
//!
//! The modules below follow the life of a turn, and their dependencies follow the same order: a
//! module uses only what is declared before it.
//!
//! 1. `server` accepts a request and hands it to `turn`, the spine.
//! 2. `client` names the caller, from the headers alone.
//! 3. `session` names the session of the turn: a pure function of the request.
//! 4. `binding` finds the `key` of that session. On a first turn it binds the session, with one
//!    winner among all replicas.
//! 5. `upstream` sends the client's own bytes with that key's identity, and reports the `outcome`.
//! 6. `turn::verdict` decides: deliver, move to another key, or give up. Once a byte has gone to
//!    the client, nothing moves.
//! 7. `turn::http::relay` passes the answer on as it comes, while `usage` reads a copy.
//! 8. `turn::account` makes one record of the turn, however the turn ends.

#![cfg_attr(
    test,
    expect(clippy::disallowed_methods, reason = "a unit test ends the tasks that it starts")
)]

// `pub` modules are those that the command line, the tests with whole replicas (`tests/it`) or the
// fuzz targets need. The crate is not published, so nothing else is promised.

// Vocabulary, shared by all stages.
pub(crate) mod error;
pub mod setting;
pub(crate) mod clock;
pub(crate) mod current;
pub mod process;
pub mod metrics;
pub mod task;
pub mod telemetry;
pub(crate) mod limit;
pub mod wire;
pub(crate) mod outcome;
pub mod store;
pub(crate) mod peers;
pub mod database;

// The stages of a turn.
pub(crate) mod client;
pub(crate) mod session;
pub(crate) mod key;
pub mod health;
pub(crate) mod binding;
pub(crate) mod chat;
pub(crate) mod upstream;
pub mod usage;
pub(crate) mod ledger;

// The turn itself, and the listeners.
pub(crate) mod turn;
pub mod server;

// The proof, and the whole process.
pub mod properties;
pub mod simulator;
pub mod config;
pub(crate) mod reload;
pub mod app;
pub mod check;
pub mod operate;
pub mod probe;
pub mod demo;
