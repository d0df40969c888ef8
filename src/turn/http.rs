//! A turn over HTTP, from socket to socket.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::Body;
use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, Request, Response};
use tokio::time::Instant;

use super::account::Account;
use super::failover::{Verdict, decide};
use super::relay::relay;
use super::{Gateway, replay};
use crate::binding::Binding;
use crate::binding::table::Wanted;
use crate::error::{Error, Kind};
use crate::key::Key;
use crate::outcome::Answer;
use crate::session::peek::Peek;
use crate::telemetry::TurnId;
use crate::upstream::call::{Sent, send};
use crate::upstream::headers::{TURN_STATE, returned};

const TURN: HeaderName = HeaderName::from_static("x-warmkey-turn");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A field that only an organization's own blobs have. Inside a text its quotes would be escaped.
const SEALED: &[u8] = br#""encrypted_content""#;

/// Serves one turn. However it ends, the client gets an answer and the turn is accounted for.
pub async fn serve(gateway: Arc<Gateway>, request: Request<Body>) -> Response<Body> {
    let account = Account::open(Arc::clone(&gateway.metrics), request.headers());
    let id = account.id;
    let turn = AssertUnwindSafe(answer(&gateway, account, request)).catch_unwind();
    named(turn.await.unwrap_or_else(|_| Error::new(Kind::Internal, "The gateway failed on this turn.").to_response()), id)
}

/// A turn that is refused before anybody looks at it.
pub fn refuse(gateway: &Gateway, request: &Request<Body>, error: &Error) -> Response<Body> {
    let mut account = Account::open(Arc::clone(&gateway.metrics), request.headers());
    account.refused(error);
    named(error.to_response(), account.id)
}

/// Every answer carries its turn's name, and a request id even if no upstream gave one.
fn named(mut response: Response<Body>, id: TurnId) -> Response<Body> {
    if let Ok(name) = HeaderValue::try_from(id.to_string()) {
        response.headers_mut().entry(REQUEST_ID).or_insert_with(|| name.clone());
        response.headers_mut().insert(TURN, name);
    }
    response
}

async fn answer(gateway: &Gateway, mut account: Account, request: Request<Body>) -> Response<Body> {
    match exchange(gateway, &mut account, request).await {
        Ok((key, answer)) => pass_on(gateway, &key, answer, account),
        Err(error) => {
            account.refused(&error);
            error.to_response()
        }
    }
}

/// Everything up to the head of an answer: until then, and never after, a failed attempt may move to another key.
async fn exchange(gateway: &Gateway, account: &mut Account, request: Request<Body>) -> Result<(Arc<Key>, Answer), Error> {
    let client = gateway.clients.authenticate(request.headers())?;
    account.client(&client.id);
    let (head, body) = request.into_parts();
    let mut identity = gateway.identifier.by_headers(&client.id, &head.headers);
    account.skipped_signals(identity.skipped);
    let mut budget = gateway.bindings.budget();

    // The store answers while the body is still coming.
    let look_up = async {
        match &identity.session {
            Some(session) => Some(gateway.bindings.look_up(session, &mut budget).await),
            None => None,
        }
    };
    let (body, found) = tokio::join!(gateway.replay.read(&head.headers, body), look_up);
    let body = body?;
    let whole = Instant::now();
    let text = body.text(&head.headers)?;
    let peek = text.as_deref().map(replay::peek).transpose()?.unwrap_or_else(Peek::default);
    if !client.may_ask_for(peek.model.text()) {
        return Err(Error::new(Kind::ModelNotAllowed, "This client may not ask for this model."));
    }
    if identity.session.is_none() {
        identity = gateway.identifier.by_body(&client.id, &peek, text.as_deref().unwrap_or_default());
        account.skipped_signals(identity.skipped);
    }
    let found = match (found, &identity.session) {
        (None, Some(session)) => gateway.bindings.look_up(session, &mut budget).await,
        (found, _) => found.unwrap_or(Ok(None)),
    };

    let carries_sealed = || text.as_deref().is_some_and(|text| memchr::memmem::find(text, SEALED).is_some());
    let state = head.headers.get(TURN_STATE).map(HeaderValue::as_bytes);
    let wanted = Wanted { session: identity.session, client: &client, carries_sealed: &carries_sealed, turn_state: state };
    let sent = Sent { headers: &head.headers, query: head.uri.query(), body: &body.bytes };
    let mut binding = gateway.bindings.bind(&wanted, found, &mut budget).await?;
    let first = Arc::clone(&binding.key);
    account.overhead(whole);
    loop {
        account.bound(&binding, !binding.key.shares_cache_with(&first), gateway.registry.enter(&binding.key));
        let is_foreign_state = state.is_some_and(|state| binding.is_foreign_state(state));
        let outcome = send(&sent, &binding.key, is_foreign_state).await;
        match decide(outcome) {
            Verdict::Deliver(answer) => return Ok(deliver(gateway, &binding, answer)),
            Verdict::GiveUp(error) => return Err(error),
            Verdict::Move(ailment, answer) => {
                gateway.registry.disable(&binding.key, ailment);
                binding = match gateway.bindings.rebind(&wanted, &binding, &mut budget).await {
                    Ok(next) => next,
                    // Nowhere left: what the upstream says of its quota its client must hear; what it says of our key not.
                    Err(_) if ailment.is_for_the_client() => return Ok((binding.key, answer)),
                    Err(error) => return Err(error),
                };
            }
        }
    }
}

fn deliver(gateway: &Gateway, binding: &Binding, answer: Answer) -> (Arc<Key>, Answer) {
    if answer.status.is_success() {
        gateway.bindings.confirm(binding);
    }
    (Arc::clone(&binding.key), answer)
}

fn pass_on(gateway: &Gateway, key: &Key, answer: Answer, mut account: Account) -> Response<Body> {
    account.answered(answer.status);
    let mut response = Response::new(());
    *response.status_mut() = answer.status;
    *response.headers_mut() = returned(&answer.headers, &key.secret);
    let (body, pump) = relay(answer, key.upstream.idle_timeout, account);
    gateway.tasks.spawn(pump.run());
    response.map(|()| Body::new(body))
}
