//! The composition root: the only file that knows every concrete type.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

use crate::binding::bind::Bindings;
use crate::binding::gossip::Hearsay;
use crate::binding::local::Local;
use crate::binding::outage::keep_merging;
use crate::binding::ownership::Owners;
use crate::binding::place::Places;
use crate::binding::trail::{Trail, keep_writing};
use crate::client::authenticate::AdminToken;
use crate::config::fixed::Fixed;
use crate::config::source::Seen;
use crate::config::{Plan, StoreChoice};
use crate::current::Current;
use crate::health::membership::Membership;
use crate::health::operator::Operator;
use crate::health::registry::Registry;
use crate::metrics::Metrics;
use crate::peers::heartbeat::Heartbeat;
use crate::peers::membership::Member;
use crate::reload::Reload;
use crate::server::admin::admin_routes;
use crate::server::drain::{Drain, Readiness};
use crate::server::listener::Listener;
use crate::server::operator::{Admission, Desk};
use crate::server::routes::ClientRoutes;
use crate::session::identify::Identifier;
use crate::setting::Span;
use crate::store::memory::Memory;
use crate::store::name::Name;
use crate::store::{self, Report, Store, Unavailable};
use crate::task::Tasks;
use crate::turn::corroboration::Witnesses;
use crate::turn::http::replay::Replay;
use crate::turn::waiting::Patience;
use crate::turn::websocket::sockets::Sockets;
use crate::turn::{Gateway, Options};
use crate::upstream::probe::Prober;
use crate::usage::books::Books;

/// How long a start waits for its store, so that the first turns find it. Without it the replica serves all the same.
const STORE_PATIENCE: Duration = Duration::from_secs(2);
/// The time over which a leaving replica ends its WebSockets: their clients come back all at once otherwise.
const SPREAD: Duration = Duration::from_secs(10);
/// How long background tasks may take to end.
const LAST_TASKS: Duration = Duration::from_millis(500);

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
    /// Binds both listeners and serves. `memory`: the `memory:` store, which replicas of one process may share.
    pub async fn start(plan: Plan, memory: Option<Arc<Memory>>) -> Result<Self, String> {
        let Plan { fixed, table, clients } = plan;
        let (config, server) = (&fixed.config, &fixed.config.server);
        let listen = |address| {
            Listener::bind(address, server.header_timeout.0).map_err(|error| format!("cannot listen on {address}: {error}"))
        };
        let (client_listener, admin_listener) = (listen(server.listen)?, listen(server.admin_listen)?);
        let address = |listener: &Listener| listener.address().map_err(|error| error.to_string());
        let (client_address, admin_address) = (address(&client_listener)?, address(&admin_listener)?);

        let tasks = Tasks::new();
        let metrics = Arc::new(Metrics::new());
        let store = Arc::new(match &fixed.store {
            StoreChoice::Memory => {
                Store::in_memory(memory.unwrap_or_else(|| Arc::new(Memory::new(config.binding.memory))), Arc::clone(&metrics))
            }
            StoreChoice::Redis(_) => Store::in_redis(&config.store, Arc::clone(&metrics), &tasks)?,
        });
        if !store.ready(STORE_PATIENCE).await {
            tracing::warn!("starting without the store: sessions go where their own order says");
        }
        let registry = Arc::new(Registry::new(table, Arc::clone(&metrics)));
        let name = replica_name()?;
        let member = Member::new(Arc::clone(&store), name.clone());
        let membership = Arc::new(Membership::new(member, Arc::clone(&registry)));
        let (topic, replicas) = (Arc::clone(&registry) as _, Arc::clone(&registry.replicas));
        let heartbeat = Arc::new(Heartbeat::new(Arc::clone(&store), topic, replicas, name.clone()));
        // Before the first turn, so that it meets only keys that the other replicas know.
        membership.exchange().await;
        heartbeat.exchange().await;
        tasks.spawn_until_stopped(Arc::clone(&membership).run());
        tasks.spawn_until_stopped(Arc::clone(&heartbeat).run());
        let prober = Prober {
            store: Arc::clone(&store),
            registry: Arc::clone(&registry),
            metrics: Arc::clone(&metrics),
            tasks: tasks.clone(),
            name,
        };
        tasks.spawn_until_stopped(Arc::new(prober).keep_probing());
        let ttl = config.binding.ttl.0;
        let local = Arc::new(Local::new(config.binding.memory, ttl / 2));
        tasks.spawn_until_stopped(keep_merging(Arc::clone(&store), Arc::clone(&local), Arc::clone(&registry), ttl));
        tasks.spawn_until_stopped(Hearsay::new(&store, &local).keep());
        let (places, (trail, unwritten)) = (Places::new(Arc::clone(&registry)), Trail::new(Arc::clone(&metrics)));
        tasks.spawn_until_stopped(keep_writing(Arc::clone(&store), ttl, unwritten));
        let owners = Arc::new(Owners::new(Arc::clone(&store), ttl, config.binding.memory));
        tasks.spawn_until_stopped(Arc::clone(&owners).keep_telling());
        let bindings = Bindings::new(store, places, local, ttl, tasks.clone(), trail);
        if clients.is_empty() && !server.open {
            tracing::warn!("no client has a token: every turn will be answered 401");
        }
        let (connections, closing, readiness) = (Tasks::new(), CancellationToken::new(), Readiness::ready());
        let clients = Arc::new(Current::new(Arc::new(clients.opened(server.open))));
        let gateway = Arc::new(Gateway {
            clients: Arc::clone(&clients),
            identifier: Identifier::new(&fixed.secret, fixed.hop_secret.clone()),
            bindings,
            owners,
            foreign_ids: server.foreign_ids,
            registry: Arc::clone(&registry),
            replay: Replay::new(server.max_body, server.replay_total),
            books: Arc::new(Books::new(Arc::clone(&metrics))),
            metrics: Arc::clone(&metrics),
            options: Options { wait: config.binding.wait.0, resends: config.failover.ambiguous },
            patience: Patience::default(),
            retries: Mutex::default(),
            witnesses: Witnesses::default(),
            sockets: Sockets {
                tasks: connections.clone(),
                closing: closing.clone(),
                // Whoever has little time to leave in has no time to spread.
                spread: SPREAD.min(server.drain.0 / 2),
                ping: server.ping.0,
            },
            tasks: tasks.clone(),
        });

        let operator = Operator::new(Arc::clone(&registry), Arc::clone(&heartbeat));
        let desk = Desk { gateway: Arc::clone(&gateway), operator, admission: admission(&fixed) };
        tasks.spawn_until_stopped(client_listener.serve(ClientRoutes(gateway), connections.clone(), closing.clone()));
        let admin = admin_routes(Arc::clone(&metrics), readiness.clone(), Arc::new(desk));
        tasks.spawn_until_stopped(admin_listener.serve(admin, tasks.clone(), CancellationToken::new()));
        let drain = Drain { readiness, closing, connections, delay: server.drain_delay.0, grace: server.drain.0 };
        let reload = Arc::new(Reload { fixed, membership: Arc::clone(&membership), registry, clients, metrics });
        Ok(Self { client_address, admin_address, tasks, drain, membership, heartbeat, reload })
    }

    /// Follows the configuration `file`, which held what was `seen` when the replica started: takes what has changed into use,
    /// at once where `hangup` says so.
    pub fn follow(&self, file: Option<PathBuf>, seen: Seen, hangup: Signal) {
        self.tasks.spawn_until_stopped(Arc::clone(&self.reload).follow(file, seen, hangup));
    }

    /// Leaves gently; `hurry` cuts it short. Returns whether every turn in flight came to its end.
    pub async fn stop(self, hurry: impl Future<Output = ()>) -> bool {
        let closing = self.drain.closing.clone();
        // Turns in flight may take long: once no new one is taken, nobody need wait for what this replica has.
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

/// Who may ask what operators ask.
fn admission(fixed: &Fixed) -> Admission {
    match &fixed.admin_token {
        Some(token) => Admission::Token(AdminToken::new(token)),
        None if fixed.config.server.admin_listen.ip().is_loopback() => Admission::Local,
        None => Admission::Closed,
    }
}

/// A name that no other process has.
fn replica_name() -> Result<String, String> {
    let mut name = [0; 8];
    getrandom::fill(&mut name).map_err(|error| format!("no randomness: {error}"))?;
    Ok(format!("{:016x}", u64::from_be_bytes(name)))
}

/// What would run, in plain words.
pub fn describe(plan: &Plan) -> String {
    let (server, keys) = (&plan.fixed.config.server, plan.table.keys());
    let mut organizations: Vec<_> = keys.iter().map(|key| key.organization.as_str()).collect();
    organizations.sort_unstable();
    organizations.dedup();
    let who = match (server.open, plan.clients.len()) {
        (true, _) => "anybody, without a token".to_owned(),
        (false, 0) => "nobody: no client has a token".to_owned(),
        (false, 1) => "one client token".to_owned(),
        (false, count) => format!("{count} client tokens"),
    };
    let store = match &plan.fixed.store {
        StoreChoice::Memory => "in this process: one replica only".to_owned(),
        StoreChoice::Redis(address) => format!("in {address}; all replicas share it"),
    };
    let operators = match admission(&plan.fixed) {
        Admission::Token(_) => "whoever shows the admin token",
        Admission::Local => "anybody on this machine: there is no server.admin_token",
        Admission::Closed => "nobody: there is no server.admin_token",
    };
    format!(
        "Listens on {} for clients and on {} for probes and metrics.\nServes {who}.\nTakes an operator's word from {operators}.\nKeys: {}, of these organizations: {}.\nKeeps bindings {store}.",
        server.listen,
        server.admin_listen,
        keys.len(),
        organizations.join(", "),
    )
}

/// Does with the store, beside the bindings, what serving does with it. The error says in one line what is missing.
pub async fn reach_store(plan: &Plan) -> Result<(), String> {
    let StoreChoice::Redis(_) = &plan.fixed.store else { return Ok(()) };
    // Names of its own, so that no replica meets them; and time enough, since what is asked is whether, not how soon.
    let settings = store::Settings {
        prefix: format!("{}:check", plan.fixed.config.store.prefix),
        timeout: Span(plan.fixed.config.store.timeout.0.max(STORE_PATIENCE)),
        ..plan.fixed.config.store.clone()
    };
    let tasks = Tasks::new();
    let store = Store::in_redis(&settings, Arc::new(Metrics::new()), &tasks)?;
    // A Redis that says nothing is known for it only when the attempt to connect has ended.
    let is_ready = store.ready(STORE_PATIENCE).await || store.fault().is_none() && store.ready(settings.timeout.0 * 2).await;
    let result = match is_ready {
        true => rehearse(&store).await.map_err(|why| format!("store.url: {why}")),
        false => Err(format!("store.url: {}", store.fault().unwrap_or_else(|| "the store does not answer".into()))),
    };
    tasks.join(LAST_TASKS).await;
    result
}

/// How long what a check stores may stay, should the check not end.
const REHEARSAL: Duration = Duration::from_secs(10);

async fn rehearse(store: &Store) -> Result<(), String> {
    let refused = |what: &'static str| move |Unavailable(why): Unavailable| format!("{what} ({})", why.trim());
    let claim = "claiming a binding does not work: it takes Redis 7 or newer, and a user who may write with SET NX GET";
    let get = "reading a binding does not work: it takes a user who may GET and PTTL";
    let script = "running a script does not work: it takes a user who may EVALSHA and EVAL, and in scripts GET, SET, PTTL, \
                  PEXPIRE, TIME, HGETALL, HSET and HDEL; `store.url` in the reference of options names all";
    let id = replica_name()?;
    let (first, second) = ("first", "second");
    let is_free = store.claim(&id, first, REHEARSAL, &mut store.budget()).await.map_err(refused(claim))?.is_none();
    let held = store.get(&id, &mut store.budget()).await.map_err(refused(get))?;
    if !is_free || held.is_none_or(|held| held.value != first) {
        return Err("what is stored cannot be read back".into());
    }
    let trail = "keeping a trail does not work: it takes a user who may LRANGE, and in scripts RPUSH, LTRIM and PEXPIRE";
    // As good as deleting. The roll, which serving keeps for good, gets its end by being extended.
    let life = Duration::from_millis(1);
    store.rebind(&id, first, second, life, &mut store.budget()).await.map_err(refused(script))?;
    store.append(&id, &[first.to_owned()], life, &mut store.budget()).await.map_err(refused(trail))?;
    store.list(&id, &mut store.budget()).await.map_err(refused(trail))?;
    let walk = "reading what is bound does not work: it takes a user who may SCAN";
    store.walk().map_err(refused(walk))?.step().await.unwrap_or(Ok(Vec::new())).map_err(refused(walk))?;
    let report = Report { replica: "check", fingerprint: "check", keys: "", ordinal: 0, life };
    store.call_roll(&report, &mut store.budget()).await.map_err(refused(script))?;
    store.extend(Name::Membership, "", life, &mut store.budget()).await.map_err(refused(script))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn told(text: &str) -> String {
        let key = |id: &str, organization: &str| {
            format!("[[key]]\nid = {id:?}\nupstream = \"openai\"\norganization = {organization:?}\nsecret = \"sk-canary\"\n")
        };
        let keys = [key("b-1", "org-b"), key("a-1", "org-a"), key("a-2", "org-a")].concat();
        let plan = Config::parse(&format!("{text}\n{keys}")).unwrap().plan();
        describe(&plan.map_err(|faults| faults.join("; ")).unwrap())
    }

    #[test]
    fn check_tells_who_may_do_what_and_where() {
        assert_eq!(
            told(""),
            "Listens on 127.0.0.1:8080 for clients and on 127.0.0.1:9090 for probes and metrics.\n\
             Serves nobody: no client has a token.\n\
             Takes an operator's word from anybody on this machine: there is no server.admin_token.\n\
             Keys: 3, of these organizations: org-a, org-b.\n\
             Keeps bindings in this process: one replica only."
        );
        let client = |id: &str| format!("[[client]]\nid = {id:?}\ntoken = \"canary-{id}\"\n");
        let shared = "[server]\nlisten = \"0.0.0.0:1\"\nadmin_listen = \"0.0.0.0:2\"\n\
                      secret = \"0123456789abcdef0123456789abcdef\"\n[store]\nurl = \"redis://u:canary@h\"\n";
        assert_eq!(
            told(&format!("{shared}{}{}", client("alice"), client("bob"))),
            "Listens on 0.0.0.0:1 for clients and on 0.0.0.0:2 for probes and metrics.\n\
             Serves 2 client tokens.\n\
             Takes an operator's word from nobody: there is no server.admin_token.\n\
             Keys: 3, of these organizations: org-a, org-b.\n\
             Keeps bindings in one Redis at h:6379; all replicas share it."
        );
        for (text, line) in [
            (client("alice"), "Serves one client token."),
            (format!("[server]\nopen = true\n{}", client("alice")), "Serves anybody, without a token."),
            (
                "[server]\nadmin_listen = \"0.0.0.0:2\"\nadmin_token = \"canary\"".into(),
                "Takes an operator's word from whoever shows the admin token.",
            ),
        ] {
            let told = told(&text);
            assert!(told.lines().any(|one| one == line) && !told.contains("canary"), "{told}");
        }
    }
}
