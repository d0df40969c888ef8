//! Warmkey's own store, opened by a test without a gateway: in any Redis, or in one of the test's
//! own.

use std::sync::Arc;
use std::time::Duration;

use warmkey::metrics::Metrics;
use warmkey::setting::{Secret, SecretSource, Span};
use warmkey::store::name::Name;
use warmkey::store::{Store, StoreSettings, StoredValue};
use warmkey::task::Tasks;

use crate::world::process::Folder;
use crate::world::redis::Redis;
use crate::world::redis::shards::Shards;
use crate::world::waiting::{SOON, ms};

pub const LONG: Duration = Duration::from_secs(60);
/// Long enough for a machine that also compiles.
pub const TIMEOUT: Duration = ms(500);

pub struct Opened {
    pub store: Store,
    pub metrics: Arc<Metrics>,
    /// The store's tasks, which end with it.
    _tasks: Tasks,
}

impl Opened {
    pub fn of(settings: &StoreSettings) -> Self {
        let (metrics, tasks) = (Arc::new(Metrics::new()), Tasks::new());
        let store = Store::in_redis(settings, Arc::clone(&metrics), &tasks)
            .expect("the address is well formed");
        Self { store, metrics, _tasks: tasks }
    }

    pub async fn ready(settings: &StoreSettings) -> Self {
        let opened = Self::of(settings);
        assert!(opened.store.ready(SOON).await, "{:?}", opened.store.fault());
        opened
    }

    pub async fn at(url: &str) -> Self {
        Self::ready(&settings(url)).await
    }

    /// Whether a value is stored; `None` if the store does not answer.
    pub async fn finds(&self, id: &str) -> Option<bool> {
        self.store
            .get(Name::Binding(id), &mut self.store.budget())
            .await
            .ok()
            .map(|entry| entry.is_some())
    }

    pub async fn claims(&self, id: &str) -> bool {
        self.store.claim(Name::Binding(id), "key 1 1", LONG, &mut self.store.budget()).await.is_ok()
    }

    pub async fn becomes(&self, up: bool) {
        let mut health = self.store.health();
        let turned = tokio::time::timeout(SOON, health.wait_for(|now| *now == up)).await;
        assert!(turned.is_ok_and(|turned| turned.is_ok()), "{:?}", self.store.fault());
    }

    pub fn series(&self, name: &str) -> u64 {
        let page = self.metrics.render();
        page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
    }

    pub fn failures(&self, reason: &str) -> u64 {
        self.series(&format!("warmkey_store_failures_total{{reason=\"{reason}\"}}"))
    }
}

pub fn settings(url: &str) -> StoreSettings {
    StoreSettings {
        url: SecretSource::Text(Secret::new(url)),
        prefix: "w".into(),
        timeout: Span(TIMEOUT),
        ca_file: None,
    }
}

/// One id for each shard, whose name belongs to that shard.
pub fn one_of_each() -> Vec<String> {
    let in_shard = |shard| {
        (0..).map(|n| format!("s{n}")).find(|id| Shards::shard_of(&format!("w:{id}")) == shard)
    };
    (0..3).map(|shard| in_shard(shard).expect("there is one")).collect()
}

/// A real Redis, and a store in it.
pub struct Real {
    pub redis: Redis,
    pub store: Store,
    pub tasks: Tasks,
    pub _folder: Folder,
}

impl Real {
    pub async fn new() -> Self {
        Self::with_user("", &[]).await
    }

    /// Opens the store as `user`, unless that is empty, with these ACL rules.
    pub async fn with_user(user: &str, rules: &[&str]) -> Self {
        let folder = Folder::new();
        let redis = Redis::start(folder.path()).await;
        let mut url = redis.url();
        if !user.is_empty() {
            redis.run(&[&["ACL", "SETUSER", user, "on", ">pw"][..], rules].concat()).await;
            url = url.replace("://", &format!("://{user}:pw@"));
        }
        let url = SecretSource::Text(Secret::new(url));
        let settings =
            StoreSettings { url, prefix: "w".into(), timeout: Span(SOON), ca_file: None };
        let tasks = Tasks::new();
        let store = Store::in_redis(&settings, Arc::new(Metrics::new()), &tasks)
            .expect("the address is one");
        assert!(store.ready(SOON).await, "{:?}", store.fault());
        Self { redis, store, tasks, _folder: folder }
    }

    pub async fn stored(&self, id: &str) -> StoredValue {
        self.store
            .get(Name::Binding(id), &mut self.store.budget())
            .await
            .expect("an answer")
            .expect("it is stored")
    }
}
