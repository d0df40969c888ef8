//! Serves a turn over HTTP: reads its body, lets the spine find an answer, and relays the answer.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::Body;
use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, Request, Response};
use tokio::time::Instant;

use crate::binding::Binding;
use crate::binding::bind::Found;
use crate::binding::demand::{Demand, Sealed, Tried};
use crate::binding::ownership::Owner;
use crate::binding::select::Reach;
use crate::chat::body::ChatBody;
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::metrics::Transport;
use crate::outcome::Answer;
use crate::session::SessionId;
use crate::store::Budget;
use crate::task::Tasks;
use crate::telemetry::{Share, TurnId};
use crate::turn::account::Account;
use crate::turn::http::course::Course;
use crate::turn::http::form::{self, Form};
use crate::turn::http::glance::Glance;
use crate::turn::http::heavy_places::HeavyPlaces;
use crate::turn::http::id_gate::IdGate;
use crate::turn::http::issued::writer;
use crate::turn::http::relay::{Outgoing, relay};
use crate::turn::http::replay::Replay;
use crate::turn::{Attempts, Gateway};
use crate::upstream::headers::{TURN_STATE, hide_models_version, returned};
use crate::upstream::request::{AskedModel, Content, Request as Asked};
use crate::wire::endpoint::{Dialect, Endpoint};
use crate::wire::event::is_stream;

const TURN: HeaderName = HeaderName::from_static("x-warmkey-turn");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The parts that turns over HTTP share.
pub struct HttpTurns {
    pub gateway: Arc<Gateway>,
    /// The memory for request bodies.
    pub replay: Replay,
    /// The share of turns that upstreams are told to trace. `None`: the gateway sends upstreams no
    /// trace context of its own.
    pub propagation: Option<Share>,
    /// Owns the answers that outlive their handlers.
    pub tasks: Tasks,
    /// Places for long texts, which other threads decode and scan.
    pub heavy: Arc<HeavyPlaces>,
}

/// Serves one turn. However the turn ends, the client receives an answer and the turn is recorded.
pub async fn serve(
    turns: Arc<HttpTurns>,
    endpoint: Endpoint<'static>,
    request: Request<Body>,
) -> Response<Outgoing> {
    let books = Arc::clone(&turns.gateway.books);
    let account = Account::open(books, Transport::Http, request.headers());
    catch_panic(account.id, answer(&turns, account, endpoint, request)).await
}

/// Runs `turn` and answers the client even if `turn` panics.
pub async fn catch_panic(
    id: TurnId,
    turn: impl Future<Output = Response<Outgoing>>,
) -> Response<Outgoing> {
    let failed = |_| {
        tracing::error!(turn = %id, "a turn panicked");
        Error::new(ErrorKind::Internal, "The gateway failed on this turn.").to_response()
    };
    add_turn_id(AssertUnwindSafe(turn).catch_unwind().await.unwrap_or_else(failed), id)
}

/// Answers and records a turn that is refused before it is read.
pub fn refuse(gateway: &Gateway, request: &Request<Body>, error: &Error) -> Response<Outgoing> {
    let mut account = Account::open(Arc::clone(&gateway.books), Transport::Http, request.headers());
    // The error is about the request, so an unknown client receives it, too.
    let _ = gateway.entry.authenticate(&mut account, request.headers());
    account.note_error(error);
    add_turn_id(error.to_response(), account.id)
}

/// Adds the turn's id to an answer, and a request id if the upstream gave none.
pub fn add_turn_id(mut response: Response<Outgoing>, id: TurnId) -> Response<Outgoing> {
    if let Ok(name) = HeaderValue::try_from(id.to_string()) {
        response.headers_mut().entry(REQUEST_ID).or_insert_with(|| name.clone());
        response.headers_mut().insert(TURN, name);
    }
    response
}

async fn answer(
    turns: &Arc<HttpTurns>,
    mut account: Account,
    endpoint: Endpoint<'static>,
    request: Request<Body>,
) -> Response<Outgoing> {
    if endpoint.dialect() == Dialect::Chat {
        account.note_chat();
    }
    if endpoint == Endpoint::CountInputTokens {
        account.note_operation("input_tokens");
    }
    match turns.exchange(&mut account, endpoint, request).await {
        Ok(Exchanged { key, answer, form, gate }) => {
            let course =
                Course::new(&turns.gateway, &turns.replay.memory, key, account).in_form(form);
            pass_on(course, answer, gate, &turns.tasks).await
        }
        Err(error) => {
            account.note_error(&error);
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
    course.account.note_status(answer.status);
    course.account.note_stream(is_stream(&answer.headers));
    let mut response = Response::new(());
    *response.status_mut() = answer.status;
    *response.headers_mut() = returned(&answer.headers, &course.key.secret);
    let (body, pump) = relay(answer, gate, course);
    pump.start(tasks).await;
    response.map(|()| Outgoing::Relayed(body))
}

/// The session of a turn, its binding, and the keys that may serve the turn.
struct Located {
    session: Option<SessionId>,
    found: Found,
    within: Reach,
    /// Whether only the project of the session can find what the turn refers to.
    needs_project: bool,
}

/// A turn up to the head of its answer.
struct Exchanged {
    key: Arc<Key>,
    answer: Answer,
    form: Form,
    gate: Option<IdGate>,
}

impl HttpTurns {
    /// Serves a turn over HTTP, up to the head of its answer.
    async fn exchange(
        self: &Arc<Self>,
        account: &mut Account,
        endpoint: Endpoint<'static>,
        request: Request<Body>,
    ) -> Result<Exchanged, Error> {
        let Gateway { entry, bindings, failover, .. } = &*self.gateway;
        let (head, body) = request.into_parts();
        let (client, identity) = entry.enter(account, &head)?;
        let mut budget = bindings.budget();

        // The store is asked while the body still arrives.
        let look_up = async {
            match &identity.session {
                Some(session) => Some(bindings.look_up(session, &mut budget).await),
                None => None,
            }
        };
        let (body, found) = tokio::join!(self.replay.read(&client.id, head.version, body), look_up);
        let body = body?;
        let complete = Instant::now();
        let by_chat = endpoint.dialect() == Dialect::Chat;
        let (body, glance) =
            self.scan_body(&client, &head.headers, by_chat, (body, identity)).await?;
        let mut glance = glance.asked_of(endpoint);
        let placed = self.locate(account, &client, &mut glance, found, &mut budget).await?;

        let demand = Demand {
            session: placed.session,
            lineage: entry.identifier.lineage(&client.id, &head.headers),
            carries_sealed: glance.is_sealed.map_or(Sealed::In(&body.bytes), Sealed::Known),
            turn_state: head.headers.get(TURN_STATE).map(HeaderValue::as_bytes),
            by_chat,
            model: &glance.model,
            tier: glance.tier.as_deref(),
            needs_project: placed.needs_project,
            is_free: endpoint == Endpoint::CountInputTokens,
            ..Demand::of(&client)
        };
        account.note_lineage(&demand.lineage);
        let session = demand.session.as_ref();
        let decoded = glance.decoded.as_ref().map(|(text, _)| text);
        let chat = if by_chat {
            let own = body.bytes.clone();
            let chat = ChatBody::new(own, decoded.cloned(), session, glance.names_cache_key);
            let bound = placed.found.as_ref().ok().and_then(Option::as_ref);
            Some(self.render_chat(&client.id, chat, bound).await?)
        } else {
            None
        };
        let chat = chat.as_ref();
        let content = chat.map_or(Content::Body(&body.bytes), Content::Chat);
        let (model, place) = (&*glance.model, glance.model_place);
        let asked = Asked::new(&head, endpoint, content)
            .of_session(session)
            .with_hop(entry.identifier.hop(session, &demand.lineage))
            .asking(AskedModel { model, decoded, place })
            .traced(self.propagation, account.id);
        let turn = (&demand, Tried::nothing(failover.options.wait), placed.within);
        let attempts = Attempts::new(&self.gateway, account, &asked, turn, &mut budget);
        let (binding, mut answer) = attempts.run(placed.found, complete).await?;
        hide_models_version(&mut answer.headers, &client);
        let form = self.form(account, (&mut answer, &binding.key), &client, endpoint, chat).await?;
        let gate = (!glance.is_unstored && answer.status.is_success())
            .then(|| self.gate(&answer, &client, &binding, budget));
        Ok(Exchanged { key: binding.key, answer, form, gate })
    }

    /// Finds the turn's session, its binding and the keys that may serve the turn. A turn that goes
    /// on from a stored response or item is bound to the project of its owner.
    async fn locate(
        &self,
        account: &mut Account,
        client: &Client,
        glance: &mut Glance,
        found: Option<Found>,
        budget: &mut Budget,
    ) -> Result<Located, Error> {
        let Gateway { entry, bindings, .. } = &*self.gateway;
        // Thousands of ids are not kept while the upstream thinks.
        let items = std::mem::take(&mut glance.items);
        let previous = &glance.previous;
        let origin = entry.origin(&client.id, previous.as_deref(), budget).await;
        let of_origin = || origin.as_ref().ok()?.as_ref()?.session.clone();
        let mut identity = glance.identity.clone();
        identity.session = identity.session.or_else(of_origin).or_else(|| glance.derived.clone());
        account.note_session(&identity);
        account.note_model(&glance.model);
        account.note_tier(glance.tier.clone());
        if let Some(imprint) = &glance.imprint {
            account.note_purpose(glance.kind, imprint.clone());
        }
        let origin = origin?;
        let found = match (found, &identity.session) {
            (None, Some(session)) => bindings.look_up(session, budget).await,
            (found, _) => found.unwrap_or(Ok(None)),
        };
        let maker = entry.items(&client.id, &items, budget).await?;
        let within = origin.as_ref().or(maker.as_ref()).map_or(Reach::Anywhere, Owner::reach);
        // If the owner of the content is not known, only the session's project can have it.
        let is_lost =
            !items.is_empty() && maker.is_none() || previous.is_some() && within == Reach::Anywhere;
        let needs_project = glance.needs_project || is_lost;
        Ok(Located { session: identity.session, found, within, needs_project })
    }

    /// Returns the form in which the client receives the answer of `key`, and prepares the answer
    /// for that form.
    async fn form(
        &self,
        account: &mut Account,
        (answer, key): (&mut Answer, &Key),
        client: &Client,
        endpoint: Endpoint<'static>,
        chat: Option<&ChatBody>,
    ) -> Result<Form, Error> {
        match chat {
            Some(chat) if !key.upstream.speaks_chat => {
                form::check_coding(answer).inspect_err(|_| account.note_unreadable())?;
                let wish = chat.translated(key.upstream.derives_cache_key)?.wish;
                form::prepare_answer(answer, wish, key, self.answer_work(&client.id)).await
            }
            _ => Ok(Form::Native(endpoint.dialect())),
        }
    }

    /// Makes a gate that delays the answer's ids until their owner is recorded.
    fn gate(&self, answer: &Answer, client: &Client, binding: &Binding, budget: Budget) -> IdGate {
        let (owner, memory) = (Owner::of(binding), &self.replay.memory);
        let write_down = writer((&self.gateway, &self.heavy), &client.id, owner, budget);
        IdGate::new(&answer.headers, memory, write_down)
    }
}

#[cfg(test)]
mod tests;
