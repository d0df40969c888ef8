//! Answers operators' requests for the ledger on the admin listener: sums over days, and the turns
//! of a session.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::routing::get;
use http::Response;
use jiff::civil::Date;
use reqwest::Url;
use serde::Serialize;

use super::operator::{AdminApi, Asked, answer_if, to_json};
use crate::binding::view::SessionView;
use crate::client::ClientId;
use crate::database::read::By;
use crate::database::row::TurnRow;
use crate::error::{Error, ErrorKind};
use crate::ledger::NoAnswer;
use crate::ledger::report::usd;
use crate::session::SessionId;

pub fn ledger_routes(api: Arc<AdminApi>) -> Router {
    Router::new()
        .route("/usage", get(usage))
        .route("/sessions", get(session_of_client))
        .route("/sessions/{id}", get(session))
        .with_state(api)
}

async fn usage(State(api): Asked, request: Request) -> Response<Body> {
    // The query is read first, because the request's body is not `Sync` and must not cross an
    // `.await`.
    let asked = query(&request);
    let looking = async {
        let (mut by, mut from, mut to) = (By::Client, None, None);
        for (name, value) in asked {
            match name.as_str() {
                "by" => {
                    by = By::parse(&value).ok_or_else(|| {
                        meaningless("by is client, key, organization, model or day")
                    })?
                }
                "from" => from = Some(day(&value)?),
                "to" => to = Some(day(&value)?),
                _ => return Err(meaningless("only by, from and to can be asked")),
            }
        }
        to_json(&api.ledger.usage(by, from, to).await.map_err(no_answer)?)
    };
    answer_if(api.admit(&request), looking).await
}

/// Shows a session by its stored hash, as logs show it.
async fn session(
    State(api): Asked,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response<Body> {
    let looking = async {
        let id = path.ok().and_then(|Path(id)| SessionId::parse(&id)).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidRequest,
                "A session goes by its stored id, as logs show it: 22 letters, digits, - and _.",
            )
        })?;
        let story = read_turns(&api, &id).await;
        to_json(&story.ok_or_else(|| {
            Error::new(ErrorKind::UnknownUrl, format!("Nothing is known of a session {id}."))
        })?)
    };
    answer_if(api.admit(&request), looking).await
}

/// Shows a session by the id that the client sent.
async fn session_of_client(State(api): Asked, request: Request) -> Response<Body> {
    let asked = query(&request);
    let looking = async {
        let one = |name: &str| {
            asked.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
        };
        let (Some(client), Some(id)) = (one("client"), one("id")) else {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "Ask /sessions?client=ID&id=SESSION, or /sessions/HASH.",
            ));
        };
        for session in api.gateway.entry.identifier.find_sessions(&ClientId::new(client), id) {
            if let Some(story) = read_turns(&api, &session).await {
                return to_json(&story);
            }
        }
        Err(Error::new(
            ErrorKind::UnknownUrl,
            format!("Nothing is known of such a session of client {client}."),
        ))
    };
    answer_if(api.admit(&request), looking).await
}

/// The answer about a session, with its turns.
#[derive(Serialize)]
struct Story {
    #[serde(flatten)]
    view: SessionView,
    /// The newest turns, oldest first.
    turns: Vec<Turn>,
    /// The state of the ledger: `read`, `away` or `none`.
    ledger: &'static str,
}

/// One turn of the ledger. Unknown values are null.
#[derive(Serialize)]
struct Turn {
    /// Milliseconds since 1970, as in the trail.
    at: i64,
    trace: String,
    transport: String,
    kind: Option<String>,
    model: String,
    key: Option<String>,
    organization: Option<String>,
    binding: Option<String>,
    outcome: String,
    status: Option<i64>,
    input_tokens: Option<i64>,
    cached_tokens: Option<i64>,
    expected_cached_tokens: Option<i64>,
    cold_reason: Option<String>,
    /// The upstream's own reason for a cache miss.
    diagnostic: Option<String>,
    /// Whether the upstream ran a tool whose price is not in `cost_usd`.
    hosted_tools: Option<bool>,
    written_tokens: Option<i64>,
    output_tokens: Option<i64>,
    cost_usd: Option<String>,
}

impl Turn {
    fn of(row: TurnRow) -> Self {
        Self {
            at: row.at / 1_000,
            trace: row.trace,
            transport: row.transport,
            kind: row.kind,
            model: row.model,
            key: row.key,
            organization: row.organization,
            binding: row.binding,
            outcome: row.outcome,
            status: row.status,
            input_tokens: row.tokens.map(|tokens| tokens.input),
            cached_tokens: row.tokens.map(|tokens| tokens.cached),
            expected_cached_tokens: row.expected_cached_tokens,
            cold_reason: row.cold_reason,
            diagnostic: row.diagnostic,
            hosted_tools: row.used_hosted_tools,
            written_tokens: row.tokens.map(|tokens| tokens.written),
            output_tokens: row.tokens.map(|tokens| tokens.output),
            cost_usd: row.cost_nano.map(usd),
        }
    }
}

async fn read_turns(api: &AdminApi, id: &SessionId) -> Option<Story> {
    let (view, turns) = tokio::join!(api.gateway.bindings.view(id), api.ledger.turns(id.as_str()));
    let (turns, ledger) = match turns {
        Ok(turns) => (turns.into_iter().map(Turn::of).collect(), "read"),
        Err(NoAnswer::None) => (Vec::new(), "none"),
        Err(NoAnswer::Away(_) | NoAnswer::Meaningless(_)) => (Vec::new(), "away"),
    };
    let is_known = view.is_some() || !turns.is_empty();
    let view = view.unwrap_or_else(|| SessionView {
        session: id.to_string(),
        binding: None,
        trail: Vec::new(),
    });
    is_known.then_some(Story { view, turns, ledger })
}

fn query(request: &Request) -> Vec<(String, String)> {
    let url = Url::parse(&format!("http://admin/?{}", request.uri().query().unwrap_or_default()));
    url.iter().flat_map(Url::query_pairs).map(|(name, value)| (name.into(), value.into())).collect()
}

fn day(text: &str) -> Result<Date, Error> {
    let day = text.parse().ok().filter(|_| text.len() == 10);
    day.ok_or_else(|| meaningless("from and to are days: 2026-03-01"))
}

fn meaningless(why: &str) -> Error {
    Error::new(ErrorKind::InvalidRequest, format!("This is not what can be asked: {why}."))
}

fn no_answer(why: NoAnswer) -> Error {
    match why {
        NoAnswer::None => {
            Error::new(ErrorKind::UnknownUrl, "There is no ledger: ledger.url names none.")
        }
        NoAnswer::Meaningless(why) => meaningless(&why),
        NoAnswer::Away(why) => {
            Error::new(ErrorKind::LedgerUnavailable, "The ledger is away.").because(why)
        }
    }
}
