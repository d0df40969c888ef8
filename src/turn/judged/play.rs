//! Plays the requests of one client, over HTTP and on WebSockets, and notes what the table says of
//! each answer.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, HeaderName, StatusCode};
use tokio::time::Instant;

use super::{How, Told, answer, subject};
use crate::binding::Binding;
use crate::binding::demand::{Demand, Sealed, Tried};
use crate::binding::select::Reach;
use crate::client::Client;
use crate::clock::time_of_day;
use crate::health::condition::Subject;
use crate::health::diagnose::{Judgement, Met, ModelUse, judge, judge_failure};
use crate::key::Key;
use crate::metrics::Transport;
use crate::outcome::{Outcome, Refusal};
use crate::session::SessionId;
use crate::session::identify::Identity;
use crate::turn::account::Account;
use crate::turn::websocket::frame::{Event, Stage};
use crate::turn::websocket::replace_error::{Refused, Replacement};
use crate::turn::{Ask, Attempts, Gateway};
use crate::usage::tap::Reading;
use crate::wire::error_body::ErrorBody;
use crate::wire::terminal::Terminal;

/// The table's judgement of an answer, and the key that answered.
type Judged = (Arc<Key>, Judgement);

/// An upstream that gives these answers and then serves. It notes the table's judgement of each.
struct Script<'s> {
    answers: RefCell<VecDeque<Told>>,
    case: (Met, ModelUse<'s>),
    judged: RefCell<Vec<Judged>>,
}

impl Ask for Script<'_> {
    async fn ask(&self, binding: &Binding, _: bool) -> Outcome {
        let next = self.answers.borrow_mut().pop_front();
        let Some(told) = next.filter(|told| told.status != 200) else {
            return Outcome::Answered(answer(200, HeaderMap::new()));
        };
        let Told { status, body, headers, .. } = told.clone();
        let (headers, error) = (map(&headers), ErrorBody::parse(body.as_bytes()));
        let (code, now) = (StatusCode::from_u16(status).unwrap(), time_of_day());
        let judgement = judge(self.case, code, &error, &headers, now);
        told.check(judgement);
        self.judged.borrow_mut().push((Arc::clone(&binding.key), judgement));
        Outcome::Refused(Refusal { answer: answer(status, headers), error })
    }
}

fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), value.parse().unwrap())
    };
    pairs.iter().map(pair).collect()
}

/// Plays requests of one client, each with its own answers. Returns the subjects that the table
/// named.
pub async fn play(
    gateway: &Gateway,
    client: &Client,
    requests: &[(Vec<Told>, How)],
) -> Vec<Subject> {
    let mut named = Vec::new();
    for (number, (answers, how)) in requests.iter().enumerate() {
        let has_session = *how != How::Free;
        let demand = Demand {
            session: has_session.then(|| SessionId::parse(&format!("{number:022}"))).flatten(),
            by_websocket: matches!(how, How::Handshake | How::Frame | How::FlexFrame),
            model: "m",
            tier: matches!(how, How::Flex | How::FlexFrame).then_some("flex"),
            is_free: matches!(how, How::Free | How::FreeFailure),
            carries_sealed: Sealed::Known(*how == How::Search),
            ..Demand::of(client)
        };
        let judged = match how {
            How::Frame | How::FlexFrame => frames(gateway, &demand, answers).await,
            How::Failure | How::FreeFailure => failures(gateway, &demand, answers).await,
            _ => attempts(gateway, &demand, answers, *how == How::Search).await,
        };
        for (key, judgement) in judged {
            assert!(
                judgement.is_shared() || subject(&key, judgement, demand.model_use()).is_none()
            );
            named.extend(subject(&key, judgement, demand.model_use()));
            // Two keys without a project share what each has met.
            named.extend(Subject::shared_model(&key, "m").filter(|_| judgement.is_shared()));
        }
    }
    named
}

const WAIT: Duration = Duration::from_secs(5);

/// Binds the request's session.
async fn bound(gateway: &Gateway, demand: &Demand<'_>) -> Option<Binding> {
    let (tried, mut budget) = (Tried::nothing(WAIT), gateway.bindings.budget());
    let placing = demand.with_tried(&tried, Reach::Anywhere);
    let bound = gateway.bindings.bind(placing, Ok(None), &mut budget).await;
    bound.ok().map(|(binding, _)| binding)
}

/// Plays a request over HTTP, or a handshake. `searches`: the organization of its session is
/// forgotten, and the first organization asked cannot open its history.
async fn attempts(
    gateway: &Gateway,
    demand: &Demand<'_>,
    answers: &[Told],
    searches: bool,
) -> Vec<Judged> {
    let script = Script {
        answers: RefCell::new(answers.iter().cloned().collect()),
        case: (demand.met(), demand.model_use()),
        judged: RefCell::default(),
    };
    let provisional = match searches {
        true => bound(gateway, demand).await,
        false => None,
    };
    let mut account = Account::open(Arc::clone(&gateway.books), Transport::Http, &HeaderMap::new());
    let mut budget = gateway.bindings.budget();
    let turn = (demand, Tried::nothing(WAIT), Reach::Anywhere);
    let attempts = Attempts::new(gateway, &mut account, &script, turn, &mut budget);
    // The property holds however the request ends.
    let _ = match provisional {
        Some(binding) => {
            let binding = Binding { is_provisional: true, ..binding };
            attempts.search(binding, answer(400, HeaderMap::new())).await
        }
        None => attempts.run(Ok(None), tokio::time::Instant::now()).await,
    };
    script.judged.into_inner()
}

/// Plays error frames, as the socket reads and replaces them.
async fn frames(gateway: &Gateway, demand: &Demand<'_>, answers: &[Told]) -> Vec<Judged> {
    let Some(binding) = bound(gateway, demand).await else { return Vec::new() };
    let mut judged = Vec::new();
    for (number, told) in answers.iter().enumerate().filter(|(_, told)| told.status != 200) {
        let body: serde_json::Value = serde_json::from_str(&told.body).unwrap_or_default();
        let headers: serde_json::Map<String, serde_json::Value> =
            told.headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let frame = serde_json::json!({ "type": "error", "status": told.status,
            "error": body["error"], "headers": headers });
        let frame = frame.to_string();
        let Some(Event { stage: Stage::Refused(status, error, headers), .. }) =
            Event::read(frame.as_bytes())
        else {
            panic!("an error frame: {frame}")
        };
        let case = (Met::Turn, demand.model_use());
        if body.is_object() {
            let over_http = ErrorBody::parse(told.body.as_bytes());
            assert_eq!(*error, over_http, "a frame says the same: {frame}");
        }
        let judgement = judge(case, status, &error, &headers, time_of_day());
        told.check(judgement);
        judged.push((Arc::clone(&binding.key), judgement));
        let refused = Refused {
            judgement,
            frame: &frame,
            headers: &headers,
            sent: Some(Instant::now()),
            has_begun: number % 2 == 1,
            is_provisional: false,
            is_announced: number % 3 == 0,
        };
        let turn = (demand, Tried::nothing(WAIT), Reach::Anywhere);
        Replacement::of(gateway, &binding, turn, refused).await;
    }
    judged
}

/// Plays answers that begin well and then state their failure in an event. The answer to a free
/// request says nothing, as a stored response that is shown.
async fn failures(gateway: &Gateway, demand: &Demand<'_>, answers: &[Told]) -> Vec<Judged> {
    let Some(binding) = bound(gateway, demand).await else { return Vec::new() };
    let mut judged = Vec::new();
    for told in answers {
        let books = Arc::clone(&gateway.books);
        let mut account = Account::open(books, Transport::Http, &HeaderMap::new());
        account.note_session(&Identity { session: demand.session.clone(), skipped: 0 });
        account.note_model(demand.model);
        account.note_attempt(&binding, false, &gateway.registry.loads);
        account.note_status(StatusCode::OK);
        if demand.is_free {
            account.note_operation("retrieve");
        }
        let failure = ErrorBody::parse(told.body.as_bytes());
        let judgement = judge_failure(demand.model_use(), &failure);
        let terminal = Some(Terminal::Failed);
        let reading = Reading { terminal, failure: Some(failure), ..Reading::default() };
        gateway.observe_end(&account, &binding.key, &reading);
        if !demand.is_free {
            told.check(judgement);
            judged.push((Arc::clone(&binding.key), judgement));
        }
    }
    judged
}
