//! Which project a turn may not leave that refers to what only one project finds: files,
//! containers, items, conversations.
//!
//! It is that of its session. A session that is served elsewhere for a turn, or moves, leaves
//! behind what its project stores.

use crate::binding::bind::{Bindings, Found};
use crate::binding::demand::{Demand, Tried};
use crate::binding::local::Known;
use crate::binding::place::untold;
use crate::binding::record::BindingRecord;
use crate::binding::{Binding, Written};
use crate::error::Error;
use crate::store::Budget;

impl Bindings {
    /// Holds a turn that refers to what only one project finds to that of its session, or of the
    /// one that it is a fork of. Where nothing was served yet, nobody knows which it is; where that
    /// cannot be told, the turn has to wait.
    pub(super) async fn hold(
        &self,
        demand: &Demand<'_>,
        tried: &mut Tried,
        found: &Found,
        budget: &mut Budget,
    ) -> Result<(), Error> {
        let placing = demand.after(tried);
        let Some(session) = demand.session.as_ref().filter(|_| placing.is_unheld()) else {
            return Ok(());
        };
        let held = found.as_ref().ok().and_then(Option::as_ref);
        let stored = held.and_then(|held| BindingRecord::parse(&held.value));
        let is_untold = found.is_err() || held.is_some() && stored.is_none();
        let known = self.local.recall(session).map(|known| known.record);
        let home = match stored
            .into_iter()
            .chain(known)
            .max_by_key(|record| (record.epoch, record.sealed))
        {
            None if is_untold => self.inherited_here(placing),
            None => self.inherited(placing, budget).await,
            home => home,
        };
        match home.filter(|record| record.sealed) {
            Some(record) => tried.within = self.places.project_of(&record),
            None if is_untold => return Err(untold()),
            None => {}
        }
        Ok(())
    }

    /// The same once more where the turn goes on: another turn of its session may have been served
    /// meanwhile.
    pub(super) fn hold_again(&self, demand: &Demand<'_>, tried: &mut Tried) {
        let session = demand.session.as_ref().filter(|_| demand.after(tried).is_unheld());
        let known = session.and_then(|session| self.local.recall(session));
        if let Some(Known { record, .. }) = known.filter(|known| known.record.sealed) {
            tried.within = self.places.project_of(&record);
        }
    }

    /// Whether a turn that refers to what only its session's project finds may be served under
    /// `binding`, on a connection that has served turns of the session if `has_served`.
    pub fn is_in_own_project(&self, binding: &Binding, has_served: bool) -> bool {
        match &binding.written {
            Written::Beside(record) => self.places.project_of(record).includes(&binding.key),
            Written::Stored(_) => true,
            Written::Here(record) => record.sealed || has_served,
            Written::Nowhere => binding.session.is_none() || has_served,
        }
    }

    /// Whether the key of `binding`'s session, which another one serves, could do so by now.
    pub fn is_own_project_ready(&self, binding: &Binding, model: &str) -> bool {
        let record = binding.record().filter(|_| matches!(binding.written, Written::Beside(_)));
        record.is_some_and(|record| self.places.is_key_ready(record, model))
    }
}
