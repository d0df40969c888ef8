//! A session as operators see it: its binding and the decisions about it. Viewing changes nothing,
//! not even the stored lifetime.

use serde::Serialize;

use crate::binding::bind::Bindings;
use crate::binding::record::BindingRecord;
use crate::binding::trail::Mark;
use crate::session::SessionId;
use crate::store::name::Name;

/// The gateway's knowledge of a session.
#[derive(Debug, Serialize)]
pub struct SessionView {
    pub session: String,
    pub binding: Option<Bound>,
    /// The decisions, oldest first; empty for a session that its key has always served.
    pub trail: Vec<Mark>,
}

/// A binding with names. A key that is no longer configured has none.
#[derive(Debug, Serialize)]
pub struct Bound {
    pub key: Option<String>,
    pub organization: Option<String>,
    pub epoch: u32,
    pub generation: u32,
    pub sealed: bool,
    /// Whether the binding comes from the store. Otherwise this replica remembers it.
    pub stored: bool,
}

impl Bindings {
    /// Returns `None` for an unknown session.
    pub async fn view(&self, session: &SessionId) -> Option<SessionView> {
        let entry = self
            .store
            .get(Name::Binding(session.as_str()), &mut self.store.background_budget())
            .await;
        let lines = self
            .store
            .list(session.as_str(), &mut self.store.background_budget())
            .await
            .unwrap_or_default();
        let stored = entry.ok().flatten().and_then(|entry| BindingRecord::parse(&entry.value));
        let remembered = || self.local.recall(session).map(|known| (known.record, false));
        let record = stored.map(|record| (record, true)).or_else(remembered);
        let binding = record.map(|(record, stored)| self.add_names(&record, stored));
        let mut trail: Vec<_> = lines.iter().filter_map(|line| Mark::parse(line)).collect();
        // Replicas write their lines independently.
        trail.sort_by_key(|mark| mark.at);
        trail.dedup();
        (binding.is_some() || !trail.is_empty()).then(|| SessionView {
            session: session.to_string(),
            binding,
            trail,
        })
    }

    fn add_names(&self, record: &BindingRecord, stored: bool) -> Bound {
        let BindingRecord { epoch, generation, sealed, .. } = *record;
        let key = self.places.key_of(record).map(|key| key.id.clone());
        let organization = self.places.organization(record.organization);
        Bound { key, organization, epoch, generation, sealed, stored }
    }
}
