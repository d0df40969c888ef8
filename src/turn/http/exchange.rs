//! Serves a turn over HTTP: reads its body, lets the spine find an answer, and relays the answer.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::time::Instant;

use crate::binding::Binding;
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
use crate::session::identify::Identity;
use crate::session::purpose::TurnKind;
use crate::store::Budget;
use crate::task::Tasks;
use crate::telemetry::{Share, TurnId};
use crate::turn::account::{Account, kept_name};
use crate::turn::entry::may_ask_for;
use crate::turn::http::course::Course;
use crate::turn::http::form::{self, Form};
use crate::turn::http::heavy_places::HeavyPlaces;
use crate::turn::http::id_gate::IdGate;
use crate::turn::http::issued::writer;
use crate::turn::http::relay::{Outgoing, relay};
use crate::turn::http::replay::{self, Replay, Replayed, Text};
use crate::turn::memory::{LIGHT, MemoryPlace};
use crate::turn::{Attempts, Gateway};
use crate::upstream::headers::{TURN_STATE, hide_models_version, returned};
use crate::upstream::request::{AskedModel, Content, Request as Asked};
use crate::wire::endpoint::{Dialect, Endpoint};
use crate::wire::event::is_stream;
use crate::wire::imprint::Imprint;
use crate::wire::items::referred_in;

const TURN: HeaderName = HeaderName::from_static("x-warmkey-turn");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The parts that turns over HTTP share.
pub struct HttpTurns {
    pub gateway: Arc<Gateway>,
    /// The memory for request bodies.
    pub replay: Replay,
    /// The share of turns that upstreams are told to trace. `None`: upstreams get no trace context
    /// of ours.
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
    if let Ok(client) = gateway.entry.clients.get().authenticate(request.headers()) {
        account.note_client(&client.id);
    }
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

/// A turn up to the head of its answer.
struct Exchanged {
    key: Arc<Key>,
    answer: Answer,
    form: Form,
    gate: Option<IdGate>,
}

/// The facts that one scan of a body's text finds.
pub(super) struct Glance {
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
    /// The stored items that the text refers to.
    items: Vec<String>,
    /// The model that the text names; empty if it names none.
    model: String,
    /// Where the text names the model.
    model_place: Option<(usize, usize)>,
    kind: TurnKind,
    /// `None`: the gateway cannot read the text.
    imprint: Option<Box<Imprint>>,
    /// The text has a `prompt_cache_key`.
    names_cache_key: bool,
    tier: Option<String>,
    /// The text of an encoded body, if an upstream needs it: for another name of its model, or in
    /// another dialect.
    decoded: Option<(Bytes, MemoryPlace)>,
}

/// The client of a turn, and the headers and dialect of its request.
#[derive(Clone, Copy)]
pub(super) struct Asking<'t> {
    pub client: &'t Client,
    pub headers: &'t HeaderMap,
    /// The body is one of Chat Completions.
    pub by_chat: bool,
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
        let (body, found) = tokio::join!(self.replay.read(head.version, body), look_up);
        let body = body?;
        let complete = Instant::now();
        let by_chat = endpoint.dialect() == Dialect::Chat;
        let (body, glance) =
            self.scan_body(&client, &head.headers, by_chat, (body, identity)).await?;
        let Glance {
            mut identity,
            derived,
            previous,
            is_unstored,
            is_sealed,
            needs_project,
            items,
            model,
            model_place,
            kind,
            imprint,
            names_cache_key,
            tier,
            decoded,
        } = glance;
        // Only a created response is stored under its id: no turn continues from another answer.
        let is_unstored = is_unstored || endpoint != Endpoint::CreateResponse;
        let kind = kind.with_body(false, endpoint == Endpoint::CompactResponse);
        let origin = entry.origin(&client.id, previous.as_deref(), &mut budget).await;
        let of_origin = || origin.as_ref().ok()?.as_ref()?.session.clone();
        identity.session = identity.session.or_else(of_origin).or(derived);
        account.note_session(&identity);
        account.note_model(&model);
        account.note_tier(tier.clone());
        if let Some(imprint) = imprint {
            account.note_purpose(kind, imprint);
        }
        let origin = origin?;
        let found = match (found, &identity.session) {
            (None, Some(session)) => bindings.look_up(session, &mut budget).await,
            (found, _) => found.unwrap_or(Ok(None)),
        };
        let maker = entry.items(&client.id, &items, &mut budget).await?;
        // Where the owner of the items is not known, only the session's project can have them.
        let needs_project = needs_project || !items.is_empty() && maker.is_none();
        let within = origin.as_ref().or(maker.as_ref()).map_or(Reach::Anywhere, Owner::reach);

        let demand = Demand {
            session: identity.session,
            lineage: entry.identifier.lineage(&client.id, &head.headers),
            carries_sealed: is_sealed.map_or(Sealed::In(&body.bytes), Sealed::Known),
            turn_state: head.headers.get(TURN_STATE).map(HeaderValue::as_bytes),
            by_chat,
            model: &model,
            tier: tier.as_deref(),
            // If the owner of the previous response is not known, only the project of the session
            // can find it.
            needs_project: needs_project || previous.is_some() && within == Reach::Anywhere,
            is_free: endpoint == Endpoint::CountInputTokens,
            ..Demand::of(&client)
        };
        account.note_lineage(&demand.lineage);
        let tried = Tried::nothing(failover.options.wait);
        let session = demand.session.as_ref();
        let decoded = decoded.as_ref().map(|(text, _)| text);
        let bound = found.as_ref().ok().and_then(Option::as_ref);
        let chat = if by_chat {
            let own = body.bytes.clone();
            let chat = ChatBody::new(own, decoded.cloned(), session, names_cache_key);
            Some(self.render_chat(&client.id, chat, bound).await?)
        } else {
            None
        };
        let content =
            chat.as_ref().map_or(Content::Body(&body.bytes), |(chat, _)| Content::Chat(chat));
        let asked = Asked::new(&head, endpoint, content)
            .of_session(session)
            .with_hop(entry.identifier.hop(session, &demand.lineage))
            .asking(AskedModel { model: &model, decoded, place: model_place })
            .traced(self.propagation, account.id);
        let turn = (&demand, tried, within);
        let attempts = Attempts::new(&self.gateway, account, &asked, turn, &mut budget);
        let (binding, mut answer) = attempts.run(found, complete).await?;
        hide_models_version(&mut answer.headers, &client);
        let upstream = &binding.key.upstream;
        let form = match &chat {
            Some((chat, _)) if !upstream.speaks_chat => {
                let wish = chat.translated(upstream.derives_cache_key)?.wish;
                let work = self.answer_work(&client.id);
                form::prepare_answer(&mut answer, wish, &binding.key, work).await?
            }
            _ => Form::Native(endpoint.dialect()),
        };
        let gate = (!is_unstored && answer.status.is_success())
            .then(|| self.gate(&answer, &client, &binding, budget));
        Ok(Exchanged { key: binding.key, answer, form, gate })
    }

    /// Makes a gate that delays the answer's ids until their owner is recorded.
    fn gate(&self, answer: &Answer, client: &Client, binding: &Binding, budget: Budget) -> IdGate {
        let (owner, memory) = (Owner::of(binding), &self.replay.memory);
        let write_down = writer((&self.gateway, &self.heavy), &client.id, owner, budget);
        IdGate::new(&answer.headers, memory, write_down)
    }

    /// Scans the body's text, and keeps it only if the turn needs it decoded. `None`: the text is
    /// longer than `most`.
    pub(super) fn glance(
        &self,
        Asking { client, headers, by_chat }: Asking<'_>,
        body: &Replayed,
        identity: &Identity,
        most: usize,
    ) -> Result<Option<Glance>, Error> {
        let (entry, mut identity) = (&self.gateway.entry, identity.clone());
        let text = self.replay.text(headers, body, most)?;
        if matches!(text, Text::TooLong) {
            return Ok(None);
        }
        // Nothing could be checked: the body may name another client's response.
        if matches!(text, Text::Unreadable) {
            let message = "The gateway cannot decode a body in this content-encoding: send it unencoded, or as zstd or gzip.";
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        let (peek, imprint) = text.bytes().map(replay::peek).transpose()?.unzip();
        let peek = peek.unwrap_or_default();
        may_ask_for(client, peek.model.text())?;
        entry.may_refer(peek.conversation.id(), peek.references)?;
        let mut derived = None;
        if identity.session.is_none() {
            let by_body = entry.identifier.by_body(&client.id, &peek);
            identity = Identity { skipped: identity.skipped + by_body.skipped, ..by_body };
        }
        if identity.session.is_none() {
            derived =
                entry.identifier.identify_by_prefix(&client.id, text.bytes().unwrap_or_default());
        }
        let is_sealed = match &text {
            // The search through a long text is left to this thread, too.
            Text::Plain(text) if most > LIGHT => Some(Sealed::In(text).is_sealed()),
            Text::Plain(_) => None,
            Text::Decoded(text, _) => Some(Sealed::In(text).is_sealed()),
            Text::Unreadable | Text::TooLong => Some(true),
        };
        let previous = peek.previous_response_id.id().map(str::to_owned);
        let model = kept_name(peek.model.text().unwrap_or_default()).to_owned();
        let asks_compaction = imprint.as_ref().is_some_and(|imprint| imprint.asks_compaction);
        let kind = TurnKind::stated(headers).with_body(peek.is_warm_up, asks_compaction);
        let tier = peek.tier.text().map(str::to_owned);
        let items = referred_in(text.bytes().unwrap_or_default(), peek.references);
        let of_items_alone = !items.is_empty() && !peek.references.need_more;
        let needs_project =
            peek.references.need_project && !of_items_alone || peek.conversation.id().is_some();
        let is_plain = matches!(text, Text::Plain(_));
        let decoded = match text {
            Text::Decoded(text, place) if by_chat || self.is_renamed(&model) => {
                Some((Bytes::from(text), place))
            }
            _ => None,
        };
        Ok(Some(Glance {
            identity,
            derived,
            previous,
            is_unstored: peek.is_unstored,
            is_sealed,
            needs_project,
            items,
            model,
            // It is a place in the text, which the turn keeps only then.
            model_place: peek.model_place.filter(|_| is_plain || decoded.is_some()),
            kind,
            imprint: imprint.map(Box::new),
            names_cache_key: peek.names_cache_key,
            tier,
            decoded,
        }))
    }

    /// Whether an upstream knows `model` by another name.
    fn is_renamed(&self, model: &str) -> bool {
        let loaded = self.gateway.registry.loaded();
        loaded.table.keys().iter().any(|key| key.upstream.host.name_of(model).is_some())
    }
}

#[cfg(test)]
mod tests;
