//! The machine's upstream, its keys, and its record, which is the judge.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

use crate::binding::Binding;
use crate::binding::record::BindingRecord;
use crate::key::table::Table;
use crate::key::{Key, KeySettings, Tag, UpstreamSettings};
use crate::session::SessionId;
use crate::setting::{Secret, SecretSource};
use crate::store::model::{Shared, Write};

/// Each key is `(id, organization)`.
pub const KEYS: [(&str, &str); 4] =
    [("a-1", "org-a"), ("a-2", "org-a"), ("b-1", "org-b"), ("b-2", "org-b")];
/// The sets that replicas load: the usual one, one with a key more, and one with a key less.
pub const SETS: [&[usize]; 3] = [&[0, 1, 2], &[0, 1, 2, 3], &[1, 2]];

/// Returns a set of keys. Each set is built once, because each has its own connections.
pub fn set(number: usize) -> Table {
    static TABLES: OnceLock<Vec<Table>> = OnceLock::new();
    let tables = TABLES.get_or_init(|| SETS.iter().map(|keys| table(keys)).collect());
    tables[number].clone()
}

fn number(key: Tag) -> Option<usize> {
    keys().iter().position(|one| one.tag == key)
}

/// Returns all keys.
pub fn keys() -> Vec<Arc<Key>> {
    set(1).keys().to_vec()
}

fn table(keys: &[usize]) -> Table {
    let upstream: UpstreamSettings =
        serde_json::from_str(r#"{"name":"u","base_url":"http://127.0.0.1:1"}"#).unwrap();
    let settings = |key: &usize| KeySettings {
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

pub fn session(number: usize) -> SessionId {
    SessionId::parse(&format!("{number:022}")).unwrap()
}

/// The upstream's answer to a turn.
pub enum Answer {
    Served,
    Dead,
    /// The upstream cannot open the turn's history.
    Foreign,
}

/// A served turn.
#[derive(Clone, Debug)]
pub struct Served {
    pub session: usize,
    pub key: Arc<Key>,
    pub began: usize,
    /// The number of the store's writes when the turn began.
    pub writes: usize,
    /// No replica could know the session's key, or the key was not loaded. B8 and the rule for
    /// siblings cover such a turn, not B1.
    pub is_excused: bool,
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a turn of session {} that began at {} on {}",
            self.session, self.began, self.key.id
        )
    }
}

pub struct Upstream {
    shared: Arc<Mutex<Shared>>,
    now: Cell<usize>,
    dead: RefCell<BTreeSet<usize>>,
    /// The dead keys, which probes find refused.
    pub refused: Arc<Mutex<HashSet<Tag>>>,
    /// The set that each replica has loaded.
    sets: RefCell<BTreeMap<usize, usize>>,
    /// The events, with their times, that may move a key's sessions.
    troubles: RefCell<Vec<(usize, usize)>>,
    returned: RefCell<Vec<(usize, usize)>>,
    served: RefCell<BTreeMap<usize, Served>>,
    /// The organizations that have sealed content in a session's history.
    sealed: RefCell<BTreeMap<usize, BTreeSet<String>>>,
    /// The highest epoch that any replica has used, for each session.
    highest: RefCell<BTreeMap<usize, u32>>,
    /// Sessions whose acknowledged writes were lost. B9 covers them, not B1.
    lost: RefCell<BTreeSet<usize>>,
    peace: Cell<Option<usize>>,
    violation: RefCell<Option<String>>,
}

impl Upstream {
    pub fn new(shared: &Arc<Mutex<Shared>>) -> Self {
        Self {
            shared: Arc::clone(shared),
            now: Cell::default(),
            dead: RefCell::default(),
            refused: Arc::default(),
            sets: RefCell::default(),
            troubles: RefCell::default(),
            returned: RefCell::default(),
            served: RefCell::default(),
            sealed: RefCell::default(),
            highest: RefCell::default(),
            lost: RefCell::default(),
            peace: Cell::default(),
            violation: RefCell::default(),
        }
    }

    pub fn tick(&self) -> usize {
        self.now.replace(self.now.get() + 1)
    }

    pub fn dies(&self, key: usize) {
        self.dead.borrow_mut().insert(key);
        self.refused.lock().unwrap().insert(Tag::of("key", KEYS[key].0.as_bytes()));
        self.trouble(key);
    }

    pub fn recovers(&self, key: usize) {
        self.refused.lock().unwrap().remove(&Tag::of("key", KEYS[key].0.as_bytes()));
        if self.dead.borrow_mut().remove(&key) {
            self.trouble(key);
        }
    }

    /// Notes trouble of `key`.
    pub fn troubles(&self, key: &Key) {
        self.trouble(number(key.tag).unwrap());
    }

    /// Notes that a replica changes its set of keys.
    pub fn reloads(&self, replica: usize, set: usize) {
        let old = self.sets.borrow_mut().insert(replica, set).unwrap_or(0);
        for key in 0..KEYS.len() {
            match (SETS[old].contains(&key), SETS[set].contains(&key)) {
                (true, false) => self.trouble(key),
                // The new set is newer than another replica's, so the key counts as removed
                // although this replica never had it.
                (false, false) if old != set && self.is_loaded(key) => self.trouble(key),
                // Until now, some replica considered the key removed.
                (false, true) => self.returned.borrow_mut().push((self.tick(), key)),
                _ => {}
            }
        }
    }

    /// Whether some replica has loaded a set with the key.
    fn is_loaded(&self, key: usize) -> bool {
        self.sets.borrow().values().any(|set| SETS[*set].contains(&key))
    }

    fn trouble(&self, key: usize) {
        self.troubles.borrow_mut().push((self.tick(), key));
    }

    pub fn history(&self, session: usize) -> BTreeSet<String> {
        self.sealed.borrow().get(&session).cloned().unwrap_or_default()
    }

    pub fn ask(&self, key: &Key, history: &BTreeSet<String>) -> Answer {
        if self.dead.borrow().contains(&number(key.tag).unwrap()) {
            return Answer::Dead;
        }
        if history.iter().all(|organization| *organization == key.organization) {
            Answer::Served
        } else {
            Answer::Foreign
        }
    }

    pub fn serves(&self, turn: Served) {
        self.sealed
            .borrow_mut()
            .entry(turn.session)
            .or_default()
            .insert(turn.key.organization.clone());
        let last = self.served.borrow_mut().insert(turn.session, turn.clone());
        let Some(last) = last.filter(|last| last.key.tag != turn.key.tag) else { return };
        let is_lost = self.lost.borrow().contains(&turn.session);
        let is_excused = (last.is_excused || turn.is_excused || is_lost)
            && self.peace.get() != Some(turn.session);
        let since = last.began.min(turn.began);
        let is_excused = is_excused || self.has_moved(&last);
        if !is_excused
            && !self.has_trouble(last.key.tag, since)
            && !self.has_trouble(turn.key.tag, since)
        {
            self.violated(format!("B1: {last}, then {turn}"));
        }
    }

    /// Whether `key` had trouble since then, or some replica's set lacks it.
    pub fn has_trouble(&self, key: Tag, since: usize) -> bool {
        let Some(key) = number(key) else { return true };
        let is_removed = self.sets.borrow().values().any(|set| !SETS[*set].contains(&key));
        let (troubles, returned) = (self.troubles.borrow(), self.returned.borrow());
        is_removed
            || troubles
                .iter()
                .chain(returned.iter())
                .any(|(at, which)| *at >= since && *which == key)
    }

    /// Whether the store has taken another key for the session since the turn `last`.
    /// [`wrong_write`] judges the moves themselves.
    fn has_moved(&self, last: &Served) -> bool {
        let key = |value: &str| BindingRecord::parse(value).map(|record| record.key);
        self.shared.lock().unwrap().writes.iter().skip(last.writes).any(|write| {
            let old = write.old.as_deref().and_then(key);
            write.id == session(last.session).as_str()
                && old == Some(last.key.tag)
                && key(&write.new) != old
        })
    }

    pub fn writes(&self) -> usize {
        self.shared.lock().unwrap().writes.len()
    }

    /// Whether `key` never had trouble.
    fn is_sound(&self, key: Tag) -> bool {
        !self.troubles.borrow().iter().any(|(_, which)| Some(*which) == number(key))
    }

    pub fn forgets(&self, session: usize) {
        self.lost.borrow_mut().insert(session);
    }

    fn has_lost(&self, id: &str) -> bool {
        self.lost.borrow().iter().any(|number| session(*number).as_str() == id)
    }

    pub fn reaches(&self, session: usize, epoch: u32) {
        let mut highest = self.highest.borrow_mut();
        let known = highest.entry(session).or_default();
        *known = epoch.max(*known);
    }

    pub fn highest(&self, session: usize) -> u32 {
        self.highest.borrow().get(&session).copied().unwrap_or_default()
    }

    /// Returns the highest epoch that the store has taken, whether or not a replica knows it.
    pub fn highest_written(&self, number: usize) -> u32 {
        let shared = self.shared.lock().unwrap();
        let own = shared.writes.iter().filter(|write| write.id == session(number).as_str());
        own.filter_map(|write| BindingRecord::parse(&write.new))
            .map(|record| record.epoch)
            .max()
            .unwrap_or_default()
    }

    /// Whether the store has taken another key at the epoch of `record`. A replica that cannot ask
    /// the store may use `record`: B8's exception.
    pub fn has_other(&self, number: usize, record: &BindingRecord) -> bool {
        let shared = self.shared.lock().unwrap();
        let own = shared.writes.iter().filter(|write| write.id == session(number).as_str());
        own.filter_map(|write| BindingRecord::parse(&write.new))
            .any(|other| other.epoch == record.epoch && other.key != record.key)
    }

    /// Allows no excuse for this session's turns from now on.
    pub fn expects_peace(&self, session: usize) {
        self.peace.set(Some(session));
    }

    /// Notes that a client was told that its history cannot be opened.
    pub fn died(&self, session: usize, binding: &Binding) {
        // No organization can open a history that two organizations have sealed. Only turns that no
        // replica could place lead to such a history.
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

/// Returns the first forbidden write.
pub fn wrong_write(upstream: &Upstream, writes: &[Write]) -> Option<String> {
    let mut successors = BTreeSet::new();
    for write in writes {
        let new = BindingRecord::parse(&write.new).unwrap();
        let Some(old) = write.old.as_deref().and_then(BindingRecord::parse) else { continue };
        let is_move = old.key != new.key;
        let why = match () {
            () if new.epoch < old.epoch => "B11: an epoch falls",
            // After a loss, the replicas restore as much as they remember.
            () if upstream.has_lost(&write.id) => continue,
            () if is_move && new.epoch == old.epoch => "B3: a binding is replaced at its own epoch",
            () if new.epoch > old.epoch && !successors.insert((&write.id, old.epoch)) => {
                "B3: an epoch has two successors"
            }
            // A corrected provisional binding moves to another organization without trouble.
            () if is_move && old.organization == new.organization && upstream.is_sound(old.key) => {
                "B5: a binding moves although nothing happened to its key"
            }
            () => continue,
        };
        return Some(format!("{why}: {write:?}"));
    }
    None
}
