//! A WebSocket from end to end: one of the client's, one of the upstream's, one key, for life.
//!
//! Text passes as it came, in both directions, known or not. What is the business of one hop stays there: fragments, pings,
//! pongs. The books are kept from what passes, by lane, and never alter it; the only frames of our own are errors.

use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::poll_immediate;
use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use tokio::sync::{Mutex, Notify};
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};

use super::Gateway;
use super::account::{Account, Caller};
use super::frame::{Event, Request, Stage};
use super::hop::{Frames, Incoming, Sink, leave};
use super::lanes::Lanes;
use super::parting::{End, farewells};
use crate::binding::Binding;
use crate::binding::place::{Sealed, Wanted};
use crate::client::Client;
use crate::client::authenticate::Pass;
use crate::error::{Error, Kind};
use crate::key::health::diagnose;
use crate::metrics::{BindingResult, Ending};
use crate::outcome::ErrorBody;
use crate::session::lineage::Lineage;
use crate::usage::tap::Reading;
use crate::usage::terminal::{self, Terminal};

/// When a client that was told to come again should.
const SOON: Duration = Duration::from_secs(1);

/// How long a client may take to hear why.
const LAST_WORD: Duration = Duration::from_secs(2);

pub struct Socket {
    gateway: Arc<Gateway>,
    binding: Binding,
    client: Arc<Client>,
    lineage: Lineage,
    caller: Caller,
    pass: Pass,
    to_client: Mutex<Sink>,
    to_upstream: Mutex<Sink>,
    books: Lock<Books>,
    /// Told when a turn has ended.
    quiet: Notify,
    /// Told when the client must connect anew.
    leaving: Notify,
}

/// What is kept of the turns.
struct Books {
    lanes: Lanes<Account>,
    /// Where the next turn's binding comes from.
    result: BindingResult,
    /// The first turn reads another cache than the session's turns before.
    domain_moved: bool,
    /// Something is on its way to the client that was taken off the books already.
    is_passing: bool,
    is_confirmed: bool,
}

/// Who speaks through a socket, and where to.
pub struct Connection {
    pub gateway: Arc<Gateway>,
    pub binding: Binding,
    pub client: Arc<Client>,
    pub lineage: Lineage,
    pub caller: Caller,
    pub pass: Pass,
    pub domain_moved: bool,
}

impl Socket {
    /// Passes on what comes, until one end is gone or both are told to go.
    pub async fn run(connection: Connection, client: Frames, upstream: Frames) {
        let Connection { gateway, binding, client: who, lineage, caller, pass, domain_moved } = connection;
        let ping = gateway.sockets.ping;
        let (to_client, from_client) = client.split();
        let (to_upstream, from_upstream) = upstream.split();
        let books =
            Books { lanes: Lanes::default(), result: binding.result, domain_moved, is_passing: false, is_confirmed: false };
        let socket = Self {
            gateway,
            binding,
            client: who,
            lineage,
            caller,
            pass,
            to_client: Mutex::new(to_client),
            to_upstream: Mutex::new(to_upstream),
            books: Lock::new(books),
            quiet: Notify::new(),
            leaving: Notify::new(),
        };
        let (mut from_client, mut from_upstream) = (Incoming::new(from_client, ping), Incoming::new(from_upstream, ping));
        let end = tokio::select! {
            end = socket.upward(&mut from_client) => end,
            end = socket.downward(&mut from_upstream) => end,
            end = socket.told() => end,
        };
        socket.finish(end, from_client, from_upstream).await;
    }

    /// From the client to the upstream.
    async fn upward(&self, from: &mut Incoming) -> End {
        loop {
            let message = match from.next(&self.to_client).await {
                Ok(message) => message,
                Err(lost) => return End::Client(lost),
            };
            let refused = match &message {
                Message::Text(text) => self.ask(text).err(),
                _ => None,
            };
            let sent = match refused {
                Some(refusal) => self.to_client.lock().await.send(Message::text(refusal)).await,
                None => self.to_upstream.lock().await.send(message).await,
            };
            if sent.is_err() {
                // Whoever is gone may have said why: that is for those who listen to it.
                return std::future::pending().await;
            }
        }
    }

    /// From the upstream to the client: what is there at the same moment goes in one write.
    async fn downward(&self, from: &mut Incoming) -> End {
        loop {
            let ready = poll_immediate(from.next(&self.to_upstream)).await;
            let message = match ready {
                Some(message) => message,
                None if self.flush().await.is_err() => return std::future::pending().await,
                None => from.next(&self.to_upstream).await,
            };
            let message = match message {
                Ok(message) => message,
                Err(lost) => return End::Upstream(lost),
            };
            let event = match &message {
                Message::Text(text) => Event::read(text.as_bytes()),
                _ => None,
            };
            let message = match (event, message) {
                (Some(event), Message::Text(text)) => Message::Text(self.note(event, text).await),
                (_, message) => message,
            };
            if self.to_client.lock().await.feed(message).await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Everything that has come for the client is on its way.
    async fn flush(&self) -> Result<(), tungstenite::Error> {
        self.to_client.lock().await.flush().await?;
        if std::mem::take(&mut self.books().is_passing) {
            self.quiet.notify_one();
        }
        Ok(())
    }

    /// Looks at what the client asks for. The error is the frame that it gets instead of an answer.
    fn ask(&self, text: &str) -> Result<(), String> {
        let invalid = |place| Error::new(Kind::InvalidJson, format!("The message stops being JSON at {place}."));
        let request = match Request::read(text.as_bytes()).map_err(invalid) {
            Ok(request) => request,
            Err(error) => return Err(self.refuse(&error, None)),
        };
        let mut books = self.books();
        let refused = match &request.previous_response_id {
            // What another connection was told, and be it this client's, cannot be told from what was never its own.
            Some(id) if !books.lanes.has_issued(id) => {
                Err(Error::new(Kind::PreviousResponseNotFound, format!("Previous response with id '{id}' not found.")))
            }
            _ if !request.is_create => return Ok(()),
            _ if !self.may_ask_for(request.model.as_deref()) => {
                Err(Error::new(Kind::ModelNotAllowed, "This client may not ask for this model."))
            }
            _ if books.lanes.is_full() => {
                let error = Error::new(Kind::NoKeyAvailable, "Too many responses are in flight on this connection.");
                Err(error.retry_after(SOON))
            }
            _ => Ok(()),
        };
        match refused {
            Ok(()) => {
                let account = self.open(&mut books);
                books.lanes.ask(request.lane.as_deref(), account, request.is_warm_up);
                Ok(())
            }
            Err(error) => Err(self.refuse(&error, request.lane.as_deref())),
        }
    }

    /// By what its client may do now: it may be less than when it connected.
    fn may_ask_for(&self, model: Option<&str>) -> bool {
        self.gateway.clients.get().admit(self.pass).is_some_and(|client| client.may_ask_for(model))
    }

    fn refuse(&self, error: &Error, lane: Option<&str>) -> String {
        Account::of(&self.caller, Arc::clone(&self.gateway.metrics)).refused(error);
        error.to_frame(lane)
    }

    /// The account of a turn that begins.
    fn open(&self, books: &mut Books) -> Account {
        let mut account = Account::of(&self.caller, Arc::clone(&self.gateway.metrics));
        let binding = Binding { result: books.result, ..self.binding.clone() };
        account.bound(&binding, books.domain_moved, self.gateway.registry.enter(&binding.key));
        books.domain_moved = false;
        if matches!(books.result, BindingResult::Created | BindingResult::Inherited | BindingResult::Rebound) {
            books.result = BindingResult::Existing;
        }
        account
    }

    /// Takes note of an event before the client has it. Returns what the client is to have.
    async fn note(&self, event: Event, text: Utf8Bytes) -> Utf8Bytes {
        let Event { lane, response_id, stage } = event;
        let lane = lane.as_deref();
        let must_confirm = match stage {
            Stage::Created => self.created(&mut self.books_of(response_id), lane),
            Stage::Ended(terminal) => self.ended(&mut self.books_of(response_id), lane, terminal, text.as_bytes()),
            Stage::Refused(status, error) => {
                let has_begun = refused(&mut self.books_of(response_id), lane, status);
                let is_cured = self.is_cured_elsewhere(status, &error, has_begun).await;
                return if is_cured { connect_anew(lane) } else { text };
            }
        };
        if must_confirm {
            self.gateway.bindings.confirm(&self.binding, &mut self.gateway.bindings.budget()).await;
        }
        text
    }

    /// The books, while an event is on its way to the client that may be of the response `id`.
    fn books_of(&self, id: Option<String>) -> MutexGuard<'_, Books> {
        let mut books = self.books();
        books.is_passing = true;
        if let Some(id) = id {
            books.lanes.issue(id);
        }
        books
    }

    /// A response begins: the next one of its lane or, where the client waits for none, one that the upstream starts by itself.
    /// Returns whether the binding has to be confirmed first: what follows only this organization can open.
    fn created(&self, books: &mut Books, lane: Option<&str>) -> bool {
        self.gateway.registry.has_served(&self.binding.key);
        if books.lanes.current(lane).is_some_and(|turn| turn.has_begun) {
            // A lane has one response at a time: the one before is over, and nobody said how.
            drop(books.lanes.ended(lane).map(|turn| cut(turn.account)));
        }
        if books.lanes.current(lane).is_none() {
            let account = self.open(books);
            books.lanes.ask(lane, account, false);
        }
        let Some(turn) = books.lanes.current(lane) else { return false };
        turn.has_begun = true;
        turn.account.answered(StatusCode::OK);
        // A warm-up is accepted by any organization: it shows nothing that is sealed, and is answered with nothing.
        let must_confirm = !turn.is_warm_up && !books.is_confirmed;
        books.is_confirmed |= must_confirm;
        must_confirm
    }

    fn ended(&self, books: &mut Books, lane: Option<&str>, terminal: Terminal, text: &[u8]) -> bool {
        let is_new = books.lanes.current(lane).is_none_or(|turn| !turn.has_begun);
        let must_confirm = is_new && terminal != Terminal::Failed && self.created(books, lane);
        if let Some(mut turn) = books.lanes.ended(lane) {
            turn.account.answered(StatusCode::OK);
            turn.account.relayed(Reading { terminal: Some(terminal), usage: terminal::of_event(text) }, None);
        }
        must_confirm
    }

    /// Whether the next connection lands where this error is not met: then its client is told to make one, if it has nothing of
    /// the response yet. The key is out of use by then, or the session bound elsewhere.
    async fn is_cured_elsewhere(&self, status: StatusCode, error: &ErrorBody, has_begun: bool) -> bool {
        let is_foreign = error.code.as_deref() == Some("invalid_encrypted_content");
        let is_cured = match diagnose(status, error) {
            Some(ailment) => {
                self.gateway.registry.disable(&self.binding.key, ailment);
                true
            }
            None if is_foreign && !has_begun && self.binding.is_guess && !self.books().is_confirmed => {
                let wanted = Wanted {
                    session: self.binding.session.clone(),
                    lineage: self.lineage.clone(),
                    client: &self.client,
                    carries_sealed: Sealed::Known(true),
                    turn_state: None,
                    by_websocket: true,
                };
                let bindings = &self.gateway.bindings;
                bindings.guess_again(&wanted, &self.binding, &mut bindings.budget()).await
            }
            None => false,
        };
        if is_cured && !has_begun {
            self.leaving.notify_one();
        }
        is_cured && !has_begun
    }

    /// Waits until something else than its two ends ends the connection.
    async fn told(&self) -> End {
        let mut clients = self.gateway.clients.follow();
        loop {
            let admitted = self.gateway.clients.get().admit(self.pass).cloned();
            let may_stay =
                |client: Arc<Client>| client.id == self.client.id && client.may_use_organization(&self.binding.key.organization);
            if !admitted.is_some_and(may_stay) {
                return End::Told(CloseCode::Policy, "the token was revoked");
            }
            tokio::select! {
                Ok(()) = clients.changed() => {}
                () = self.leaving.notified() => return self.between_turns().await,
                () = self.gateway.sockets.closing.cancelled() => {
                    sleep(self.gateway.sockets.moment()).await;
                    return self.between_turns().await;
                }
            }
        }
    }

    async fn between_turns(&self) -> End {
        loop {
            let quiet = self.quiet.notified();
            let is_quiet = {
                let books = self.books();
                books.lanes.is_idle() && !books.is_passing
            };
            if is_quiet {
                return End::Told(CloseCode::Away, "");
            }
            quiet.await;
        }
    }

    /// Both ends are told why, and each turn in flight that it will have no answer.
    async fn finish(self, end: End, from_client: Incoming, from_upstream: Incoming) {
        let turns = self.books().lanes.take_all();
        let (to_client, to_upstream) = farewells(&end, !turns.is_empty());
        let mut last = Vec::new();
        for (lane, turn) in turns {
            if matches!(end, End::Client(_)) {
                continue;
            }
            if matches!(end, End::Upstream(_)) {
                let error = Error::new(Kind::UpstreamInterrupted, "The connection to the upstream was lost.").retry_after(SOON);
                last.push(Message::text(error.to_frame(lane.as_deref())));
            }
            drop(cut(turn.account));
        }
        tokio::join!(
            leave(self.to_client, from_client, last, to_client, LAST_WORD),
            leave(self.to_upstream, from_upstream, Vec::new(), to_upstream, LAST_WORD / 4),
        );
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Every change is whole before anything can panic.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turn that its lane is at was answered with an error. Returns whether its client has anything of it.
fn refused(books: &mut Books, lane: Option<&str>, status: StatusCode) -> bool {
    let Some(mut turn) = books.lanes.ended(lane) else { return false };
    turn.account.answered(status);
    turn.account.relayed(Reading { terminal: Some(Terminal::Failed), usage: None }, None);
    turn.has_begun
}

/// The word on which every client connects anew, with its full input.
fn connect_anew(lane: Option<&str>) -> Utf8Bytes {
    let message = "Responses websocket connection limit reached (60 minutes). Create a new websocket connection to continue.";
    Error::new(Kind::ConnectionLimit, message).to_frame(lane).into()
}

/// The account of a turn that will not be answered to its end, and not because its client left.
fn cut(mut account: Account) -> Account {
    account.relayed(Reading::default(), Some(Ending::Cut));
    account
}
