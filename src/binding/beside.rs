//! Serves a turn beside its session's binding, which does not change.

use crate::binding::bind::Bindings;
use crate::binding::demand::Placing;
use crate::binding::place::not_loaded;
use crate::binding::record::BindingRecord;
use crate::binding::select::Reach;
use crate::binding::{Binding, Written};
use crate::error::Error;
use crate::metrics::{BindingResult, Decision, Reason};
use crate::session::SessionId;

impl Bindings {
    /// Serves the turn with a sibling, and leaves the binding as it is.
    pub(super) fn spill(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        record: &BindingRecord,
        reason: Reason,
    ) -> Result<Binding, Error> {
        let own = self.places.key_of(record);
        let key = match (self.places.sibling(placing, session, record), own, reason) {
            (Some(key), ..) => key,
            // If no key of the organization has access, the client receives the answer of the
            // session's own key.
            (None, Some(own), Reason::NoAccess) => own,
            (None, _, Reason::NotLoaded) => return Err(not_loaded()),
            (None, ..) => {
                return Err(self
                    .places
                    .shortage_of(placing, Reach::Organization(record.organization)));
            }
        };
        self.record_decision(session, Decision::Spill, reason, record, &key);
        let (is_provisional, written) = (!record.sealed, Written::Beside(record.clone()));
        let binding = Binding::new(&key, Some(session), written, BindingResult::Spilled);
        Ok(Binding { has_moved: key.tag != record.key, is_provisional, ..binding })
    }

    /// Serves the turn in the project that stores the content it needs. The binding is to another
    /// project and stays as it is. An answer from the session's own organization seals the session,
    /// as a sibling's answer does.
    pub(super) fn serve_beside(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        record: &BindingRecord,
    ) -> Result<Binding, Error> {
        let key = self.places.choose(placing, session, placing.within)?;
        self.record_decision(session, Decision::Spill, Reason::Stored, record, &key);
        let is_sibling = key.organization_tag == record.organization;
        let written = if is_sibling { Written::Beside(record.clone()) } else { Written::Nowhere };
        Ok(Binding::new(&key, Some(session), written, BindingResult::Spilled).moved())
    }

    /// Serves the turn if a newer version wrote the stored binding. This version neither uses nor
    /// overwrites such a binding.
    pub(super) fn beside_store(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
    ) -> Result<Binding, Error> {
        let key = self.places.default_of(placing, session)?;
        Ok(Binding::passing(&key, Some(session), BindingResult::Degraded))
    }
}
