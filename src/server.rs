//! The listeners of a replica, and the routes that each serves.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::metrics::{ListenerName, Metrics};
use crate::process::Descriptors;
use crate::setting::{self, SecretSource, Size, Span};
use crate::task::Tasks;
use crate::turn::entry::ForeignIds;

pub(crate) mod pages;
pub(crate) mod operator;
pub(crate) mod ledger;
pub(crate) mod admin;
pub(crate) mod connections;
pub(crate) mod watched;
pub(crate) mod send_timeout;
pub(crate) mod stream_timeout;
pub(crate) mod answering;
pub(crate) mod unreadable;
pub(crate) mod lingering;
pub(crate) mod overflow;
pub(crate) mod connection;
pub(crate) mod slowing;
pub(crate) mod drain;
pub(crate) mod tls;
pub mod listener;
pub(crate) mod routes;

use admin::admin_routes;
use connections::Connections;
use drain::Drain;
use listener::Listener;
use operator::AdminApi;
use routes::ClientRoutes;
use tls::{Certificate, Tls};

/// The options under `[server]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerSettings {
    #[serde(deserialize_with = "setting::listener")]
    pub listen: SocketAddr,
    #[serde(deserialize_with = "setting::listener")]
    pub admin_listen: SocketAddr,
    /// Token that operators send to the admin listener. Required unless only this machine can reach
    /// that listener.
    pub admin_token: Option<SecretSource>,
    /// Secret of the session hashes. Required as soon as replicas share a store.
    pub secret: Option<SecretSource>,
    pub max_body: Size,
    pub replay_total: Size,
    pub drain_delay: Span,
    pub drain: Span,
    pub header_timeout: Span,
    pub open: bool,
    /// Silence of a WebSocket's peer after which the gateway pings the peer.
    pub ping: Span,
    /// Whether turns may use ids of stored objects that never passed through this gateway.
    pub foreign_ids: ForeignIds,
    /// TLS of the clients' listener. `None`: the listener speaks plain HTTP.
    pub tls: Option<tls::TlsSettings>,
}

/// The two listeners of a replica: one for clients, one for operators, probes and Prometheus.
pub struct Listeners {
    clients: Listener,
    admin: Listener,
    tls: Option<Tls>,
}

impl Listeners {
    /// Binds both addresses, and serves nothing yet. With a `certificate`, clients must use TLS.
    pub fn open(
        settings: &ServerSettings,
        certificate: Option<Certificate>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, String> {
        let descriptors = Descriptors::of_process();
        let bind = |address, door, most| {
            let connections = Connections::new(door, most, Arc::clone(metrics));
            Listener::bind(address, settings.header_timeout.0)
                .map(|listener| listener.within(connections))
                .map_err(|error| format!("cannot listen on {address}: {error}"))
        };
        let tls = certificate.map(Tls::new).transpose()?;
        Ok(Self {
            clients: bind(settings.listen, ListenerName::Clients, descriptors.clients)?
                .with_tls(tls.clone()),
            admin: bind(settings.admin_listen, ListenerName::Admin, descriptors.admin)?,
            tls,
        })
    }

    /// The TLS of the clients' listener, in which a reload replaces the certificate.
    pub fn tls(&self) -> Option<Tls> {
        self.tls.clone()
    }

    /// Returns the real addresses: first the clients', then the admin listener's.
    pub fn addresses(&self) -> Result<[SocketAddr; 2], String> {
        let address = |listener: &Listener| listener.address().map_err(|error| error.to_string());
        Ok([address(&self.clients)?, address(&self.admin)?])
    }

    /// Serves in the background until `tasks` end. `drain` ends the clients' connections earlier,
    /// but probes are answered to the last.
    pub fn serve(
        self,
        routes: ClientRoutes,
        api: AdminApi,
        metrics: &Arc<Metrics>,
        drain: &Drain,
        tasks: &Tasks,
    ) {
        let (connections, ending) = (drain.connections.clone(), drain.ending.clone());
        let (clients, admin) = (Arc::new(self.clients), Arc::new(self.admin));
        tasks.spawn_kept("clients", move || {
            let (clients, routes) = (Arc::clone(&clients), routes.clone());
            let (connections, ending) = (connections.clone(), ending.clone());
            async move { clients.serve(routes, connections, ending).await }
        });
        let (readiness, api) = (drain.readiness.clone(), Arc::new(api));
        let routes = admin_routes(Arc::clone(metrics), readiness, api, tasks.clone());
        let owned = tasks.clone();
        tasks.spawn_kept("admin", move || {
            let (admin, routes, tasks) = (Arc::clone(&admin), routes.clone(), owned.clone());
            async move { admin.serve(routes, tasks, CancellationToken::new()).await }
        });
    }
}
