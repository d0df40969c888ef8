//! A turn: one request and its answer, from authenticating its client to accounting for what it cost.

use std::sync::Arc;

use crate::binding::table::Bindings;
use crate::client::Clients;
use crate::key::registry::Registry;
use crate::metrics::Metrics;
use crate::session::identify::Identifier;
use crate::task::Tasks;

pub mod account;
pub mod failover;
pub mod http;
pub mod relay;
pub mod replay;

/// All that serving turns needs: one a replica, shared by its turns.
pub struct Gateway {
    /// Who may call.
    pub clients: Clients,
    /// Which session a turn belongs to.
    pub identifier: Identifier,
    /// Which key a session is bound to.
    pub bindings: Bindings,
    /// Which keys are in use.
    pub registry: Arc<Registry>,
    /// The memory that request bodies are held in.
    pub replay: replay::Replay,
    pub metrics: Arc<Metrics>,
    /// Owns what outlives a turn.
    pub tasks: Tasks,
}
