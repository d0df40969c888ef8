//! A session as operators see it: where it is bound, and what was decided about it. Changes
//! nothing, its life in the store least of all.

use serde::Serialize;

use crate::binding::bind::Bindings;
use crate::binding::record::BindingRecord;
use crate::binding::trail::Mark;
use crate::session::SessionId;
use crate::store::name::Name;

/// All that is known of a session.
#[derive(Debug, Serialize)]
pub struct SessionView {
    pub session: String,
    pub binding: Option<Bound>,
    /// The oldest first; nothing if it was only ever served.
    pub trail: Vec<Mark>,
}

/// A binding, as names. A key that is configured no more has none.
#[derive(Debug, Serialize)]
pub struct Bound {
    pub key: Option<String>,
    pub organization: Option<String>,
    pub epoch: u32,
    pub generation: u32,
    pub sealed: bool,
    /// Whether the store said so. Else it is what this replica remembers.
    pub stored: bool,
}

impl Bindings {
    /// `None`: there is nothing.
    pub async fn view(&self, session: &SessionId) -> Option<SessionView> {
        let held =
            self.store.get(Name::Binding(session.as_str()), &mut self.store.patient_budget()).await;
        let lines = self
            .store
            .list(session.as_str(), &mut self.store.patient_budget())
            .await
            .unwrap_or_default();
        let stored = held.ok().flatten().and_then(|held| BindingRecord::parse(&held.value));
        let remembered = || self.local.recall(session).map(|known| (known.record, false));
        let record = stored.map(|record| (record, true)).or_else(remembered);
        let binding = record.map(|(record, stored)| self.named(&record, stored));
        let mut trail: Vec<_> = lines.iter().filter_map(|line| Mark::parse(line)).collect();
        // Replicas write as they come to it.
        trail.sort_by_key(|mark| mark.at);
        trail.dedup();
        (binding.is_some() || !trail.is_empty()).then(|| SessionView {
            session: session.to_string(),
            binding,
            trail,
        })
    }

    fn named(&self, record: &BindingRecord, stored: bool) -> Bound {
        let BindingRecord { epoch, generation, sealed, .. } = *record;
        let key = self.places.key_of(record).map(|key| key.id.clone());
        let organization = self.places.organization(record.organization);
        Bound { key, organization, epoch, generation, sealed, stored }
    }
}
