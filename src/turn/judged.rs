//! The property of judgements. No sequence of answers to one client's requests changes what another
//! client gets, unless the table names the key or its place as the subject.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use ::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use proptest::prelude::*;

use crate::binding::Binding;
use crate::binding::demand::{Demand, Tried};
use crate::binding::select::Reach;
use crate::client::Client;
use crate::clock::time_of_day;
use crate::health::condition::Subject;
use crate::health::diagnose::{Judgement, Met, ModelUse, Trouble, judge};
use crate::key::Key;
use crate::metrics::Transport;
use crate::outcome::{Answer, Outcome, Refusal};
use crate::session::SessionId;
use crate::store::Budget;
use crate::turn::account::Account;
use crate::turn::doubt::Doubts;
use crate::turn::tests::gateway;
use crate::turn::{Ask, Attempts, Gateway};
use crate::wire::error_body::ErrorBody;

const KEYS: [(&str, &str, &str); 4] =
    [("a-1", "org-a", "one"), ("a-2", "org-a", "two"), ("b-1", "org-b", ""), ("b-2", "org-b", "")];

/// An answer of the upstream.
#[derive(Clone, Debug)]
struct Told {
    status: u16,
    body: String,
    headers: Vec<(&'static str, &'static str)>,
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
        "Rate limit reached for gpt-image-1 in organization o on tokens per min.",
        "Limit 9, Requested 10.",
    ]);
    let headers = prop::sample::select(vec![
        vec![],
        vec![("retry-after", "1")],
        vec![("retry-after", "3600")],
        vec![("x-ratelimit-remaining-tokens", "9000")],
    ]);
    let parts = (status, code, class, message, headers, 0..8_u8);
    parts.prop_map(|(status, code, class, message, headers, shape)| {
        let error = serde_json::json!({"code": code, "type": class, "message": message});
        let body = match shape {
            0 => "<html>an edge</html>".to_owned(),
            1 => String::new(),
            _ => serde_json::json!({ "error": error }).to_string(),
        };
        Told { status, body, headers }
    })
}

/// An upstream that gives these answers, and then serves. It notes what the table says of each.
struct Script<'s> {
    answers: RefCell<VecDeque<Told>>,
    case: (Met, ModelUse<'s>),
    judged: RefCell<Vec<(Arc<Key>, Judgement)>>,
}

impl Ask for Script<'_> {
    async fn ask(&self, binding: &Binding, _: bool) -> Outcome {
        let Some(Told { status, body, headers }) = self.answers.borrow_mut().pop_front() else {
            return Outcome::Answered(answer(200, HeaderMap::new()));
        };
        if status == 200 {
            return Outcome::Answered(answer(200, HeaderMap::new()));
        }
        let pairs = headers.iter().map(|(name, value)| {
            (name.parse::<::http::HeaderName>().unwrap(), value.parse().unwrap())
        });
        let (headers, error) = (pairs.collect::<HeaderMap>(), ErrorBody::parse(body.as_bytes()));
        let (status_code, now) = (StatusCode::from_u16(status).unwrap(), time_of_day());
        let judgement = judge(self.case, status_code, &error, &headers, now);
        self.judged.borrow_mut().push((Arc::clone(&binding.key), judgement));
        Outcome::Refused(Refusal { answer: answer(status, headers), error })
    }
}

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

/// Plays turns of one client, each with its own answers. Returns the subjects that the table named.
async fn play(
    gateway: &Gateway,
    client: &Client,
    turns: &[(Vec<Told>, bool, bool)],
) -> Vec<Subject> {
    let mut named = Vec::new();
    for (number, (answers, by_websocket, is_flex)) in turns.iter().enumerate() {
        let demand = Demand {
            session: SessionId::parse(&format!("{number:022}")),
            by_websocket: *by_websocket,
            model: "m",
            tier: is_flex.then_some("flex"),
            ..Demand::of(client)
        };
        let met = if *by_websocket { Met::Handshake } else { Met::Turn };
        let script = Script {
            answers: RefCell::new(answers.iter().cloned().collect()),
            case: (met, demand.model_use()),
            judged: RefCell::default(),
        };
        let books = Arc::clone(&gateway.books);
        let mut account = Account::open(books, Transport::Http, &HeaderMap::new());
        let mut budget: Budget = gateway.bindings.budget();
        let tried = Tried::nothing(std::time::Duration::from_secs(5));
        let attempts = Attempts::new(
            gateway,
            &mut account,
            &script,
            (&demand, tried, Reach::Anywhere),
            &mut budget,
        );
        // However the turn ends.
        let _ = attempts.run(Ok(None), tokio::time::Instant::now()).await;
        for (key, judgement) in script.judged.into_inner() {
            assert!(
                judgement.is_shared() || subject(&key, judgement, demand.model_use()).is_none()
            );
            named.extend(subject(&key, judgement, demand.model_use()));
            // Two keys without a project share what both met.
            named.extend(Subject::shared_model(&key, "m").filter(|_| judgement.is_shared()));
        }
    }
    named
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn answers_to_one_client_change_nothing_for_another_unless_the_table_names_the_key(
        turns in prop::collection::vec(
            (prop::collection::vec(told(), 0..5), any::<bool>(), any::<bool>()), 1..5),
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
            }
            Ok(())
        })?;
    }
}
