//! Starts and stops a replica: the only file that knows every concrete type.
//!
//! [`Replica::start`] follows the order of `lib.rs`. Each module gets what it needs and starts its
//! own tasks.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::signal::unix::Signal;

use crate::binding;
use crate::binding::bind::Bindings;
use crate::binding::ownership::Owners;
use crate::client::Clients;
use crate::config::fixed::Fixed;
use crate::config::source::Seen;
use crate::config::{Plan, StoreChoice};
use crate::current::Current;
use crate::health::membership::Membership;
use crate::health::operator::Operator;
use crate::health::registry::Registry;
use crate::metrics::Metrics;
use crate::peers::heartbeat::Heartbeat;
use crate::reload::Reload;
use crate::server::Listeners;
use crate::server::drain::Drain;
use crate::server::operator::{Admission, Desk};
use crate::session::identify::Identifier;
use crate::store::Store;
use crate::store::memory::Memory;
use crate::task::Tasks;
use crate::turn::corroboration::Witnesses;
use crate::turn::http::replay::Replay;
use crate::turn::waiting::Patience;
use crate::turn::websocket::sockets::Sockets;
use crate::turn::{Gateway, Options};
use crate::upstream::probe::Prober;
use crate::usage::books::Books;

/// A start waits at most this long for the store, so that the first turns find their bindings. The
/// replica serves without the store, too.
pub const STORE_PATIENCE: Duration = Duration::from_secs(2);
/// A leaving replica ends its WebSockets over this time, so that their clients do not reconnect all
/// at once.
const SPREAD: Duration = Duration::from_secs(10);
/// How long background tasks may take to end.
pub const LAST_TASKS: Duration = Duration::from_millis(500);

/// One running replica.
pub struct Replica {
    pub client_address: SocketAddr,
    pub admin_address: SocketAddr,
    tasks: Tasks,
    drain: Drain,
    membership: Arc<Membership>,
    heartbeat: Arc<Heartbeat>,
    reload: Arc<Reload>,
}

impl Replica {
    /// Binds both listeners and serves. `memory` is the `memory:` store, which replicas of one
    /// process may share.
    pub async fn start(plan: Plan, memory: Option<Arc<Memory>>) -> Result<Self, String> {
        let Plan { fixed, table, clients, certificate } = plan;
        let config = &fixed.config;
        let listeners = Listeners::open(&config.server, certificate)?;
        let [client_address, admin_address] = listeners.addresses()?;
        let tls = listeners.tls();
        let (tasks, metrics, name) = (Tasks::new(), Arc::new(Metrics::new()), replica_name()?);

        let store = open_store(&fixed, memory, &metrics, &tasks).await?;
        let clients = admit(clients, config.server.open);
        let registry = Arc::new(Registry::new(table, Arc::clone(&metrics)));
        // Both speak once before the first turn, which therefore meets only keys that the other
        // replicas know.
        let membership = Membership::start(&store, &registry, &name, &tasks).await;
        let (topic, replicas) = (Arc::clone(&registry) as _, Arc::clone(&registry.replicas));
        let heartbeat = Heartbeat::start(&store, topic, replicas, &name, &tasks).await;
        let bound = binding::start(&store, &registry, &config.binding, &metrics, &tasks);
        Prober::start(&store, &registry, &metrics, &tasks, name);

        let drain = Drain::new(&config.server);
        let gateway = gateway(&fixed, &clients, &registry, bound, &metrics, &drain, &tasks);
        let desk = Desk {
            gateway: Arc::new(gateway),
            operator: Operator::new(Arc::clone(&registry), Arc::clone(&heartbeat)),
            admission: Admission::of(&config.server, fixed.admin_token.as_ref()),
        };
        listeners.serve(desk, &metrics, &drain, &tasks);

        let reload = Reload { fixed, membership: Arc::clone(&membership), registry, clients, metrics, tls };
        Ok(Self { client_address, admin_address, tasks, drain, membership, heartbeat, reload: Arc::new(reload) })
    }

    /// Follows the configuration `file`, which read as `seen` at the start, and takes changes into
    /// use. After a `hangup` that happens at once.
    pub fn follow(&self, file: Option<PathBuf>, seen: Seen, hangup: Signal) {
        self.tasks.spawn_until_stopped(Arc::clone(&self.reload).follow(file, seen, hangup));
    }

    /// Drains the replica; `hurry` cuts that short. Returns whether every turn in flight came to
    /// its end.
    pub async fn stop(self, hurry: impl Future<Output = ()>) -> bool {
        let closing = self.drain.closing.clone();
        // Turns in flight may take long. Once this replica takes no new turn, the others need not
        // wait for it to load their keys.
        let leaving = async {
            closing.cancelled().await;
            self.membership.leave().await;
        };
        let draining = async {
            let is_done = self.drain.run(hurry).await;
            closing.cancel();
            is_done
        };
        let (is_done, ()) = tokio::join!(draining, leaving);
        self.heartbeat.leave().await;
        self.tasks.join(LAST_TASKS).await;
        is_done
    }
}

/// Opens the configured store and waits a moment for it. Where it is away the start goes on.
async fn open_store(
    fixed: &Fixed,
    memory: Option<Arc<Memory>>,
    metrics: &Arc<Metrics>,
    tasks: &Tasks,
) -> Result<Arc<Store>, String> {
    let metrics = Arc::clone(metrics);
    let store = match &fixed.store {
        StoreChoice::Memory => {
            let memory = memory.unwrap_or_else(|| Arc::new(Memory::new(fixed.config.binding.memory)));
            Store::in_memory(memory, metrics)
        }
        StoreChoice::Redis(_) => Store::in_redis(&fixed.config.store, metrics, tasks)?,
    };
    if !store.ready(STORE_PATIENCE).await {
        tracing::warn!("starting without the store: sessions go where their own order says");
    }
    Ok(Arc::new(store))
}

/// The clients that a turn may come from; anybody where the gateway is `open`.
fn admit(clients: Clients, open: bool) -> Arc<Current<Clients>> {
    if clients.is_empty() && !open {
        tracing::warn!("no client has a token: every turn will be answered 401");
    }
    Arc::new(Current::new(Arc::new(clients.opened(open))))
}

/// What all turns of the replica share.
fn gateway(
    fixed: &Fixed,
    clients: &Arc<Current<Clients>>,
    registry: &Arc<Registry>,
    (bindings, owners): (Bindings, Arc<Owners>),
    metrics: &Arc<Metrics>,
    drain: &Drain,
    tasks: &Tasks,
) -> Gateway {
    let (config, server) = (&fixed.config, &fixed.config.server);
    Gateway {
        clients: Arc::clone(clients),
        identifier: Identifier::new(&fixed.secret, fixed.hop_secret.clone()),
        bindings,
        owners,
        foreign_ids: server.foreign_ids,
        registry: Arc::clone(registry),
        replay: Replay::new(server.max_body, server.replay_total),
        books: Arc::new(Books::new(Arc::clone(metrics))),
        metrics: Arc::clone(metrics),
        options: Options { wait: config.binding.wait.0, resends: config.failover.ambiguous },
        patience: Patience::default(),
        retries: Mutex::default(),
        witnesses: Witnesses::default(),
        sockets: Sockets {
            tasks: drain.connections.clone(),
            closing: drain.closing.clone(),
            // A replica that must drain quickly has less time to spread.
            spread: SPREAD.min(server.drain.0 / 2),
            ping: server.ping.0,
        },
        tasks: tasks.clone(),
    }
}

/// A random name, which no other process has.
pub fn replica_name() -> Result<String, String> {
    let mut name = [0; 8];
    getrandom::fill(&mut name).map_err(|error| format!("no randomness: {error}"))?;
    Ok(format!("{:016x}", u64::from_be_bytes(name)))
}
