//! Serves requests about a stored response: to retrieve, delete or cancel it, or to list its input.
//!
//! Each request goes to the project that stores the response, and only for the client that made it.
//! An id of another client is answered like an id that was never issued. No such request is a turn.

use std::sync::Arc;

use axum::body::Body;
use http::{Method, Request, Response};
use tokio::time::Instant;

use crate::binding::demand::{Demand, Tried};
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::metrics::Transport;
use crate::outcome::Answer;
use crate::session::identify::Identity;
use crate::turn::account::Account;
use crate::turn::http::course::Course;
use crate::turn::http::exchange::{HttpTurns, catch_panic, pass_on};
use crate::turn::http::id_gate::IdGate;
use crate::turn::http::issued::writer;
use crate::turn::http::relay::Outgoing;
use crate::turn::{Attempts, Gateway};
use crate::upstream::request::{Content, Request as Asked};
use crate::wire::endpoint::{Endpoint, StoredCall};

/// Serves one request about the stored response `id`.
pub async fn serve(
    turns: Arc<HttpTurns>,
    call: StoredCall,
    id: String,
    request: Request<Body>,
) -> Response<Outgoing> {
    let books = Arc::clone(&turns.gateway.books);
    let mut account = Account::open(books, Transport::Http, request.headers());
    account.note_operation(call.name());
    catch_panic(account.id, answer(&turns, account, Endpoint::Stored(call, &id), request)).await
}

async fn answer(
    turns: &HttpTurns,
    mut account: Account,
    endpoint: Endpoint<'_>,
    request: Request<Body>,
) -> Response<Outgoing> {
    match turns.ask_about(&mut account, endpoint, request).await {
        Ok((key, answer, gate)) => {
            let course = Course::new(&turns.gateway, &turns.replay.memory, key, account);
            pass_on(course, answer, gate, &turns.tasks).await
        }
        Err(error) => {
            account.note_error(&error);
            error.to_response()
        }
    }
}

impl HttpTurns {
    /// Asks the project that stores the response, up to the head of its answer.
    async fn ask_about(
        &self,
        account: &mut Account,
        endpoint: Endpoint<'_>,
        request: Request<Body>,
    ) -> Result<(Arc<Key>, Answer, Option<IdGate>), Error> {
        let Gateway { entry, bindings, failover, .. } = &*self.gateway;
        let Endpoint::Stored(call, id) = endpoint else {
            unreachable!("`serve` makes no other endpoint")
        };
        let (head, body) = request.into_parts();
        let (client, _) = entry.enter(account, &head)?;
        let body = self.replay.read(&client.id, head.version, body).await?;
        check_body(&head.method, &body.bytes)?;
        let complete = Instant::now();
        let mut budget = bindings.budget();
        let owner = entry.owner(&client.id, id, &mut budget).await?;
        account.note_session(&Identity { session: owner.session.clone(), skipped: 0 });
        let found = match &owner.session {
            Some(session) => bindings.look_up(session, &mut budget).await,
            None => Ok(None),
        };
        let (session, is_free) = (owner.session.clone(), true);
        let demand = Demand { session, is_free, ..Demand::of(&client) };
        let turn = (&demand, Tried::nothing(failover.options.wait), owner.reach());
        let content = match head.method {
            Method::POST => Content::Body(&body.bytes),
            _ => Content::Nothing,
        };
        let asked = Asked::new(&head, endpoint, content)
            .of_session(demand.session.as_ref())
            .with_hop(entry.identifier.hop(demand.session.as_ref(), &demand.lineage));
        let attempts = Attempts::new(&self.gateway, account, &asked, turn, &mut budget);
        let (binding, answer) = attempts.run(found, complete).await?;
        // A background response has made items since it was created, so `Retrieve` shows new ids. A
        // list of input items shows ids that the client chose itself; no owner is recorded for
        // these.
        let shows_items = matches!(call, StoredCall::Retrieve);
        let gate = (shows_items && answer.status.is_success()).then(|| {
            let write_down = writer((&self.gateway, &self.heavy), &client.id, owner, budget);
            IdGate::of_items(&answer.headers, &self.replay.memory, write_down)
        });
        Ok((binding.key, answer, gate))
    }
}

/// Refuses a body that says something. No request about a stored response has fields, and no rule
/// reads them. The bodies of other methods than POST never reach an upstream.
fn check_body(method: &Method, body: &[u8]) -> Result<(), Error> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
    let says: Vec<u8> = body.iter().copied().filter(|byte| !is_blank(byte)).take(3).collect();
    match *method != Method::POST || says.is_empty() || says == b"{}" {
        true => Ok(()),
        false => {
            let message = "A request about a stored response has no fields in its body.";
            Err(Error::new(ErrorKind::InvalidRequest, message))
        }
    }
}
