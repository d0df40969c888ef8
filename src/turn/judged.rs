//! The property of judgements. The answers to one client's requests never change what another
//! client gets, unless the table names the key or its place as the subject.

use std::collections::BTreeSet;

use ::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use proptest::prelude::*;

use crate::binding::demand::{Demand, Tried};
use crate::binding::select::Reach;
use crate::client::Client;
use crate::health::condition::Subject;
use crate::health::diagnose::{Judgement, ModelUse, Trouble};
use crate::key::Key;
use crate::outcome::Answer;
use crate::session::SessionId;
use crate::turn::Gateway;
use crate::turn::doubt::Doubts;
use crate::turn::tests::gateway;

mod play;

use play::play;

const KEYS: [(&str, &str, &str); 4] =
    [("a-1", "org-a", "one"), ("a-2", "org-a", "two"), ("b-1", "org-b", ""), ("b-2", "org-b", "")];

/// An answer of the upstream.
#[derive(Clone, Debug)]
pub struct Told {
    status: u16,
    body: String,
    headers: Vec<(&'static str, &'static str)>,
    /// The error names another model or another part of the request, or is no error in OpenAI's
    /// shape.
    is_of_another: bool,
}

impl Told {
    /// Checks that an answer that names another subject is never judged as one about the model.
    fn check(&self, judgement: Judgement) {
        let is_of_model = matches!(judgement, Judgement::Model(_) | Judgement::Tier(_));
        assert!(!self.is_of_another || !is_of_model, "{judgement:?} of {self:?}");
    }
}

fn told() -> impl Strategy<Value = Told> {
    let status = prop::sample::select(vec![
        200, 400, 401, 402, 403, 404, 409, 422, 429, 429, 429, 500, 502, 503, 504,
    ]);
    let code = prop::sample::select(vec![
        "",
        "invalid_api_key",
        "missing_scope",
        "account_deactivated",
        "rate_limit_exceeded",
        "resource_unavailable",
        "slow_down",
        "insufficient_quota",
        "project_spend_limit_exceeded",
        "server_is_overloaded",
        "model_not_found",
        "unsupported_country_region_territory",
        "content_policy_violation",
    ]);
    let class = prop::sample::select(vec!["", "tokens", "images", "insufficient_quota", "x"]);
    let message = prop::sample::select(vec![
        "",
        "Missing scopes: model.request",
        "Rate limit reached for m in organization o on tokens per min.",
        "Rate limit reached for gpt-image-1 in organization o on tokens per min.",
        "The model `m` does not exist or you do not have access to it.",
        "The model 'gpt-image-9' does not exist",
        "Limit 9, Requested 10.",
    ]);
    let param = prop::sample::select(vec!["", "", "model", "tools[0].model", "input"]);
    let headers = prop::sample::select(vec![
        vec![],
        vec![("retry-after", "1")],
        vec![("retry-after", "3600")],
        vec![("x-ratelimit-remaining-tokens", "9000")],
        vec![
            ("x-ratelimit-limit-tokens", "9000"),
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", "1h"),
        ],
    ]);
    let parts = (status, code, class, message, param, headers, 0..10_u8);
    parts.prop_map(|(status, code, class, message, param, headers, shape)| {
        let error = serde_json::json!(
            {"code": code, "type": class, "message": message, "param": param});
        let body = match shape {
            0 => "<html>an edge</html>".to_owned(),
            1 => String::new(),
            2 => r#"{"error":"edge busy"}"#.to_owned(),
            3 => r#"{"error":["edge busy"]}"#.to_owned(),
            _ => serde_json::json!({ "error": error }).to_string(),
        };
        let is_of_another = matches!(shape, 2 | 3)
            || shape > 3
                && (matches!(param, "tools[0].model" | "input") || message.contains("gpt-image"));
        Told { status, body, headers, is_of_another }
    })
}

/// How a request meets its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Turn,
    /// A turn that asks for a special service tier.
    Flex,
    Handshake,
    /// A request that costs nothing, and has no session.
    Free,
    /// A turn that searches for its session's forgotten organization.
    Search,
    /// Error frames on an open WebSocket, every second one after its response has begun.
    Frame,
    /// As `Frame`, for requests of a special service tier.
    FlexFrame,
    /// Failures that answers state after they have begun.
    Failure,
    /// As `Failure`, in the answers to requests that cost nothing.
    FreeFailure,
}

const HOWS: [How; 9] = [
    How::Turn,
    How::Flex,
    How::Handshake,
    How::Free,
    How::Search,
    How::Frame,
    How::FlexFrame,
    How::Failure,
    How::FreeFailure,
];

fn answer(status: u16, headers: HeaderMap) -> Answer {
    let status = StatusCode::from_u16(status).unwrap();
    Answer { status, headers, head: Bytes::new(), rest: None, upgrade: None }
}

/// The subject that a judgement about a turn at `key` names, if others may feel it.
fn subject(key: &Key, judgement: Judgement, asked: ModelUse<'_>) -> Option<Subject> {
    match judgement {
        Judgement::Model(_) => Some(Subject::model(key, asked.model)),
        Judgement::Tier(_) => Subject::tier(key, asked),
        // No probe decides here, and one client's doubt proves nothing.
        Judgement::Key | Judgement::Organization(Trouble::Refused) => None,
        _ => judgement.ailment().map(|ailment| Subject::of(key, ailment.scope())),
    }
}

/// The key at which a new session of `client` begins.
async fn begin(gateway: &Gateway, client: &Client, number: usize) -> String {
    let session = SessionId::parse(&format!("b{number:021}"));
    let demand = Demand { session, model: "m", ..Demand::of(client) };
    let tried = Tried::nothing(std::time::Duration::from_secs(5));
    let (placing, mut budget) =
        (demand.with_tried(&tried, Reach::Anywhere), gateway.bindings.budget());
    let bound = gateway.bindings.bind(placing, Ok(None), &mut budget).await;
    bound.map(|(binding, _)| binding.key.id.clone()).unwrap_or_else(|error| error.code().into())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]
    #[test]
    fn answers_to_one_client_change_nothing_for_another_unless_the_table_names_the_key(
        turns in prop::collection::vec(
            (prop::collection::vec(told(), 0..5), prop::sample::select(&HOWS[..])), 1..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let (mut gateway, alice) = (gateway(&KEYS), Client::unrestricted("alice"));
            gateway.failover.doubts = Doubts::that_stay();
            let named = play(&gateway, &alice, &turns).await;
            let named: BTreeSet<String> = named.into_iter().map(Subject::name).collect();
            for key in gateway.registry.loaded().table.keys() {
                for (subject, condition, _) in gateway.registry.conditions.of(key) {
                    let name = subject.name();
                    prop_assert!(named.contains(&name), "{condition:?} of {name}: {turns:?}");
                    let is_denied = condition.name() == "no_access";
                    prop_assert!(!is_denied, "one client's word: {turns:?}");
                }
            }
            if named.is_empty() {
                let bob = Client::unrestricted("bob");
                for model in ["m", "n"] {
                    let demand = Demand { model, ..Demand::of(&bob) };
                    for key in gateway.registry.loaded().table.keys() {
                        prop_assert!(gateway.registry.is_ready(key, demand.model_use()), "{turns:?}");
                    }
                }
                // Each new session of another client begins at the same key as if the answers had
                // never come.
                let fresh = self::gateway(&KEYS);
                for number in 0..8 {
                    let [here, there] = [&gateway, &fresh].map(|one| begin(one, &bob, number));
                    let (here, there) = (here.await, there.await);
                    prop_assert_eq!(&here, &there, "session {}: {:?}", number, turns);
                }
            }
            Ok(())
        })?;
    }
}
