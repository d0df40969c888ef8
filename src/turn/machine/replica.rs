//! One replica of the machine: the real bindings and the real loop, with another upstream.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::upstream::{self, Answer, Served, Upstream, session};
use crate::binding::bind::Bindings;
use crate::binding::demand::{Demand, Sealed, Tried};
use crate::binding::local::Local;
use crate::binding::ownership::Owners;
use crate::binding::place::Places;
use crate::binding::select::Reach;
use crate::binding::trail::Trail;
use crate::binding::{Binding, Written};
use crate::client::{Client, Clients};
use crate::current::Current;
use crate::health::diagnose::{Ailment, Scope};
use crate::health::registry::Registry;
use crate::key::{Key, Tag};
use crate::metrics::{BindingResult, Metrics, Transport};
use crate::outcome::{self, Outcome, Refusal};
use crate::session::identify::Identifier;
use crate::setting::Secret;
use crate::store::model::{Model, Shared, pause};
use crate::store::{MemberReport, Store};
use crate::task::Tasks;
use crate::turn::account::Account;
use crate::turn::doubt::Doubts;
use crate::turn::entry::{Entry, ForeignIds};
use crate::turn::failover::{Failover, FailoverOptions};
use crate::turn::{Ask, Attempts, Gateway};
use crate::usage::books::Books;
use crate::wire::error_body::ErrorBody;

pub const TTL: Duration = Duration::from_secs(30 * 24 * 3600);

pub struct Replica {
    name: String,
    pub model: Model,
    pub store: Arc<Store>,
    pub registry: Arc<Registry>,
    pub local: Arc<Local>,
    /// The set of keys that the replica has loaded.
    pub set: Cell<usize>,
    pub is_gone: Cell<bool>,
    gateway: Gateway,
    client: Client,
    /// The highest epoch that the replica has used, for each session.
    epochs: RefCell<BTreeMap<usize, u32>>,
}

impl Replica {
    pub fn start(
        number: usize,
        set: usize,
        shared: &Arc<Mutex<Shared>>,
        refused: &Arc<Mutex<HashSet<Tag>>>,
    ) -> Self {
        static METRICS: OnceLock<Arc<Metrics>> = OnceLock::new();
        let metrics = METRICS.get_or_init(|| Arc::new(Metrics::new()));
        let model = Model::new(shared);
        let store = Arc::new(Store::in_model(model.clone(), Arc::clone(metrics)));
        let registry = Arc::new(Registry::new(upstream::set(set), Arc::clone(metrics)));
        let local = Arc::new(Local::new(100, TTL / 2));
        let mut gateway = gateway(&store, &registry, &local, metrics);
        gateway.failover.doubts = Doubts::that_refuse(Arc::clone(refused));
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
            gateway,
            client,
            epochs: RefCell::default(),
        }
    }

    pub async fn answer_membership(&self) {
        let loaded = self.registry.loaded();
        let keys = loaded.tags();
        let report = MemberReport {
            replica: &self.name,
            fingerprint: &loaded.fingerprint,
            keys: &keys,
            ordinal: loaded.ordinal(),
            life: TTL,
        };
        if let Ok(reply) = self.store.exchange_membership(&report, &mut self.store.budget()).await {
            self.registry.take_reply(&loaded, &reply);
        }
    }

    /// Plays a turn through the gateway's own loop.
    pub async fn turn(self: &Rc<Self>, upstream: &Rc<Upstream>, number: usize) {
        let asked = Asked {
            replica: Rc::clone(self),
            upstream: Rc::clone(upstream),
            number,
            began: (upstream.tick(), upstream.writes()),
            history: upstream.history(number),
            was_refused: Cell::default(),
            dead: RefCell::default(),
        };
        let mut demand = Demand::of(&self.client);
        demand.session = Some(session(number));
        demand.carries_sealed = Sealed::Known(!asked.history.is_empty());
        let Gateway { bindings, books, .. } = &self.gateway;
        let mut account = Account::open(Arc::clone(books), Transport::Http, &HeaderMap::new());
        let mut budget = bindings.budget();
        let found = bindings.look_up(&session(number), &mut budget).await;
        let turn = (&demand, Tried::nothing(Duration::ZERO), Reach::Anywhere);
        let complete = Instant::now();
        let attempts = Attempts::new(&self.gateway, &mut account, &asked, turn, &mut budget);
        let answered = attempts.run(found, complete).await;
        asked.has_left();
        if let Ok((binding, answer)) = answered
            && !answer.status.is_success()
            // The key has recovered before its probe, so the gateway takes its answer for one about
            // the request.
            && answer.status != StatusCode::FORBIDDEN
        {
            upstream.died(number, &binding);
        }
    }

    /// Checks B4: a replica never uses a lower epoch than before.
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

/// The smallest gateway that the loop allows.
fn gateway(
    store: &Arc<Store>,
    registry: &Arc<Registry>,
    local: &Arc<Local>,
    metrics: &Arc<Metrics>,
) -> Gateway {
    static IDENTIFIER: LazyLock<Identifier> =
        LazyLock::new(|| Identifier::new(&Secret::new("a secret of the tests"), None));
    let entry = Entry {
        clients: Arc::new(Current::new(Arc::new(
            Clients::new(&[]).expect("an empty list is valid"),
        ))),
        identifier: IDENTIFIER.clone(),
        owners: Arc::new(Owners::new(Arc::clone(store), TTL, 1)),
        foreign_ids: ForeignIds::Refuse,
    };
    let (places, trail) = (Places::new(Arc::clone(registry)), Trail::new(Arc::clone(metrics)).0);
    let (store, local) = (Arc::clone(store), Arc::clone(local));
    Gateway {
        entry,
        bindings: Bindings::new(store, places, local, TTL, Tasks::new(), trail),
        registry: Arc::clone(registry),
        failover: Failover::new(FailoverOptions { wait: Duration::ZERO, resends: false }),
        books: Arc::new(Books::new(Arc::clone(metrics))),
    }
}

/// The upstream, as one turn of the machine sees it.
struct Asked {
    replica: Rc<Replica>,
    upstream: Rc<Upstream>,
    number: usize,
    /// When the turn began, and the number of the store's writes at that time.
    began: (usize, usize),
    history: BTreeSet<String>,
    /// An organization could not open the history, so the turn searches for another one.
    was_refused: Cell<bool>,
    /// The last dead key that the turn met.
    dead: RefCell<Option<Arc<Key>>>,
}

impl Ask for Asked {
    async fn ask(&self, binding: &Binding, _: bool) -> Outcome {
        self.has_left();
        if self.replica.is_gone.get() {
            return Outcome::Interrupted("the replica is gone".into());
        }
        if !self.was_refused.get() {
            self.replica.goes_by(&self.upstream, self.number, binding);
        }
        pause().await;
        match self.upstream.ask(&binding.key, &self.history) {
            Answer::Served => {
                self.serves(binding);
                Outcome::Answered(answer(StatusCode::OK))
            }
            Answer::Dead => {
                // A probe would find the key rejected.
                self.replica.registry.condemn(&binding.key, Ailment::Rejected(Scope::Key));
                *self.dead.borrow_mut() = Some(Arc::clone(&binding.key));
                refused(StatusCode::UNAUTHORIZED, "invalid_api_key")
            }
            Answer::Foreign => {
                self.was_refused.set(true);
                refused(StatusCode::BAD_REQUEST, "invalid_encrypted_content")
            }
        }
    }
}

impl Asked {
    /// Notes trouble of the dead key that the turn has now left.
    fn has_left(&self) {
        if let Some(key) = self.dead.take() {
            self.upstream.troubles(&key);
        }
    }

    fn serves(&self, binding: &Binding) {
        let Self { upstream, number, began: (began, writes), .. } = self;
        // Either no replica could know the session's key, or another replica has moved the session
        // since and cannot say so.
        let is_blind = match &binding.written {
            Written::Here(record) => {
                let highest = upstream.highest(*number).max(upstream.highest_written(*number));
                binding.is_provisional
                    || record.epoch < highest
                    || upstream.has_other(*number, record)
            }
            Written::Stored(record) => record.epoch < upstream.highest(*number),
            Written::Nowhere | Written::Beside(_) => false,
        };
        let is_spilled = binding.result == BindingResult::Spilled;
        upstream.serves(Served {
            session: *number,
            key: Arc::clone(&binding.key),
            began: *began,
            writes: *writes,
            is_excused: is_blind || is_spilled || self.was_refused.get(),
        });
    }
}

fn answer(status: StatusCode) -> outcome::Answer {
    let (headers, head) = (HeaderMap::new(), Bytes::new());
    outcome::Answer { status, headers, head, rest: None, upgrade: None }
}

fn refused(status: StatusCode, code: &str) -> Outcome {
    let error = ErrorBody { code: Some(code.into()), ..ErrorBody::default() };
    Outcome::Refused(Refusal { answer: answer(status), error })
}
