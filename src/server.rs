//! The listeners of a replica, and the routes that each serves.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::setting::{SecretSource, Size, Span};
use crate::task::Tasks;
use crate::turn::entry::ForeignIds;

pub mod operator;
pub mod ledger;
pub mod admin;
pub mod drain;
pub mod tls;
pub mod listener;
pub mod routes;

use admin::admin_routes;
use drain::Drain;
use listener::Listener;
use operator::AdminApi;
use routes::ClientRoutes;
use tls::{Certificate, Tls};

/// `[server]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub listen: SocketAddr,
    pub admin_listen: SocketAddr,
    /// Token that operators show on the admin listener. Needed unless only this machine can reach
    /// the listener.
    pub admin_token: Option<SecretSource>,
    /// Secret of the session hashes. Needed as soon as replicas share a store.
    pub secret: Option<SecretSource>,
    pub max_body: Size,
    pub replay_total: Size,
    pub drain_delay: Span,
    pub drain: Span,
    pub header_timeout: Span,
    pub open: bool,
    /// Silence of a WebSocket's peer after which the gateway pings it.
    pub ping: Span,
    /// Treatment of ids of stored objects that never passed through this gateway.
    pub foreign_ids: ForeignIds,
    /// TLS of the clients' listener. Absent: plain.
    pub tls: Option<tls::Settings>,
}

/// The two listeners of a replica: one for clients, one for operators, probes and Prometheus.
pub struct Listeners {
    clients: Listener,
    admin: Listener,
    tls: Option<Tls>,
}

impl Listeners {
    /// Binds both addresses and serves nothing yet. With a `certificate` clients must speak TLS.
    pub fn open(settings: &Settings, certificate: Option<Certificate>) -> Result<Self, String> {
        let bind = |address| {
            Listener::bind(address, settings.header_timeout.0)
                .map_err(|error| format!("cannot listen on {address}: {error}"))
        };
        let tls = certificate.map(Tls::new).transpose()?;
        Ok(Self {
            clients: bind(settings.listen)?.with_tls(tls.clone()),
            admin: bind(settings.admin_listen)?,
            tls,
        })
    }

    /// Where a reload puts another certificate.
    pub fn tls(&self) -> Option<Tls> {
        self.tls.clone()
    }

    /// The real addresses: first that of clients, then that of the admin listener.
    pub fn addresses(&self) -> Result<[SocketAddr; 2], String> {
        let address = |listener: &Listener| listener.address().map_err(|error| error.to_string());
        Ok([address(&self.clients)?, address(&self.admin)?])
    }

    /// Serves in the background until `tasks` end. `drain` ends the connections of clients earlier;
    /// probes are answered to the last.
    pub fn serve(
        self,
        routes: ClientRoutes,
        api: AdminApi,
        metrics: &Arc<Metrics>,
        drain: &Drain,
        tasks: &Tasks,
    ) {
        let (connections, closing) = (drain.connections.clone(), drain.closing.clone());
        tasks.spawn_until_stopped(self.clients.serve(routes, connections, closing));
        let routes = admin_routes(Arc::clone(metrics), drain.readiness.clone(), Arc::new(api));
        tasks.spawn_until_stopped(self.admin.serve(
            routes,
            tasks.clone(),
            CancellationToken::new(),
        ));
    }
}
