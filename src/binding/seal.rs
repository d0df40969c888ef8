//! Seals a session: only the organization that answered can open its answers.

use std::sync::Arc;

use crate::binding::bind::Bindings;
use crate::binding::record::BindingRecord;
use crate::binding::{Binding, Written};
use crate::session::SessionId;
use crate::store::name::Name;
use crate::store::{Budget, Replaced};

impl Bindings {
    /// Confirms the binding before the first byte of a successful answer. If the answer may hold
    /// content that only this organization can open (`seals`), this call seals the session. It also
    /// renews the lifetime of an aging stored binding, in the background.
    pub async fn confirm(&self, binding: &Binding, seals: bool, budget: &mut Budget) {
        let Some(session) = &binding.session else { return };
        let confirmed = |record: &BindingRecord| match seals {
            true => record.after_answer(self.places.generation()),
            false => record.of_generation(self.places.generation()),
        };
        match &binding.written {
            Written::Nowhere => {}
            Written::Beside(record) if record.sealed || !seals => {}
            // A sibling's answer seals the session, too.
            Written::Beside(record) => {
                let is_provisional = self
                    .local
                    .recall(session)
                    .is_some_and(|known| known.is_provisional && known.is_of(record));
                self.seal(session, record, &record.sealed(), is_provisional, budget).await;
            }
            Written::Here(record) if confirmed(record) == *record => {}
            Written::Here(record) => {
                self.local.note(
                    session,
                    &confirmed(record),
                    self.is_provisional(session, record, binding),
                );
            }
            Written::Stored(record) if confirmed(record) != *record => {
                self.seal(session, record, &confirmed(record), false, budget).await;
            }
            Written::Stored(record) if binding.refresh => {
                let (store, session, ttl, stored) =
                    (Arc::clone(&self.store), session.clone(), self.ttl, record.to_string());
                self.tasks.spawn(async move {
                    // If this fails, the next turn renews the binding.
                    let _ = store
                        .extend(Name::Binding(session.as_str()), &stored, ttl, &mut store.budget())
                        .await;
                });
            }
            Written::Stored(_) => {}
        }
    }

    /// `is_provisional`: this replica has not asked the store for `record` yet.
    pub(super) async fn seal(
        &self,
        session: &SessionId,
        record: &BindingRecord,
        sealed: &BindingRecord,
        is_provisional: bool,
        budget: &mut Budget,
    ) {
        let name = Name::Binding(session.as_str());
        match self
            .store
            .replace(name, &record.to_string(), &sealed.to_string(), self.ttl, budget)
            .await
        {
            Ok(Replaced::Done) => {
                self.local.confirm(session, sealed);
            }
            // Another turn of the session wrote first: the same seal, or a later move.
            Ok(Replaced::Lost(_)) => {}
            Err(_) => self.local.note(session, sealed, is_provisional),
        }
    }
}
