//! Serves a turn beside its session's binding, which stays as it is.

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
    /// Serves the turn from the session's organization and leaves the binding alone.
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
            // What nobody of its organization may have the client is told by its own key.
            (None, Some(own), Reason::NoAccess) => own,
            (None, _, Reason::NotLoaded) => return Err(not_loaded()),
            (None, ..) => {
                return Err(self
                    .places
                    .shortage_of(placing, Reach::Organization(record.organization)));
            }
        };
        self.tell(session, Decision::Spill, reason, record, &key);
        let (is_provisional, written) = (!record.sealed, Written::Beside(record.clone()));
        let binding = Binding::new(&key, Some(session), written, BindingResult::Spilled);
        Ok(Binding { has_moved: key.tag != record.key, is_provisional, ..binding })
    }

    /// Serves the turn where the response is stored that it goes on from, and leaves the binding
    /// alone: it is to another project. An answer of the session's own organization seals it as a
    /// sibling's would.
    pub(super) fn serve_beside(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        record: &BindingRecord,
    ) -> Result<Binding, Error> {
        let key = self.places.choose(placing, session, placing.tried.within)?;
        self.tell(session, Decision::Spill, Reason::Stored, record, &key);
        let is_home = key.organization_tag == record.organization;
        let written = if is_home { Written::Beside(record.clone()) } else { Written::Nowhere };
        Ok(Binding::new(&key, Some(session), written, BindingResult::Spilled).moved())
    }

    /// What is stored was written by a newer version: it knows better, so its word is neither used
    /// nor overwritten.
    pub(super) fn beside_store(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
    ) -> Result<Binding, Error> {
        let key = self.places.default_of(placing, session)?;
        Ok(Binding::passing(&key, Some(session), BindingResult::Degraded))
    }
}
