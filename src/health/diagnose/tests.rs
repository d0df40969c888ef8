//! Tests of the table: one line for each judgement.

use super::*;
use http::HeaderValue;
use proptest::prelude::*;

const SPENT: Judgement = Judgement::Organization(Trouble::Spent);
const LIMITED: Judgement = Judgement::Model(Shortage::Limited(None));
const DENIED: Judgement = Judgement::Model(Shortage::Denied);
const BUSY: Judgement = Judgement::Request(Concern::Busy(None));
const FORBIDDEN: Judgement = Judgement::Request(Concern::Forbidden);
const USUAL: ModelUse<'static> = ModelUse { model: "gpt-5", tier: None };
const FLEX: ModelUse<'static> = ModelUse { model: "gpt-5", tier: Some("flex") };

fn on_body(met: Met, asked: ModelUse<'_>, status: u16, body: &str) -> Judgement {
    let status = StatusCode::from_u16(status).unwrap();
    let error = ErrorBody::parse(body.as_bytes());
    judge((met, asked), status, &error, &HeaderMap::new(), SystemTime::UNIX_EPOCH)
}

fn body(code: &str, class: &str, message: &str) -> String {
    serde_json::json!({"error": {"code": code, "type": class, "message": message, "param": null}})
        .to_string()
}

fn on(status: u16, code: &str, class: &str) -> Judgement {
    on_body(Met::Turn, USUAL, status, &body(code, class, ""))
}

#[test]
fn refused_credential_is_the_keys_or_its_organizations_unless_the_text_names_a_right() {
    for code in ["invalid_api_key", "", "token_revoked", "ip_not_authorized", "insufficient_quota"]
    {
        assert_eq!(on(401, code, ""), Judgement::Key, "{code}");
    }
    for code in ["account_deactivated", "no_organization", "mismatched_organization"] {
        assert_eq!(on(401, code, ""), Judgement::Organization(Trouble::Refused), "{code}");
    }
    let scopes = "You have insufficient permissions for this operation. Missing scopes: api.vector_stores.read.";
    for (code, message, expected) in [
        ("missing_scope", "", FORBIDDEN),
        ("missing_scope", scopes, FORBIDDEN),
        ("", scopes, FORBIDDEN),
        ("insufficient_permissions", "", FORBIDDEN),
        ("unauthorized", "Missing scopes: api.vector_stores.read", FORBIDDEN),
        ("", "You do not have permission to use this tool.", FORBIDDEN),
        ("", "Your key has no telescope.", Judgement::Key),
        // The service names the credential itself.
        ("invalid_api_key", scopes, Judgement::Key),
        ("", "You didn't provide an API key.", Judgement::Key),
    ] {
        for met in [Met::Turn, Met::Handshake, Met::Probe] {
            let text = body(code, "invalid_request_error", message);
            assert_eq!(on_body(met, USUAL, 401, &text), expected, "{met:?} {code}: {message}");
        }
    }
    assert_eq!(on_body(Met::Turn, USUAL, 401, "<html>"), Judgement::Key);
}

#[test]
fn limit_is_that_of_a_projects_model_unless_something_names_another_subject() {
    for (code, class) in [
        ("rate_limit_exceeded", "requests"),
        ("rate_limit_exceeded", "tokens"),
        ("rate_limit_exceeded", ""),
        ("", "rate_limit_error"),
        ("", ""),
    ] {
        assert_eq!(on(429, code, class), LIMITED, "{code} {class}");
    }
    assert_eq!(on_body(Met::Turn, USUAL, 429, ""), LIMITED, "nothing says otherwise");
    for (code, class) in [
        ("resource_unavailable", "resource_unavailable"),
        ("rate_limit_exceeded", "images"),
        ("concurrency_limit", "requests"),
        ("usage_limit_reached", "usage_limit_reached"),
        ("", "server_error"),
    ] {
        assert_eq!(on(429, code, class), BUSY, "{code} {class}");
    }
    for page in ["<html>Too many</html>", r#"{"detail":"Too many requests"}"#, "error code: 1015"] {
        assert_eq!(on_body(Met::Turn, USUAL, 429, page), BUSY, "{page}");
    }
    let limit = |model: &str, resource: &str| {
        let message = format!(
            "Rate limit reached for {model} in organization o on {resource} per min (X): Limit 9."
        );
        on_body(Met::Turn, USUAL, 429, &body("rate_limit_exceeded", "tokens", &message))
    };
    assert_eq!(limit("gpt-5", "tokens"), LIMITED);
    assert_eq!(limit("gpt-5-2025-08-07", "tokens"), LIMITED);
    for (model, resource) in
        [("gpt-image-1", "tokens"), ("gpt-5", "input-images"), ("gpt-5-mini", "tokens")]
    {
        assert_eq!(limit(model, resource), BUSY, "{model} {resource}");
    }
    for (message, expected) in [
        ("You have reached the limit of the model `gpt-image-1`.", BUSY),
        ("You have reached the limit of the model `gpt-5`.", LIMITED),
        ("Rate limit reached for gpt-5 in organization o. Try the model gpt-5-mini.", LIMITED),
    ] {
        let text = body("rate_limit_exceeded", "tokens", message);
        assert_eq!(on_body(Met::Turn, USUAL, 429, &text), expected, "{message}");
    }
    let param = r#"{"error":{"code":"rate_limit_exceeded","param":"tools"}}"#;
    assert_eq!(on_body(Met::Turn, USUAL, 429, param), BUSY);
}

#[test]
fn limit_of_a_special_tier_is_the_tiers() {
    let text = body("rate_limit_exceeded", "tokens", "");
    assert_eq!(on_body(Met::Turn, FLEX, 429, &text), Judgement::Tier(None));
    let unavailable = body("resource_unavailable", "resource_unavailable", "");
    assert_eq!(on_body(Met::Turn, FLEX, 429, &unavailable), BUSY);
    for usual in ["", "auto", "default"] {
        assert_eq!(ModelUse::new("gpt-5", Some(usual)), USUAL, "{usual}");
    }
}

#[test]
fn headroom_beside_a_limit_says_that_it_is_another() {
    let error = ErrorBody::parse(body("rate_limit_exceeded", "requests", "").as_bytes());
    for (left, expected) in [("0", LIMITED), ("499", BUSY)] {
        let mut headers = HeaderMap::new();
        headers.insert("x-ratelimit-remaining-requests", HeaderValue::from_static(left));
        let case = (Met::Turn, USUAL);
        let now = SystemTime::UNIX_EPOCH;
        let found = judge(case, StatusCode::TOO_MANY_REQUESTS, &error, &headers, now);
        assert_eq!(found, expected, "{left}");
    }
}

const ORGANIZATION_QUOTAS: [&str; 5] = [
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "insufficient_quota",
    "billing_hard_limit_reached",
];

#[test]
fn quota_is_told_by_its_code_before_its_type() {
    for code in ORGANIZATION_QUOTAS {
        assert_eq!(on(429, code, ""), SPENT, "{code}");
        assert_eq!(on(503, code, ""), Judgement::Host, "{code}");
        assert_eq!(on_body(Met::Turn, FLEX, 429, &body(code, "", "")), SPENT, "{code}");
    }
    assert_eq!(on(429, "something_new", "insufficient_quota"), SPENT);
    assert_eq!(on(429, "project_spend_limit_exceeded", "insufficient_quota"), Judgement::Project);
    // A request larger than the rest of a quota is not a request that is too large.
    let beyond = "Limit 30000, Requested 40000.";
    let text = body("insufficient_quota", "", beyond);
    assert_eq!(on_body(Met::Turn, USUAL, 429, &text), SPENT);
    let text = body("rate_limit_exceeded", "tokens", beyond);
    assert_eq!(on_body(Met::Turn, USUAL, 429, &text), Judgement::Request(Concern::Busy(None)));
}

#[test]
fn access_is_told_by_the_services_own_codes_alone() {
    for (status, code) in [
        (403, "model_not_found"),
        (404, "model_not_found"),
        (404, "model_not_available"),
        (404, "unsupported_model"),
        (403, "unsupported_country_region_territory"),
        (403, "organization_must_be_verified"),
    ] {
        assert_eq!(on(status, code, ""), DENIED, "{status} {code}");
    }
    for (status, code) in [
        (403, ""),
        (403, "content_policy_violation"),
        (403, "missing_scope"),
        (404, ""),
        (404, "not_found"),
        (404, "previous_response_not_found"),
        (404, "unsupported_country_region_territory"),
        (400, "model_not_found"),
    ] {
        assert_eq!(on(status, code, ""), Judgement::PASSED, "{status} {code}");
    }
    for page in ["<html>model_not_found</html>", "", r#"{"code":"model_not_found"}"#] {
        assert_eq!(on_body(Met::Turn, USUAL, 403, page), Judgement::PASSED, "{page}");
    }
}

#[test]
fn wait_is_stated_in_the_headers_or_else_in_the_message() {
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let mut headers = HeaderMap::new();
    let answer = |status: u16, code: &str, wait, headers: &HeaderMap| {
        let error = ErrorBody { code: Some(code.into()), wait, ..ErrorBody::default() };
        let status = StatusCode::from_u16(status).unwrap();
        judge((Met::Turn, USUAL), status, &error, headers, SystemTime::UNIX_EPOCH)
    };
    let limited = |wait| Judgement::Model(Shortage::Limited(wait));
    let steep = |wait| Judgement::Request(Concern::TooSteep(wait));
    assert_eq!(answer(429, "rate_limit_exceeded", seconds(7), &headers), limited(seconds(7)));
    assert_eq!(answer(429, "slow_down", seconds(7), &headers), steep(seconds(7)));
    headers.insert("retry-after", HeaderValue::from_static("3"));
    assert_eq!(answer(429, "rate_limit_exceeded", seconds(7), &headers), limited(seconds(3)));
    assert_eq!(answer(429, "slow_down", seconds(7), &headers), steep(seconds(3)));
    assert_eq!(
        answer(503, "slow_down", None, &headers),
        Judgement::Request(Concern::Overloaded(seconds(3)))
    );
    assert_eq!(answer(503, "", None, &headers), Judgement::Host);
}

#[test]
fn failure_of_an_answer_that_had_begun_tells_of_quotas_and_limits_alone() {
    let failure = |asked, code: &str, class: &str| {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let wait = Some(Duration::from_secs(7));
        let error =
            ErrorBody { code: text(code), class: text(class), wait, ..ErrorBody::default() };
        judge_failure(asked, &error)
    };
    for code in ORGANIZATION_QUOTAS {
        assert_eq!(failure(USUAL, code, ""), SPENT, "{code}");
    }
    assert_eq!(failure(USUAL, "", "insufficient_quota"), SPENT);
    assert_eq!(failure(USUAL, "project_spend_limit_exceeded", ""), Judgement::Project);
    let wait = Some(Duration::from_secs(7));
    assert_eq!(
        failure(USUAL, "rate_limit_exceeded", ""),
        Judgement::Model(Shortage::Limited(wait))
    );
    assert_eq!(failure(FLEX, "rate_limit_exceeded", ""), Judgement::Tier(wait));
    for code in [
        "",
        "server_error",
        "invalid_api_key",
        "slow_down",
        "server_is_overloaded",
        "invalid_encrypted_content",
    ] {
        assert_eq!(failure(USUAL, code, "rate_limit_error"), Judgement::PASSED, "{code}");
    }
}

#[test]
fn failure_of_the_host_is_not_the_keys() {
    let overloaded = Judgement::Request(Concern::Overloaded(None));
    assert_eq!(on(503, "server_is_overloaded", "service_unavailable_error"), overloaded);
    assert_eq!(on(503, "slow_down", ""), overloaded);
    for status in [500, 502, 503, 504] {
        assert_eq!(on(status, "", ""), Judgement::Host, "{status}");
    }
    for status in [400, 402, 405, 408, 409, 413, 418, 422, 501] {
        assert_eq!(on(status, "", ""), Judgement::PASSED, "{status}");
    }
    let foreign = Judgement::Request(Concern::Foreign);
    assert_eq!(on(400, "invalid_encrypted_content", ""), foreign);
}

proptest! {
    /// A handshake may at most start a probe of the credential, and a probe judges the credential
    /// alone.
    #[test]
    fn handshake_and_probe_say_nothing_about_turns(
        status in 100..600_u16,
        code in prop::sample::select(vec!["", "invalid_api_key", "rate_limit_exceeded", "slow_down",
            "insufficient_quota", "project_spend_limit_exceeded", "model_not_found", "missing_scope",
            "account_deactivated", "unsupported_country_region_territory"]),
        class in prop::sample::select(vec!["", "tokens", "insufficient_quota"]),
        is_probe: bool,
    ) {
        let met = if is_probe { Met::Probe } else { Met::Handshake };
        let found = on_body(met, USUAL, status, &body(code, class, ""));
        let is_credential =
            matches!(found, Judgement::Key | Judgement::Organization(Trouble::Refused));
        prop_assert!(!found.is_shared() || is_credential, "{met:?} {status} {code}: {found:?}");
        prop_assert!(!is_credential || status == 401, "{status} {code}");
    }

    /// Only an answer in the service's own shape, or an empty one, can be about a key or its place.
    #[test]
    fn page_is_about_its_request_alone(status in 100..600_u16, page in "<[ -~]{0,40}") {
        let found = on_body(Met::Turn, USUAL, status, &page);
        prop_assert!(!found.is_shared() || status == 401 && found == Judgement::Key, "{found:?}");
    }
}

#[test]
fn limit_without_a_model_and_that_of_a_free_request_are_the_requests() {
    let text = body("rate_limit_exceeded", "requests", "");
    assert_eq!(on_body(Met::Turn, USUAL, 429, &text), LIMITED);
    for (met, asked) in [
        (Met::Turn, ModelUse::default()),
        (Met::Turn, ModelUse { model: "", tier: Some("flex") }),
        (Met::Free, USUAL),
        (Met::Free, FLEX),
    ] {
        assert_eq!(on_body(met, asked, 429, &text), BUSY, "{met:?} {asked:?}");
        assert_eq!(on_body(met, asked, 429, ""), BUSY, "{met:?} {asked:?}");
        let spent = body("insufficient_quota", "", "");
        assert_eq!(on_body(met, asked, 429, &spent), SPENT, "a quota is its place's");
    }
    let error = ErrorBody::parse(text.as_bytes());
    assert_eq!(judge_failure(ModelUse::default(), &error), BUSY, "a failure without a model");
    assert_eq!(on_body(Met::Free, USUAL, 404, &body("model_not_found", "", "")), DENIED);
}

/// A denial that names another part of the request, or another model, is about the request.
#[test]
fn access_to_something_else_is_the_requests() {
    let denied = |status, asked: &str, param: serde_json::Value, message: &str| {
        let error = serde_json::json!({"error": {"code": "model_not_found", "param": param, "message": message}});
        on_body(Met::Turn, asked.into(), status, &error.to_string())
    };
    let null = || serde_json::Value::Null;
    let own = "The model `gpt-5` does not exist or you do not have access to it.";
    for (param, message) in [
        (null(), ""),
        (null(), own),
        ("model".into(), own),
        (null(), "Project `proj_1` does not have access to model `gpt-5-2025-08-07`"),
        (null(), "The requested model 'gpt-5' does not exist."),
        (null(), "Your organization must be verified to use the model `gpt-5`."),
        (null(), "The model does not exist, or you have no access to it."),
        (null(), "You may not use this model - ask your administrator."),
    ] {
        for status in [403, 404] {
            assert_eq!(denied(status, "gpt-5", param.clone(), message), DENIED, "{message}");
        }
    }
    for (param, message) in [
        ("tools[0].model".into(), "The model 'gpt-image-9' does not exist"),
        ("tools[0].model".into(), ""),
        (null(), "The model 'gpt-image-9' does not exist"),
        (null(), "The model gpt-image-9 does not exist"),
        (null(), "Model \"o9\" not found."),
        (null(), "Project `proj_1` does not have access to model `gpt-5-mini`"),
    ] {
        for status in [403, 404] {
            let found = denied(status, "gpt-5", param.clone(), message);
            assert_eq!(found, Judgement::PASSED, "{message}");
        }
    }
    assert_eq!(denied(404, "", null(), own), Judgement::PASSED, "no model was asked for");
}
