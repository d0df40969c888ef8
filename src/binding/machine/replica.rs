//! One replica of the machine: its bindings as they are, and the spine of a turn around them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::upstream::{self, Answer, Served, Upstream, session};
use crate::binding::bind::Bindings;
use crate::binding::demand::{Sealed, Wanted};
use crate::binding::local::Local;
use crate::binding::place::Places;
use crate::binding::trail::Trail;
use crate::binding::{Binding, Written};
use crate::client::Client;
use crate::health::diagnose::{Ailment, Scope};
use crate::health::registry::Registry;
use crate::metrics::{BindingResult, Metrics};
use crate::store::model::{Model, Shared, pause};
use crate::store::{Budget, MemberReport, Store};
use crate::task::Tasks;
use tokio::time::Instant;

pub const TTL: Duration = Duration::from_secs(30 * 24 * 3600);

pub struct Replica {
    name: String,
    pub model: Model,
    pub store: Arc<Store>,
    pub registry: Arc<Registry>,
    pub local: Arc<Local>,
    /// Which set of keys it has loaded.
    pub set: Cell<usize>,
    pub is_gone: Cell<bool>,
    bindings: Bindings,
    client: Client,
    /// The highest epoch that it went by, for each session.
    epochs: RefCell<BTreeMap<usize, u32>>,
}

impl Replica {
    pub fn start(number: usize, set: usize, shared: &Arc<Mutex<Shared>>) -> Self {
        static METRICS: OnceLock<Arc<Metrics>> = OnceLock::new();
        let metrics = METRICS.get_or_init(|| Arc::new(Metrics::new()));
        let model = Model::new(shared);
        let store = Arc::new(Store::in_model(model.clone(), Arc::clone(metrics)));
        let registry = Arc::new(Registry::new(upstream::set(set), Arc::clone(metrics)));
        let local = Arc::new(Local::new(100, TTL / 2));
        let places = Places::new(Arc::clone(&registry));
        let bindings = Bindings::new(
            Arc::clone(&store),
            places,
            Arc::clone(&local),
            TTL,
            Tasks::new(),
            Trail::new(Arc::clone(metrics)).0,
        );
        let client = Client::unrestricted("alice");
        let (set, is_gone) = (Cell::new(set), Cell::new(false));
        Self {
            name: format!("r{number}"),
            model,
            store,
            registry,
            local,
            set,
            is_gone,
            bindings,
            client,
            epochs: RefCell::default(),
        }
    }

    pub async fn answer_roll(&self) {
        let loaded = self.registry.loaded();
        let keys = loaded.tags();
        let report = MemberReport {
            replica: &self.name,
            fingerprint: &loaded.fingerprint,
            keys: &keys,
            ordinal: loaded.ordinal(),
            life: TTL,
        };
        if let Ok(roll) = self.store.exchange_membership(&report, &mut self.store.budget()).await {
            self.registry.heard(&loaded, &roll);
        }
    }

    /// The spine, with another upstream.
    pub async fn turn(&self, upstream: &Upstream, number: usize) {
        let began = (upstream.tick(), upstream.writes());
        let history = upstream.history(number);
        let carries_sealed = Sealed::Known(!history.is_empty());
        let mut wanted =
            Wanted { session: Some(session(number)), carries_sealed, ..Wanted::of(&self.client) };
        let mut budget = self.bindings.budget();
        let found = self.bindings.look_up(&session(number), &mut budget).await;
        let Ok(mut binding) = self.bindings.bind(&mut wanted, found, &mut budget).await else {
            return;
        };
        loop {
            if self.is_gone.get() {
                return;
            }
            self.goes_by(upstream, number, &binding);
            pause().await;
            match upstream.ask(&binding.key, &history) {
                Answer::Served => {
                    return self.serve(upstream, number, began, binding, false, &mut budget).await;
                }
                Answer::Dead => {
                    self.registry.condemn(&binding.key, Ailment::Rejected(Scope::Key));
                    wanted.refused.push(binding.key.tag);
                    let moved = self.bindings.rebind(&mut wanted, &binding, &mut budget).await;
                    // Only now has its trouble come to an end.
                    upstream.troubles(&binding.key);
                    match moved {
                        Ok(next) => binding = next,
                        Err(_) => return,
                    }
                }
                Answer::Foreign if binding.is_provisional => break,
                Answer::Foreign => return upstream.died(number, &binding),
            }
        }
        let mut tried = vec![binding.key.organization_tag];
        while let Some(next) = self.bindings.elsewhere(&wanted, &binding, &tried) {
            pause().await;
            match upstream.ask(&next.key, &history) {
                Answer::Served => {
                    // The upstream has it, whatever becomes of the binding.
                    let found = self.bindings.correct(&wanted, next, &mut budget).await;
                    return self.serve(upstream, number, began, found, true, &mut budget).await;
                }
                Answer::Dead => self.registry.condemn(&next.key, Ailment::Rejected(Scope::Key)),
                Answer::Foreign => tried.push(next.key.organization_tag),
            }
        }
        if self.bindings.give_up(&wanted, &tried).is_ok() {
            upstream.died(number, &binding);
        }
    }

    async fn serve(
        &self,
        upstream: &Upstream,
        number: usize,
        (began, writes): (usize, usize),
        binding: Binding,
        was_searched: bool,
        budget: &mut Budget,
    ) {
        // Nobody could know where the session was, or that another replica has moved it since and
        // cannot tell.
        let is_blind = match &binding.written {
            Written::Here(record) => {
                let highest = upstream.highest(number).max(upstream.highest_written(number));
                binding.is_provisional
                    || record.epoch < highest
                    || upstream.has_other(number, record)
            }
            Written::Stored(record) => record.epoch < upstream.highest(number),
            Written::Nowhere | Written::Beside(_) => false,
        };
        let is_excused = is_blind || was_searched || binding.result == BindingResult::Spilled;
        upstream.serves(Served {
            session: number,
            key: Arc::clone(&binding.key),
            began,
            writes,
            is_excused,
        });
        self.registry.has_served(&binding.key, Instant::now());
        self.bindings.confirm(&binding, budget).await;
    }

    /// B4: what a replica goes by never falls behind what it went by.
    fn goes_by(&self, upstream: &Upstream, session: usize, binding: &Binding) {
        let (Written::Here(record) | Written::Stored(record)) = &binding.written else { return };
        if binding.result == BindingResult::Degraded && binding.is_provisional {
            return;
        }
        let mut epochs = self.epochs.borrow_mut();
        let highest = epochs.entry(session).or_default();
        if record.epoch < *highest {
            upstream.violated(format!(
                "B4: {} goes by epoch {} of session {session} after {highest}",
                self.name, record.epoch
            ));
        }
        *highest = record.epoch.max(*highest);
        upstream.reaches(session, *highest);
    }
}
