//! Serves a turn whose session's organization is forgotten: tries each other organization once, and
//! binds the session to the one that accepts.
//!
//! The client does not notice that the binding was forgotten. If no organization accepts, the
//! client receives the first one's answer.

use std::time::Duration;

use ::http::StatusCode;
use tokio::time::Instant;

use crate::binding::Binding;
use crate::error::Error;
use crate::health::diagnose::Ailment;
use crate::metrics::Reason;
use crate::outcome::Answer;
use crate::turn::doubt::Settled;
use crate::turn::verdict::{Verdict, as_403, undecided};
use crate::turn::{Ask, Attempts};

impl<A: Ask> Attempts<'_, A> {
    /// Searches after the provisional binding's key has answered `refused`: another organization
    /// has sealed the session's history.
    pub(super) async fn search(
        mut self,
        provisional: Binding,
        refused: Answer,
    ) -> Result<(Binding, Answer), Error> {
        let gateway = self.gateway;
        let mut tried = vec![provisional.key.organization_tag];
        // `later` is a refusal by an organization that may accept at another time. `other` is the
        // answer of an organization that can open the history but found another fault.
        let (mut later, mut other) = (None, None);
        loop {
            let Some(next) = gateway.bindings.next_untried(self.placing(), &provisional, &tried)
            else {
                break;
            };
            let began = Instant::now();
            match self.attempt(&next, true).await {
                Verdict::Deliver(answer) if answer.status.is_success() => {
                    let placing = self.demand.with_tried(&self.tried, self.within);
                    let found = gateway.bindings.correct(placing, next, self.budget).await;
                    return Ok(self.deliver(found, answer, began).await);
                }
                // A key that is out of use says nothing about its organization, so the loop tries a
                // sibling, if there is one.
                Verdict::Exhausted(scope) => {
                    gateway.registry.observe(&next.key, Ailment::Exhausted(scope));
                    continue;
                }
                Verdict::Doubted(answer, scope) => {
                    let case = (self.demand, self.demand.met(), &mut self.tried);
                    match gateway.settle(&next.key, scope, case).await {
                        Some(Settled::Accepted) => {
                            other = other.or(Some((next.clone(), as_403(answer))));
                        }
                        Some(Settled::Refused(_)) => continue,
                        Some(Settled::Undecided | Settled::Suspected) => {
                            later = later.or(Some(Err(undecided())));
                        }
                        // A reload has replaced the secret, and the new one is still to be asked.
                        None => continue,
                    }
                }
                Verdict::Deferred(wait) => later = later.or(Some(Err(busy_error(wait)))),
                Verdict::Again(Ok(answer)) => later = later.or(Some(Ok((next.clone(), answer)))),
                // The organization has not seen the turn, so it may accept it later.
                Verdict::GiveUp(error, Reason::Unreachable | Reason::Overloaded) => {
                    later = later.or(Some(Err(error)))
                }
                Verdict::GiveUp(error, _) | Verdict::Again(Err(error)) => {
                    self.refuse(&provisional, Reason::Forgotten);
                    return Err(error);
                }
                Verdict::Limited(wait) => {
                    gateway.registry.limit(&next.key, self.demand.model_use(), wait);
                    later = later.or(Some(Err(busy_error(wait))));
                }
                // An organization that limits its traffic has not looked at the history.
                Verdict::TooSteep(answer) => later = later.or(Some(Ok((next.clone(), answer)))),
                Verdict::Deliver(answer) if answer.status == StatusCode::TOO_MANY_REQUESTS => {
                    later = later.or(Some(Ok((next.clone(), answer))));
                }
                Verdict::Deliver(answer) => other = other.or(Some((next.clone(), answer))),
                Verdict::Denied(_) | Verdict::Foreign(_) => {}
            }
            tried.push(next.key.organization_tag);
        }
        let last = match (other, later) {
            (Some(other), _) => other,
            (None, later) => {
                self.refuse(&provisional, Reason::Forgotten);
                match later {
                    Some(later) => later?,
                    None => {
                        gateway.bindings.give_up(self.placing(), &tried)?;
                        (provisional, refused)
                    }
                }
            }
        };
        // The turn is recorded at the key whose answer the client receives.
        self.note(&last.0);
        Ok(last)
    }
}

fn busy_error(wait: Duration) -> Error {
    Error::limited("Every upstream key that may serve this session is cooling.", wait)
}
