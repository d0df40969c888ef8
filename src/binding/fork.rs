//! Finds the binding that a fork inherits. A fork's input carries its parent's encrypted reasoning,
//! so the fork begins on its parent's key.
//!
//! A fork names its parent by the parent's thread. The id of a root thread is its session's id. For
//! other threads, the store maps the thread to its session; turns write this in the background.

use std::sync::Arc;

use crate::binding::bind::Bindings;
use crate::binding::demand::Placing;
use crate::binding::record::BindingRecord;
use crate::session::SessionId;
use crate::store::name::Name;
use crate::store::{Budget, Store};

impl Bindings {
    /// Returns the first binding of a fork's session: a copy of its parent's binding. `None`: the
    /// session is no fork, or its parent is forgotten.
    pub(super) async fn inherit_binding(
        &self,
        placing: Placing<'_>,
        budget: &mut Budget,
    ) -> Option<BindingRecord> {
        let parent = placing.demand.lineage.parent.as_ref()?;
        if let Some(record) = binding_of(&self.store, &parent.root, budget).await {
            return Some(inherit(record));
        }
        let session =
            self.store.get(Name::Thread(parent.thread.as_str()), budget).await.ok().flatten();
        // A newer version may write more words.
        let of_thread = |value: &str| SessionId::parse(value.split(' ').next()?);
        match session.and_then(|entry| of_thread(&entry.value)) {
            Some(session) => binding_of(&self.store, &session, budget).await.map(inherit),
            None => self.inherited_here(placing),
        }
    }

    /// Returns the inherited binding from this replica's memory.
    pub(super) fn inherited_here(&self, placing: Placing<'_>) -> Option<BindingRecord> {
        let parent = placing.demand.lineage.parent.as_ref()?;
        let of_thread = || self.local.recall(&self.local.session_of(&parent.thread)?);
        self.local.recall(&parent.root).or_else(of_thread).map(|known| inherit(known.record))
    }

    /// Stores the session of this turn's thread for forks, unless this replica has done so lately.
    pub(super) fn store_thread(&self, placing: Placing<'_>, session: &SessionId) {
        let Some(thread) = &placing.demand.lineage.thread else { return };
        if self.local.note_thread(thread, session) {
            return;
        }
        let (store, local, ttl) = (Arc::clone(&self.store), Arc::clone(&self.local), self.ttl);
        let (thread, session) = (thread.clone(), session.clone());
        self.tasks.spawn(async move {
            if store
                .extend(Name::Thread(thread.as_str()), session.as_str(), ttl, &mut store.budget())
                .await
                .is_err()
            {
                local.forget_thread(&thread);
            }
        });
    }
}

async fn binding_of(
    store: &Store,
    session: &SessionId,
    budget: &mut Budget,
) -> Option<BindingRecord> {
    let entry = store.get(Name::Binding(session.as_str()), budget).await.ok()??;
    BindingRecord::parse(&entry.value)
}

/// Makes a fork's first binding from its parent's.
fn inherit(record: BindingRecord) -> BindingRecord {
    BindingRecord { epoch: 1, stale_state: None, others: None, ..record }
}
