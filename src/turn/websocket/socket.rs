//! A WebSocket from end to end: one of the client's, one of the upstream's, one key, for life.
//!
//! Text passes as it came, in both directions, known or not. What is the business of one hop stays
//! there: fragments, pings, pongs. The books are kept from what passes, by lane, and never alter
//! it; the only frames of our own are errors.

use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::poll_immediate;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, StatusCode};
use tokio::sync::{Mutex, Notify};
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};

use crate::binding::Binding;
use crate::binding::demand::{Sealed, Wanted};
use crate::binding::ownership::Owner;
use crate::binding::select::Reach;
use crate::client::Client;
use crate::client::authenticate::TokenProof;
use crate::error::{Error, ErrorKind};
use crate::health::diagnose::{Diagnosis, diagnose};
use crate::session::lineage::Lineage;
use crate::turn::Gateway;
use crate::turn::account::{Account, Caller};
use crate::turn::websocket::closing::{End, farewells};
use crate::turn::websocket::frame::{Event, Request, Stage};
use crate::turn::websocket::lanes::Turn;
use crate::turn::websocket::peer::{Frames, Incoming, Sink, leave};
use crate::turn::websocket::reach::Served;
use crate::turn::websocket::replace_error::{Refused, Replacement};
use crate::turn::websocket::state::{DueWrites, Failed, SocketState};
use crate::usage::tap::Reading;
use crate::wire::terminal::Terminal;

/// When a client that was told to come again should.
const SOON: Duration = Duration::from_secs(1);

/// How long a client may take to hear why.
const LAST_WORD: Duration = Duration::from_secs(2);

pub struct Socket {
    gateway: Arc<Gateway>,
    binding: Binding,
    client: Arc<Client>,
    lineage: Lineage,
    announced: String,
    caller: Caller,
    pass: TokenProof,
    to_client: Mutex<Sink>,
    to_upstream: Mutex<Sink>,
    books: Lock<SocketState>,
    /// Told when a turn has ended.
    quiet: Notify,
    /// Told when the client must connect anew.
    leaving: Notify,
}

/// Who speaks through a socket, and where to.
pub struct Connection {
    pub gateway: Arc<Gateway>,
    pub binding: Binding,
    pub client: Arc<Client>,
    pub lineage: Lineage,
    /// The model that its handshake named. Nothing: none.
    pub announced: String,
    pub caller: Caller,
    pub pass: TokenProof,
    pub domain_moved: bool,
}

impl Socket {
    /// Passes on what comes, until one end is gone or both are told to go.
    pub async fn run(connection: Connection, client: Frames, upstream: Frames) {
        let Connection {
            gateway,
            binding,
            client: who,
            lineage,
            announced,
            caller,
            pass,
            domain_moved,
        } = connection;
        let ping = gateway.sockets.ping;
        let (to_client, from_client) = client.split();
        let (to_upstream, from_upstream) = upstream.split();
        let books = SocketState::new(binding.result, domain_moved);
        let socket = Self {
            gateway,
            binding,
            client: who,
            lineage,
            announced,
            caller,
            pass,
            to_client: Mutex::new(to_client),
            to_upstream: Mutex::new(to_upstream),
            books: Lock::new(books),
            quiet: Notify::new(),
            leaving: Notify::new(),
        };
        let (mut from_client, mut from_upstream) =
            (Incoming::new(from_client, ping), Incoming::new(from_upstream, ping));
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
                Message::Text(text) => self.ask(text).await.err(),
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
                Err(lost) => {
                    // What came before has come.
                    let _ = self.flush().await;
                    return End::Upstream(lost);
                }
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
    async fn ask(&self, text: &str) -> Result<(), String> {
        let invalid = |place| {
            Error::new(ErrorKind::InvalidJson, format!("The message stops being JSON at {place}."))
        };
        let request = match Request::read(text.as_bytes()).map_err(invalid) {
            Ok(request) => request,
            Err(error) => return Err(self.refuse(&error, None)),
        };
        // What was issued on this connection is its own: nobody is asked.
        let (is_own, has_served) = {
            let books = self.books();
            (
                request
                    .previous_response_id
                    .as_deref()
                    .is_some_and(|id| books.lanes.has_issued(id)),
                books.is_confirmed,
            )
        };
        let on = Served { binding: &self.binding, has_served };
        let may_ask = self.gateway.may_ask(&self.client.id, &request, is_own, &on).await;
        let mut books = self.books();
        let asked = match may_ask {
            Err(error) => Err(error),
            _ if !request.is_create => return Ok(()),
            _ if !self.may_ask_for(request.model.as_deref()) => Err(Error::new(
                ErrorKind::ModelNotAllowed,
                "This client may not ask for this model.",
            )),
            _ if books.lanes.is_full() => {
                let error = Error::new(
                    ErrorKind::NoKeyAvailable,
                    "Too many responses are in flight on this connection.",
                );
                Err(error.retry_after(SOON))
            }
            Ok(is_held) => Ok(is_held),
        };
        match asked {
            Ok(is_held) => {
                let mut account = self.open(&mut books);
                books.model = request.model.unwrap_or_default();
                account.model(&books.model);
                let (is_warm_up, is_unstored) = (request.is_warm_up, request.is_unstored);
                // Once something was answered it makes no difference.
                let shows_sealed = !books.is_confirmed && Sealed::In(text.as_bytes()).is_sealed();
                let turn =
                    Turn { is_warm_up, is_unstored, shows_sealed, is_held, ..Turn::new(account) };
                books.lanes.ask(request.lane.as_deref(), turn);
                Ok(())
            }
            Err(error) => {
                if error.kind == ErrorKind::ConnectionLimit {
                    self.leaving.notify_one();
                }
                Err(self.refuse(&error, request.lane.as_deref()))
            }
        }
    }

    /// By what its client may do now: it may be less than when it connected.
    fn may_ask_for(&self, model: Option<&str>) -> bool {
        self.gateway.clients.get().admit(self.pass).is_some_and(|client| client.may_ask_for(model))
    }

    fn refuse(&self, error: &Error, lane: Option<&str>) -> String {
        Account::of(&self.caller, Arc::clone(&self.gateway.books)).refused(error);
        error.to_frame(lane)
    }

    /// The account of a turn that begins.
    fn open(&self, books: &mut SocketState) -> Account {
        let mut account = Account::of(&self.caller, Arc::clone(&self.gateway.books));
        let (result, domain_moved) = books.begin();
        let binding = Binding { result, ..self.binding.clone() };
        account.bound(&binding, domain_moved, &self.gateway.registry.loads);
        account
    }

    /// Takes note of an event before the client has it. Returns what the client is to have.
    async fn note(&self, event: Event, text: Utf8Bytes) -> Utf8Bytes {
        let Event { lane, response_id, is_unstored, stage } = event;
        let (lane, id) = (lane.as_deref(), response_id.as_deref());
        let news = match stage {
            Stage::Created => self.created(&mut self.books_of(id), lane),
            Stage::Ended(terminal) => {
                self.ended(&mut self.books_of(id), lane, terminal, text.as_bytes())
            }
            Stage::Refused(status, error, headers) => {
                let failed = self.books_of(id).refused(lane, status);
                let diagnosis = diagnose(status, &error, &headers, SystemTime::now());
                return self
                    .instead(lane, &failed, diagnosis, &headers)
                    .await
                    .map_or(text, Utf8Bytes::from);
            }
        };
        let mut budget = self.gateway.bindings.budget();
        if news.must_confirm {
            self.gateway.bindings.confirm(&self.binding, &mut budget).await;
        }
        if let Some(id) = id.filter(|_| news.is_stored && !is_unstored) {
            self.gateway.own(&self.client.id, id, Owner::of(&self.binding), &mut budget).await;
        }
        text
    }

    /// The books, while an event is on its way to the client that may be of the response `id`.
    fn books_of(&self, id: Option<&str>) -> MutexGuard<'_, SocketState> {
        let mut books = self.books();
        books.is_passing = true;
        if let Some(id) = id {
            books.lanes.issue(id.to_owned());
        }
        books
    }

    /// A response begins: the next one of its lane or, where the client waits for none, one that
    /// the upstream starts by itself.
    fn created(&self, books: &mut SocketState, lane: Option<&str>) -> DueWrites {
        self.gateway.registry.has_answered(&self.binding.key);
        if books.lanes.current(lane).is_some_and(|turn| turn.has_begun) {
            // A lane has one response at a time: the one before is over, and nobody said how.
            if let Some(turn) = books.lanes.ended(lane) {
                turn.account.cut();
            }
        }
        if books.lanes.current(lane).is_none() {
            let turn = Turn::new(self.open(books));
            books.lanes.ask(lane, turn);
        }
        let Some(turn) = books.lanes.current(lane) else { return DueWrites::default() };
        turn.has_begun = true;
        turn.account.answered(StatusCode::OK);
        // A warm-up is accepted by any organization: it shows nothing that is sealed, and is
        // answered with nothing.
        let news = DueWrites {
            must_confirm: !turn.is_warm_up && !books.is_confirmed,
            is_stored: !turn.is_unstored,
        };
        books.is_confirmed |= news.must_confirm;
        news
    }

    fn ended(
        &self,
        books: &mut SocketState,
        lane: Option<&str>,
        terminal: Terminal,
        text: &[u8],
    ) -> DueWrites {
        let is_new = books.lanes.current(lane).is_none_or(|turn| !turn.has_begun);
        let is_begin = is_new && terminal != Terminal::Failed;
        let news = if is_begin { self.created(books, lane) } else { DueWrites::default() };
        if let Some(mut turn) = books.lanes.ended(lane) {
            turn.account.answered(StatusCode::OK);
            let reading = Reading::of_event(terminal, text);
            if let Some(failure) = &reading.failure {
                self.gateway.registry.observe_failure(
                    &self.binding.key,
                    turn.account.asked(),
                    failure,
                );
            }
            turn.account.relayed(reading, None);
        }
        news
    }

    /// What the client hears in place of an error frame.
    async fn instead(
        &self,
        lane: Option<&str>,
        failed: &Failed,
        diagnosis: Diagnosis,
        headers: &HeaderMap,
    ) -> Option<String> {
        let Failed { has_begun, model, is_sealed, is_held } = failed;
        let is_provisional = self.binding.is_provisional && !self.books().is_confirmed;
        let is_announced = self.announced == *model;
        let refused =
            Refused { diagnosis, headers, has_begun: *has_begun, is_provisional, is_announced };
        let mut wanted = Wanted {
            session: self.binding.session.clone(),
            lineage: self.lineage.clone(),
            carries_sealed: Sealed::Known(*is_sealed || diagnosis == Diagnosis::Foreign),
            by_websocket: true,
            model,
            patience: self.gateway.options.wait,
            within: if *is_held && !is_provisional {
                Reach::project_of(&self.binding.key)
            } else {
                Reach::Anywhere
            },
            ..Wanted::of(&self.client)
        };
        let instead = Replacement::of(&self.gateway, &self.binding, &mut wanted, refused).await;
        if matches!(instead, Replacement::Anew) {
            self.leaving.notify_one();
        }
        instead.to_frame(lane)
    }

    /// Waits until something else than its two ends ends the connection.
    async fn told(&self) -> End {
        let (mut clients, mut operators) =
            (self.gateway.clients.follow(), self.gateway.registry.follow());
        let closing = async {
            self.gateway.sockets.closing.cancelled().await;
            sleep(self.gateway.sockets.moment()).await;
        };
        tokio::pin!(closing);
        let mut is_leaving = false;
        loop {
            let admitted = self.gateway.clients.get().admit(self.pass).cloned();
            let may_stay = |client: Arc<Client>| {
                client.id == self.client.id
                    && client.may_use_organization(&self.binding.key.organization)
            };
            if !admitted.is_some_and(may_stay) {
                return End::Told(CloseCode::Policy, "the token was revoked");
            }
            is_leaving |= self.gateway.registry.is_closed(&self.binding.key);
            let quiet = self.quiet.notified();
            if is_leaving && self.is_quiet() {
                return End::Told(CloseCode::Away, "");
            }
            tokio::select! {
                Ok(()) = clients.changed() => {}
                Ok(()) = operators.changed() => {}
                () = quiet, if is_leaving => {}
                () = self.leaving.notified(), if !is_leaving => is_leaving = true,
                () = &mut closing, if !is_leaving => is_leaving = true,
            }
        }
    }

    /// Whether nothing is in flight, nor on its way to the client.
    fn is_quiet(&self) -> bool {
        let books = self.books();
        books.lanes.is_idle() && !books.is_passing
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
                let error = Error::new(
                    ErrorKind::UpstreamInterrupted,
                    "The connection to the upstream was lost.",
                )
                .retry_after(SOON);
                last.push(Message::text(error.to_frame(lane.as_deref())));
            }
            turn.account.cut();
        }
        tokio::join!(
            leave(self.to_client, from_client, last, to_client, LAST_WORD),
            leave(self.to_upstream, from_upstream, Vec::new(), to_upstream, LAST_WORD / 4),
        );
    }

    fn books(&self) -> MutexGuard<'_, SocketState> {
        // Every change is whole before anything can panic.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
