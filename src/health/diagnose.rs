//! The table of judgements: what an error answer says, and about which subject. Pure.
//!
//! The subject of a judgement is part of its type. Only a judgement about a key or its place may
//! change what other clients get; a judgement about a request changes that request alone.
//! `error.code` decides first, then `error.type`, then the status.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};

use crate::limit;
use crate::metrics::Reason;
use crate::wire::error_body::ErrorBody;

/// How far an ailment reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Key,
    Project,
    Organization,
}

/// Why a key, a project or an organization is out of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ailment {
    /// The upstream does not accept the key.
    Rejected(Scope),
    /// The quota is used up until the operator acts or a period ends.
    Exhausted(Scope),
}

/// The model that a turn asks for, and the service tier if the turn asks for a special one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelUse<'a> {
    pub model: &'a str,
    /// `None`: the usual tier.
    pub tier: Option<&'a str>,
}

impl<'a> ModelUse<'a> {
    pub fn new(model: &'a str, tier: Option<&'a str>) -> Self {
        Self { model, tier: tier.filter(|tier| !matches!(*tier, "" | "auto" | "default")) }
    }
}

impl<'a> From<&'a str> for ModelUse<'a> {
    fn from(model: &'a str) -> Self {
        Self { model, tier: None }
    }
}

/// The kind of exchange in which an answer was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// An answer over HTTP, an error frame, or the failure of an answer that had begun.
    Turn,
    /// The answer to a request that costs nothing.
    Free,
    /// The answer to the handshake of a WebSocket.
    Handshake,
    /// The answer to `GET /models`.
    Probe,
}

/// A judgement, by its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// This request alone. Nothing is remembered.
    Request(Concern),
    /// The key: the upstream refuses its credential. A probe decides.
    Key,
    /// The project: its quota is used up.
    Project,
    Organization(Trouble),
    /// The project's use of a model.
    Model(Shortage),
    /// The project's use of a model in a special service tier: limited for the stated wait.
    Tier(Option<Duration>),
    /// The upstream's host failed before it said anything of the answer. Nothing is remembered.
    Host,
    /// The upstream's WebSockets are limited for the stated wait. That says nothing about HTTP,
    /// and nothing is remembered.
    Transport(Option<Duration>),
}

/// What a judgement about a request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// The client receives the answer as it came.
    Passed,
    /// A 401 about a right that the request lacks. The client receives it as a 403, because a
    /// client throws its own token away on a 401.
    Forbidden,
    /// A 429 about something else than the project's use of the model. The client receives it, with
    /// a `Retry-After` if the answer has none. Holds the wait that the upstream states, if any.
    Busy(Option<Duration>),
    /// The organization's traffic grows too fast. The client receives the answer as for `Busy`, and
    /// no other key gets that traffic.
    TooSteep(Option<Duration>),
    /// The model is overloaded for all keys. Holds the wait that the upstream states, if any.
    Overloaded(Option<Duration>),
    /// Another organization has sealed the session's history.
    Foreign,
}

/// What a judgement about an organization says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The upstream refuses the organization. A probe decides.
    Refused,
    /// The quota is used up.
    Spent,
}

/// What a judgement about a project's use of a model says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Rate-limited. Holds the wait that the upstream states, if any.
    Limited(Option<Duration>),
    /// The project may not use the model, or the model does not exist. Believed once two clients
    /// report it.
    Denied,
}

impl Ailment {
    pub const fn scope(self) -> Scope {
        match self {
            Self::Rejected(scope) | Self::Exhausted(scope) => scope,
        }
    }
}

impl From<Ailment> for Reason {
    fn from(ailment: Ailment) -> Self {
        match ailment {
            Ailment::Rejected(_) => Self::Rejected,
            Ailment::Exhausted(_) => Self::Exhausted,
        }
    }
}

impl Judgement {
    pub const PASSED: Self = Self::Request(Concern::Passed);

    /// The ailment of the key or its place, if the judgement is about one.
    pub const fn ailment(self) -> Option<Ailment> {
        match self {
            Self::Key => Some(Ailment::Rejected(Scope::Key)),
            Self::Organization(Trouble::Refused) => Some(Ailment::Rejected(Scope::Organization)),
            Self::Project => Some(Ailment::Exhausted(Scope::Project)),
            Self::Organization(Trouble::Spent) => Some(Ailment::Exhausted(Scope::Organization)),
            _ => None,
        }
    }

    /// Whether the judgement may change what another client gets.
    #[cfg(test)]
    pub const fn is_shared(self) -> bool {
        !matches!(self, Self::Request(_) | Self::Host | Self::Transport(_))
    }
}

/// Judges an answer of this `status` and `error` to a request for `asked`. `headers`: those of the
/// answer, or of the error frame.
pub fn judge(
    (met, asked): (Met, ModelUse<'_>),
    status: StatusCode,
    error: &ErrorBody,
    headers: &HeaderMap,
    now: SystemTime,
) -> Judgement {
    let code = error.code.as_deref().unwrap_or_default();
    let wait = || limit::wait(headers, now).or(error.wait);
    match status {
        StatusCode::UNAUTHORIZED => unauthorized(code, error),
        StatusCode::TOO_MANY_REQUESTS => match met {
            Met::Turn => judge_limit(asked, error, headers, wait()),
            Met::Free => judge_limit(ModelUse::default(), error, headers, wait()),
            Met::Handshake => Judgement::Transport(wait()),
            Met::Probe => Judgement::PASSED,
        },
        StatusCode::SERVICE_UNAVAILABLE if matches!(code, "server_is_overloaded" | "slow_down") => {
            Judgement::Request(Concern::Overloaded(limit::wait(headers, now)))
        }
        StatusCode::INTERNAL_SERVER_ERROR
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Judgement::Host,
        _ if !matches!(met, Met::Turn | Met::Free) => Judgement::PASSED,
        StatusCode::BAD_REQUEST if code == "invalid_encrypted_content" => {
            Judgement::Request(Concern::Foreign)
        }
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
            if is_about_access(status, code) && is_about_model(asked.model, error) =>
        {
            Judgement::Model(Shortage::Denied)
        }
        _ => Judgement::PASSED,
    }
}

/// Judges the failure of an answer that had begun well.
pub fn judge_failure(asked: ModelUse<'_>, error: &ErrorBody) -> Judgement {
    let code = error.code.as_deref().unwrap_or_default();
    match quota(error) {
        Some(spent) => spent,
        None if code == "rate_limit_exceeded" => {
            judge_limit(asked, error, &HeaderMap::new(), error.wait)
        }
        None => Judgement::PASSED,
    }
}

/// A 401 doubts a credential, unless the answer itself says that the request lacks a right.
fn unauthorized(code: &str, error: &ErrorBody) -> Judgement {
    let is_right = code.contains("scope") || code.contains("permission");
    match code {
        "account_deactivated" | "no_organization" | "mismatched_organization" => {
            Judgement::Organization(Trouble::Refused)
        }
        "invalid_api_key" => Judgement::Key,
        _ if is_right || error.lacks_right => Judgement::Request(Concern::Forbidden),
        _ => Judgement::Key,
    }
}

/// A 429 limits a project's use of a model only if nothing in it names another subject. The limit
/// of a request for no model is the request's alone.
fn judge_limit(
    asked: ModelUse<'_>,
    error: &ErrorBody,
    headers: &HeaderMap,
    wait: Option<Duration>,
) -> Judgement {
    if let Some(spent) = quota(error) {
        return spent;
    }
    let code = error.code.as_deref().unwrap_or_default();
    let class = error.class.as_deref().unwrap_or_default();
    let is_usual =
        matches!(
            code,
            "" | "rate_limit_exceeded"
                | "rate_limit_error"
                | "too_many_requests"
                | "RateLimitReached"
                | "429"
        ) && (matches!(class, "rate_limit_error" | "rate_limit_exceeded" | "too_many_requests")
            || class.is_empty()
            || limit::is_of_model(class));
    let is_of_another = error.is_page
        || names_another_part(error)
        || error.limit.is_of_another(asked.model)
        || names_another_model(asked.model, error)
        || error.limit.has_headroom(class, headers);
    match asked.tier {
        _ if code == "slow_down" => Judgement::Request(Concern::TooSteep(wait)),
        // A request beyond the limit is at fault itself: no wait helps, and nothing is limited.
        _ if asked.model.is_empty() || !is_usual || is_of_another || error.is_beyond_limit => {
            Judgement::Request(Concern::Busy(wait))
        }
        Some(_) => Judgement::Tier(wait),
        None => Judgement::Model(Shortage::Limited(wait)),
    }
}

/// The exhausted quota, if the error is about a quota.
fn quota(error: &ErrorBody) -> Option<Judgement> {
    const ORGANIZATION: Judgement = Judgement::Organization(Trouble::Spent);
    match error.code.as_deref().unwrap_or_default() {
        "project_spend_limit_exceeded" => Some(Judgement::Project),
        "credit_balance_exhausted"
        | "organization_spend_limit_exceeded"
        | "organization_usage_limit_exceeded"
        | "insufficient_quota"
        | "billing_hard_limit_reached" => Some(ORGANIZATION),
        _ => (error.class.as_deref() == Some("insufficient_quota")).then_some(ORGANIZATION),
    }
}

/// Whether a 403 or 404 says in OpenAI's own words that the project has no access. A page, an empty
/// body or a policy does not.
fn is_about_access(status: StatusCode, code: &str) -> bool {
    let is_place =
        matches!(code, "unsupported_country_region_territory" | "organization_must_be_verified");
    code.starts_with("model_")
        || code.contains("unsupported_model")
        || status == StatusCode::FORBIDDEN && is_place
}

/// Whether a denial is about the model that was asked for, and not about another model or another
/// part of the request.
fn is_about_model(asked: &str, error: &ErrorBody) -> bool {
    !asked.is_empty() && !names_another_part(error) && !names_another_model(asked, error)
}

/// Whether a message names another model as its subject. If the message says whose limit was
/// reached, any other model in it is only advice.
fn names_another_model(asked: &str, error: &ErrorBody) -> bool {
    let named = error.limit.model.as_deref().or(error.model.as_deref());
    named.is_some_and(|named| !limit::is_same_model(named, asked))
}

/// Whether an error names another part of the request than its model.
fn names_another_part(error: &ErrorBody) -> bool {
    error.param.as_deref().is_some_and(|param| !matches!(param, "" | "model"))
}

#[cfg(test)]
mod tests;
