//! Serves a turn over HTTP: reads its body, lets the spine find an answer, and relays the answer.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::Body;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::binding::Binding;
use crate::binding::demand::{Demand, Sealed, Tried};
use crate::binding::ownership::Owner;
use crate::binding::select::Reach;
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::metrics::Transport;
use crate::outcome::Answer;
use crate::session::SessionId;
use crate::session::identify::Identity;
use crate::store::Budget;
use crate::task::Tasks;
use crate::telemetry::TurnId;
use crate::turn::account::Account;
use crate::turn::entry::{ForeignIds, may_ask_for};
use crate::turn::http::id_gate::IdGate;
use crate::turn::http::passage::Course;
use crate::turn::http::relay::{Outgoing, relay};
use crate::turn::http::replay::{self, Replay, Replayed, Text};
use crate::turn::{Attempts, Gateway};
use crate::upstream::headers::{TURN_STATE, keep_readable, returned};
use crate::upstream::request::{AskedModel, Content, Request as Asked};
use crate::wire::endpoint::Endpoint;

const TURN: HeaderName = HeaderName::from_static("x-warmkey-turn");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The parts that turns over HTTP share.
pub struct HttpTurns {
    pub gateway: Arc<Gateway>,
    /// The memory for request bodies.
    pub replay: Replay,
    /// Owns the answers that outlive their handlers.
    pub tasks: Tasks,
}

/// Serves one turn. However the turn ends, the client receives an answer and the turn is recorded.
pub async fn serve(
    turns: Arc<HttpTurns>,
    endpoint: Endpoint<'static>,
    request: Request<Body>,
) -> Response<Outgoing> {
    let books = Arc::clone(&turns.gateway.books);
    let account = Account::open(books, Transport::Http, request.headers());
    guarded(account.id, answer(&turns, account, endpoint, request)).await
}

/// Runs `turn` and answers the client even if `turn` panics.
pub async fn guarded(
    id: TurnId,
    turn: impl Future<Output = Response<Outgoing>>,
) -> Response<Outgoing> {
    let failed = |_| {
        tracing::error!(turn = %id, "a turn panicked");
        Error::new(ErrorKind::Internal, "The gateway failed on this turn.").to_response()
    };
    named(AssertUnwindSafe(turn).catch_unwind().await.unwrap_or_else(failed), id)
}

/// Answers and records a turn that is refused before it is read.
pub fn refuse(gateway: &Gateway, request: &Request<Body>, error: &Error) -> Response<Outgoing> {
    let mut account = Account::open(Arc::clone(&gateway.books), Transport::Http, request.headers());
    account.refused(error);
    named(error.to_response(), account.id)
}

/// Adds the turn's id to an answer, and a request id if the upstream gave none.
pub fn named(mut response: Response<Outgoing>, id: TurnId) -> Response<Outgoing> {
    if let Ok(name) = HeaderValue::try_from(id.to_string()) {
        response.headers_mut().entry(REQUEST_ID).or_insert_with(|| name.clone());
        response.headers_mut().insert(TURN, name);
    }
    response
}

async fn answer(
    turns: &HttpTurns,
    mut account: Account,
    endpoint: Endpoint<'static>,
    request: Request<Body>,
) -> Response<Outgoing> {
    if endpoint == Endpoint::CountInputTokens {
        account.is_no_turn("input_tokens");
    }
    match turns.exchange(&mut account, endpoint, request).await {
        Ok((key, answer, gate)) => {
            let course = Course::new(&turns.gateway, key, account);
            pass_on(course, answer, gate, &turns.tasks).await
        }
        Err(error) => {
            account.refused(&error);
            error.to_response()
        }
    }
}

/// Relays an upstream's answer; the `gate` may delay its bytes.
pub async fn pass_on(
    mut course: Course,
    answer: Answer,
    gate: Option<IdGate>,
    tasks: &Tasks,
) -> Response<Outgoing> {
    course.account.answered(answer.status);
    let mut response = Response::new(());
    *response.status_mut() = answer.status;
    *response.headers_mut() = returned(&answer.headers, &course.key.secret);
    let (body, pump) = relay(answer, gate, course);
    pump.start(tasks).await;
    response.map(|()| Outgoing::Relayed(body))
}

/// The facts that one scan of a body's text finds.
struct Glance {
    identity: Identity,
    /// The session derived from the text itself, if neither the text nor the headers name one.
    derived: Option<SessionId>,
    /// The response from which the turn continues.
    previous: Option<String>,
    /// The upstream does not store the answer.
    is_unstored: bool,
    /// Whether the text holds sealed content. `None`: the text is the body itself and can be
    /// searched later.
    is_sealed: Option<bool>,
    /// The text refers to content that only the project of its session can find.
    needs_project: bool,
    /// The model that the text names; empty if it names none.
    model: String,
    /// The text of an encoded body, if an upstream knows its model by another name.
    decoded: Option<(Vec<u8>, Option<OwnedSemaphorePermit>)>,
}

impl HttpTurns {
    /// Serves a turn over HTTP, up to the head of its answer.
    async fn exchange(
        &self,
        account: &mut Account,
        endpoint: Endpoint<'static>,
        request: Request<Body>,
    ) -> Result<(Arc<Key>, Answer, Option<IdGate>), Error> {
        let Gateway { entry, bindings, failover, .. } = &*self.gateway;
        let (mut head, body) = request.into_parts();
        let (client, identity) = entry.enter(account, &head)?;
        let mut budget = bindings.budget();

        // The store is asked while the body still arrives.
        let look_up = async {
            match &identity.session {
                Some(session) => Some(bindings.look_up(session, &mut budget).await),
                None => None,
            }
        };
        let (body, found) = tokio::join!(self.replay.read(&head.headers, body), look_up);
        let body = body?;
        let complete = Instant::now();
        let Glance {
            mut identity,
            derived,
            previous,
            is_unstored,
            is_sealed,
            needs_project,
            model,
            decoded,
        } = self.glance(&client, &head.headers, &body, identity)?;
        let origin = entry.origin(&client.id, previous.as_deref(), &mut budget).await;
        let of_origin = || origin.as_ref().ok()?.as_ref()?.session.clone();
        identity.session = identity.session.or_else(of_origin).or(derived);
        account.session(&identity);
        account.model(&model);
        let within = origin?.as_ref().map_or(Reach::Anywhere, Owner::reach);
        let found = match (found, &identity.session) {
            (None, Some(session)) => bindings.look_up(session, &mut budget).await,
            (found, _) => found.unwrap_or(Ok(None)),
        };

        // Only a created response is stored under its id.
        let is_unstored = is_unstored || endpoint != Endpoint::CreateResponse;
        if !is_unstored {
            keep_readable(&mut head.headers);
        }
        let demand = Demand {
            session: identity.session,
            lineage: entry.identifier.lineage(&client.id, &head.headers),
            carries_sealed: is_sealed.map_or(Sealed::In(&body.bytes), Sealed::Known),
            turn_state: head.headers.get(TURN_STATE).map(HeaderValue::as_bytes),
            model: &model,
            // If the owner of the previous response is not known, only the project of the session
            // can find it.
            needs_project: needs_project || previous.is_some() && within == Reach::Anywhere,
            is_free: endpoint == Endpoint::CountInputTokens,
            ..Demand::of(&client)
        };
        let tried = Tried { within, ..Tried::nothing(failover.options.wait) };
        let decoded = decoded.as_ref().map(|(text, _)| &text[..]);
        let asked = Asked::new(&head, endpoint, Content::Body(&body.bytes))
            .told(entry.identifier.hop(demand.session.as_ref(), &demand.lineage))
            .asking(AskedModel { model: &model, decoded });
        let attempts = Attempts::new(&self.gateway, account, &asked, (&demand, tried), &mut budget);
        let (binding, answer) = attempts.run(found, complete).await?;
        let gate = (!is_unstored && answer.status.is_success())
            .then(|| self.gate(&answer, &client, &binding, budget));
        Ok((binding.key, answer, gate))
    }

    /// Makes a gate that delays the answer's id until its owner is recorded.
    fn gate(
        &self,
        answer: &Answer,
        client: &Client,
        binding: &Binding,
        mut budget: Budget,
    ) -> IdGate {
        let (gateway, client) = (Arc::clone(&self.gateway), client.id.clone());
        let owner = Owner::of(binding);
        let write_down = move |id: String| async move {
            gateway.entry.own(&client, &id, owner, &mut budget).await
        };
        IdGate::new(&answer.headers, write_down)
    }

    /// Scans the body's text. The text is not kept.
    fn glance(
        &self,
        client: &Client,
        headers: &HeaderMap,
        body: &Replayed,
        mut identity: Identity,
    ) -> Result<Glance, Error> {
        let entry = &self.gateway.entry;
        let text = self.replay.text(headers, body)?;
        if matches!(text, Text::Unreadable) && entry.foreign_ids == ForeignIds::Refuse {
            let message = "The gateway cannot decode a body in this content-encoding: send it unencoded, or as zstd or gzip.";
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        let peek = text.bytes().map(replay::peek).transpose()?.unwrap_or_default();
        may_ask_for(client, peek.model.text())?;
        entry.may_refer(peek.conversation.id(), peek.references)?;
        let mut derived = None;
        if identity.session.is_none() {
            let by_body = entry.identifier.by_body(&client.id, &peek);
            identity = Identity { skipped: identity.skipped + by_body.skipped, ..by_body };
        }
        if identity.session.is_none() {
            derived = entry.identifier.derived(&client.id, text.bytes().unwrap_or_default());
        }
        let is_sealed = match &text {
            Text::Plain(_) => None,
            Text::Decoded(text, _) => Some(Sealed::In(text).is_sealed()),
            Text::Unreadable => Some(true),
        };
        let previous = peek.previous_response_id.id().map(str::to_owned);
        let model = peek.model.text().unwrap_or_default().to_owned();
        let needs_project = peek.references.are_held
            || peek.conversation.id().is_some()
            || matches!(text, Text::Unreadable);
        let decoded = match text {
            Text::Decoded(text, place) if self.is_renamed(&model) => Some((text, place)),
            _ => None,
        };
        Ok(Glance {
            identity,
            derived,
            previous,
            is_unstored: peek.is_unstored,
            is_sealed,
            needs_project,
            model,
            decoded,
        })
    }

    /// Whether an upstream knows `model` by another name.
    fn is_renamed(&self, model: &str) -> bool {
        let loaded = self.gateway.registry.loaded();
        loaded.table.keys().iter().any(|key| key.upstream.host.name_of(model).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::Size;
    use crate::turn::tests::gateway;
    use http::header::CONTENT_ENCODING;

    fn turns(gateway: Gateway) -> HttpTurns {
        let replay = Replay::new(Size(1 << 20), Size(1 << 20));
        HttpTurns { gateway: Arc::new(gateway), replay, tasks: Tasks::new() }
    }

    /// Returns the glance at `text` in this encoding, or the error's code.
    async fn seen(
        turns: &HttpTurns,
        client: &Client,
        text: &str,
        encoding: &'static str,
    ) -> Result<Glance, &'static str> {
        let headers =
            HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(encoding))]);
        let bytes = if encoding == "zstd" {
            zstd::encode_all(text.as_bytes(), 1).unwrap()
        } else {
            text.into()
        };
        let body = turns.replay.read(&headers, Body::from(bytes)).await.unwrap();
        turns.glance(client, &headers, &body, Identity::default()).map_err(|error| error.code())
    }

    #[tokio::test]
    async fn body_is_scanned_in_every_known_encoding() {
        let (mut turns, alice) =
            (turns(gateway(&[("a", "o", "p")])), Client::unrestricted("alice"));
        let text = r#"{"model":"m","store":false,"previous_response_id":"r","input":[{"encrypted_content":"x"}]}"#;
        for encoding in ["identity", "zstd"] {
            let glance = seen(&turns, &alice, text, encoding).await.unwrap();
            assert_eq!(
                (glance.model.as_str(), glance.previous.as_deref(), glance.is_unstored),
                ("m", Some("r"), true)
            );
            // An unencoded body stays available and is searched only when needed.
            assert_eq!(glance.is_sealed, (encoding == "zstd").then_some(true));
            let glance = seen(&turns, &alice, r#"{"input":"x"}"#, encoding).await.unwrap();
            assert_eq!(
                (glance.model.as_str(), glance.previous, glance.is_unstored, glance.needs_project),
                ("", None, false, false)
            );
            assert_eq!(glance.is_sealed, (encoding == "zstd").then_some(false));
            assert!(
                glance.identity.session.is_none() && glance.derived.is_some(),
                "no field names a session"
            );
            let glance = seen(&turns, &alice, r#"{"input":"x","prompt_cache_key":"k"}"#, encoding)
                .await
                .unwrap();
            assert!(glance.identity.session.is_some() && glance.derived.is_none());
            let conversation = r#"{"input":"x","conversation":"c"}"#;
            assert_eq!(
                seen(&turns, &alice, conversation, encoding).await.err(),
                Some("conversation_not_found")
            );
            assert_eq!(seen(&turns, &alice, "{", encoding).await.err(), Some("invalid_json"));
        }
        assert_eq!(seen(&turns, &alice, text, "br").await.err(), Some("invalid_request"));
        // An unreadable body may hold anything.
        let mut gateway = gateway(&[("a", "o", "p")]);
        gateway.entry.foreign_ids = ForeignIds::Pass;
        turns = self::turns(gateway);
        let glance = seen(&turns, &alice, text, "br").await.unwrap();
        assert_eq!(
            (glance.is_sealed, glance.needs_project, glance.model.as_str()),
            (Some(true), true, "")
        );
        let glance = seen(&turns, &alice, r#"{"conversation":{"id":"c"}}"#, "zstd").await.unwrap();
        assert!(glance.needs_project, "a conversation needs its session's project");
    }

    fn answered(id: Option<&'static str>) -> Response<Outgoing> {
        let mut response = Response::new(Outgoing::from(String::new()));
        if let Some(id) = id {
            response.headers_mut().insert(REQUEST_ID, HeaderValue::from_static(id));
        }
        response
    }

    #[tokio::test]
    async fn turn_that_panics_is_answered() {
        let id = TurnId::random();
        let response = guarded(id, async { panic!("a turn of a test") }).await;
        assert_eq!(
            (response.status().as_u16(), &response.headers()[TURN]),
            (500, &id.to_string().parse().unwrap())
        );
    }

    #[tokio::test]
    async fn answer_has_its_upstreams_id_or_else_its_own() {
        let id = TurnId::random();
        for said in [Some("req_1"), None] {
            let response = guarded(id, async { answered(said) }).await;
            let own = id.to_string();
            let told = [TURN, REQUEST_ID]
                .map(|name| response.headers()[name].to_str().unwrap().to_owned());
            assert_eq!(told, [own.clone(), said.map_or(own, str::to_owned)]);
        }
    }
}
