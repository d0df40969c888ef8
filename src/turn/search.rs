//! A turn whose session's organization is forgotten: asks each other organization once, and binds
//! the session to the one that accepts.
//!
//! The client never sees the forgetting. If no organization accepts, the client gets what the first
//! one said.

use tokio::time::Instant;

use crate::binding::Binding;
use crate::error::Error;
use crate::metrics::Reason;
use crate::outcome::Answer;
use crate::turn::verdict::Verdict;
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
        // What an organization said that may be the right one, at another time; and what one said
        // that could open the history, and found another fault.
        let (mut later, mut other) = (None, None);
        loop {
            let placing = self.demand.after(&self.tried);
            let Some(next) = gateway.bindings.next_untried(placing, &provisional, &tried) else {
                break;
            };
            let began = Instant::now();
            match self.attempt(&next, true).await {
                Verdict::Deliver(answer) if answer.status.is_success() => {
                    let placing = self.demand.after(&self.tried);
                    let found = gateway.bindings.correct(placing, next, self.budget).await;
                    return Ok(self.deliver(found, answer, began).await);
                }
                // A key that is out of use was not asked: a sibling is, if there is one.
                Verdict::Ailing(ailment) => {
                    gateway.registry.observe(&next.key, ailment);
                    continue;
                }
                Verdict::Again(Ok(answer)) => later = later.or(Some(Ok((next.clone(), answer)))),
                // The organization has seen nothing of the turn.
                Verdict::GiveUp(
                    error,
                    Reason::Unreachable | Reason::Overloaded | Reason::TooSteep,
                ) => later = later.or(Some(Err(error))),
                Verdict::GiveUp(error, _) | Verdict::Again(Err(error)) => {
                    self.refuse(&provisional, Reason::Forgotten);
                    return Err(error);
                }
                Verdict::Limited(wait) => {
                    gateway.registry.limit(&next.key, self.demand.model, wait);
                    later = later.or(Some(Err(Error::limited(
                        "Every upstream key that may serve this session is cooling.",
                        wait,
                    ))));
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
                        gateway.bindings.give_up(self.demand.after(&self.tried), &tried)?;
                        (provisional, refused)
                    }
                }
            }
        };
        // The turn is accounted for at the key whose answer is passed on.
        self.note(&last.0);
        Ok(last)
    }
}
