//! A WebSocket from end to end: one client connection and one upstream connection share one key for
//! life.
//!
//! Text messages pass unchanged in both directions, known or unknown. Fragments, pings and pongs
//! stay on their hop. The socket's state follows the messages by lane and never alters them. The
//! gateway sends no frames of its own except errors.

use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::poll_immediate;
use futures_util::{SinkExt, StreamExt};
use tokio::sync::{Mutex, Notify};
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::binding::Binding;
use crate::client::Client;
use crate::client::authenticate::TokenProof;
use crate::clock::UpstreamClock;
use crate::error::{Error, ErrorKind};
use crate::session::lineage::Lineage;
use crate::turn::Gateway;
use crate::turn::account::{Account, Arrival, Caller};
use crate::turn::memory::{LIGHT, MemoryPlace, full};
use crate::turn::websocket::closing::{End, farewells};
use crate::turn::websocket::meter::Meter;
use crate::turn::websocket::peer::{Incoming, Lost, PeerFrames, Sink, leave};
use crate::turn::websocket::sockets::WebSocketTurns;
use crate::turn::websocket::state::SocketState;
use crate::turn::websocket::yielding::{ListenerPlace, serve_in};

/// `Retry-After` for a client that should try again.
const SOON: Duration = Duration::from_secs(1);

/// Longest time for a client to receive the close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

pub struct Socket {
    turns: Arc<WebSocketTurns>,
    binding: Binding,
    client: Arc<Client>,
    lineage: Lineage,
    announced: String,
    caller: Caller,
    proof: TokenProof,
    clock: UpstreamClock,
    to_client: Mutex<Sink>,
    to_upstream: Mutex<Sink>,
    state: Lock<SocketState>,
    /// Notified when a turn has ended.
    quiet: Notify,
    /// Notified when the client must reconnect.
    leaving: Notify,
}

/// The properties of a connection.
pub struct Connection {
    pub turns: Arc<WebSocketTurns>,
    pub binding: Binding,
    pub client: Arc<Client>,
    pub lineage: Lineage,
    /// The model that the handshake named; empty if it named none.
    pub announced: String,
    pub caller: Caller,
    pub proof: TokenProof,
    /// The upstream's time of day, by which it states waits.
    pub clock: UpstreamClock,
    pub domain_moved: bool,
    /// The client's connection at its listener.
    pub place: Option<ListenerPlace>,
}

impl Socket {
    /// Forwards messages until one end is gone or the gateway closes both.
    pub async fn run(
        connection: Connection,
        client: PeerFrames,
        upstream: PeerFrames,
        [client_meter, upstream_meter]: [Meter; 2],
    ) {
        let Connection {
            turns,
            binding,
            client: who,
            lineage,
            announced,
            caller,
            proof,
            clock,
            domain_moved,
            place,
        } = connection;
        let ping = turns.timing.ping;
        let (to_client, from_client) = client.split();
        let (to_upstream, from_upstream) = upstream.split();
        let state = SocketState::new(binding.result, domain_moved);
        let socket = Self {
            turns,
            binding,
            client: who,
            lineage,
            announced,
            caller,
            proof,
            clock,
            to_client: Mutex::new(to_client),
            to_upstream: Mutex::new(to_upstream),
            state: Lock::new(state),
            quiet: Notify::new(),
            leaving: Notify::new(),
        };
        let is_silent =
            || socket.is_quiet() && !client_meter.is_holding() && !upstream_meter.is_holding();
        let mut from_client = Incoming::new(from_client, ping, client_meter.clone());
        let mut from_upstream = Incoming::new(from_upstream, ping, upstream_meter.clone());
        let serving = async {
            tokio::select! {
                end = socket.forward_to_upstream(&mut from_client) => end,
                end = socket.forward_to_client(&mut from_upstream) => end,
                end = socket.wait_for_close() => end,
            }
        };
        let end = serve_in(place.as_ref(), serving, is_silent).await;
        socket.finish(end, from_client, from_upstream).await;
    }

    /// Forwards the client's messages to the upstream.
    async fn forward_to_upstream(&self, from: &mut Incoming) -> End {
        loop {
            let message = match from.next(&self.to_client).await {
                Ok(message) => message,
                Err(lost) => return End::Client(lost),
            };
            let checked = match message {
                Message::Text(text) => self.ask(text).await,
                other => Ok((other, MemoryPlace::default())),
            };
            let sent = match checked {
                Ok((message, _place)) => self.to_upstream.lock().await.send(message).await,
                Err(refusal) => self.to_client.lock().await.send(Message::text(refusal)).await,
            };
            if sent.is_err() {
                // The peer may have sent a close frame before it left, so the task that reads from
                // the peer reports the end.
                return std::future::pending().await;
            }
        }
    }

    /// Forwards the upstream's messages to the client. Messages that are ready at the same moment
    /// go in one write.
    async fn forward_to_client(&self, from: &mut Incoming) -> End {
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
                    // Messages that arrived before the end still go to the client.
                    let _ = self.flush().await;
                    return End::Upstream(lost);
                }
            };
            let event = match &message {
                Message::Text(text) => match self.read_event(text).await {
                    Ok(event) => event,
                    Err(error) => {
                        tracing::warn!(cause = %error, "an upstream's message could not be read");
                        return End::Upstream(Lost::Full);
                    }
                },
                _ => None,
            };
            let is_long = message.len() > LIGHT;
            let message = match (event, message) {
                (Some(event), Message::Text(text)) => Message::Text(self.note(event, text).await),
                (_, message) => message,
            };
            let fed = self.to_client.lock().await.feed(message).await;
            // A long message counts in the memory until it has gone.
            if fed.is_err() || is_long && self.flush().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Flushes all messages to the client.
    async fn flush(&self) -> Result<(), tungstenite::Error> {
        self.to_client.lock().await.flush().await?;
        if std::mem::take(&mut self.state().is_passing) {
            self.quiet.notify_one();
        }
        Ok(())
    }

    /// Waits until the gateway must end the connection: the token is revoked, the key is closed, or
    /// the replica leaves.
    async fn wait_for_close(&self) -> End {
        let (mut clients, mut operators) =
            (self.turns.gateway.entry.clients.follow(), self.turns.gateway.registry.follow());
        let closing = async {
            self.turns.closing.cancelled().await;
            sleep(self.turns.timing.moment()).await;
        };
        tokio::pin!(closing);
        let mut is_leaving = false;
        loop {
            let admitted = self.turns.gateway.entry.clients.get().admit(self.proof).cloned();
            let may_stay = |client: Arc<Client>| {
                client.id == self.client.id
                    && client.may_use_organization(&self.binding.key.organization)
            };
            if !admitted.is_some_and(may_stay) {
                return End::Gateway(CloseCode::Policy, "the token was revoked");
            }
            is_leaving |= self.turns.gateway.registry.is_closed(&self.binding.key);
            let quiet = self.quiet.notified();
            if is_leaving && self.is_quiet() {
                return End::Gateway(CloseCode::Away, "");
            }
            tokio::select! {
                () = self.gateway().books.cutting.cancelled() => {
                    return End::Gateway(CloseCode::Away, "");
                }
                Ok(()) = clients.changed() => {}
                Ok(()) = operators.changed() => {}
                () = quiet, if is_leaving => {}
                () = self.leaving.notified(), if !is_leaving => is_leaving = true,
                () = &mut closing, if !is_leaving => is_leaving = true,
            }
        }
    }

    /// Whether no turn is in flight and no message is on its way to the client.
    fn is_quiet(&self) -> bool {
        let state = self.state();
        state.lanes.is_idle() && !state.is_passing
    }

    /// Closes both ends. Each turn in flight is recorded as cut. If the upstream was lost, the
    /// client receives an error for each of these turns.
    async fn finish(self, end: End, from_client: Incoming, from_upstream: Incoming) {
        let turns = self.state().lanes.take_all();
        let (to_client, to_upstream) = farewells(&end, !turns.is_empty());
        let mut last = Vec::new();
        let told = error_for_client(&end);
        for (lane, turn) in turns {
            last.extend(told.as_ref().map(|error| Message::text(error.to_frame(lane.as_deref()))));
            if !matches!(end, End::Client(_)) {
                turn.account.cut();
            }
        }
        if let (End::Client(Lost::Full | Lost::Slow), Some(error), []) = (&end, &told, &last[..]) {
            // The client waits for an answer to the message that was refused before its end.
            last.push(Message::text(error.to_frame(None)));
        }
        tokio::join!(
            leave(self.to_client, from_client, last, to_client, CLOSE_TIMEOUT),
            leave(self.to_upstream, from_upstream, Vec::new(), to_upstream, CLOSE_TIMEOUT / 4),
        );
    }

    fn gateway(&self) -> &Gateway {
        &self.turns.gateway
    }

    /// Opens the account of a new turn.
    fn open(&self, state: &mut SocketState, arrival: Arrival) -> Account {
        let mut account = Account::of(&self.caller, Arc::clone(&self.gateway().books), arrival);
        account.note_stream(true);
        let (result, domain_moved) = state.begin();
        let binding = Binding { result, ..self.binding.clone() };
        account.note_attempt(&binding, domain_moved, &self.gateway().registry.loads);
        account
    }

    fn state(&self) -> MutexGuard<'_, SocketState> {
        // No code panics in the middle of a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the error that a client receives for each turn in flight, if it can still receive one.
fn error_for_client(end: &End) -> Option<Error> {
    match end {
        End::Client(Lost::Full) | End::Upstream(Lost::Full) => Some(full()),
        End::Client(Lost::Slow) => {
            Some(Error::new(ErrorKind::RequestTimeout, "The message arrived too slowly."))
        }
        End::Client(_) => None,
        End::Upstream(_) => Some(
            Error::new(ErrorKind::UpstreamInterrupted, "The connection to the upstream was lost.")
                .retry_after(SOON),
        ),
        End::Gateway(CloseCode::Policy, _) => {
            Some(Error::new(ErrorKind::InvalidApiKey, "The token was revoked."))
        }
        End::Gateway(..) => Some(
            Error::new(ErrorKind::NoKeyAvailable, "This replica ends: connect again.")
                .retry_after(SOON),
        ),
    }
}

mod asked;
mod answered;
