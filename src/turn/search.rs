//! A turn whose session's organization is forgotten: asks each other organization once, and binds
//! the one that accepts.
//!
//! The client never sees the forgetting. Where nobody accepts, it gets what the first one said.

use std::time::SystemTime;

use tokio::time::Instant;

use crate::binding::Binding;
use crate::binding::demand::Wanted;
use crate::error::Error;
use crate::metrics::Reason;
use crate::outcome::Answer;
use crate::store::Budget;
use crate::turn::Gateway;
use crate::turn::account::Account;
use crate::turn::verdict::{Verdict, decide};
use crate::upstream::attempt::{Sent, send};

/// A turn that its first key could not serve, because another organization has sealed its history.
pub struct Search<'t> {
    pub gateway: &'t Gateway,
    pub sent: &'t Sent<'t>,
    pub wanted: &'t Wanted<'t>,
    pub provisional: &'t Binding,
}

impl Search<'_> {
    /// `refused`: what the first key answered.
    pub async fn run(
        self,
        account: &mut Account,
        refused: Answer,
        budget: &mut Budget,
    ) -> Result<(Binding, Answer), Error> {
        let Self { gateway, sent, wanted, provisional } = self;
        let mut tried = vec![provisional.key.organization_tag];
        // What an organization said that may be the right one, at another time; and what one said
        // that could open the history, and had another fault to find.
        let (mut later, mut other) = (None, None);
        while let Some(next) = gateway.bindings.elsewhere(wanted, provisional, &tried) {
            let moves_domain = !next.key.shares_cache_with(&provisional.key);
            account.bound(&next, moves_domain, &gateway.registry.loads);
            let began = Instant::now();
            // One that fails or is short may be the right one, at another time.
            match decide(send(sent, &next.key, true).await, false, SystemTime::now()) {
                Verdict::Deliver(answer) if answer.status.is_success() => {
                    let found = gateway.bindings.correct(wanted, next, budget).await;
                    return Ok(gateway.deliver(found, answer, began, budget).await);
                }
                Verdict::Again(Ok(answer)) => {
                    tried.push(next.key.organization_tag);
                    later.get_or_insert(Ok((next, answer)));
                }
                // It has seen nothing of the turn.
                Verdict::GiveUp(
                    error,
                    Reason::Unreachable | Reason::Overloaded | Reason::TooSteep,
                ) => {
                    tried.push(next.key.organization_tag);
                    later.get_or_insert(Err(error));
                }
                Verdict::GiveUp(error, _) | Verdict::Again(Err(error)) => {
                    gateway.refuse(wanted, provisional, Reason::Forgotten);
                    return Err(error);
                }
                // It was not asked: a sibling is, if there is one.
                Verdict::Ailing(ailment) => gateway.registry.observe(&next.key, ailment),
                Verdict::Limited(wait) => {
                    gateway.registry.limit(&next.key, wanted.model, wait);
                    tried.push(next.key.organization_tag);
                    later.get_or_insert(Err(Error::limited(
                        "Every upstream key that may serve this session is cooling.",
                        wait,
                    )));
                }
                Verdict::Deliver(answer) => {
                    tried.push(next.key.organization_tag);
                    other.get_or_insert((next, answer));
                }
                Verdict::Denied(_) | Verdict::Foreign(_) => tried.push(next.key.organization_tag),
            }
        }
        // Whose answer is passed on is accounted for, not who was asked last.
        let mut pass_on = |(binding, answer): (Binding, Answer)| {
            account.bound(
                &binding,
                !binding.key.shares_cache_with(&provisional.key),
                &gateway.registry.loads,
            );
            (binding, answer)
        };
        if let Some(other) = other {
            return Ok(pass_on(other));
        }
        gateway.refuse(wanted, provisional, Reason::Forgotten);
        if let Some(later) = later {
            return later.map(pass_on);
        }
        gateway.bindings.give_up(wanted, &tried)?;
        Ok(pass_on((provisional.clone(), refused)))
    }
}
