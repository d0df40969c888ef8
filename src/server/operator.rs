//! What operators ask and say, on the admin listener: which keys there are and how they are, what became of a session, and which
//! keys are to be used. Never a secret in it.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::routing::{get, post};
use futures_util::future::join_all;
use http::header::{CONTENT_TYPE, ORIGIN};
use http::{HeaderName, HeaderValue, Response};
use serde::Serialize;

use crate::client::authenticate::AdminToken;
use crate::error::{Error, Kind};
use crate::health::diagnose::Ailment;
use crate::health::operator::{Operator, Verb, View};
use crate::key::Key;
use crate::ledger::Ledger;
use crate::server::Settings;
use crate::setting::Secret;
use crate::telemetry::TurnId;
use crate::turn::Gateway;
use crate::upstream::probe::ask;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Who may ask.
pub enum Admission {
    /// Whoever shows it.
    Token(AdminToken),
    /// Whoever is on this machine.
    Local,
    /// Nobody: strangers could.
    Closed,
}

impl Admission {
    /// Without a token the admin listener believes this machine, and only if no other can reach it.
    pub fn of(settings: &Settings, token: Option<&Secret>) -> Self {
        match token {
            Some(token) => Self::Token(AdminToken::new(token)),
            None if settings.admin_listen.ip().is_loopback() => Self::Local,
            None => Self::Closed,
        }
    }
}

pub struct Desk {
    pub gateway: Arc<Gateway>,
    pub operator: Operator,
    pub admission: Admission,
    pub ledger: Arc<Ledger>,
}

pub(super) type Asked = State<Arc<Desk>>;
pub(super) type Told = Result<String, Error>;

pub fn operator_routes(desk: Arc<Desk>) -> Router {
    Router::new().route("/keys", get(keys)).route("/keys/{id}/{verb}", post(say)).with_state(desk)
}

/// Whatever else is asked on the admin listener.
pub async fn unknown(request: Request) -> Response<Body> {
    answer(Err(not_served(&request)))
}

async fn keys(State(desk): Asked, request: Request) -> Response<Body> {
    told(desk.admit(&request), async { written(&desk.operator.all().await) }).await
}

async fn say(State(desk): Asked, path: Result<Path<(String, String)>, PathRejection>, request: Request) -> Response<Body> {
    let meant = path.map_err(|_| unreadable()).and_then(|Path((name, verb))| {
        let verb = Verb::parse(&verb).ok_or_else(|| not_served(&request))?;
        Ok((name, verb))
    });
    let saying = async {
        let (name, verb) = meant?;
        desk.say(&name, verb).await
    };
    told(desk.admit(&request), saying).await
}

/// The answer to whoever is admitted.
pub(super) async fn told(admitted: Result<(), Error>, asked: impl Future<Output = Told>) -> Response<Body> {
    answer(match admitted {
        Ok(()) => asked.await,
        Err(error) => Err(error),
    })
}

/// What became of a word.
#[derive(Serialize)]
struct Done<'w> {
    name: &'w str,
    word: &'static str,
    /// Whether the other replicas have been told. Else they are as soon as the store is back.
    shared: bool,
    /// Those that it is about, as they are now.
    keys: Vec<View>,
    /// Where they were to be tried: what each key's upstream says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    answers: Vec<Answer>,
}

#[derive(Serialize)]
struct Answer {
    key: String,
    /// Nothing: it did not answer.
    status: Option<u16>,
    is_accepted: bool,
}

impl Desk {
    pub(super) fn admit(&self, request: &Request) -> Result<(), Error> {
        // A page in a browser on this machine can ask where this machine is believed.
        if request.headers().contains_key(ORIGIN) {
            return Err(Error::new(Kind::OriginNotAllowed, "Pages may not ask here."));
        }
        match &self.admission {
            Admission::Token(token) => token.authenticate(request.headers()),
            Admission::Local => Ok(()),
            Admission::Closed => Err(not_served(request)),
        }
    }

    async fn say(&self, name: &str, verb: Verb) -> Told {
        let meant = self
            .operator
            .find(name)
            .ok_or_else(|| Error::new(Kind::UnknownUrl, format!("There is no key {name}. An organization is named org:ID.")))?;
        let shared = self.operator.say(&meant, verb).await;
        tracing::info!(name, word = verb.name(), shared, "an operator's word");
        let answers = match verb {
            Verb::Probe => join_all(meant.keys.iter().map(|key| self.probe(key))).await,
            Verb::Disable | Verb::Enable | Verb::Drain => Vec::new(),
        };
        written(&Done { name, word: verb.name(), shared, keys: self.operator.views(&meant.keys), answers })
    }

    /// Asks the upstream, at no cost, whether it accepts a key. Turns need not try one that it does not.
    async fn probe(&self, key: &Key) -> Answer {
        let (status, refused) = ask(key).await.unzip();
        if let Some(scope) = refused.flatten() {
            self.gateway.registry.condemn(key, Ailment::Rejected(scope));
        }
        Answer {
            key: key.id.clone(),
            status: status.map(|status| status.as_u16()),
            is_accepted: status.is_some_and(|status| status.is_success()),
        }
    }
}

fn not_served(request: &Request) -> Error {
    Error::new(Kind::UnknownUrl, format!("Unknown request URL: {} {}.", request.method(), request.uri().path()))
}

fn unreadable() -> Error {
    Error::new(Kind::InvalidRequest, "The name of a key or an organization is text in UTF-8, percent-encoded in the URL.")
}

pub(super) fn written(value: &impl Serialize) -> Told {
    serde_json::to_string(value)
        .map_err(|error| Error::new(Kind::Internal, "The gateway failed on this request.").because(error.to_string()))
}

fn answer(told: Told) -> Response<Body> {
    let mut response = match told {
        Ok(text) => {
            let mut response = Response::new(Body::from(text));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => error.to_response(),
    };
    if let Ok(id) = HeaderValue::try_from(TurnId::random().to_string()) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
