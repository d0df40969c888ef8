//! Finds a session's organization again after its binding was forgotten: by expiry, a flush, or a
//! failover that lost it.
//!
//! Only the organization that sealed a session's history can open it. If the upstream cannot open
//! the history and the binding is provisional, the turn tries each other organization once. The
//! organization that accepts is bound.

use crate::binding::bind::Bindings;
use crate::binding::demand::Placing;
use crate::binding::record::{BindingRecord, state_tag};
use crate::binding::trail::Step;
use crate::binding::{Binding, Written};
use crate::error::Error;
use crate::key::Tag;
use crate::metrics::{BindingResult, Decision, Reason};
use crate::store::name::Name;
use crate::store::{Budget, Replaced};

impl Bindings {
    /// Returns the next key to try instead of `provisional`, of an organization that is not in
    /// `tried`. [`Self::correct`] binds the session to the key if it serves.
    pub fn next_untried(
        &self,
        placing: Placing<'_>,
        provisional: &Binding,
        tried: &[Tag],
    ) -> Option<Binding> {
        let key = self.places.choose_outside(placing, provisional.session.as_ref()?, tried)?;
        Some(Binding {
            key,
            result: BindingResult::Rebound,
            has_moved: true,
            ..provisional.clone()
        })
    }

    /// Binds the session provisionally to the next organization in its order, because the
    /// organization of `provisional` cannot open its history. The connection has one key for life,
    /// so only the client's next connection uses the new binding.
    ///
    /// Returns whether there is an organization that was not tried. The error says that such an
    /// organization is out of use. Each replica tries each organization once.
    pub async fn rebind_provisionally(
        &self,
        placing: Placing<'_>,
        provisional: &Binding,
        budget: &mut Budget,
    ) -> Result<bool, Error> {
        let (Some(session), Some(record)) = (&provisional.session, provisional.record()) else {
            return Ok(false);
        };
        let tried = self.local.rule_out(session, record.organization);
        let Some(key) = self.places.choose_outside(placing, session, &tried) else {
            return self.give_up(placing, &tried).map(|()| false);
        };
        let next = record.moved_to(&key, self.places.generation(), None);
        let replaced = match &provisional.written {
            Written::Stored(_) | Written::Beside(_) => Some(
                self.store
                    .rebind(
                        Name::Binding(session.as_str()),
                        &record.to_string(),
                        &next.to_string(),
                        self.ttl,
                        budget,
                    )
                    .await,
            ),
            Written::Here(_) | Written::Nowhere => None,
        };
        match replaced {
            Some(Ok(Replaced::Done)) => drop(self.local.confirm(session, &next)),
            // The winner knows as much as this turn, or more.
            Some(Ok(Replaced::Lost(_))) => return Ok(true),
            Some(Err(_)) | None => {
                self.local.note(session, &BindingRecord { epoch: record.epoch, ..next }, true)
            }
        }
        self.record_decision(session, Decision::Move, Reason::Forgotten, record, &key);
        Ok(true)
    }

    /// Fails if an organization was not tried because it is out of use. That organization may be
    /// the right one, so the client receives the reason.
    pub fn give_up(&self, placing: Placing<'_>, tried: &[Tag]) -> Result<(), Error> {
        self.places.shortage_beside(placing, tried).map_or(Ok(()), Err)
    }

    /// Binds the session to `found`'s key, because the upstream accepted its history. Runs before
    /// the first byte of the answer, so the binding is sealed, too.
    pub async fn correct(
        &self,
        placing: Placing<'_>,
        found: Binding,
        budget: &mut Budget,
    ) -> Binding {
        let Some(session) = &found.session else { return found };
        let next = |record: &BindingRecord| {
            record
                .moved_to(
                    &found.key,
                    self.places.generation(),
                    placing.demand.turn_state.map(state_tag),
                )
                .sealed()
        };
        let step = Step {
            session: Some(session),
            decision: Decision::Move,
            reason: Reason::Forgotten,
            from: None,
            to: Some(&found.key),
        };
        self.trail.record(&step);
        let written = match &found.written {
            Written::Nowhere => Written::Nowhere,
            Written::Here(record) => {
                // A stored binding of the session, if there is one, knows as much as this turn.
                let next = BindingRecord { epoch: record.epoch, ..next(record) };
                self.local.note(session, &next, false);
                Written::Here(next)
            }
            Written::Stored(record) | Written::Beside(record) => {
                let next = next(record);
                let (old, new) = (record.to_string(), next.to_string());
                match self
                    .store
                    .rebind(Name::Binding(session.as_str()), &old, &new, self.ttl, budget)
                    .await
                {
                    Ok(Replaced::Done) => {
                        self.local.confirm(session, &next);
                        Written::Stored(next)
                    }
                    // Another turn of the session found the organization, too, or knows more. The
                    // next turn uses its binding.
                    Ok(Replaced::Lost(_)) => Written::Nowhere,
                    Err(_) => {
                        self.local.note(session, &next, false);
                        Written::Here(next)
                    }
                }
            }
        };
        Binding { written, is_provisional: false, ..found }
    }
}
