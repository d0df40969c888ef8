//! The operator's API on the admin listener: shows keys and sessions, and takes commands on keys.
//! Never shows a secret.

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
use crate::error::{Error, ErrorKind};
use crate::health::diagnose::Ailment;
use crate::health::operator::{KeyView, Operator, OperatorCommand};
use crate::key::Key;
use crate::ledger::Ledger;
use crate::server::ServerSettings;
use crate::server::pages::is_for_this_machine;
use crate::setting::Secret;
use crate::telemetry::TurnId;
use crate::turn::Gateway;
use crate::turn::memory::BodyMemory;
use crate::upstream::probe::ask;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Which callers may use the operator's API.
pub enum Access {
    /// Callers that send the token.
    Token(AdminToken),
    /// Every caller on this machine.
    Local,
    /// No caller, because strangers could reach the listener.
    Closed,
}

impl Access {
    /// Returns who may use the API. Without a token, the API trusts this machine, but only if no
    /// other machine can reach the admin listener.
    pub fn of(settings: &ServerSettings, token: Option<&Secret>) -> Self {
        match token {
            Some(token) => Self::Token(AdminToken::new(token)),
            None if settings.admin_listen.ip().is_loopback() => Self::Local,
            None => Self::Closed,
        }
    }
}

pub struct AdminApi {
    pub gateway: Arc<Gateway>,
    pub operator: Operator,
    pub access: Access,
    pub ledger: Arc<Ledger>,
    pub memory: BodyMemory,
}

pub(super) type Asked = State<Arc<AdminApi>>;
pub(super) type Reply = Result<String, Error>;

pub fn operator_routes(api: Arc<AdminApi>) -> Router {
    Router::new()
        .route("/keys", get(keys))
        .route("/keys/{id}/{command}", post(give))
        .with_state(api)
}

/// Answers requests that no other route of the admin listener takes.
pub async fn unknown(request: Request) -> Response<Body> {
    answer(Err(not_served(&request)))
}

async fn keys(State(api): Asked, request: Request) -> Response<Body> {
    answer_if(api.admit(&request), async { to_json(&api.operator.all().await) }).await
}

async fn give(
    State(api): Asked,
    path: Result<Path<(String, String)>, PathRejection>,
    request: Request,
) -> Response<Body> {
    let target = path.map_err(|_| unreadable()).and_then(|Path((name, command))| {
        let command = OperatorCommand::parse(&command).ok_or_else(|| not_served(&request))?;
        Ok((name, command))
    });
    let giving = async {
        let (name, command) = target?;
        api.give(&name, command).await
    };
    answer_if(api.admit(&request), giving).await
}

/// Runs `asked` if the caller may use the API.
pub(super) async fn answer_if(
    admitted: Result<(), Error>,
    asked: impl Future<Output = Reply>,
) -> Response<Body> {
    answer(match admitted {
        Ok(()) => asked.await,
        Err(error) => Err(error),
    })
}

/// The result of a command.
#[derive(Serialize)]
struct Done<'w> {
    name: &'w str,
    word: &'static str,
    /// Whether the other replicas have received the command. If not, they receive it once the store
    /// is back.
    shared: bool,
    /// The keys that the command concerns, as they are now.
    keys: Vec<KeyView>,
    /// For a probe: the answer of each key's upstream.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    answers: Vec<Answer>,
}

#[derive(Serialize)]
struct Answer {
    key: String,
    /// The status of the upstream's answer. `None`: the upstream did not answer.
    status: Option<u16>,
    is_accepted: bool,
}

fn no_page() -> Error {
    Error::new(ErrorKind::OriginNotAllowed, "Pages may not ask here.")
}

impl AdminApi {
    pub(super) fn admit(&self, request: &Request) -> Result<(), Error> {
        // This machine is trusted, so a page in a browser on it could otherwise send commands.
        if request.headers().contains_key(ORIGIN) {
            return Err(no_page());
        }
        match &self.access {
            Access::Token(token) => token.authenticate(request.headers()),
            Access::Local if !is_for_this_machine(request.uri(), request.headers()) => {
                Err(no_page())
            }
            Access::Local => Ok(()),
            Access::Closed => Err(not_served(request)),
        }
    }

    async fn give(&self, name: &str, command: OperatorCommand) -> Reply {
        let target = self.operator.find(name).ok_or_else(|| {
            Error::new(
                ErrorKind::UnknownUrl,
                format!("There is no key {name}. An organization is named org:ID."),
            )
        })?;
        let shared = self.operator.give(&target, command).await;
        tracing::info!(name, word = command.name(), shared, "an operator's command");
        let answers = match command {
            OperatorCommand::Probe => join_all(target.keys.iter().map(|key| self.probe(key))).await,
            OperatorCommand::Disable | OperatorCommand::Enable | OperatorCommand::Drain => {
                Vec::new()
            }
        };
        to_json(&Done {
            name,
            word: command.name(),
            shared,
            keys: self.operator.views(&target.keys),
            answers,
        })
    }

    /// Asks the upstream, at no cost, whether it accepts a key. A refused key is taken out of use,
    /// so that no turn must try it first.
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
    Error::new(
        ErrorKind::UnknownUrl,
        format!("Unknown request URL: {} {}.", request.method(), request.uri().path()),
    )
}

fn unreadable() -> Error {
    Error::new(
        ErrorKind::InvalidRequest,
        "The name of a key or an organization is text in UTF-8, percent-encoded in the URL.",
    )
}

pub(super) fn to_json(value: &impl Serialize) -> Reply {
    serde_json::to_string(value).map_err(|error| {
        Error::new(ErrorKind::Internal, "The gateway failed on this request.")
            .because(error.to_string())
    })
}

fn answer(reply: Reply) -> Response<Body> {
    let mut response = match reply {
        Ok(text) => {
            let mut response = Response::new(Body::from(text));
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => error.to_response(),
    };
    if let Ok(id) = HeaderValue::try_from(TurnId::random().to_string()) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
