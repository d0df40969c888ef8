//! The open connections of one listener: how many there may be, and which one is ended for a new
//! one.
//!
//! A connection is *silent* while no request is in flight on it. This is so before its first
//! request, between two requests, and while the rest of a refused body comes. A WebSocket is silent
//! while no turn is in flight and no message is underway. At the limit, the longest silent
//! connection is ended for a new one. Connections with requests in flight are never ended.
//!
//! An HTTP/2 connection may have many requests in flight, and each may need a connection to an
//! upstream. The limit of connections is therefore also the limit of requests in flight; further
//! requests are refused.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use crate::metrics::{ConnectionRefusal, ListenerName, Metrics};
use crate::turn::websocket::yielding::Yielding;

/// Least time between two log lines about the limit.
const TELL: Duration = Duration::from_secs(60);

/// The connections of one listener.
pub struct Connections {
    listener: ListenerName,
    most: usize,
    /// Requests in flight on all connections.
    requests: AtomicUsize,
    metrics: Option<Arc<Metrics>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: usize,
    /// The number of times that a connection has fallen silent.
    moments: u64,
    /// The silent connections, by the number of their falling silent: the longest silent one comes
    /// first.
    silent: BTreeMap<u64, Arc<End>>,
    /// When the log last reported each reason for a refusal.
    told: HashMap<ConnectionRefusal, Instant>,
}

/// How a connection learns that it must end for another one.
#[derive(Default)]
struct End {
    has_come: AtomicBool,
    /// The connection is a WebSocket, which counts as a request in flight until it must end.
    is_websocket: AtomicBool,
    waker: AtomicWaker,
}

/// The place of one connection among all.
pub struct Seat {
    all: Arc<Connections>,
    end: Arc<End>,
    /// Requests in flight, and the moment since which the connection is silent.
    now: Mutex<Now>,
    has_unread: AtomicBool,
}

struct Now {
    /// A WebSocket counts as a request while it is not silent.
    requests: usize,
    silent_since: Option<u64>,
}

impl Connections {
    pub fn new(listener: ListenerName, most: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        if listener == ListenerName::Clients {
            metrics.connections_limit(most);
        }
        let (requests, metrics) = (AtomicUsize::new(0), Some(metrics));
        Arc::new(Self { listener, most, requests, metrics, state: Mutex::default() })
    }

    /// Returns connections without a limit.
    pub fn unlimited() -> Arc<Self> {
        let (listener, most, metrics) = (ListenerName::Clients, usize::MAX, None);
        let (requests, state) = (AtomicUsize::new(0), Mutex::default());
        Arc::new(Self { listener, most, requests, metrics, state })
    }

    /// Takes in a new connection. `None`: there are too many, and none is silent.
    pub fn enter(self: &Arc<Self>) -> Option<Arc<Seat>> {
        let end = Arc::new(End::default());
        let mut state = self.lock();
        let is_full = state.open >= self.most;
        if is_full && !self.end_longest_silent(&mut state, ConnectionRefusal::Silent) {
            drop(state);
            self.count_refusal(ConnectionRefusal::Limit);
            return None;
        }
        if is_full {
            self.tell(&mut state, ConnectionRefusal::Silent);
        }
        state.open += 1;
        let since = state.fall_silent(&end);
        drop(state);
        if let Some(metrics) = &self.metrics {
            metrics.connection_opened(self.listener);
        }
        let now = Mutex::new(Now { requests: 0, silent_since: Some(since) });
        Some(Arc::new(Seat { all: Arc::clone(self), end, now, has_unread: AtomicBool::new(false) }))
    }

    /// Ends the longest silent connection for one that could not be accepted. Returns false if
    /// every connection has a request in flight.
    pub fn end_silent(&self, error: &io::Error) -> bool {
        let mut state = self.lock();
        let has_ended_one = self.end_longest_silent(&mut state, ConnectionRefusal::Descriptors);
        if state.is_due(ConnectionRefusal::Descriptors) {
            tracing::warn!(%error, open = state.open, "a connection could not be accepted");
        }
        drop(state);
        if !has_ended_one && let Some(metrics) = &self.metrics {
            metrics.connection_refused(ConnectionRefusal::Descriptors);
        }
        has_ended_one
    }

    fn end_longest_silent(&self, state: &mut State, reason: ConnectionRefusal) -> bool {
        let Some((_, end)) = state.silent.pop_first() else { return false };
        // The new client may ask at once.
        self.release(&end);
        end.has_come.store(true, Ordering::Release);
        end.waker.wake();
        if let Some(metrics) = &self.metrics {
            metrics.connection_refused(reason);
        }
        true
    }

    /// Gives back what a WebSocket takes of the requests in flight.
    fn release(&self, end: &End) {
        let is_counted = end.is_websocket.swap(false, Ordering::Relaxed);
        self.requests.fetch_sub(usize::from(is_counted), Ordering::Relaxed);
    }

    fn count_refusal(&self, reason: ConnectionRefusal) {
        self.tell(&mut self.lock(), reason);
        if let Some(metrics) = &self.metrics {
            metrics.connection_refused(reason);
        }
    }

    /// Returns the most connections that may be open.
    pub const fn most(&self) -> usize {
        self.most
    }

    fn tell(&self, state: &mut State, reason: ConnectionRefusal) {
        if !state.is_due(reason) {
            return;
        }
        let what = match reason {
            ConnectionRefusal::Requests => {
                "requests in flight are at their limit: further ones are refused"
            }
            ConnectionRefusal::Limit => "connections are at their limit, and none is silent",
            _ => "connections are at their limit: the longest silent one gives way",
        };
        tracing::warn!(listener = self.listener.name(), open = state.open, "{what}");
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether the log may report `reason` now. It does so once in `TELL`.
    fn is_due(&mut self, reason: ConnectionRefusal) -> bool {
        let is_due = self.told.get(&reason).is_none_or(|told| told.elapsed() >= TELL);
        if is_due {
            self.told.insert(reason, Instant::now());
        }
        is_due
    }

    fn fall_silent(&mut self, end: &Arc<End>) -> u64 {
        self.moments += 1;
        self.silent.insert(self.moments, Arc::clone(end));
        self.moments
    }
}

impl Seat {
    /// Notes that a request is in flight until the returned value is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlightRequest {
        self.now().begin_request(self);
        let is_too_many = self.all.requests.fetch_add(1, Ordering::Relaxed) >= self.all.most;
        if is_too_many {
            self.all.count_refusal(ConnectionRefusal::Requests);
        }
        InFlightRequest { seat: Arc::clone(self), is_too_many }
    }

    /// Most requests that may be in flight on this connection.
    pub fn most_requests(&self) -> usize {
        self.all.most
    }

    /// Ready when the connection must end for another one. Wakes the task that polled last.
    pub fn poll_end(&self, context: &Context<'_>) -> Poll<()> {
        self.end.waker.register(context.waker());
        if self.must_end() { Poll::Ready(()) } else { Poll::Pending }
    }

    pub fn must_end(&self) -> bool {
        self.end.has_come.load(Ordering::Acquire)
    }

    /// Whether a request was answered before its body had come.
    pub fn has_unread(&self) -> bool {
        self.has_unread.load(Ordering::Relaxed)
    }

    /// Notes that bytes of a refused request may still come.
    pub fn leave_unread(&self) {
        self.has_unread.store(true, Ordering::Relaxed);
    }

    /// Whether no request is in flight.
    pub fn is_silent(&self) -> bool {
        self.now().requests == 0
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Yielding for Seat {
    fn note_silence(&self, is_silent: bool) {
        let mut now = self.now();
        match (now.silent_since, is_silent) {
            (None, true) => now.end_request(self),
            (Some(_), false) => now.begin_request(self),
            _ => {}
        }
    }

    fn poll_end(&self, context: &Context<'_>) -> Poll<()> {
        Self::poll_end(self, context)
    }
}

impl Now {
    fn begin_request(&mut self, seat: &Seat) {
        self.requests += 1;
        if let Some(since) = self.silent_since.take() {
            seat.all.lock().silent.remove(&since);
        }
    }

    fn end_request(&mut self, seat: &Seat) {
        self.requests -= 1;
        if self.requests == 0 {
            self.silent_since = Some(seat.all.lock().fall_silent(&seat.end));
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let since = self.now().silent_since;
        self.all.release(&self.end);
        let mut state = self.all.lock();
        state.open -= 1;
        if let Some(since) = since {
            state.silent.remove(&since);
        }
        drop(state);
        if let Some(metrics) = &self.all.metrics {
            metrics.connection_closed(self.all.listener);
        }
    }
}

/// A request in flight on a connection.
pub struct InFlightRequest {
    seat: Arc<Seat>,
    is_too_many: bool,
}

impl InFlightRequest {
    /// Keeps the request in flight until the connection, which is a WebSocket now, says that it is
    /// silent.
    pub fn for_life(self) {
        self.seat.now().requests += 1;
        self.seat.end.is_websocket.store(true, Ordering::Relaxed);
        self.seat.all.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether too many requests were in flight when this one began.
    pub const fn is_too_many(&self) -> bool {
        self.is_too_many
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        let Self { seat, .. } = self;
        seat.all.requests.fetch_sub(1, Ordering::Relaxed);
        seat.now().end_request(seat);
    }
}

#[cfg(test)]
mod tests;
