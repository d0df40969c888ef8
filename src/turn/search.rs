//! A turn whose session's organization is forgotten: asks each other organization once, and binds the one that accepts.
//!
//! The client never sees the forgetting. Where nobody accepts, it gets what the first one said.

use http::StatusCode;

use super::Gateway;
use super::account::Account;
use super::failover::{Verdict, decide};
use crate::binding::Binding;
use crate::binding::place::Wanted;
use crate::error::{Error, Kind};
use crate::outcome::Answer;
use crate::store::Budget;
use crate::upstream::call::{Sent, send};

/// A turn that its first key could not serve, because another organization has sealed its history.
pub struct Search<'t> {
    pub gateway: &'t Gateway,
    pub sent: &'t Sent<'t>,
    pub wanted: &'t Wanted<'t>,
    pub guess: &'t Binding,
}

impl Search<'_> {
    /// `refused`: what the first key answered.
    pub async fn run(self, account: &mut Account, refused: Answer, budget: &mut Budget) -> Result<(Binding, Answer), Error> {
        let Self { gateway, sent, wanted, guess } = self;
        let mut tried = vec![guess.key.organization_tag];
        // What an organization said that may be the right one, at another time.
        let mut later = None;
        while let Some(next) = gateway.bindings.elsewhere(wanted, guess, &tried) {
            let moves_domain = !next.key.shares_cache_with(&guess.key);
            account.bound(&next, moves_domain, gateway.registry.enter(&next.key));
            match decide(send(sent, &next.key, true).await) {
                Verdict::Deliver(answer) if answer.status.is_success() => {
                    let found = gateway.bindings.correct(wanted, next, budget).await;
                    return Ok(gateway.deliver(found, answer, budget).await);
                }
                Verdict::Deliver(answer) if is_passing(answer.status) => {
                    tried.push(next.key.organization_tag);
                    later.get_or_insert(Ok((next, answer)));
                }
                // It has seen nothing of the turn.
                Verdict::GiveUp(error) if error.kind == Kind::UpstreamUnreachable => {
                    tried.push(next.key.organization_tag);
                    later.get_or_insert(Err(error));
                }
                Verdict::GiveUp(error) => return Err(error),
                // It was not asked: a sibling is, if there is one.
                Verdict::Move(ailment, _) => gateway.registry.disable(&next.key, ailment),
                Verdict::Deliver(_) | Verdict::Foreign(_) => tried.push(next.key.organization_tag),
            }
        }
        if let Some(later) = later {
            return later;
        }
        gateway.bindings.give_up(wanted, &tried)?;
        account.bound(guess, false, gateway.registry.enter(&guess.key));
        Ok((guess.clone(), refused))
    }
}

/// Whether the same turn may be answered otherwise at another time.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}
