//! Moves a session when its key can serve no more. Each move is a compare-and-set with one winner,
//! and the losers use the winner's key.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::binding::Binding;
use crate::binding::bind::Bindings;
use crate::binding::demand::Placing;
use crate::binding::place::{Standing, none_in_use};
use crate::binding::record::{BindingRecord, state_tag};
use crate::binding::trail::Step;
use crate::error::Error;
use crate::key::Key;
use crate::limit::{chance, jittered};
use crate::metrics::{BindingResult, Decision, Reason};
use crate::session::SessionId;
use crate::store::name::Name;
use crate::store::{Budget, Replaced};

impl Bindings {
    /// Moves the session from `record` to the next key that may serve, by compare-and-set. A loser
    /// uses the winner's binding, and tries again only if that key can serve no more either. The
    /// loop runs at most once per key.
    pub(super) async fn replace(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        mut record: BindingRecord,
        mut reason: Reason,
        budget: &mut Budget,
    ) -> Result<Binding, Error> {
        let mut wait_left = placing.tried.wait_left;
        for _ in 0..=self.places.count() {
            let key = self.place_moved(placing, session, &record, &mut wait_left).await?;
            let next = record.moved_to(
                &key,
                self.places.generation(),
                placing.demand.turn_state.map(state_tag),
            );
            let outcome = self
                .store
                .rebind(
                    Name::Binding(session.as_str()),
                    &record.to_string(),
                    &next.to_string(),
                    self.ttl,
                    budget,
                )
                .await;
            let current = match outcome {
                Ok(Replaced::Done) => match self.newer(session, &next) {
                    None => {
                        self.record_decision(session, Decision::Move, reason, &record, &key);
                        return Ok(
                            Binding::stored(&key, session, next, BindingResult::Rebound).moved()
                        );
                    }
                    Some(newer) => newer,
                },
                Ok(Replaced::Lost(winner)) => match BindingRecord::parse(&winner) {
                    Some(winner) => self.newer(session, &winner).unwrap_or(winner),
                    None => return self.beside_store(placing, session),
                },
                Err(_) => {
                    return self.use_unconfirmed(placing, session, next, false).map(Binding::moved);
                }
            };
            match self.places.standing(placing, &current) {
                Standing::Ready(key) => {
                    return Ok(
                        Binding::stored(&key, session, current, BindingResult::Existing).moved()
                    );
                }
                Standing::Bypassed(reason) => {
                    return self.spill(placing, session, &current, reason).map(Binding::moved);
                }
                Standing::Dead(now) => (record, reason) = (current, now),
                Standing::OtherProject => return self.serve_beside(placing, session, &current),
            }
        }
        Err(none_in_use())
    }

    /// Returns the key that the session moves to, once that key takes one more session.
    async fn place_moved(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        record: &BindingRecord,
        wait_left: &mut Duration,
    ) -> Result<Arc<Key>, Error> {
        // A client that leaves releases the permit, too.
        let mut permit = None;
        loop {
            let within = |reach| self.places.place_moved(placing, session, reach);
            let found =
                within(placing.reach(record)).or_else(|_| within(placing.last_reach(record)));
            let wait = match found? {
                Ok(key) => return Ok(key),
                Err(wait) => jittered(wait, chance()),
            };
            let is_first = permit.is_none();
            permit =
                permit.or_else(|| self.movers.try_acquire().ok().filter(|_| wait <= *wait_left));
            if wait > *wait_left || permit.is_none() {
                return Err(Error::limited(
                    "Too many sessions move to the keys that may serve this one.",
                    wait,
                ));
            }
            if is_first {
                let (decision, reason) = (Decision::Wait, Reason::Crowded);
                self.trail.record(&Step {
                    session: Some(session),
                    decision,
                    reason,
                    from: None,
                    to: None,
                });
            }
            *wait_left -= wait;
            sleep(wait).await;
        }
    }
}
