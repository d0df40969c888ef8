//! Listeners, and what is served on them.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::setting::{SecretSource, Size, Span};
use crate::task::Tasks;
use crate::turn::ownership::ForeignIds;

pub mod operator;
pub mod ledger;
pub mod admin;
pub mod drain;
pub mod listener;
pub mod routes;

use admin::admin_routes;
use drain::Drain;
use listener::Listener;
use operator::Desk;
use routes::ClientRoutes;

/// `[server]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub listen: SocketAddr,
    pub admin_listen: SocketAddr,
    /// What operators show there. Needed where strangers could.
    pub admin_token: Option<SecretSource>,
    /// Keys the session hashes. Needed as soon as replicas share a store.
    pub secret: Option<SecretSource>,
    pub max_body: Size,
    pub replay_total: Size,
    pub drain_delay: Span,
    pub drain: Span,
    pub header_timeout: Span,
    pub open: bool,
    /// A WebSocket's silent peer is asked after this time whether it is there.
    pub ping: Span,
    /// What becomes of ids of stored things that never passed through here.
    pub foreign_ids: ForeignIds,
}

/// The two listeners of a replica: one for clients, one for operators, probes and Prometheus.
pub struct Listeners {
    clients: Listener,
    admin: Listener,
}

impl Listeners {
    /// Binds both addresses and serves nothing yet.
    pub fn open(settings: &Settings) -> Result<Self, String> {
        let bind = |address| {
            Listener::bind(address, settings.header_timeout.0).map_err(|error| format!("cannot listen on {address}: {error}"))
        };
        Ok(Self { clients: bind(settings.listen)?, admin: bind(settings.admin_listen)? })
    }

    /// The real addresses: that of clients, then that of the admin listener.
    pub fn addresses(&self) -> Result<[SocketAddr; 2], String> {
        let address = |listener: &Listener| listener.address().map_err(|error| error.to_string());
        Ok([address(&self.clients)?, address(&self.admin)?])
    }

    /// Serves in the background until `tasks` end. `drain` ends the connections of clients earlier;
    /// probes are answered to the last.
    pub fn serve(self, desk: Desk, metrics: &Arc<Metrics>, drain: &Drain, tasks: &Tasks) {
        let routes = ClientRoutes(Arc::clone(&desk.gateway));
        let (connections, closing) = (drain.connections.clone(), drain.closing.clone());
        tasks.spawn_until_stopped(self.clients.serve(routes, connections, closing));
        let routes = admin_routes(Arc::clone(metrics), drain.readiness.clone(), Arc::new(desk));
        tasks.spawn_until_stopped(self.admin.serve(routes, tasks.clone(), CancellationToken::new()));
    }
}
