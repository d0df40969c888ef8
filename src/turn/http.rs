//! A turn over HTTP, from socket to socket: what surrounds the spine.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::Body;
use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, Request, Response};

use super::Gateway;
use super::account::Account;
use super::relay::relay;
use crate::error::{Error, Kind};
use crate::key::Key;
use crate::metrics::Transport;
use crate::outcome::Answer;
use crate::telemetry::TurnId;
use crate::upstream::headers::returned;

const TURN: HeaderName = HeaderName::from_static("x-warmkey-turn");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Serves one turn. However it ends, the client gets an answer and the turn is accounted for.
pub async fn serve(gateway: Arc<Gateway>, request: Request<Body>) -> Response<Body> {
    let account = Account::open(Arc::clone(&gateway.metrics), Transport::Http, request.headers());
    guarded(account.id, answer(&gateway, account, request)).await
}

/// An answer to the client, whatever becomes of `turn`.
pub async fn guarded(id: TurnId, turn: impl Future<Output = Response<Body>>) -> Response<Body> {
    let failed = |_| {
        tracing::error!(turn = %id, "a turn panicked");
        Error::new(Kind::Internal, "The gateway failed on this turn.").to_response()
    };
    named(AssertUnwindSafe(turn).catch_unwind().await.unwrap_or_else(failed), id)
}

/// A turn that is refused before anybody looks at it.
pub fn refuse(gateway: &Gateway, request: &Request<Body>, error: &Error) -> Response<Body> {
    let mut account = Account::open(Arc::clone(&gateway.metrics), Transport::Http, request.headers());
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
    match gateway.exchange(&mut account, request).await {
        Ok((key, answer)) => pass_on(gateway, &key, answer, account),
        Err(error) => {
            account.refused(&error);
            error.to_response()
        }
    }
}

pub fn pass_on(gateway: &Gateway, key: &Key, answer: Answer, mut account: Account) -> Response<Body> {
    account.answered(answer.status);
    let mut response = Response::new(());
    *response.status_mut() = answer.status;
    *response.headers_mut() = returned(&answer.headers, &key.secret);
    let (body, pump) = relay(answer, key.upstream.idle_timeout, account);
    gateway.tasks.spawn(pump.run());
    response.map(|()| Body::new(body))
}
