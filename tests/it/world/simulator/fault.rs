//! Faults of an upstream, one line each:
//! `upstream.fails_with(Fault::limited(3600).key("a-1")).await`.

use serde_json::{Value, json};

/// A fault as the simulator reads it. Its methods limit which requests it strikes. Without them, it
/// strikes every request until it is cleared.
#[derive(Clone, Debug)]
pub struct Fault(pub Value);

impl Fault {
    fn refused(status: u16, code: &str) -> Self {
        Self(json!({ "status": status, "code": code }))
    }

    /// 401: the key is revoked.
    pub fn revoked() -> Self {
        Self::refused(401, "invalid_api_key")
    }

    /// 401 for a whole organization.
    pub fn deactivated() -> Self {
        Self::refused(401, "account_deactivated")
    }

    /// 429 for good: the organization's credit is gone.
    pub fn exhausted() -> Self {
        Self::refused(429, "credit_balance_exhausted")
    }

    /// 429 for the rest of the month: one project has spent its budget.
    pub fn overspent() -> Self {
        Self::refused(429, "project_spend_limit_exceeded")
    }

    /// 429 that states when to retry.
    pub fn limited(seconds: u64) -> Self {
        Self::refused(429, "rate_limit_exceeded").and("retry_after", json!(seconds))
    }

    /// 429 that states the same as a date.
    pub fn limited_until(seconds: u64) -> Self {
        Self::limited(seconds).and("retry_after_date", json!(true))
    }

    /// 429 with this `retry-after`, whatever it means.
    pub fn limited_in_words(text: &str) -> Self {
        Self::refused(429, "rate_limit_exceeded").and("retry_after_text", json!(text))
    }

    /// 429 that states no time.
    pub fn limited_in_silence() -> Self {
        Self::refused(429, "rate_limit_exceeded").and("retry_after", json!(false))
    }

    /// 429: the traffic grows too fast.
    pub fn too_steep() -> Self {
        Self::refused(429, "slow_down")
    }

    /// 503 that would be the same with another key.
    pub fn overloaded() -> Self {
        Self::refused(503, "server_is_overloaded")
    }

    /// 401 to a request that needs a scope that the key does not have.
    pub fn lacking_scope() -> Self {
        Self::refused(401, "missing_scope").message(
            "You have insufficient permissions for this operation. Missing scopes: api.vector_stores.read.",
        )
    }

    /// 429 to a request for a tier that has no capacity.
    pub fn without_capacity() -> Self {
        Self::refused(429, "resource_unavailable")
            .class("resource_unavailable")
            .and("retry_after", json!(false))
    }

    /// 500, 502, 503, 504: the usual error of that status.
    pub fn down(status: u16) -> Self {
        Self(json!({ "status": status }))
    }

    /// 502 and similar statuses, from a proxy in front of the service.
    pub fn page(status: u16) -> Self {
        Self::down(status).and("html", json!("<html><body>Bad gateway</body></html>"))
    }

    /// An error without a body.
    pub fn bare(status: u16) -> Self {
        Self::down(status).and("html", json!(""))
    }

    /// 403: not from this region.
    pub fn forbidden() -> Self {
        Self::refused(403, "unsupported_country_region_territory")
    }

    /// 404: this key has no access to the model.
    pub fn withdrawn() -> Self {
        Self::refused(404, "model_not_found")
    }

    /// 200, and the stream ends in `response.failed` with this code.
    pub fn failing(code: &str) -> Self {
        Self::refused(200, code)
    }

    /// The connection breaks once the request has come, before a byte of an answer.
    pub fn breaking() -> Self {
        Self(json!({ "reset": true }))
    }

    /// Sets the code, in place of the usual one.
    pub fn code(self, code: &str) -> Self {
        self.and("code", json!(code))
    }

    /// Sets the message.
    pub fn message(self, text: &str) -> Self {
        self.and("message", json!(text))
    }

    /// Sets the error's `type`, in place of the usual one.
    pub fn class(self, class: &str) -> Self {
        self.and("class", json!(class))
    }

    /// Encodes the error, and names the coding in this spelling.
    pub fn encoded(self, coding: &str) -> Self {
        self.and("encoding", json!(coding))
    }

    /// States when to retry.
    pub fn again_in(self, seconds: u64) -> Self {
        self.and("retry_after", json!(seconds))
    }

    /// Strikes requests for this service tier.
    pub fn tier(self, tier: &str) -> Self {
        self.and("tier", json!(tier))
    }

    pub fn key(self, id: &str) -> Self {
        self.and("key", json!(id))
    }

    pub fn organization(self, name: &str) -> Self {
        self.and("organization", json!(name))
    }

    pub fn project(self, name: &str) -> Self {
        self.and("project", json!(name))
    }

    pub fn model(self, name: &str) -> Self {
        self.and("model", json!(name))
    }

    pub fn session(self, id: &str) -> Self {
        self.and("session", json!(id))
    }

    /// Strikes so many requests, and then ends.
    pub fn times(self, count: u64) -> Self {
        self.and("times", json!(count))
    }

    /// Strikes handshakes of WebSockets.
    pub fn at_handshakes(self) -> Self {
        self.and("at", json!("handshake"))
    }

    /// Strikes probes.
    pub fn at_probes(self) -> Self {
        self.and("at", json!("probe"))
    }

    /// Sets this header, in place of the answer's own of that name.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.0["headers"][name] = json!(value);
        self
    }

    fn and(mut self, name: &str, value: Value) -> Self {
        self.0[name] = value;
        self
    }
}
