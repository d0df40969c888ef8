//! Keeps a turn in the project of its session, if the turn refers to content that only that project
//! finds. Such content is files, containers, items and conversations.
//!
//! A session that moves, or that another project serves for a turn, cannot reach the content of its
//! own project there.

use crate::binding::bind::{Bindings, Found};
use crate::binding::demand::Placing;
use crate::binding::local::Known;
use crate::binding::place::unknown_project;
use crate::binding::record::BindingRecord;
use crate::binding::select::Reach;
use crate::binding::{Binding, Written};
use crate::error::Error;
use crate::store::Budget;

impl Bindings {
    /// Returns the keys that a turn may use. A turn that refers to a project's content may use
    /// those of its session's project, or of the project of its session's parent. Before a
    /// session's first answer, no project is known. If the store cannot say whether one is known,
    /// the client must retry.
    pub(super) async fn restrict(
        &self,
        placing: Placing<'_>,
        found: &Found,
        budget: &mut Budget,
    ) -> Result<Reach, Error> {
        let session = placing.demand.session.as_ref();
        let Some(session) = session.filter(|_| placing.needs_unknown_project()) else {
            return Ok(placing.within);
        };
        let entry = found.as_ref().ok().and_then(Option::as_ref);
        let stored = entry.and_then(|entry| BindingRecord::parse(&entry.value));
        let is_store_unsure = found.is_err() || entry.is_some() && stored.is_none();
        let known = self.local.recall(session).map(|known| known.record);
        let own = match stored
            .into_iter()
            .chain(known)
            .max_by_key(|record| (record.epoch, record.sealed))
        {
            None if is_store_unsure => self.inherited_here(placing),
            None => self.inherit_binding(placing, budget).await,
            own => own,
        };
        match own.filter(|record| record.sealed) {
            Some(record) => Ok(self.places.project_of(&record)),
            None if is_store_unsure => Err(unknown_project()),
            None => Ok(placing.within),
        }
    }

    /// Returns the keys that a turn may use in its next attempt: another turn of its session may
    /// have been answered since.
    pub(super) fn restrict_again(&self, placing: Placing<'_>) -> Reach {
        let session = placing.demand.session.as_ref().filter(|_| placing.needs_unknown_project());
        let known = session.and_then(|session| self.local.recall(session));
        match known {
            Some(Known { record, .. }) if record.sealed => self.places.project_of(&record),
            _ => placing.within,
        }
    }

    /// Whether a turn that refers to its session's project may be served under `binding`.
    /// `has_served`: this connection has served turns of the session.
    pub fn is_in_own_project(&self, binding: &Binding, has_served: bool) -> bool {
        match &binding.written {
            Written::Beside(record) => self.places.project_of(record).includes(&binding.key),
            Written::Stored(_) => true,
            Written::Here(record) => record.sealed || has_served,
            Written::Nowhere => binding.session.is_none() || has_served,
        }
    }

    /// Whether the session's own key is ready again, after `binding` has served it with another
    /// key.
    pub fn is_own_project_ready(&self, binding: &Binding, model: &str) -> bool {
        let record = binding.record().filter(|_| matches!(binding.written, Written::Beside(_)));
        record.is_some_and(|record| self.places.is_key_ready(record, model))
    }
}
