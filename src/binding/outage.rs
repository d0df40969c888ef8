//! Binds sessions while the store is away, and merges these bindings into the store afterwards.
//!
//! This replica uses the bindings that it remembers, else the order of keys that all replicas
//! share. The content of a session's history is not known then, so no turn leaves the organization
//! that the replica finds.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};

use crate::binding::Binding;
use crate::binding::bind::Bindings;
use crate::binding::demand::Placing;
use crate::binding::local::{Known, Local};
use crate::binding::place::Standing;
use crate::binding::record::{BindingRecord, state_tag};
use crate::binding::select::Reach;
use crate::error::Error;
use crate::health::registry::Registry;
use crate::metrics::{Decision, Reason};
use crate::session::SessionId;
use crate::store::name::Name;
use crate::store::{Replaced, Store, Unavailable};
use crate::telemetry::work::WORK;

/// Pause between merges while the store answers, because a single write may have failed.
const MERGE_AGAIN: Duration = Duration::from_secs(1);
/// Most bindings that are merged at a time.
const MERGED_AT_ONCE: usize = 32;

impl Bindings {
    pub(super) fn without_store(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
    ) -> Result<Binding, Error> {
        if let Some(known) = self.local.recall(session) {
            return self.use_known(placing, session, &known);
        }
        let record = match self.inherited_here(placing) {
            Some(record) => record,
            None => BindingRecord::first(
                self.places.default_of(placing, session)?.as_ref(),
                self.places.generation(),
            ),
        };
        self.use_unconfirmed(placing, session, record, true)
    }

    /// Uses `record`, which may or may not have been written, until the store answers. If this
    /// replica remembers a newer binding, the turn uses that.
    pub(super) fn use_unconfirmed(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        record: BindingRecord,
        is_provisional: bool,
    ) -> Result<Binding, Error> {
        self.local.note(session, &record, is_provisional);
        let known = self.local.recall(session).unwrap_or(Known { record, is_provisional });
        self.use_known(placing, session, &known)
    }

    pub(super) fn use_known(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        known: &Known,
    ) -> Result<Binding, Error> {
        match self.places.standing(placing, &known.record) {
            Standing::Ready(key) => {
                Ok(Binding::here(&key, session, known.record.clone(), known.is_provisional))
            }
            // The whole organization may have been removed, and the store cannot say. An unsealed
            // session moves to another one.
            Standing::Bypassed(reason) => match (
                self.spill(placing, session, &known.record, reason),
                placing.reach(&known.record),
            ) {
                (Err(_), Reach::Anywhere) if reason == Reason::NotLoaded => {
                    self.move_locally(placing, session, known, Reach::Anywhere, reason)
                }
                (spilled, _) => spilled,
            },
            Standing::Dead(reason) => {
                self.move_within_organization(placing, session, known, reason)
            }
            Standing::OtherProject => self.serve_beside(placing, session, &known.record),
        }
    }

    /// Whether `record`, which `binding` uses without the store, is provisional. The `Binding` of a
    /// turn counts every unsealed record as provisional. A record that the store has confirmed is
    /// not provisional, and moves by one epoch.
    pub(super) fn is_provisional(
        &self,
        session: &SessionId,
        record: &BindingRecord,
        binding: &Binding,
    ) -> bool {
        match self.local.recall(session) {
            Some(known) if known.is_of(record) => known.is_provisional,
            _ => binding.is_provisional,
        }
    }

    /// Moves the session to the next key of its organization.
    fn move_within_organization(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        known: &Known,
        reason: Reason,
    ) -> Result<Binding, Error> {
        self.move_locally(
            placing,
            session,
            known,
            Reach::Organization(known.record.organization),
            reason,
        )
    }

    /// Moves the session on this replica until the store can merge the move. A provisional binding
    /// keeps its epoch, so that its moves never let it win over a stored binding.
    fn move_locally(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        known: &Known,
        reach: Reach,
        reason: Reason,
    ) -> Result<Binding, Error> {
        // Another turn of the session moved it first.
        let newer =
            self.local.recall(session).filter(|newer| newer.record.epoch > known.record.epoch);
        if let Some(newer) = &newer
            && let Standing::Ready(key) = self.places.standing(placing, &newer.record)
        {
            return Ok(Binding {
                has_moved: true,
                ..Binding::here(&key, session, newer.record.clone(), newer.is_provisional)
            });
        }
        let known = newer.as_ref().unwrap_or(known);
        let key = self.places.choose(placing, session, reach)?;
        let mut next = known.record.moved_to(
            &key,
            self.places.generation(),
            placing.demand.turn_state.map(state_tag),
        );
        if known.is_provisional {
            next.epoch = known.record.epoch;
        }
        self.local.note(session, &next, known.is_provisional);
        self.record_decision(session, Decision::Move, reason, &known.record, &key);
        Ok(Binding { has_moved: true, ..Binding::here(&key, session, next, known.is_provisional) })
    }
}

/// Merges bindings made without the store as soon as the store answers. Runs until the replica
/// stops.
pub async fn keep_merging(
    store: Arc<Store>,
    local: Arc<Local>,
    registry: Arc<Registry>,
    ttl: Duration,
) {
    let mut health = store.health();
    loop {
        tokio::select! {
            Ok(()) = health.changed() => {}
            () = tokio::time::sleep(MERGE_AGAIN) => {}
        }
        let merged = merge_all(&store, &local, &registry, ttl).await;
        if merged > 0 {
            tracing::info!(merged, "what was bound without the store is in it now");
        }
    }
}

/// Merges all bindings that can be merged now. Returns their number.
pub async fn merge_all(store: &Store, local: &Local, registry: &Registry, ttl: Duration) -> usize {
    // With generation 0, no replica could later tell a removed key from one that is not loaded yet.
    let generation = registry.loaded().ordinal();
    let (mut merged, mut left) = (0, if generation == 0 { 0 } else { local.count_unmerged() });
    let span = match left {
        0 => Span::none(),
        _ => info_span!(target: WORK, "merge", bindings = left, merged = Empty),
    };
    while left > 0 {
        let some = local.next_unmerged(MERGED_AT_ONCE.min(left));
        left = if some.is_empty() { 0 } else { left - some.len().min(left) };
        let each = some.iter().map(|(session, record)| {
            merge(store, local, ttl, session, record.of_generation(generation))
        });
        let done = join_all(each).instrument(span.clone()).await;
        merged += done.iter().filter(|done| done.is_ok()).count();
        if done.iter().all(Result::is_err) {
            break;
        }
    }
    span.record("merged", merged);
    merged
}

async fn merge(
    store: &Store,
    local: &Local,
    ttl: Duration,
    session: &SessionId,
    record: BindingRecord,
) -> Result<(), Unavailable> {
    let Some(text) = store
        .merge(
            Name::Binding(session.as_str()),
            &record.to_string(),
            record.epoch,
            ttl,
            &mut store.budget(),
        )
        .await?
    else {
        local.confirm(session, &record);
        return Ok(());
    };
    let Some(stored) = BindingRecord::parse(&text) else {
        local.forget(session);
        return Ok(());
    };
    // The stored binding is the same one before its first answer.
    if record.is_sealed_form_of(&stored) {
        let sealed = stored.sealed();
        if store
            .replace(
                Name::Binding(session.as_str()),
                &text,
                &sealed.to_string(),
                ttl,
                &mut store.budget(),
            )
            .await?
            == Replaced::Done
        {
            local.confirm(session, &sealed);
            return Ok(());
        }
    }
    local.confirm(session, &stored);
    Ok(())
}
