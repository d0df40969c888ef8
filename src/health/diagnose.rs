//! Decides what an error answer says about its key, and how far that reaches. Pure.
//!
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

/// What an error answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diagnosis {
    /// Nothing about the key: the answer is meant for the client.
    Sound,
    Ailing(Ailment),
    /// The project is rate-limited for this model. Holds the wait that the upstream states, if any.
    Limited(Option<Duration>),
    /// The organization's traffic grows too fast. No other key of it is better off, and no other
    /// organization should get all of that traffic. Holds the wait that the upstream states, if
    /// any.
    TooSteep(Option<Duration>),
    /// The project may not use this model, or the client asks for something that does not exist.
    NoAccess,
    /// The model is overloaded for all keys. Holds the wait that the upstream states, if any.
    Overloaded(Option<Duration>),
    /// The upstream failed before it said anything of the answer.
    Failed,
    /// Another organization has sealed the session's history.
    Foreign,
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

/// Diagnoses an answer of this `status` and `error`. `headers`: those of the answer, or of the
/// error frame.
pub fn diagnose(
    status: StatusCode,
    error: &ErrorBody,
    headers: &HeaderMap,
    now: SystemTime,
) -> Diagnosis {
    let code = error.code.as_deref().unwrap_or_default();
    let class = error.class.as_deref().unwrap_or_default();
    match status {
        StatusCode::BAD_REQUEST if code == "invalid_encrypted_content" => Diagnosis::Foreign,
        StatusCode::UNAUTHORIZED => Diagnosis::Ailing(Ailment::Rejected(match code {
            "account_deactivated" | "no_organization" | "mismatched_organization" => {
                Scope::Organization
            }
            _ => Scope::Key,
        })),
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND if is_about_access(status, code) => {
            Diagnosis::NoAccess
        }
        StatusCode::TOO_MANY_REQUESTS => match quota(code, class) {
            Some(scope) => Diagnosis::Ailing(Ailment::Exhausted(scope)),
            None if code == "slow_down" => {
                Diagnosis::TooSteep(limit::wait(headers, now).or(error.wait))
            }
            None if error.is_beyond_limit => Diagnosis::Sound,
            None => Diagnosis::Limited(limit::wait(headers, now).or(error.wait)),
        },
        StatusCode::SERVICE_UNAVAILABLE if matches!(code, "server_is_overloaded" | "slow_down") => {
            Diagnosis::Overloaded(limit::wait(headers, now))
        }
        StatusCode::INTERNAL_SERVER_ERROR
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Diagnosis::Failed,
        _ => Diagnosis::Sound,
    }
}

/// Diagnoses the failure of an answer that had begun well.
pub fn diagnose_failure(error: &ErrorBody) -> Diagnosis {
    let (code, class) =
        (error.code.as_deref().unwrap_or_default(), error.class.as_deref().unwrap_or_default());
    match quota(code, class) {
        Some(scope) => Diagnosis::Ailing(Ailment::Exhausted(scope)),
        None if code == "rate_limit_exceeded" => Diagnosis::Limited(error.wait),
        None => Diagnosis::Sound,
    }
}

/// The scope of the exhausted quota, if the error is about a quota.
fn quota(code: &str, class: &str) -> Option<Scope> {
    match code {
        "project_spend_limit_exceeded" => Some(Scope::Project),
        "credit_balance_exhausted"
        | "organization_spend_limit_exceeded"
        | "organization_usage_limit_exceeded"
        | "insufficient_quota"
        | "billing_hard_limit_reached" => Some(Scope::Organization),
        _ => (class == "insufficient_quota").then_some(Scope::Organization),
    }
}

/// A 403 denies access, whatever its code. A 404 does so only if its code is about the model.
fn is_about_access(status: StatusCode, code: &str) -> bool {
    status == StatusCode::FORBIDDEN
        || code.starts_with("model_")
        || code.contains("unsupported_model")
}

#[cfg(test)]
mod tests {
    use super::*;
    use Diagnosis::{Ailing, Failed, Foreign, Limited, NoAccess, Overloaded, Sound, TooSteep};

    fn on(status: u16, code: &str, class: &str) -> Diagnosis {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let error = ErrorBody { code: text(code), class: text(class), ..ErrorBody::default() };
        diagnose(
            StatusCode::from_u16(status).unwrap(),
            &error,
            &HeaderMap::new(),
            SystemTime::now(),
        )
    }

    #[test]
    fn a_401_is_the_keys_or_its_organizations() {
        assert_eq!(on(401, "invalid_api_key", ""), Ailing(Ailment::Rejected(Scope::Key)));
        assert_eq!(on(401, "", ""), Ailing(Ailment::Rejected(Scope::Key)));
        for code in ["account_deactivated", "no_organization", "mismatched_organization"] {
            assert_eq!(on(401, code, ""), Ailing(Ailment::Rejected(Scope::Organization)), "{code}");
        }
        assert_eq!(
            on(401, "insufficient_quota", "insufficient_quota"),
            Ailing(Ailment::Rejected(Scope::Key))
        );
    }

    #[test]
    fn a_429_is_for_a_time_or_for_good() {
        assert_eq!(
            on(429, "credit_balance_exhausted", "insufficient_quota"),
            Ailing(Ailment::Exhausted(Scope::Organization))
        );
        assert_eq!(
            on(429, "project_spend_limit_exceeded", "insufficient_quota"),
            Ailing(Ailment::Exhausted(Scope::Project))
        );
        assert_eq!(
            on(429, "something_new", "insufficient_quota"),
            Ailing(Ailment::Exhausted(Scope::Organization))
        );
        assert_eq!(on(429, "slow_down", "rate_limit_error"), TooSteep(None));
        for passing in ["rate_limit_exceeded", ""] {
            assert_eq!(on(429, passing, "requests"), Limited(None), "{passing}");
        }
        let too_large = ErrorBody { is_beyond_limit: true, ..ErrorBody::default() };
        assert_eq!(
            diagnose(
                StatusCode::TOO_MANY_REQUESTS,
                &too_large,
                &HeaderMap::new(),
                SystemTime::now()
            ),
            Sound
        );
    }

    const ORGANIZATION_QUOTAS: [&str; 5] = [
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "insufficient_quota",
        "billing_hard_limit_reached",
    ];

    #[test]
    fn a_quota_is_told_by_its_code_before_its_type() {
        let exhausted = |scope| Ailing(Ailment::Exhausted(scope));
        for code in ORGANIZATION_QUOTAS {
            assert_eq!(on(429, code, ""), exhausted(Scope::Organization), "{code}");
            assert_eq!(on(503, code, ""), Failed, "{code}");
        }
        assert_eq!(on(429, "project_spend_limit_exceeded", ""), exhausted(Scope::Project));
        // A request larger than the rest of a quota is not a request that is too large.
        let error = ErrorBody {
            code: Some("insufficient_quota".into()),
            is_beyond_limit: true,
            ..ErrorBody::default()
        };
        let answer =
            diagnose(StatusCode::TOO_MANY_REQUESTS, &error, &HeaderMap::new(), SystemTime::now());
        assert_eq!(answer, exhausted(Scope::Organization));
    }

    #[test]
    fn when_to_come_again_is_in_the_headers_or_else_in_the_message() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let mut headers = HeaderMap::new();
        let answer = |status: u16, code: &str, wait, headers: &HeaderMap| {
            let error = ErrorBody { code: Some(code.into()), wait, ..ErrorBody::default() };
            diagnose(StatusCode::from_u16(status).unwrap(), &error, headers, SystemTime::now())
        };
        assert_eq!(answer(429, "rate_limit_exceeded", seconds(7), &headers), Limited(seconds(7)));
        assert_eq!(answer(429, "slow_down", seconds(7), &headers), TooSteep(seconds(7)));
        headers.insert("retry-after", http::HeaderValue::from_static("3"));
        assert_eq!(answer(429, "rate_limit_exceeded", seconds(7), &headers), Limited(seconds(3)));
        assert_eq!(answer(429, "slow_down", seconds(7), &headers), TooSteep(seconds(3)));
        assert_eq!(answer(503, "slow_down", None, &headers), Overloaded(seconds(3)));
        assert_eq!(answer(503, "", None, &headers), Failed);
    }

    #[test]
    fn the_failure_of_an_answer_that_had_begun_tells_of_quotas_and_limits_alone() {
        let failure = |code: &str, class: &str| {
            let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let wait = Some(Duration::from_secs(7));
            diagnose_failure(&ErrorBody {
                code: text(code),
                class: text(class),
                wait,
                ..ErrorBody::default()
            })
        };
        for code in ORGANIZATION_QUOTAS {
            assert_eq!(
                failure(code, ""),
                Ailing(Ailment::Exhausted(Scope::Organization)),
                "{code}"
            );
        }
        assert_eq!(
            failure("", "insufficient_quota"),
            Ailing(Ailment::Exhausted(Scope::Organization))
        );
        assert_eq!(
            failure("project_spend_limit_exceeded", ""),
            Ailing(Ailment::Exhausted(Scope::Project))
        );
        assert_eq!(failure("rate_limit_exceeded", ""), Limited(Some(Duration::from_secs(7))));
        for code in [
            "",
            "server_error",
            "invalid_api_key",
            "slow_down",
            "server_is_overloaded",
            "invalid_encrypted_content",
        ] {
            assert_eq!(failure(code, "rate_limit_error"), Sound, "{code}");
        }
    }

    #[test]
    fn what_the_upstream_could_not_do_is_not_the_keys() {
        assert_eq!(on(503, "server_is_overloaded", "service_unavailable_error"), Overloaded(None));
        assert_eq!(on(503, "slow_down", "service_unavailable_error"), Overloaded(None));
        for status in [500, 502, 503, 504] {
            assert_eq!(on(status, "invalid_api_key", "insufficient_quota"), Failed, "{status}");
        }
    }

    #[test]
    fn access_is_the_projects_and_the_rest_is_the_clients() {
        assert_eq!(on(403, "unsupported_country_region_territory", ""), NoAccess);
        assert_eq!(on(403, "", ""), NoAccess);
        for code in [
            "model_not_found",
            "model_not_available",
            "unsupported_model",
            "an_unsupported_model_here",
        ] {
            assert_eq!(on(404, code, ""), NoAccess, "{code}");
        }
        assert_eq!(on(404, "the_model_", ""), Sound);
        assert_eq!(on(400, "invalid_encrypted_content", ""), Foreign);
        for (status, code) in [
            (404, ""),
            (400, "model_not_found"),
            (413, ""),
            (422, ""),
            (501, ""),
            (529, ""),
            (200, "slow_down"),
        ] {
            assert_eq!(on(status, code, ""), Sound, "{status} {code}");
        }
    }
}
