//! The guard of one turn. Collects facts while the turn runs, and makes its record however the turn
//! ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use crate::binding::Binding;
use crate::client::ClientId;
use crate::clock::time_of_day;
use crate::error::{Error, ErrorKind, Fault};
use crate::health::diagnose::ModelUse;
use crate::health::load::{InFlight, Loads};
use crate::key::Key;
use crate::metrics::{Ending, Reason, Transport};
use crate::outcome::Outcome;
use crate::session::SessionId;
use crate::session::identify::Identity;
use crate::session::lineage::Lineage;
use crate::session::purpose::TurnKind;
use crate::telemetry::TurnId;
use crate::usage::books::Books;
use crate::usage::record::{Record, RequestKind, Service, Warmth};
use crate::usage::tap::Reading;
use crate::usage::timeline::{Timeline, Waited};
use crate::wire::imprint::Imprint;
use crate::wire::terminal::Terminal;

/// Longest part of a model's name, in bytes, that is kept. A client may send a name as long as a
/// body, and turns and records must not hold that.
const LONGEST_MODEL: usize = 256;

/// The part of a model's name that is kept.
pub fn kept_name(model: &str) -> &str {
    &model[..model.floor_char_boundary(LONGEST_MODEL)]
}

/// Facts about one turn. Dropping the account ends the turn, as [`Ending::ClientLeft`] unless
/// another ending was noted.
pub struct Account {
    pub id: TurnId,
    books: Arc<Books>,
    transport: Transport,
    timeline: Timeline,
    caller: Caller,
    service: Option<(Service, InFlight)>,
    model: String,
    kind: TurnKind,
    imprint: Option<Box<Imprint>>,
    tier: Option<String>,
    by_chat: bool,
    status: Option<StatusCode>,
    ending: Option<Ending>,
    /// The gateway's own error that ends the turn.
    refusal: Option<ErrorKind>,
    reading: Reading,
    request: RequestKind,
    malformed: u64,
    has_leaked: bool,
    is_unreadable: bool,
}

/// The client and session of a turn: the same for all turns of a WebSocket.
#[derive(Clone, Default)]
pub struct Caller {
    client: Option<ClientId>,
    session: Option<SessionId>,
    lineage: Lineage,
}

/// When a turn arrived, and its id.
#[derive(Clone, Copy)]
pub struct Arrival {
    pub began: Instant,
    pub id: TurnId,
}

impl Account {
    /// Opens the account of a turn whose head has arrived.
    pub fn open(books: Arc<Books>, transport: Transport, headers: &HeaderMap) -> Self {
        let arrival = Arrival { began: Instant::now(), id: TurnId::of(headers) };
        Self::begin(books, transport, arrival, Caller::default())
    }

    /// Opens the account of a turn of `caller` on a WebSocket.
    pub fn of(caller: &Caller, books: Arc<Books>, arrival: Arrival) -> Self {
        Self::begin(books, Transport::Websocket, arrival, caller.clone())
    }

    fn begin(books: Arc<Books>, transport: Transport, arrival: Arrival, caller: Caller) -> Self {
        books.open();
        Self {
            id: arrival.id,
            books,
            transport,
            timeline: Timeline::from(arrival.began),
            caller,
            service: None,
            model: String::new(),
            kind: TurnKind::Turn,
            imprint: None,
            tier: None,
            by_chat: false,
            status: None,
            ending: None,
            refusal: None,
            reading: Reading::default(),
            request: RequestKind::Turn,
            malformed: 0,
            has_leaked: false,
            is_unreadable: false,
        }
    }

    /// Closes the account of a successful handshake, because each turn on its WebSocket gets its
    /// own account. Also returns whether the socket's key uses another cache than the session's
    /// first key.
    pub fn close_handshake(mut self) -> (Caller, bool) {
        self.request = RequestKind::Handshake;
        let domain_moved = self.service.as_ref().is_some_and(|(service, _)| service.domain_moved);
        (self.caller.clone(), domain_moved)
    }

    pub fn note_client(&mut self, client: &ClientId) {
        self.caller.client = Some(client.clone());
        self.timeline.authenticated = Some(Instant::now());
    }

    pub fn note_session(&mut self, identity: &Identity) {
        self.caller.session.clone_from(&identity.session);
        self.timeline.identified = Some(Instant::now());
        self.malformed += identity.skipped;
    }

    /// Notes when a message on a WebSocket was read, and when it was permitted.
    pub const fn note_permitted(&mut self, read: Instant, permitted: Instant) {
        self.timeline.identified = Some(read);
        self.timeline.authenticated = Some(permitted);
    }

    /// Notes the model that the client asks for.
    pub fn note_model(&mut self, model: &str) {
        kept_name(model).clone_into(&mut self.model);
        self.tell_renamed();
    }

    /// Whether the request is a turn of its own.
    pub const fn is_turn(&self) -> bool {
        matches!(self.request, RequestKind::Turn)
    }

    /// Notes that the request is no turn. Once answered, it gets a log line of its own, and is
    /// neither counted nor billed.
    pub const fn note_operation(&mut self, operation: &'static str) {
        self.request = RequestKind::Operation(operation);
    }

    /// Notes where the turn's session comes from.
    pub fn note_lineage(&mut self, lineage: &Lineage) {
        self.caller.lineage.clone_from(lineage);
    }

    /// Notes the purpose of the turn, and the digests of the parts that the prompt cache matches.
    pub fn note_purpose(&mut self, kind: TurnKind, imprint: Box<Imprint>) {
        (self.kind, self.imprint) = (kind, Some(imprint));
    }

    /// Notes the service tier that the client asks for.
    pub fn note_tier(&mut self, tier: Option<String>) {
        self.tier = tier;
    }

    /// Notes that the client writes its turn as Chat Completions.
    pub const fn note_chat(&mut self) {
        self.by_chat = true;
    }

    /// When the turn was last sent to an upstream.
    pub fn sent(&self) -> Instant {
        self.timeline.sendings().last().map_or(self.timeline.began, |sending| sending.began)
    }

    /// Whether the turn has waited in place for a limit of `key`.
    pub fn has_waited_for(&self, key: &Key) -> bool {
        self.timeline.waits.iter().any(|waited| waited.key.tag == key.tag)
    }

    pub const fn session(&self) -> Option<&SessionId> {
        self.caller.session.as_ref()
    }

    /// Whether an answer with this end has served the turn and so used up some of the key's limits.
    /// A warm-up uses up none.
    pub fn is_served_by(&self, reading: &Reading) -> bool {
        let is_turn = matches!(self.request, RequestKind::Turn) && self.kind != TurnKind::Prewarm;
        is_turn
            && self.status.is_some_and(|status| status.is_success())
            && matches!(reading.terminal, Some(Terminal::Completed | Terminal::Incomplete))
    }

    /// Returns the model that the client asked for, empty if it named none, and the tier.
    pub fn asked_model(&self) -> ModelUse<'_> {
        ModelUse::new(&self.model, self.tier.as_deref())
    }

    /// Notes that the turn is about to be sent with `binding`'s key, and counts it as in flight on
    /// that key.
    pub fn note_attempt(&mut self, binding: &Binding, domain_moved: bool, loads: &Loads) {
        let service =
            Service { key: Arc::clone(&binding.key), result: binding.result, domain_moved };
        let now = Instant::now();
        self.timeline.bound.get_or_insert(now);
        self.timeline.sends(Arc::clone(&binding.key), now);
        self.service = Some((service, loads.enter(&binding.key)));
        self.tell_renamed();
    }

    /// Tells that the upstream is asked for a model under another name.
    fn tell_renamed(&self) {
        let key = self.service.as_ref().map(|(service, _)| &service.key);
        let named = key.and_then(|key| Some((key, key.upstream.host.name_of(&self.model)?)));
        if let Some((key, sent)) = named {
            let (id, model) = (&self.id, &self.model);
            tracing::info!(turn = %id, key = %key.id, model, sent, "model mapped for its upstream");
        }
    }

    /// Notes the gateway's own share of the turn's time: from the last byte of the request
    /// (`since`) until the key is chosen.
    pub fn note_overhead(&mut self, since: Instant) {
        let now = Instant::now();
        (self.timeline.received, self.timeline.bound) = (Some(since), Some(now));
    }

    /// Notes the outcome of the attempt that began last.
    pub fn note_outcome(&mut self, outcome: &Outcome) {
        self.timeline.end_attempt(outcome);
        if matches!(outcome, Outcome::Unreadable(_)) {
            self.note_unreadable();
        }
    }

    /// Notes why the turn does not simply end with the outcome of its last attempt.
    pub fn note_leave_reason(&mut self, reason: Option<Reason>) {
        self.timeline.note_leave_reason(reason);
    }

    /// Notes that the turn waits in place.
    pub fn note_wait(&mut self, key: &Arc<Key>, pause: Duration) {
        let (key, began) = (Arc::clone(key), Instant::now());
        self.timeline.waits.push(Waited { key, began, pause });
    }

    pub fn note_status(&mut self, status: StatusCode) {
        self.status = Some(status);
        self.timeline.answers(status);
    }

    /// Notes the first byte of the answer.
    pub fn note_first_byte(&mut self) {
        self.timeline.first_byte.get_or_insert_with(Instant::now);
    }

    /// Notes that the answer is a stream of events.
    pub const fn note_stream(&mut self, is_stream: bool) {
        self.timeline.is_stream = is_stream;
    }

    pub fn note_error(&mut self, error: &Error) {
        self.status = Some(error.status());
        self.ending =
            Some(if error.fault() == Fault::Client { Ending::Refused } else { Ending::Unserved });
        self.refusal = Some(error.kind);
        if error.fault() != Fault::Client && self.caller.client.is_some() {
            tracing::warn!(turn = %self.id, code = error.code(), cause = error.cause.as_deref(), "{error}");
        }
    }

    /// Notes that the answer holds the key's secret. The bytes pass unchanged; the log warns the
    /// operator.
    pub fn note_leak(&mut self) {
        self.has_leaked = true;
        let key = self.service.as_ref().map(|(service, _)| service.key.id.as_str());
        tracing::warn!(turn = %self.id, key, "the upstream's answer holds the secret of its key");
    }

    /// Notes that the gateway cannot decode the answer, which is cut or replaced for that.
    pub fn note_unreadable(&mut self) {
        self.is_unreadable = true;
        let key = self.service.as_ref().map(|(service, _)| service.key.id.as_str());
        tracing::warn!(turn = %self.id, key, "the upstream's answer cannot be decoded");
    }

    /// Notes that the answer's body has ended, or was cut off for the reason `broken`.
    pub fn note_end(&mut self, reading: Reading, broken: Option<Ending>) {
        let is_error = self.status.is_some_and(|status| status.as_u16() >= 400);
        self.ending = Some(match (reading.terminal, broken) {
            _ if is_error => Ending::UpstreamError,
            // After the terminal event, the state of the connection does not matter.
            (Some(Terminal::Completed), _) => Ending::Completed,
            (Some(Terminal::Incomplete), _) => Ending::Incomplete,
            (Some(Terminal::Failed), _) => Ending::Failed,
            (None, Some(broken)) => broken,
            (None, None) => Ending::Cut,
        });
        self.reading = reading;
    }

    /// Ends the turn as cut by the gateway, although the client has not left.
    pub fn cut(mut self) {
        self.note_end(Reading::default(), Some(Ending::Cut));
    }

    fn record(&mut self, service: Option<Service>) -> Record {
        let ending = match self.ending {
            Some(Ending::ClientLeft) | None if self.books.cutting.is_cancelled() => Ending::Cut,
            Some(ending) => ending,
            None if std::thread::panicking() => Ending::Unserved,
            None => Ending::ClientLeft,
        };
        let caller = std::mem::take(&mut self.caller);
        let now = Instant::now();
        let timeline = std::mem::replace(&mut self.timeline, Timeline::from(now));
        let duration = now.duration_since(timeline.began);
        Record {
            id: self.id,
            request: self.request,
            transport: self.transport,
            kind: self.kind,
            client: caller.client,
            session: caller.session,
            lineage: caller.lineage,
            service,
            model: std::mem::take(&mut self.model),
            asked_tier: self.tier.take(),
            by_chat: self.by_chat,
            imprint: self.imprint.take(),
            status: self.status,
            ending,
            refusal: self.refusal,
            malformed: self.malformed,
            has_leaked: self.has_leaked,
            is_unreadable: self.is_unreadable,
            terminal: self.reading.terminal,
            usage: self.reading.usage.take(),
            warmth: Warmth::default(),
            at: time_of_day().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH),
            duration,
            timeline,
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // The turn stays in flight until its record is written.
        let (service, _place) = self.service.take().unzip();
        let record = self.record(service);
        self.books.close(record);
    }
}

#[cfg(test)]
mod tests;
