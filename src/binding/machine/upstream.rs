//! The machine's upstream, its keys, and its record: the judge.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use crate::binding::Binding;
use crate::binding::record::Record;
use crate::key::table::Table;
use crate::key::{Key, Settings, Tag, UpstreamSettings};
use crate::setting::{Secret, SecretSource};
use crate::store::model::Write;

/// Id and organization.
pub const KEYS: [(&str, &str); 4] = [("a-1", "org-a"), ("a-2", "org-a"), ("b-1", "org-b"), ("b-2", "org-b")];
/// The sets that replicas load: the usual one, one with a key more, one with a key less.
pub const SETS: [&[usize]; 3] = [&[0, 1, 2], &[0, 1, 2, 3], &[1, 2]];

/// A set of keys. Built once: each has connections of its own.
pub fn set(number: usize) -> Table {
    static TABLES: OnceLock<Vec<Table>> = OnceLock::new();
    let tables = TABLES.get_or_init(|| SETS.iter().map(|keys| table(keys)).collect());
    tables[number].clone()
}

/// All keys there are.
pub fn keys() -> Vec<Arc<Key>> {
    set(1).keys().to_vec()
}

fn table(keys: &[usize]) -> Table {
    let upstream: UpstreamSettings = serde_json::from_str(r#"{"name":"u","base_url":"http://127.0.0.1:1"}"#).unwrap();
    let settings = |key: &usize| Settings {
        id: KEYS[*key].0.into(),
        upstream: "u".into(),
        organization: KEYS[*key].1.into(),
        project: None,
        region: None,
        weight: 1,
        secret: SecretSource::Text(Secret::new("sk")),
    };
    Table::new(&[upstream], &keys.iter().map(settings).collect::<Vec<_>>()).unwrap()
}

/// What the upstream makes of a turn.
pub enum Answer {
    Served,
    Dead,
    /// It cannot open the turn's history.
    Foreign,
}

/// A served turn.
#[derive(Clone, Debug)]
pub struct Served {
    pub session: usize,
    pub key: Tag,
    pub began: usize,
    pub ended: usize,
    /// Nobody could know where its session was, or its key was not loaded: B8 and the rule of spilling speak of it, not B1.
    pub is_excused: bool,
}

#[derive(Default)]
pub struct Upstream {
    now: Cell<usize>,
    dead: RefCell<BTreeSet<usize>>,
    /// When something happened to a key that may move its sessions.
    trouble: RefCell<Vec<(usize, String)>>,
    served: RefCell<BTreeMap<usize, Served>>,
    /// The organizations that have sealed something in a session's history.
    sealed: RefCell<BTreeMap<usize, BTreeSet<String>>>,
    peace: Cell<Option<usize>>,
    violation: RefCell<Option<String>>,
}

impl Upstream {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn tick(&self) -> usize {
        self.now.replace(self.now.get() + 1)
    }

    pub fn dies(&self, key: usize) {
        self.dead.borrow_mut().insert(key);
        self.troubles(key);
    }

    pub fn recovers(&self, key: usize) {
        if self.dead.borrow_mut().remove(&key) {
            self.troubles(key);
        }
    }

    /// A replica has gone from one set of keys to another: the operator's word on keys that are in one of them only.
    pub fn reloaded(&self, old: usize, new: usize) {
        (0..KEYS.len()).filter(|key| SETS[old].contains(key) != SETS[new].contains(key)).for_each(|key| self.troubles(key));
    }

    fn troubles(&self, key: usize) {
        self.trouble.borrow_mut().push((self.tick(), KEYS[key].0.into()));
    }

    pub fn history(&self, session: usize) -> BTreeSet<String> {
        self.sealed.borrow().get(&session).cloned().unwrap_or_default()
    }

    pub fn ask(&self, key: &Key, history: &BTreeSet<String>) -> Answer {
        let number = KEYS.iter().position(|(id, _)| *id == key.id).unwrap();
        if self.dead.borrow().contains(&number) {
            return Answer::Dead;
        }
        if history.iter().all(|organization| *organization == key.organization) { Answer::Served } else { Answer::Foreign }
    }

    pub fn serves(&self, turn: Served) {
        let organization = keys().iter().find(|key| key.tag == turn.key).unwrap().organization.clone();
        self.sealed.borrow_mut().entry(turn.session).or_default().insert(organization);
        let last = self.served.borrow_mut().insert(turn.session, turn.clone());
        let Some(last) = last.filter(|last| last.key != turn.key) else { return };
        let is_excused = (last.is_excused || turn.is_excused) && self.peace.get() != Some(turn.session);
        let since = last.began.min(turn.began);
        if !is_excused && !self.has_trouble(last.key, since) && !self.has_trouble(turn.key, since) {
            self.violated(format!("B1: {last:?}, then {turn:?}"));
        }
    }

    /// Whether something happened to `key` since then.
    pub fn has_trouble(&self, key: Tag, since: usize) -> bool {
        self.trouble.borrow().iter().any(|(at, id)| *at >= since && Tag::of("key", id.as_bytes()) == key)
    }

    /// From now on nothing excuses this session's turns.
    pub fn expects_peace(&self, session: usize) {
        self.peace.set(Some(session));
    }

    /// The client was told that its history cannot be opened.
    pub fn died(&self, session: usize, binding: &Binding) {
        // A history that two organizations have sealed is nobody's to open: only turns that nobody could place do that.
        if self.history(session).len() < 2 {
            self.violated(format!("session {session} dies: {binding:?}"));
        }
    }

    pub fn violated(&self, what: String) {
        self.violation.borrow_mut().get_or_insert(what);
    }

    pub fn violation(&self) -> Option<String> {
        self.violation.borrow().clone()
    }
}

/// The first write that must not have been done.
pub fn wrong_write(upstream: &Upstream, writes: &[Write]) -> Option<String> {
    let mut successors = BTreeSet::new();
    for write in writes {
        let new = Record::parse(&write.new).unwrap();
        let Some(old) = write.old.as_deref().and_then(Record::parse) else { continue };
        let is_move = old.key != new.key;
        let why = match () {
            () if new.epoch < old.epoch => "B11: an epoch falls",
            () if is_move && new.epoch == old.epoch => "B3: a binding is replaced at its own epoch",
            () if new.epoch > old.epoch && !successors.insert((&write.id, old.epoch)) => "B3: an epoch has two successors",
            // A guess that was corrected moves to another organization without any trouble.
            () if is_move && old.organization == new.organization && !upstream.has_trouble(old.key, 0) => {
                "B5: a binding moves although nothing happened to its key"
            }
            () => continue,
        };
        return Some(format!("{why}: {write:?}"));
    }
    None
}
