//! A turn: one request and its answer, from authenticating its client to accounting for what it cost.

use std::sync::Arc;

use ::http::request::Parts;
use ::http::{HeaderMap, HeaderValue, Uri};
use tokio::time::Instant;

use crate::binding::Binding;
use crate::binding::owner::Owners;
use crate::binding::place::{Sealed, Wanted};
use crate::binding::select::Reach;
use crate::binding::table::{Bindings, Found};
use crate::client::{Client, Clients};
use crate::current::Current;
use crate::error::{Error, Kind};
use crate::key::registry::Registry;
use crate::metrics::Metrics;
use crate::outcome::Answer;
use crate::session::identify::{Identifier, Identity};
use crate::store::Budget;
use crate::task::Tasks;
use crate::upstream::call::{Ask, Sent, send};
use crate::upstream::headers::TURN_STATE;

pub mod account;
pub mod failover;
pub mod search;
pub mod replay;
pub mod idle;
pub mod relay;
pub mod issued;
pub mod held;
pub mod owned;
pub mod http;
pub mod frame;
pub mod lanes;
pub mod hop;
pub mod parting;
pub mod sockets;
pub mod socket;
pub mod websocket;

use account::Account;
use failover::{Verdict, decide};
use owned::ForeignIds;
use replay::Replay;
use search::Search;
use sockets::Sockets;

/// Query parameters in which a client might show a credential: they would end up in logs on the way.
const CREDENTIALS: [&str; 5] = ["key", "api_key", "api-key", "token", "access_token"];

/// All that serving turns needs: one a replica, shared by its turns.
pub struct Gateway {
    /// Who may call.
    pub clients: Arc<Current<Clients>>,
    /// Which session a turn belongs to.
    pub identifier: Identifier,
    /// Which key a session is bound to.
    pub bindings: Bindings,
    /// Whose a stored response is.
    pub owners: Arc<Owners>,
    /// What becomes of ids that never passed through here.
    pub foreign_ids: ForeignIds,
    /// Which keys are in use.
    pub registry: Arc<Registry>,
    /// The memory that request bodies are held in.
    pub replay: Replay,
    pub metrics: Arc<Metrics>,
    /// The WebSockets that are open.
    pub sockets: Sockets,
    /// Owns what outlives a turn.
    pub tasks: Tasks,
}

/// What is sent upstream, and with how much time for the store.
struct Sending<'t> {
    ask: Ask<'t>,
    head: &'t Parts,
    /// When all of it was here.
    whole: Instant,
    budget: Budget,
}

impl Gateway {
    /// Who calls, and for which session, as far as the head tells.
    fn receive(&self, account: &mut Account, head: &Parts) -> Result<(Arc<Client>, Identity), Error> {
        let client = self.clients.get().authenticate(&head.headers)?;
        account.client(&client.id);
        refuse_credentials(&head.uri)?;
        let identity = self.identifier.by_headers(&client.id, &head.headers);
        Ok((client, identity))
    }

    fn wanted<'t>(
        &self,
        client: &'t Client,
        headers: &'t HeaderMap,
        identity: Identity,
        carries_sealed: Sealed<'t>,
        by_websocket: bool,
    ) -> Wanted<'t> {
        let turn_state = headers.get(TURN_STATE).map(HeaderValue::as_bytes);
        let lineage = self.identifier.lineage(&client.id, headers);
        let within = Reach::Anywhere;
        Wanted { session: identity.session, lineage, client, carries_sealed, turn_state, by_websocket, within }
    }

    /// The spine: binds, and asks until there is an answer. Until then, and never after, a failed attempt may move to another key.
    async fn serve(
        &self,
        account: &mut Account,
        sending: &mut Sending<'_>,
        wanted: &Wanted<'_>,
        found: Found,
    ) -> Result<(Binding, Answer), Error> {
        let Sending { ask, head, whole, budget } = sending;
        let sent = Sent { headers: &head.headers, query: head.uri.query(), ask: *ask };
        let mut binding = self.bindings.bind(wanted, found, budget).await?;
        let first = Arc::clone(&binding.key);
        account.overhead(*whole);
        loop {
            account.bound(&binding, !binding.key.shares_cache_with(&first), self.registry.enter(&binding.key));
            let is_foreign_state = wanted.turn_state.is_some_and(|state| binding.is_foreign_state(state));
            match decide(send(&sent, &binding.key, is_foreign_state).await) {
                Verdict::Deliver(answer) => return Ok(self.deliver(binding, answer, budget).await),
                Verdict::GiveUp(error) => return Err(error),
                Verdict::Foreign(answer) if binding.is_guess => {
                    let search = Search { gateway: self, sent: &sent, wanted, guess: &binding };
                    return search.run(account, answer, budget).await;
                }
                Verdict::Foreign(answer) => return Ok((binding, answer)),
                Verdict::Move(ailment, answer) => {
                    if let Some(successor) = self.registry.successor(&binding.key) {
                        // Refused was what it showed before a reload.
                        binding.key = successor;
                        continue;
                    }
                    self.registry.disable(&binding.key, ailment);
                    binding = match self.bindings.rebind(wanted, &binding, budget).await {
                        Ok(next) => next,
                        // Nowhere left: what the upstream says of its quota its client must hear; what it says of our key not.
                        Err(_) if ailment.is_for_the_client() => return Ok((binding, answer)),
                        Err(error) => return Err(error),
                    };
                }
            }
        }
    }

    async fn deliver(&self, binding: Binding, answer: Answer, budget: &mut Budget) -> (Binding, Answer) {
        if answer.status.is_success() {
            self.registry.has_served(&binding.key);
            self.bindings.confirm(&binding, budget).await;
        }
        (binding, answer)
    }
}

fn refuse_credentials(uri: &Uri) -> Result<(), Error> {
    let names = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split('=').next());
    match names.into_iter().any(|name| CREDENTIALS.iter().any(|one| name.eq_ignore_ascii_case(one))) {
        true => {
            Err(Error::new(Kind::InvalidApiKey, "A credential in the URL is not accepted: send `Authorization: Bearer TOKEN`."))
        }
        false => Ok(()),
    }
}
