//! Decides what an error answer says about the key it was shown, and how far that reaches. Pure.
//!
//! On `error.code`, then `error.type`, then the status. Never on the text of a message.

use http::StatusCode;

use crate::outcome::ErrorBody;

/// How far an ailment reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Key,
    Project,
    Organization,
}

/// Why something is out of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ailment {
    /// The upstream does not accept the key.
    Rejected(Scope),
    /// The quota is used up until somebody acts or a period ends.
    Exhausted(Scope),
}

impl Ailment {
    pub const fn scope(self) -> Scope {
        match self {
            Self::Rejected(scope) | Self::Exhausted(scope) => scope,
        }
    }

    /// Whether the upstream's own words tell the client something it can act on.
    pub const fn is_for_the_client(self) -> bool {
        matches!(self, Self::Exhausted(_))
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Rejected(_) => "rejected",
            Self::Exhausted(_) => "exhausted",
        }
    }
}

/// What `status` with `error` means for the key. `None`: it says nothing about the key.
pub fn diagnose(status: StatusCode, error: &ErrorBody) -> Option<Ailment> {
    let code = error.code.as_deref().unwrap_or_default();
    match status {
        StatusCode::UNAUTHORIZED => Some(Ailment::Rejected(match code {
            "account_deactivated" | "no_organization" | "mismatched_organization" => Scope::Organization,
            _ => Scope::Key,
        })),
        StatusCode::TOO_MANY_REQUESTS => match code {
            "project_spend_limit_exceeded" => Some(Ailment::Exhausted(Scope::Project)),
            "credit_balance_exhausted"
            | "organization_spend_limit_exceeded"
            | "organization_usage_limit_exceeded"
            | "insufficient_quota"
            | "billing_hard_limit_reached" => Some(Ailment::Exhausted(Scope::Organization)),
            _ if error.class.as_deref() == Some("insufficient_quota") => Some(Ailment::Exhausted(Scope::Organization)),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(status: u16, code: &str, class: &str) -> Option<Ailment> {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        diagnose(StatusCode::from_u16(status).unwrap(), &ErrorBody { code: text(code), class: text(class) })
    }

    #[test]
    fn a_401_is_the_keys_or_its_organizations() {
        assert_eq!(on(401, "invalid_api_key", ""), Some(Ailment::Rejected(Scope::Key)));
        assert_eq!(on(401, "", ""), Some(Ailment::Rejected(Scope::Key)));
        assert_eq!(on(401, "account_deactivated", ""), Some(Ailment::Rejected(Scope::Organization)));
    }

    #[test]
    fn only_an_exhausted_429_is_an_ailment() {
        assert_eq!(on(429, "credit_balance_exhausted", "insufficient_quota"), Some(Ailment::Exhausted(Scope::Organization)));
        assert_eq!(on(429, "project_spend_limit_exceeded", "insufficient_quota"), Some(Ailment::Exhausted(Scope::Project)));
        assert_eq!(on(429, "something_new", "insufficient_quota"), Some(Ailment::Exhausted(Scope::Organization)));
        for passing in ["rate_limit_exceeded", "slow_down", ""] {
            assert_eq!(on(429, passing, "requests"), None, "{passing}");
        }
    }

    #[test]
    fn nothing_else_says_anything_about_the_key() {
        for status in [200, 400, 403, 404, 500, 502, 503] {
            assert_eq!(on(status, "invalid_api_key", "insufficient_quota"), None, "{status}");
        }
    }
}
