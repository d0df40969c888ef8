//! Finds a session's organization again when its binding was forgotten: by expiry, a flush, a failover that lost it.
//!
//! Only the organization that sealed a session's history can open it. A turn whose binding is a guess and whose history the
//! upstream could not open is tried once with each other organization, and the one that accepts is bound.

use std::sync::Arc;

use super::place::none_in_use;
use super::record::{Record, state_tag};
use super::table::Bindings;
use super::trail::Step;
use super::wanted::Wanted;
use super::{Binding, Written};
use crate::error::Error;
use crate::key::{Key, Tag};
use crate::metrics::{BindingResult, Decision, Reason};
use crate::session::SessionId;
use crate::store::{Budget, Replaced};

impl Bindings {
    /// The next key to try instead of `guess`: of an organization that was not `tried`. It is bound by [`Self::correct`].
    pub fn elsewhere(&self, wanted: &Wanted<'_>, guess: &Binding, tried: &[Tag]) -> Option<Binding> {
        let key = self.places.elsewhere(wanted, guess.session.as_ref()?, tried)?;
        Some(Binding { key, result: BindingResult::Rebound, has_moved: true, ..guess.clone() })
    }

    /// The organization of `guess` cannot open the session's history, and the connection that found out has one key for life: the
    /// session is bound to the next organization in its order, a guess again, which the next connection meets. Returns whether
    /// there is one that was not tried; the error, that one is out of use.
    pub async fn guess_again(&self, wanted: &Wanted<'_>, guess: &Binding, budget: &mut Budget) -> Result<bool, Error> {
        let (Some(session), Some(record)) = (&guess.session, guess.record()) else { return Ok(false) };
        let order = self.order_of_guesses(wanted, session);
        let at = order.iter().position(|key| key.organization_tag == record.organization);
        let next = at.map_or(0, |at| (at + 1) % order.len());
        let is_stored = matches!(guess.written, Written::Stored(_) | Written::Beside(_));
        // Nobody keeps count: what is stored was moved with each guess, and what is not began with the same one on each replica.
        let is_over = match is_stored {
            true => record.epoch as usize >= order.len(),
            false => order.get(next).is_some_and(|key| Some(key.organization_tag) == self.first_guess(wanted, session)),
        };
        let Some(key) = order.get(next).filter(|_| !is_over) else {
            let mut tried: Vec<_> = order.iter().map(|key| key.organization_tag).collect();
            tried.push(record.organization);
            return self.give_up(wanted, &tried).map(|()| false);
        };
        let moved = record.moved_to(key, self.places.generation(), None);
        if is_stored {
            // Whoever was first knows as much, or better.
            let replaced = self.store.replace(session.as_str(), &record.to_string(), &moved.to_string(), self.ttl, budget).await;
            if !matches!(replaced, Ok(Replaced::Done)) {
                return Ok(replaced.is_ok());
            }
            self.local.confirm(session, &moved);
        } else {
            self.local.note(session, &Record { epoch: record.epoch, ..moved }, true);
        }
        self.tell(session, Decision::Move, Reason::Forgotten, record, key);
        Ok(true)
    }

    /// A key of each organization that may have sealed the session's history, in its order.
    fn order_of_guesses(&self, wanted: &Wanted<'_>, session: &SessionId) -> Vec<Arc<Key>> {
        let (mut order, mut passed) = (Vec::new(), Vec::new());
        while let Some(key) = self.places.elsewhere(wanted, session, &passed) {
            passed.push(key.organization_tag);
            order.push(key);
        }
        order
    }

    /// Nobody accepted: whether that is the last word. An organization out of use may be the right one, at another time.
    pub fn give_up(&self, wanted: &Wanted<'_>, tried: &[Tag]) -> Result<(), Error> {
        if self.places.is_exhaustive(wanted, tried) { Ok(()) } else { Err(none_in_use()) }
    }

    /// The upstream accepted the session's history with `found`'s key: that is its organization. Before the first byte of the
    /// answer, so the binding is sealed as well.
    pub async fn correct(&self, wanted: &Wanted<'_>, found: Binding, budget: &mut Budget) -> Binding {
        let Some(session) = &found.session else { return found };
        let next =
            |record: &Record| record.moved_to(&found.key, self.places.generation(), wanted.turn_state.map(state_tag)).sealed();
        let step = Step {
            session: Some(session),
            decision: Decision::Move,
            reason: Reason::Forgotten,
            from: None,
            to: Some(&found.key),
        };
        self.trail.tell(&step);
        let written = match &found.written {
            Written::Nowhere => Written::Nowhere,
            Written::Here(record) => {
                // What is stored of the session, if anything is, knows as much.
                let next = Record { epoch: record.epoch, ..next(record) };
                self.local.note(session, &next, false);
                Written::Here(next)
            }
            Written::Stored(record) | Written::Beside(record) => {
                let next = next(record);
                let (old, new) = (record.to_string(), next.to_string());
                match self.store.rebind(session.as_str(), &old, &new, self.ttl, budget).await {
                    Ok(Replaced::Done) => {
                        self.local.confirm(session, &next);
                        Written::Stored(next)
                    }
                    // Another turn of the session has found it too, or knows better: the next turn goes by its word.
                    Ok(Replaced::Lost(_)) => Written::Nowhere,
                    Err(_) => {
                        self.local.note(session, &next, false);
                        Written::Here(next)
                    }
                }
            }
        };
        Binding { written, is_guess: false, ..found }
    }
}
