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
use crate::client::tokens::Roster;
use crate::config::fixed::Fixed;
use crate::config::source::Seen;
use crate::config::{Plan, StoreChoice};
use crate::current::Current;
use crate::health::membership::Membership;
use crate::health::operator::Operator;
use crate::health::registry::Registry;
use crate::ledger::{Ledger, Setup};
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
    ledger: Arc<Ledger>,
    reload: Arc<Reload>,
}

impl Replica {
    /// Binds both listeners and serves. `memory` is the `memory:` store, which replicas of one
    /// process may share.
    pub async fn start(plan: Plan, memory: Option<Arc<Memory>>) -> Result<Self, String> {
        let Plan { fixed, table, clients, prices } = plan;
        let config = &fixed.config;
        let listeners = Listeners::open(&config.server)?;
        let [client_address, admin_address] = listeners.addresses()?;
        let (tasks, metrics, name) = (Tasks::new(), Arc::new(Metrics::new()), replica_name()?);

        let store = open_store(&fixed, memory, &metrics, &tasks).await?;
        let (books, records) = Books::queued(Arc::clone(&metrics));
        let roster = Arc::new(Roster::new(clients.opened(config.server.open)));
        let prices = Arc::new(Current::new(Arc::new(prices)));
        let ledger = Ledger::start(
            Setup {
                settings: &config.ledger,
                address: fixed.ledger.clone(),
                zone: fixed.zone.clone(),
                prices: Arc::clone(&prices),
                roster: Arc::clone(&roster),
                metrics: Arc::clone(&metrics),
            },
            records,
        )
        .await;
        tell_of(&fixed, &roster);
        let registry = Arc::new(Registry::new(table, Arc::clone(&metrics)));
        // Both speak once before the first turn, which therefore meets only keys that the other
        // replicas know.
        let membership = Membership::start(&store, &registry, &name, &tasks).await;
        let (topic, replicas) = (Arc::clone(&registry) as _, Arc::clone(&registry.replicas));
        let heartbeat = Heartbeat::start(&store, topic, replicas, &name, &tasks).await;
        let bound = binding::start(&store, &registry, &config.binding, &metrics, &tasks);
        Prober::start(&store, &registry, &metrics, &tasks, name);

        let drain = Drain::new(&config.server);
        let gateway = gateway(&fixed, &roster, &registry, bound, (books, &metrics), &drain, &tasks);
        let desk = Desk {
            gateway: Arc::new(gateway),
            operator: Operator::new(Arc::clone(&registry), Arc::clone(&heartbeat)),
            admission: Admission::of(&config.server, fixed.admin_token.as_ref()),
            ledger: Arc::clone(&ledger),
        };
        listeners.serve(desk, &metrics, &drain, &tasks);

        let reload = Reload { fixed, membership: Arc::clone(&membership), registry, roster, prices, metrics };
        Ok(Self { client_address, admin_address, tasks, drain, membership, heartbeat, ledger, reload: Arc::new(reload) })
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
        self.ledger.close().await;
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

/// Tells what an operator may not expect.
fn tell_of(fixed: &Fixed, roster: &Roster) {
    if roster.current().get().is_empty() && !fixed.config.server.open {
        tracing::warn!("no client has a token: every turn will be answered 401");
    }
    if fixed.ledger.is_none() && fixed.config.ledger.url.is_none() {
        tracing::info!("no ledger: a file would be one replica's, and ledger.url names no database that all share");
    }
}

/// What all turns of the replica share.
fn gateway(
    fixed: &Fixed,
    roster: &Roster,
    registry: &Arc<Registry>,
    (bindings, owners): (Bindings, Arc<Owners>),
    (books, metrics): (Books, &Arc<Metrics>),
    drain: &Drain,
    tasks: &Tasks,
) -> Gateway {
    let (config, server) = (&fixed.config, &fixed.config.server);
    Gateway {
        clients: Arc::clone(roster.current()),
        identifier: Identifier::new(&fixed.secret, fixed.hop_secret.clone()),
        bindings,
        owners,
        foreign_ids: server.foreign_ids,
        registry: Arc::clone(registry),
        replay: Replay::new(server.max_body, server.replay_total),
        books: Arc::new(books),
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
