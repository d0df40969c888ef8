//! Fixtures for tests of the binding: replicas that share one store and one set of keys, and one
//! client's session.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::bind::Bindings;
use super::local::Local;
use super::place::Places;
use super::record::BindingRecord;
use super::trail::Trail;
use super::{Binding, Written};
use crate::binding::demand::Turn;
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::health::condition::{Condition, Subject};
use crate::health::diagnose::{Ailment, Scope};
use crate::health::registry::Registry;
use crate::key::table::Table;
use crate::key::{Key, KeySettings, UpstreamSettings};
use crate::metrics::{BindingResult, Metrics};
use crate::session::SessionId;
use crate::store::memory::Memory;
use crate::store::model::{Flaw, Model, Shared, Weather};
use crate::store::name::Name;
use crate::store::{MembershipReply, Store};
use crate::task::Tasks;

mod beside;
mod herd;
mod outage;
mod merging;
mod forgetting;
mod gossip;
mod choosing;
mod moving;
mod restoring;
mod related;
mod socket;
mod standing;
mod starting;
mod view;

const TTL: Duration = Duration::from_secs(4_000);
const LONG: Duration = Duration::from_secs(60);
const MODEL: &str = "m";

/// Two keys of one organization, each in its own project, and one key of another organization.
const KEYS: &str = "a-1 org-a one 1, a-2 org-a two 1, b-1 org-b one 1";

/// Returns the table of `sketch`. Each key is `<id> <organization> <project> <weight>[ <region>]`.
/// A key of the project `plain` has an upstream without WebSocket.
fn table(sketch: &str) -> Table {
    // Each key opens connections of its own, which takes time, so each table is built once.
    static TABLES: Mutex<BTreeMap<String, Table>> = Mutex::new(BTreeMap::new());
    TABLES.lock().unwrap().entry(sketch.to_owned()).or_insert_with(|| made(sketch)).clone()
}

fn made(sketch: &str) -> Table {
    let upstreams = [r#"{"name":"u","base_url":"http://127.0.0.1:1"}"#, PLAIN]
        .map(|text| serde_json::from_str::<UpstreamSettings>(text).unwrap());
    let key = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [id, organization, project, weight, ref region @ ..] = fields[..] else {
            panic!("{fields:?}")
        };
        let upstream = if project == "plain" { "plain" } else { "u" };
        let key = serde_json::json!({ "id": id, "upstream": upstream, "organization": organization, "project": project,
            "weight": weight.parse::<u32>().unwrap(), "region": region.first(), "secret": format!("sk-{id}") });
        serde_json::from_value::<KeySettings>(key).unwrap()
    };
    Table::new(&upstreams, &sketch.split(',').map(key).collect::<Vec<_>>()).unwrap()
}

const PLAIN: &str = r#"{"name":"plain","base_url":"http://127.0.0.1:1","speaks":["responses"]}"#;

fn session(number: u32) -> SessionId {
    SessionId::parse(&format!("{number:022}")).unwrap()
}

/// One replica, with all that its bindings need.
struct Replica {
    model: Option<Model>,
    store: Arc<Store>,
    registry: Arc<Registry>,
    local: Arc<Local>,
    metrics: Arc<Metrics>,
    bindings: Bindings,
    client: Client,
    tasks: Tasks,
}

/// Returns replicas of generation 1 that have loaded `keys`.
fn replicas<const COUNT: usize>(keys: &str) -> [Replica; COUNT] {
    let shared = Arc::new(Mutex::new(Shared::new(Flaw::None)));
    let table = table(keys);
    [(); COUNT].map(|()| {
        let (model, metrics) = (Model::new(&shared), Arc::new(Metrics::new()));
        let store = Store::in_model(model.clone(), Arc::clone(&metrics));
        Replica::start(Some(model), store, table.clone(), metrics)
    })
}

fn one() -> Replica {
    let [one] = replicas(KEYS);
    one
}

/// A replica whose store has a clock and no weather.
fn with_clock() -> Replica {
    let metrics = Arc::new(Metrics::new());
    let store = Store::in_memory(Arc::new(Memory::new(100)), Arc::clone(&metrics));
    Replica::start(None, store, table(KEYS), metrics)
}

impl Replica {
    fn start(model: Option<Model>, store: Store, table: Table, metrics: Arc<Metrics>) -> Self {
        let (store, tasks) = (Arc::new(store), Tasks::new());
        let registry = Arc::new(Registry::new(table, Arc::clone(&metrics)));
        let local = Arc::new(Local::new(100, TTL / 2));
        let (places, trail) =
            (Places::new(Arc::clone(&registry)), Trail::new(Arc::clone(&metrics)).0);
        let bindings = Bindings::new(
            Arc::clone(&store),
            places,
            Arc::clone(&local),
            TTL,
            tasks.clone(),
            trail,
        );
        let client = Client::unrestricted("alice");
        let replica = Self { model, store, registry, local, metrics, bindings, client, tasks };
        replica.is_of(1);
        replica
    }

    /// Gives the replica's set of keys this ordinal.
    fn is_of(&self, ordinal: u32) {
        self.registry
            .take_reply(&self.registry.loaded(), &MembershipReply { ordinal, others: Vec::new() });
    }

    fn weather(&self, weather: Weather) {
        *self.model.as_ref().unwrap().weather.lock().unwrap() = weather;
    }

    /// Makes the store forget the last write about the session.
    fn loses(&self) {
        self.model.as_ref().unwrap().shared.lock().unwrap().loses(session(1).as_str());
    }

    fn key(&self, id: &str) -> Arc<Key> {
        self.registry.loaded().table.keys().iter().find(|key| key.id == id).cloned().unwrap()
    }

    /// A binding to this key with this epoch.
    fn record(&self, id: &str, epoch: u32) -> BindingRecord {
        BindingRecord { epoch, ..BindingRecord::first(&self.key(id), 1) }
    }

    fn turn(&self) -> Turn<'_> {
        Turn::of(&self.client).with(|turn| {
            turn.demand.session = Some(session(1));
            turn.demand.model = MODEL;
        })
    }

    /// Stores `record` for the session, whatever the store holds.
    async fn put(&self, record: &BindingRecord) {
        let text = record.to_string();
        self.store
            .merge(
                Name::Binding(session(1).as_str()),
                &text,
                u32::MAX,
                TTL,
                &mut self.store.budget(),
            )
            .await
            .unwrap();
    }

    /// Returns the stored value of the session.
    async fn stored(&self) -> Option<String> {
        let entry = self
            .store
            .get(Name::Binding(session(1).as_str()), &mut self.store.budget())
            .await
            .unwrap();
        entry.map(|entry| entry.value)
    }

    async fn is_stored(&self, record: &BindingRecord) {
        assert_eq!(self.stored().await, Some(record.to_string()));
    }

    async fn bind(&self, turn: &mut Turn<'_>) -> Result<Binding, Error> {
        let mut budget = self.bindings.budget();
        let found = match &turn.demand.session {
            Some(session) => self.bindings.look_up(session, &mut budget).await,
            None => Ok(None),
        };
        let (binding, within) = self.bindings.bind(turn.placing(), found, &mut budget).await?;
        turn.within = within;
        Ok(binding)
    }

    async fn rebind(&self, turn: &mut Turn<'_>, binding: &Binding) -> Result<Binding, Error> {
        let (bindings, placing) = (&self.bindings, turn.placing());
        let (next, within) = bindings.rebind(placing, binding, &mut bindings.budget()).await?;
        turn.within = within;
        Ok(next)
    }

    /// Returns the key that serves `turn`, or the error's kind.
    async fn goes(&self, mut turn: Turn<'_>) -> Result<String, ErrorKind> {
        self.bind(&mut turn).await.map(|binding| binding.key.id.clone()).map_err(|error| error.kind)
    }

    /// Confirms `binding`, which has served a turn.
    async fn serves(&self, binding: &Binding) {
        self.bindings.confirm(binding, true, &mut self.bindings.budget()).await;
    }

    fn says(&self, id: &str, condition: Condition) {
        self.registry.conditions.note(Subject::of_key_id(&self.key(id)), condition, None);
        self.registry.has_changed();
    }

    fn rejects(&self, id: &str) {
        self.registry.condemn(&self.key(id), Ailment::Rejected(Scope::Key));
    }

    /// Makes the key refuse this turn and every further one.
    fn refuses(&self, id: &str, turn: &mut Turn<'_>) {
        turn.tried.refused.push(self.key(id).tag);
        self.rejects(id);
    }

    fn exhausts(&self, id: &str, scope: Scope) {
        self.registry.condemn(&self.key(id), Ailment::Exhausted(scope));
    }

    /// Limits the key's project for a minute.
    fn limits(&self, id: &str) {
        self.registry.limit(&self.key(id), MODEL, LONG);
    }

    /// Clears all conditions of the key.
    fn recovers(&self, id: &str) {
        for scope in [Scope::Key, Scope::Project, Scope::Organization] {
            self.registry.end_illness(Subject::of(&self.key(id), scope), id);
        }
    }

    /// Loads another set of keys, whose ordinal is not known yet.
    fn loads(&self, keys: &str) {
        self.registry.adopt(self.registry.prepare(table(keys)).unwrap(), None);
    }

    /// Returns how often this decision was counted.
    fn decided(&self, decision: &str, reason: &str) -> usize {
        let series =
            format!("warmkey_decisions_total{{decision=\"{decision}\",reason=\"{reason}\"}} ");
        let page = self.metrics.render();
        page.lines()
            .find_map(|line| line.strip_prefix(&series))
            .map_or(0, |count| count.parse().unwrap())
    }
}

/// Returns the binding's key, whether the turn moved there, and the result.
fn seen(binding: &Binding) -> (&str, bool, BindingResult) {
    (binding.key.id.as_str(), binding.has_moved, binding.result)
}
