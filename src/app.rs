//! Starts and stops a replica: the only file that knows every concrete type.
//!
//! [`Replica::start`] follows the order of `lib.rs`. Each module gets what it needs and starts its
//! own tasks.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::Mutex;

use crate::binding;
use crate::binding::bind::Bindings;
use crate::binding::ownership::Owners;
use crate::client::tokens::Roster;
use crate::config::fixed::Fixed;
use crate::config::source::Seen;
use crate::config::{Config, Plan, StoreChoice};
use crate::current::Current;
use crate::health::membership::Membership;
use crate::health::operator::Operator;
use crate::health::registry::Registry;
use crate::ledger::{Ledger, Setup};
use crate::metrics::Metrics;
use crate::peers::heartbeat::Heartbeat;
use crate::process::Descriptors;
use crate::reload::Reload;
use crate::server::Listeners;
use crate::server::drain::Drain;
use crate::server::operator::{Access, AdminApi};
use crate::server::routes::ClientRoutes;
use crate::server::slowing::Slowing;
use crate::session::identify::Identifier;
use crate::store::Store;
use crate::store::memory::Memory;
use crate::task::Tasks;
use crate::telemetry::pipe::TracePipe;
use crate::telemetry::work::WorkSpans;
use crate::turn::Gateway;
use crate::turn::entry::Entry;
use crate::turn::failover::{Failover, FailoverOptions};
use crate::turn::http::exchange::HttpTurns;
use crate::turn::http::heavy_places::{HEAVY, HeavyPlaces};
use crate::turn::http::models::ModelRoutes;
use crate::turn::http::replay::Replay;
use crate::turn::memory::BodyMemory;
use crate::turn::websocket::sockets::{SocketTiming, WebSocketTurns};
use crate::upstream::models::ModelLists;
use crate::upstream::probe::Prober;
use crate::usage::assess::Assessor;
use crate::usage::books::Books;
use crate::usage::tracer::Tracer;

/// A start waits at most this long for the store, so that the first turns find their bindings. The
/// replica serves without the store, too.
pub const STORE_START_TIMEOUT: Duration = Duration::from_secs(2);
/// A leaving replica ends its WebSockets over this time, so that their clients do not all reconnect
/// at once.
const SPREAD: Duration = Duration::from_secs(10);
/// Maximum time for background tasks to end.
pub const TASK_END_TIMEOUT: Duration = Duration::from_millis(500);

/// One running replica.
pub struct Replica {
    pub client_address: SocketAddr,
    pub admin_address: SocketAddr,
    tasks: Tasks,
    drain: Drain,
    membership: Arc<Membership>,
    heartbeat: Arc<Heartbeat>,
    ledger: Arc<Ledger>,
    traces: Option<Arc<TracePipe>>,
    reload: Arc<Reload>,
}

impl Replica {
    /// Binds both listeners and serves. `memory` is the `memory:` store, which replicas of one
    /// process may share. `work` are the spans of the process's background work.
    pub async fn start(
        plan: Plan,
        memory: Option<Arc<Memory>>,
        work: &WorkSpans,
    ) -> Result<Self, String> {
        let Plan { fixed, table, clients, certificate, prices } = plan;
        let config = &fixed.config;
        let (tasks, metrics, name) = (Tasks::new(), Arc::new(Metrics::new()), replica_name()?);
        let listeners = Listeners::open(&config.server, certificate, &metrics)?;
        let [client_address, admin_address] = listeners.addresses()?;
        let tls = listeners.tls();

        let store = open_store(&fixed, memory, &metrics, &tasks).await?;
        let traces = trace_pipe(&fixed, &name, &metrics, &tasks)?;
        if let Some(pipe) = &traces {
            work.connect(pipe);
        }
        let (books, records) =
            Books::queued(Arc::clone(&metrics), traces.as_ref().map(|_| fixed.traced));
        let roster = Arc::new(Roster::new(clients.with_open(config.server.open)));
        let prices = Arc::new(Current::new(Arc::new(prices)));
        let ledger = Ledger::start(
            Setup {
                settings: &config.ledger,
                address: fixed.ledger.clone(),
                zone: fixed.zone.clone(),
                prices: Arc::clone(&prices),
                roster: Arc::clone(&roster),
                metrics: Arc::clone(&metrics),
                tracer: traces.clone().map(|pipe| Tracer::new(pipe, fixed.traced)),
                assessor: Assessor::new(
                    Arc::clone(&store),
                    config.binding.ttl.0,
                    Arc::clone(&metrics),
                ),
                tasks: tasks.group(),
            },
            records,
        )
        .await;
        warn_about(&fixed, &roster);
        let registry = Arc::new(Registry::new(table, Arc::clone(&metrics)));
        // Both run one exchange before the first turn, which therefore meets only keys that the
        // other replicas know.
        let membership = Membership::start(&store, &registry, &name, &tasks).await;
        let (topic, replicas) = (Arc::clone(&registry) as _, Arc::clone(&registry.replicas));
        let heartbeat = Heartbeat::start(&store, topic, replicas, &name, &tasks).await;
        let bound = binding::start(&store, &registry, &config.binding, &metrics, &tasks);
        Prober::start(&store, &registry, &metrics, &tasks, name);

        let drain = Drain::new(&config.server, books.cutting.clone());
        let gateway = Arc::new(gateway(&fixed, &roster, &registry, bound, books));
        let memory = BodyMemory::new(config.server.replay_total);
        let routes = routes(&gateway, &fixed, &memory, &drain, &tasks);
        let api = AdminApi {
            gateway,
            operator: Operator::new(Arc::clone(&registry), Arc::clone(&heartbeat)),
            access: Access::of(&config.server, fixed.admin_token.as_ref()),
            ledger: Arc::clone(&ledger),
            memory,
        };
        listeners.serve(routes, api, &metrics, &drain, &tasks);

        let reload = Reload {
            fixed,
            membership: Arc::clone(&membership),
            registry,
            roster,
            prices,
            metrics,
            tls,
        };
        Ok(Self {
            client_address,
            admin_address,
            tasks,
            drain,
            membership,
            heartbeat,
            ledger,
            traces,
            reload: Arc::new(reload),
        })
    }

    /// Follows the configuration `file`, whose content at the start was `seen`, and takes changes
    /// into use. A `hangup` makes that happen at once.
    pub fn follow(&self, file: Option<PathBuf>, seen: Seen, hangup: Signal) {
        let (reload, seen) = (Arc::clone(&self.reload), Arc::new(Mutex::new((seen, hangup))));
        self.tasks.spawn_kept("reload", move || {
            let (reload, file, seen) = (Arc::clone(&reload), file.clone(), Arc::clone(&seen));
            async move {
                let (seen, hangup) = &mut *seen.lock().await;
                reload.follow(file, seen, hangup).await;
            }
        });
    }

    /// Drains the replica; `hurry` cuts the drain short. Returns true if every turn in flight came
    /// to its end.
    pub async fn stop(self, hurry: impl Future<Output = ()>) -> bool {
        let closing = self.drain.ending.closing.clone();
        // Turns in flight may take long. A replica that takes no new turn leaves the membership
        // now, so that the other replicas do not wait for it to load their keys.
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
        if let Some(pipe) = self.traces {
            pipe.close().await;
        }
        self.tasks.join(TASK_END_TIMEOUT).await;
        is_done
    }
}

/// Opens the configured store and waits for it briefly. The start goes on without the store.
async fn open_store(
    fixed: &Fixed,
    memory: Option<Arc<Memory>>,
    metrics: &Arc<Metrics>,
    tasks: &Tasks,
) -> Result<Arc<Store>, String> {
    let metrics = Arc::clone(metrics);
    let store = match &fixed.store {
        StoreChoice::Memory => {
            let memory =
                memory.unwrap_or_else(|| Arc::new(Memory::new(fixed.config.binding.memory)));
            Store::in_memory(memory, metrics)
        }
        StoreChoice::Redis(_) => Store::in_redis(&fixed.config.store, metrics, tasks)?,
    };
    if !store.ready(STORE_START_TIMEOUT).await {
        tracing::warn!("starting without the store: each session takes the first key in its order");
    }
    Ok(Arc::new(store))
}

/// Starts the pipe that carries traces to the collector. `None`: the configuration names no
/// collector.
fn trace_pipe(
    fixed: &Fixed,
    name: &str,
    metrics: &Arc<Metrics>,
    tasks: &Tasks,
) -> Result<Option<Arc<TracePipe>>, String> {
    let pipe = fixed
        .collector
        .as_ref()
        .map(|collector| TracePipe::start(collector, name, Arc::clone(metrics), tasks));
    Ok(pipe.transpose()?.map(Arc::new))
}

/// Logs the two settings that an operator may not have intended: no valid token, and no ledger.
fn warn_about(fixed: &Fixed, roster: &Roster) {
    if roster.current().get().is_empty() && !fixed.config.server.open {
        tracing::warn!("no client has a token: every turn will be answered 401");
    }
    if fixed.ledger.is_none() && fixed.config.ledger.url.is_none() {
        tracing::info!(
            "no ledger: a file would be one replica's, and ledger.url names no database that all share"
        );
    }
}

/// State that all turns of the replica share.
fn gateway(
    fixed: &Fixed,
    roster: &Roster,
    registry: &Arc<Registry>,
    (bindings, owners): (Bindings, Arc<Owners>),
    books: Books,
) -> Gateway {
    let Config { binding, failover, server, .. } = &fixed.config;
    let entry = Entry {
        clients: Arc::clone(roster.current()),
        identifier: Identifier::new(&fixed.secret, fixed.hop_secret.clone()),
        owners,
        foreign_ids: server.foreign_ids,
    };
    let options = FailoverOptions { wait: binding.wait.0, resends: failover.ambiguous };
    Gateway {
        entry,
        bindings,
        registry: Arc::clone(registry),
        failover: Failover::new(options),
        books: Arc::new(books),
    }
}

/// Builds the routes of clients: turns over HTTP, turns on WebSockets, and lists of models.
fn routes(
    gateway: &Arc<Gateway>,
    fixed: &Fixed,
    memory: &BodyMemory,
    drain: &Drain,
    tasks: &Tasks,
) -> ClientRoutes {
    let server = &fixed.config.server;
    let heavy = Arc::new(HeavyPlaces::new(HEAVY));
    let http = HttpTurns {
        gateway: Arc::clone(gateway),
        replay: Replay::new(server.max_body, memory.clone()),
        propagation: fixed.config.telemetry.propagate.then_some(fixed.traced.share),
        tasks: tasks.clone(),
        heavy: Arc::clone(&heavy),
    };
    let websocket = WebSocketTurns {
        gateway: Arc::clone(gateway),
        connections: drain.connections.clone(),
        closing: drain.ending.closing.clone(),
        answers: tasks.clone(),
        // A replica that must drain quickly has less time to spread.
        timing: SocketTiming { spread: SPREAD.min(server.drain.0 / 2), ping: server.ping.0 },
        memory: memory.clone(),
        heavy,
    };
    let (metrics, most) = (Arc::clone(&gateway.books.metrics), Descriptors::of_process().clients);
    let models = ModelRoutes { gateway: Arc::clone(gateway), lists: ModelLists::default() };
    ClientRoutes {
        http: Arc::new(http),
        websocket: Arc::new(websocket),
        models: Arc::new(models),
        slowing: Arc::new(Slowing::new(metrics, most)),
    }
}

/// A random name, unique among processes.
pub fn replica_name() -> Result<String, String> {
    let mut name = [0; 8];
    getrandom::fill(&mut name).map_err(|error| format!("no randomness: {error}"))?;
    Ok(format!("{:016x}", u64::from_be_bytes(name)))
}
