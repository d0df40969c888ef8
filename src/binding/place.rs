//! Where one turn may go: among the keys that are loaded and in use, within the organizations that its client may use and its
//! history allows.

use std::sync::Arc;
use std::time::Duration;

use super::record::Record;
use super::select::{Reach, first};
use crate::client::Client;
use crate::error::{Error, Kind};
use crate::key::health::Ailment;
use crate::key::registry::Registry;
use crate::key::{Key, Tag};
use crate::session::SessionId;
use crate::session::lineage::Lineage;

/// What a client is told when a key may be loaded in a moment.
const SOON: Duration = Duration::from_secs(1);
/// What a client is told when keys are out of use.
const LATER: Duration = Duration::from_secs(30);

/// A turn as binding sees it.
pub struct Wanted<'t> {
    pub session: Option<SessionId>,
    pub lineage: Lineage,
    pub client: &'t Client,
    /// Whether the turn itself shows content that only its organization can open.
    pub carries_sealed: Sealed<'t>,
    /// The turn's `x-codex-turn-state`: it belongs to the key that issued it, and is remembered as stale where the turn moves.
    pub turn_state: Option<&'t [u8]>,
    /// It comes by WebSocket: a new session begins where that is spoken.
    pub by_websocket: bool,
    /// What it may not leave, whatever its session is bound to: the project that stores the response it goes on from.
    pub within: Reach,
}

/// Where to look for content that only its organization can open.
#[derive(Clone, Copy)]
pub enum Sealed<'t> {
    Known(bool),
    /// In this JSON text, which is only looked at when the answer matters.
    In(&'t [u8]),
}

/// A field that only an organization's own blobs have. Inside a text its quotes would be escaped.
const SEALED: &[u8] = br#""encrypted_content""#;

impl Sealed<'_> {
    pub fn is_sealed(self) -> bool {
        match self {
            Self::Known(sealed) => sealed,
            Self::In(text) => memchr::memmem::find(text, SEALED).is_some(),
        }
    }
}

impl Wanted<'_> {
    /// How far from `record`'s organization the turn may go.
    pub fn reach(&self, record: &Record) -> Reach {
        match record.sealed || self.carries_sealed.is_sealed() {
            true => Reach::Organization(record.organization),
            false => Reach::Anywhere,
        }
    }

    /// Whose order of keys the session goes by: a fork that cannot inherit goes where its parent would.
    fn order<'s>(&'s self, session: &'s SessionId) -> &'s str {
        self.lineage.parent.as_ref().map_or(session, |parent| &parent.root).as_str()
    }
}

/// What this replica makes of a stored binding.
pub enum Standing {
    Serves(Arc<Key>),
    /// A newer set of keys, which this replica has not loaded, may have its key.
    NotLoaded,
    /// Its key can serve no more.
    Gone,
    /// It is to a key that this turn may not go to: the turn goes on from what another project has stored.
    Elsewhere,
}

pub struct Places {
    registry: Arc<Registry>,
}

impl Places {
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry }
    }

    /// The ordinal of this replica's set of keys. 0: not known yet.
    pub fn generation(&self) -> u32 {
        self.registry.loaded().ordinal()
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.registry.loaded().table.keys().len()
    }

    pub fn standing(&self, wanted: &Wanted<'_>, record: &Record) -> Standing {
        let loaded = self.registry.loaded();
        let generation = loaded.ordinal();
        // Under the same name in another organization it is another key.
        let key = loaded.table.by_tag(record.key).filter(|key| key.organization_tag == record.organization).cloned();
        if !key.as_ref().map_or(wanted.within.touches(record.organization), |key| wanted.within.includes(key)) {
            return Standing::Elsewhere;
        }
        match key {
            Some(key) if self.may_serve(wanted, &key) => Standing::Serves(key),
            // Somebody moved the session here, whatever this replica thinks of the key: worth a try.
            Some(key) if record.epoch > 1 && is_allowed(wanted, &key) && self.registry.may_try(&key) => Standing::Serves(key),
            Some(_) => Standing::Gone,
            // Only a replica of the same or a newer generation may call a key removed: 0 says nothing of either.
            None if generation == 0 || record.generation == 0 || record.generation > generation => {
                self.registry.wants_reload();
                Standing::NotLoaded
            }
            None => Standing::Gone,
        }
    }

    /// The session's first choice among the keys within `reach`.
    pub fn choose(&self, wanted: &Wanted<'_>, session: &SessionId, reach: Reach) -> Result<Arc<Key>, Error> {
        let loaded = self.registry.loaded();
        let within: Vec<_> = loaded.table.keys().iter().filter(|key| reach.includes(key) && is_allowed(wanted, key)).collect();
        let common: Vec<_> = within.iter().copied().filter(|key| loaded.is_common(key)).collect();
        // Where all are new, one that some replicas have yet to load is better than none.
        let allowed = if common.is_empty() { within } else { common };
        let is_usable = |key: &Key| self.registry.is_usable(key);
        let is_preferred = |key: &Key| is_usable(key) && (key.upstream.speaks_websocket || !wanted.by_websocket);
        let chosen = first(wanted.order(session), &allowed, is_preferred);
        if let Some(key) = chosen.or_else(|| first(wanted.order(session), &allowed, is_usable)) {
            return Ok(Arc::clone(key));
        }
        if let Reach::Project { .. } = wanted.within {
            // What is stored there is nothing new to it.
            return allowed
                .iter()
                .find(|key| is_usable(key))
                .map(|key| Arc::clone(key))
                .ok_or_else(|| self.out_of_project(wanted));
        }
        let is_exhausted = |key: &&Arc<Key>| matches!(self.registry.ailment(key), Some(Ailment::Exhausted(_)));
        match reach {
            // Waiting does not help, and no other organization can open the session's history.
            Reach::Organization(_) if !allowed.is_empty() && allowed.iter().all(is_exhausted) => Err(Error::new(
                Kind::InsufficientQuota,
                "The quota of this session's organization is exhausted, and no other can go on with its history. Add credit to it, or start a new session.",
            )
            .retry_after(LATER)),
            _ => Err(none_available(LATER)),
        }
    }

    /// Where every replica would look for the session while nobody can be asked: by its order alone, over the keys of the
    /// moment of loss, whatever this replica has heard of them since. Only within the organization found so a key in use is
    /// preferred: the others would get there too, by one refused attempt.
    pub fn default_of(&self, wanted: &Wanted<'_>, session: &SessionId) -> Result<Arc<Key>, Error> {
        let frozen = self.registry.frozen();
        let is_open = |key: &&Arc<Key>| frozen.is_common(key) && is_allowed(wanted, key);
        let allowed: Vec<_> = frozen.table.keys().iter().filter(is_open).collect();
        let Some(chosen) = first(wanted.order(session), &allowed, |key| !frozen.is_gone(key)) else {
            // Nothing of that moment is left for this client.
            return self.choose(wanted, session, Reach::Anywhere);
        };
        let home: Vec<_> = allowed.into_iter().filter(|key| key.organization_tag == chosen.organization_tag).collect();
        match first(wanted.order(session), &home, |key| !frozen.is_gone(key) && self.registry.is_usable(key)) {
            Some(key) => Ok(Arc::clone(key)),
            None => self.choose(wanted, session, Reach::Organization(chosen.organization_tag)),
        }
    }

    /// A key in use outside the organizations that were `tried`: the session's first choice, or one that takes no new sessions
    /// and may yet have this one's history.
    pub fn elsewhere(&self, wanted: &Wanted<'_>, session: &SessionId, tried: &[Tag]) -> Option<Arc<Key>> {
        let loaded = self.registry.loaded();
        let is_open = |key: &&Arc<Key>| !tried.contains(&key.organization_tag) && is_allowed(wanted, key);
        let allowed: Vec<_> = loaded.table.keys().iter().filter(is_open).collect();
        let is_usable = |key: &Key| self.registry.is_usable(key);
        let chosen = first(wanted.order(session), &allowed, is_usable);
        chosen.or_else(|| allowed.iter().copied().find(|key| is_usable(key))).cloned()
    }

    /// Whether every organization that the client may use was `tried`.
    pub fn is_exhaustive(&self, wanted: &Wanted<'_>, tried: &[Tag]) -> bool {
        let loaded = self.registry.loaded();
        loaded.table.keys().iter().all(|key| tried.contains(&key.organization_tag) || !is_allowed(wanted, key))
    }

    /// The key with the least going on, for a turn without a session.
    pub fn by_load(&self, wanted: &Wanted<'_>) -> Result<Arc<Key>, Error> {
        let loaded = self.registry.loaded();
        let takes_any = |key: &Key| key.weight > 0 || wanted.within != Reach::Anywhere;
        let candidates = loaded.table.keys().iter().filter(|key| takes_any(key) && self.may_serve(wanted, key));
        self.registry.least_loaded(candidates).cloned().ok_or_else(|| match wanted.within {
            Reach::Anywhere | Reach::Organization(_) => none_available(LATER),
            Reach::Project { .. } => self.out_of_project(wanted),
        })
    }

    /// No key may serve a turn that goes on from what one project has stored: which one, and why.
    fn out_of_project(&self, wanted: &Wanted<'_>) -> Error {
        let loaded = self.registry.loaded();
        let own: Vec<_> = loaded.table.keys().iter().filter(|key| is_allowed(wanted, key)).collect();
        let Some(key) = own.first() else {
            self.registry.wants_reload();
            let message = "No upstream key of the project that stores the previous response is known. Its operator has been told; \
                           try again, or start without `previous_response_id`.";
            return Error::new(Kind::NoKeyAvailable, message).retry_after(SOON);
        };
        let project = [key.organization.as_str(), key.project.as_str()].join("/");
        let project = project.trim_end_matches('/');
        let is_exhausted = own.iter().all(|key| matches!(self.registry.ailment(key), Some(Ailment::Exhausted(_))));
        let (kind, what) = match is_exhausted {
            true => {
                (Kind::InsufficientQuota, format!("The quota of {project}, which stores the previous response, is exhausted."))
            }
            false => {
                (Kind::NoKeyAvailable, format!("No upstream key of {project}, which stores the previous response, is in use."))
            }
        };
        Error::new(kind, format!("{what} Try again later, or start without `previous_response_id`.")).retry_after(LATER)
    }

    fn may_serve(&self, wanted: &Wanted<'_>, key: &Key) -> bool {
        is_allowed(wanted, key) && self.registry.is_usable(key)
    }
}

fn is_allowed(wanted: &Wanted<'_>, key: &Key) -> bool {
    wanted.client.may_use_organization(&key.organization) && wanted.within.includes(key)
}

/// No key that may serve is in use.
pub fn none_in_use() -> Error {
    none_available(LATER)
}

/// The session's key is not loaded here yet, and none beside it may serve.
pub fn not_loaded() -> Error {
    none_available(SOON)
}

fn none_available(wait: Duration) -> Error {
    Error::new(
        Kind::NoKeyAvailable,
        "No upstream key that may serve this session is in use. Its operator has been told; try again later.",
    )
    .retry_after(wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::health::Scope;
    use crate::key::table::Table;
    use crate::key::{Settings, UpstreamSettings};
    use crate::metrics::Metrics;

    /// `(id, organization, project, weight)`
    const KEYS: [(&str, &str, &str, u32); 5] = [
        ("a-1", "org-a", "one", 1),
        ("a-2", "org-a", "one", 1),
        ("a-3", "org-a", "two", 1),
        ("a-4", "org-a", "idle", 0),
        ("b-1", "org-b", "one", 1),
    ];

    fn places() -> (Places, Arc<Registry>) {
        let upstream: UpstreamSettings = serde_json::from_str(r#"{"name":"u","base_url":"http://127.0.0.1:1"}"#).unwrap();
        let settings = KEYS.map(|(id, organization, project, weight)| {
            let key = serde_json::json!({ "id": id, "upstream": "u", "organization": organization, "project": project,
                "weight": weight, "secret": "sk" });
            serde_json::from_value::<Settings>(key).unwrap()
        });
        let registry = Arc::new(Registry::new(Table::new(&[upstream], &settings).unwrap(), Arc::new(Metrics::new())));
        (Places::new(Arc::clone(&registry)), registry)
    }

    fn key(registry: &Registry, id: &str) -> Arc<Key> {
        registry.loaded().table.by_tag(Tag::of("key", id.as_bytes())).cloned().unwrap()
    }

    fn project(organization: &str, project: &str) -> Reach {
        let tag = |kind, name: &str| Tag::of(kind, name.as_bytes());
        Reach::Project { organization: tag("organization", organization), project: tag("project", project) }
    }

    fn wanted(client: &Client, within: Reach) -> Wanted<'_> {
        let (lineage, carries_sealed) = (Lineage::default(), Sealed::Known(false));
        Wanted { session: None, lineage, client, carries_sealed, turn_state: None, by_websocket: false, within }
    }

    fn session(number: u32) -> SessionId {
        SessionId::parse(&format!("{number:022}")).unwrap()
    }

    #[test]
    fn a_turn_that_goes_on_from_what_a_project_has_stored_stays_in_it() {
        let (places, registry) = places();
        let client = Client::unrestricted("alice");
        for (within, expected) in [
            (project("org-a", "one"), &["a-1", "a-2"][..]),
            (project("org-a", "two"), &["a-3"]),
            (project("org-a", "idle"), &["a-4"]),
            (project("org-b", "one"), &["b-1"]),
        ] {
            let wanted = wanted(&client, within);
            let mut used: Vec<_> =
                (0..40).map(|number| places.choose(&wanted, &session(number), Reach::Anywhere).unwrap().id.clone()).collect();
            used.extend((0..40).map(|number| places.default_of(&wanted, &session(number)).unwrap().id.clone()));
            used.push(places.by_load(&wanted).unwrap().id.clone());
            used.sort_unstable();
            used.dedup();
            assert_eq!(used, expected);
            assert!(places.elsewhere(&wanted, &session(1), &[key(&registry, expected[0]).organization_tag]).is_none());
        }
    }

    #[test]
    fn a_binding_to_another_project_is_left_alone() {
        let (places, registry) = places();
        let client = Client::unrestricted("alice");
        let standing = |record: &Record, within| match places.standing(&wanted(&client, within), record) {
            Standing::Serves(key) => key.id.clone(),
            Standing::Elsewhere => "elsewhere".into(),
            Standing::Gone => "gone".into(),
            Standing::NotLoaded => "not loaded".into(),
        };
        let (one, two) = (project("org-a", "one"), project("org-a", "two"));
        let bound = Record::first(&key(&registry, "a-1"), 1);
        assert_eq!([Reach::Anywhere, one, two].map(|within| standing(&bound, within)), ["a-1", "a-1", "elsewhere"]);
        // Whatever becomes of its key, that is for the session's other turns to find out.
        registry.disable(&key(&registry, "a-1"), Ailment::Rejected(Scope::Key));
        assert_eq!([Reach::Anywhere, one, two].map(|within| standing(&bound, within)), ["gone", "gone", "elsewhere"]);
        let unknown = Record { key: Tag::of("key", b"new"), generation: 9, ..bound };
        let other = project("org-b", "one");
        assert_eq!(
            [Reach::Anywhere, two, other].map(|within| standing(&unknown, within)),
            ["not loaded", "not loaded", "elsewhere"]
        );
    }

    #[test]
    fn a_project_without_a_key_in_use_is_named() {
        let (places, registry) = places();
        let client = Client::unrestricted("alice");
        let refused = |within| {
            let wanted = wanted(&client, within);
            let error = places.choose(&wanted, &session(1), Reach::Anywhere).err().unwrap();
            assert_eq!(places.by_load(&wanted).err().map(|error| error.message), Some(error.message.clone()));
            (error.status().as_u16(), error.retry_after.unwrap().as_secs(), error.message)
        };
        registry.disable(&key(&registry, "a-1"), Ailment::Rejected(Scope::Key));
        registry.disable(&key(&registry, "a-2"), Ailment::Exhausted(Scope::Key));
        let (status, wait, message) = refused(project("org-a", "one"));
        assert!((status, wait) == (503, 30) && message.contains("org-a/one"), "{status} {wait} {message}");
        registry.disable(&key(&registry, "a-3"), Ailment::Exhausted(Scope::Project));
        let (status, wait, message) = refused(project("org-a", "two"));
        assert!((status, wait) == (429, 30) && message.contains("org-a/two"), "{status} {wait} {message}");
        let (status, wait, _) = refused(project("org-a", "later"));
        assert_eq!((status, wait), (503, 1), "another replica may have loaded it");
    }
}
