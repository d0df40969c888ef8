//! A whole deployment in one line: upstream, store, replicas, load balancer. It ends with its test.

use std::net::SocketAddr;
use std::path::Path;

use crate::world::balancer::Balancer;
use crate::world::cable::Cable;
use crate::world::process::Folder;
use crate::world::recorder::Recorder;
use crate::world::redis::Redis;
use crate::world::redis::sentinel::Sentinel;
use crate::world::redis::shape::{Shape, Store};
use crate::world::redis::shards::Shards;
use crate::world::replica::Replica;
use crate::world::simulator::{Key, Simulator, Turn, siblings};
use crate::world::waiting::{SOON, Watchdog, eventually};

/// The token of a client that every cluster knows.
pub const ALICE: &str = "token-canary-alice";
pub const BOB: &str = "token-canary-bob";
/// The secret of the gateway, which no output may show.
pub const SECRET: &str = "secret-canary-0123456789abcdefghijklmnopqrstuvwxyz";

/// How often a replica has taken another configuration into use.
pub const RELOADS: &str = "warmkey_reloads_total";

mod configuration;

#[derive(Clone)]
pub struct Cluster {
    keys: Vec<Key>,
    spare: Vec<Key>,
    replicas: usize,
    redis: Option<Shape>,
    redis_arguments: Vec<String>,
    /// The stores' URLs, as the configuration spells them.
    store_urls: Vec<String>,
    is_balanced: bool,
    is_cabled: bool,
    upstream: Option<String>,
    simulator: String,
    server: Vec<(String, String)>,
    store: String,
    binding: String,
    upstream_options: String,
    clients: String,
    ledger: String,
    prices: String,
    telemetry: String,
    environment: String,
    shell: String,
}

impl Cluster {
    /// One replica, a store in memory, two keys of one organization, and the simulator.
    pub fn new() -> Self {
        Self {
            keys: siblings("org-a", 2),
            spare: Vec::new(),
            replicas: 1,
            redis: None,
            redis_arguments: Vec::new(),
            store_urls: Vec::new(),
            is_balanced: false,
            is_cabled: false,
            upstream: None,
            simulator: String::new(),
            server: vec![
                ("listen".into(), "\"@listen@\"".into()),
                ("admin_listen".into(), "\"@admin@\"".into()),
                ("secret".into(), format!("{SECRET:?}")),
                ("drain_delay".into(), "\"0s\"".into()),
                ("drain".into(), "\"30s\"".into()),
            ],
            // A test machine that also compiles is slower than any network.
            store: "timeout = \"2s\"\n".into(),
            binding: String::new(),
            upstream_options: String::new(),
            clients: format!(
                "[[client]]\nid = \"alice\"\ntoken = {ALICE:?}\n[[client]]\nid = \"bob\"\ntoken = {BOB:?}\n"
            ),
            ledger: String::new(),
            prices: String::new(),
            telemetry: String::new(),
            environment: String::new(),
            shell: String::new(),
        }
    }

    pub fn keys(mut self, keys: Vec<Key>) -> Self {
        self.keys = keys;
        self
    }

    /// Keys that the upstream also knows, for a configuration that comes later.
    pub fn spare(mut self, keys: Vec<Key>) -> Self {
        self.spare = keys;
        self
    }

    /// Sets the number of replicas. More than one need a store that they share.
    pub const fn replicas(mut self, count: usize) -> Self {
        self.replicas = count;
        self
    }

    /// A Redis of the cluster's own.
    pub const fn redis(self) -> Self {
        self.redis_as(Shape::Standalone)
    }

    /// A Redis of the cluster's own, in this shape.
    pub const fn redis_as(mut self, shape: Shape) -> Self {
        self.redis = Some(shape);
        self
    }

    /// A Redis of the cluster's own, started with these arguments.
    pub fn redis_with(mut self, arguments: &[&str]) -> Self {
        self.redis_arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
        self.redis()
    }

    /// A Redis that the test starts, or that does not exist.
    pub fn store_at(self, url: &str) -> Self {
        self.stores_at(&[url.into()])
    }

    /// As [`Self::store_at`], with one URL for each replica.
    pub fn stores_at(mut self, urls: &[String]) -> Self {
        self.store_urls = urls.iter().map(|url| format!("{url:?}")).collect();
        self
    }

    /// As [`Self::store_at`], with the URL in this file.
    pub fn store_in(mut self, file: &Path) -> Self {
        self.store_urls = vec![format!("{{ file = {file:?} }}")];
        self
    }

    /// Puts HAProxy in front, in round robin.
    pub const fn balanced(mut self) -> Self {
        self.is_balanced = true;
        self
    }

    /// Puts a cable before the simulator, for a test to cut.
    pub const fn cabled(mut self) -> Self {
        self.is_cabled = true;
        self
    }

    /// Uses this recorder as the upstream, instead of the simulator.
    pub fn recorded_by(self, recorder: &Recorder) -> Self {
        self.upstream_at(&recorder.url())
    }

    pub fn upstream_at(mut self, url: &str) -> Self {
        self.upstream = Some(url.into());
        self
    }

    /// Adds lines to the simulator's `[sim]`.
    pub fn simulator(mut self, lines: &str) -> Self {
        self.simulator = lines.into();
        self
    }

    /// Sets an option of `[server]`, in place of the harness's own.
    pub fn server(mut self, name: &str, value: &str) -> Self {
        self.server.retain(|(own, _)| own != name);
        self.server.push((name.into(), value.into()));
        self
    }

    /// Sets the lines of `[store]` beside its URL, in place of the harness's own.
    pub fn store(mut self, lines: &str) -> Self {
        self.store = format!("{lines}\n");
        self
    }

    /// Sets the lines of `[binding]`.
    pub fn binding(mut self, lines: &str) -> Self {
        self.binding = lines.into();
        self
    }

    /// Sets the lines of the one `[[upstream]]`.
    pub fn upstream(mut self, lines: &str) -> Self {
        self.upstream_options = lines.into();
        self
    }

    /// Sets the `[[client]]` sections, in place of alice and bob.
    pub fn clients(mut self, sections: &str) -> Self {
        self.clients = sections.into();
        self
    }

    /// Lines of `[ledger]`.
    pub fn ledger(mut self, lines: &str) -> Self {
        self.ledger = lines.into();
        self
    }

    /// Lines of `[telemetry]`.
    pub fn telemetry(mut self, lines: &str) -> Self {
        self.telemetry = lines.into();
        self
    }

    /// The `[[price]]` sections.
    pub fn prices(mut self, sections: &str) -> Self {
        self.prices = sections.into();
        self
    }

    pub async fn start(self) -> Running {
        let folder = Folder::new();
        let simulator = match &self.upstream {
            Some(_) => None,
            None => Some(
                Simulator::start(&folder, &[&self.keys[..], &self.spare].concat(), &self.simulator)
                    .await,
            ),
        };
        let cable = match &simulator {
            Some(simulator) if self.is_cabled => Some(Cable::to(simulator.address()).await),
            _ => None,
        };
        let store = match self.redis {
            Some(shape) => Some(Store::start(shape, folder.path(), &self.redis_arguments).await),
            None => None,
        };
        let mut running = Running {
            description: self,
            replicas: Vec::new(),
            balancer: None,
            store,
            cable,
            simulator,
            folder,
            _watchdog: Watchdog::new(),
        };
        for number in 0..running.description.replicas {
            let (text, shell) = (running.configuration(number), &running.description.shell);
            let (name, folder) = (format!("replica-{number}"), running.folder.path());
            running.replicas.push(Replica::start(&name, folder, &text, shell).await);
        }
        if running.description.is_balanced {
            let addresses: Vec<_> = running
                .replicas
                .iter()
                .map(|replica| (replica.address(), replica.admin()))
                .collect();
            running.balancer = Some(Balancer::start(&running.folder, &addresses).await);
        }
        running
    }
}

/// A cluster that runs. Fields drop in order: clients' entrance first.
pub struct Running {
    balancer: Option<Balancer>,
    pub replicas: Vec<Replica>,
    cable: Option<Cable>,
    simulator: Option<Simulator>,
    store: Option<Store>,
    description: Cluster,
    folder: Folder,
    _watchdog: Watchdog,
}

impl Running {
    /// The configuration of replica `number`.
    fn configuration(&self, number: usize) -> String {
        let upstream = match (&self.description.upstream, &self.cable, &self.simulator) {
            (Some(url), ..) => url.clone(),
            (None, Some(cable), _) => format!("http://{}/v1", cable.address()),
            (None, None, Some(simulator)) => simulator.url(),
            (None, None, None) => unreachable!("a cluster has an upstream"),
        };
        let elsewhere = &self.description.store_urls;
        let own = self.store.as_ref().map(|store| format!("{:?}", store.url()));
        let store = own.or_else(|| elsewhere.get(number).or(elsewhere.first()).cloned());
        self.description.configuration(&upstream, store.as_deref())
    }

    /// The address to which clients connect: the load balancer's, or the first replica's.
    pub fn address(&self) -> SocketAddr {
        self.balancer.as_ref().map_or_else(|| self.replicas[0].address(), Balancer::address)
    }

    /// The only replica, or the first one.
    pub fn replica(&self) -> &Replica {
        &self.replicas[0]
    }

    pub fn upstream(&self) -> &Simulator {
        self.simulator.as_ref().expect("this cluster's upstream is the simulator")
    }

    /// The cable to the simulator.
    pub fn cable(&self) -> &Cable {
        self.cable.as_ref().expect("this cluster has a cable")
    }

    /// The store that the replicas share, if they share one.
    pub const fn shared_store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// The one Redis of a standalone store.
    pub fn redis(&mut self) -> &mut Redis {
        match self.store() {
            Store::Standalone(redis) => redis,
            _ => panic!("this cluster's Redis is more than one"),
        }
    }

    pub fn sentinel(&mut self) -> &mut Sentinel {
        match self.store() {
            Store::Sentinel(trio) => trio,
            _ => panic!("this cluster's Redis has no Sentinels"),
        }
    }

    pub fn shards(&mut self) -> &mut Shards {
        match self.store() {
            Store::Cluster(shards) => shards,
            _ => panic!("this cluster's Redis has no shards"),
        }
    }

    /// The cluster's own Redis, in any shape.
    pub fn store(&mut self) -> &mut Store {
        self.store.as_mut().expect("this cluster has a Redis")
    }

    /// The turns on the simulator's record.
    pub async fn turns(&self) -> Vec<Turn> {
        self.upstream().turns().await
    }

    /// Starts replica `number` again, which must have ended.
    pub async fn restart(&mut self, number: usize) {
        let text = self.configuration(number);
        self.replicas[number].restart(&text).await;
        if let Some(balancer) = &self.balancer {
            balancer.trusts(number).await;
        }
    }

    /// Kills replica `number`, and starts it with the current configuration.
    pub async fn replace(&mut self, number: usize) {
        self.replicas[number].kill().await;
        self.restart(number).await;
    }

    /// Writes the current configuration to replica `number`'s file.
    pub fn rewrite(&self, number: usize) {
        self.replicas[number].rewrite(&self.configuration(number));
    }

    /// Makes replica `number` reload with the current configuration.
    pub async fn reload(&self, number: usize) {
        let before = self.replicas[number].metrics().await.get(RELOADS);
        self.rewrite(number);
        self.replicas[number].hang_up().await;
        self.replicas[number].shows(RELOADS, before + 1.0).await;
    }

    /// Waits until this series has this sum over all replicas: a turn is counted a moment after its
    /// client has the answer.
    pub async fn shows(&self, series: &str, expected: f64) {
        let what = format!("{series} becomes {expected} in all");
        eventually(SOON, &what, async || {
            ((self.total(series).await - expected).abs() < f64::EPSILON).then_some(())
        })
        .await;
    }

    async fn total(&self, series: &str) -> f64 {
        let mut total = 0.0;
        for replica in &self.replicas {
            total += replica.metrics().await.get(series);
        }
        total
    }

    /// Changes the configuration of replicas that start or reload from now on.
    pub fn change(&mut self, change: impl FnOnce(Cluster) -> Cluster) {
        self.description = change(self.description.clone());
    }

    /// Everything that all replicas have logged.
    pub fn logs(&self) -> String {
        self.replicas.iter().map(|replica| replica.process().log()).collect()
    }
}
