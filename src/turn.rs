//! A turn: one request and its answer, from authenticating its client to accounting for what it cost.

use std::sync::Arc;

use ::http::{HeaderValue, Request, Uri};
use axum::body::Body;
use tokio::time::Instant;

use crate::binding::Binding;
use crate::binding::place::{Sealed, Wanted};
use crate::binding::table::Bindings;
use crate::client::{Client, Clients};
use crate::current::Current;
use crate::error::{Error, Kind};
use crate::key::Key;
use crate::key::registry::Registry;
use crate::metrics::Metrics;
use crate::outcome::Answer;
use crate::session::identify::{Identifier, Identity};
use crate::store::Budget;
use crate::task::Tasks;
use crate::upstream::call::{Sent, send};
use crate::upstream::headers::TURN_STATE;

pub mod account;
pub mod failover;
pub mod search;
pub mod http;
pub mod relay;
pub mod replay;

use account::Account;
use failover::{Verdict, decide};
use replay::{Replay, Text};
use search::Search;

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
    /// Which keys are in use.
    pub registry: Arc<Registry>,
    /// The memory that request bodies are held in.
    pub replay: Replay,
    pub metrics: Arc<Metrics>,
    /// Owns what outlives a turn.
    pub tasks: Tasks,
}

impl Gateway {
    /// The spine: everything up to the head of an answer. Until then, and never after, a failed attempt may move to another key.
    async fn exchange(&self, account: &mut Account, request: Request<Body>) -> Result<(Arc<Key>, Answer), Error> {
        let client = self.clients.get().authenticate(request.headers())?;
        account.client(&client.id);
        refuse_credentials(request.uri())?;
        let (head, body) = request.into_parts();
        let identity = self.identifier.by_headers(&client.id, &head.headers);
        let mut budget = self.bindings.budget();

        // The store answers while the body is still coming.
        let look_up = async {
            match &identity.session {
                Some(session) => Some(self.bindings.look_up(session, &mut budget).await),
                None => None,
            }
        };
        let (body, found) = tokio::join!(self.replay.read(&head.headers, body), look_up);
        let body = body?;
        let whole = Instant::now();
        let (identity, sealed) = self.glance(&client, &head.headers, &body, identity)?;
        account.session(&identity);
        let found = match (found, &identity.session) {
            (None, Some(session)) => self.bindings.look_up(session, &mut budget).await,
            (found, _) => found.unwrap_or(Ok(None)),
        };

        let sent = Sent { headers: &head.headers, query: head.uri.query(), body: &body.bytes };
        let turn_state = head.headers.get(TURN_STATE).map(HeaderValue::as_bytes);
        let carries_sealed = sealed.map_or(Sealed::In(&body.bytes), Sealed::Known);
        let lineage = self.identifier.lineage(&client.id, &head.headers);
        let wanted = Wanted { session: identity.session, lineage, client: &client, carries_sealed, turn_state };
        let mut binding = self.bindings.bind(&wanted, found, &mut budget).await?;
        let first = Arc::clone(&binding.key);
        account.overhead(whole);
        loop {
            account.bound(&binding, !binding.key.shares_cache_with(&first), self.registry.enter(&binding.key));
            let is_foreign_state = turn_state.is_some_and(|state| binding.is_foreign_state(state));
            match decide(send(&sent, &binding.key, is_foreign_state).await) {
                Verdict::Deliver(answer) => return Ok(self.deliver(binding, answer, &mut budget).await),
                Verdict::GiveUp(error) => return Err(error),
                Verdict::Foreign(answer) if binding.is_guess => {
                    let search = Search { gateway: self, sent: &sent, wanted: &wanted, guess: &binding };
                    return search.run(account, answer, &mut budget).await;
                }
                Verdict::Foreign(answer) => return Ok((binding.key, answer)),
                Verdict::Move(ailment, answer) => {
                    if let Some(successor) = self.registry.successor(&binding.key) {
                        // Refused was what it showed before a reload.
                        binding.key = successor;
                        continue;
                    }
                    self.registry.disable(&binding.key, ailment);
                    binding = match self.bindings.rebind(&wanted, &binding, &mut budget).await {
                        Ok(next) => next,
                        // Nowhere left: what the upstream says of its quota its client must hear; what it says of our key not.
                        Err(_) if ailment.is_for_the_client() => return Ok((binding.key, answer)),
                        Err(error) => return Err(error),
                    };
                }
            }
        }
    }

    /// All that is to be learned from the body's text, which is not kept: what the client asks for, the session where the
    /// headers said nothing, and whether the text shows sealed content (`None`: it is the body itself, and can be asked later).
    fn glance(
        &self,
        client: &Client,
        headers: &::http::HeaderMap,
        body: &replay::Replayed,
        mut identity: Identity,
    ) -> Result<(Identity, Option<bool>), Error> {
        let text = self.replay.text(headers, body)?;
        let peek = text.bytes().map(replay::peek).transpose()?.unwrap_or_default();
        if !client.may_ask_for(peek.model.text()) {
            return Err(Error::new(Kind::ModelNotAllowed, "This client may not ask for this model."));
        }
        if identity.session.is_none() {
            let by_body = self.identifier.by_body(&client.id, &peek, text.bytes().unwrap_or_default());
            identity = Identity { skipped: identity.skipped + by_body.skipped, ..by_body };
        }
        let sealed = match &text {
            Text::Plain(_) => None,
            Text::Decoded(text, _) => Some(Sealed::In(text).is_sealed()),
            Text::Unreadable => Some(true),
        };
        Ok((identity, sealed))
    }

    async fn deliver(&self, binding: Binding, answer: Answer, budget: &mut Budget) -> (Arc<Key>, Answer) {
        if answer.status.is_success() {
            self.registry.has_served(&binding.key);
            self.bindings.confirm(&binding, budget).await;
        }
        (binding.key, answer)
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
