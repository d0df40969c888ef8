//! An answer between its upstream and its client: what is taken of it and not yet sent, and what is
//! learned as it passes.
//!
//! One of two takes the upstream's frames: the relay itself, or the pump. Which of them, and when,
//! is told there.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Version;

use crate::health::registry::Registry;
use crate::key::Key;
use crate::key::leak::LeakScan;
use crate::metrics::Ending;
use crate::outcome::Answer;
use crate::turn::Gateway;
use crate::turn::account::Account;
use crate::turn::http::id_gate::IdGate;
use crate::turn::idle::Idle;
use crate::usage::tap::{Reading, Tap};

/// A frame that comes so long after the one before comes alone, nearly always: it goes at once.
const COMPANY: Duration = Duration::from_millis(1);
/// A frame of this size gains nothing from being copied.
const LARGE: usize = 8 * 1024;
/// So much waits for a slow reader; then the upstream waits too.
const AHEAD: usize = 64 * 1024;

/// Why an answer cannot go on. The connection to the client is cut, so that it sees a cut answer as
/// what it is.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum Broken {
    #[error("the upstream's answer was cut")]
    Cut,
    #[error("the upstream's answer stalled")]
    Stalled,
}

/// A turn whose answer passes, with what its end may say about its key.
pub struct Course {
    pub account: Account,
    pub registry: Arc<Registry>,
    pub key: Arc<Key>,
}

impl Course {
    pub fn new(gateway: &Gateway, key: Arc<Key>, account: Account) -> Self {
        Self { account, registry: Arc::clone(&gateway.registry), key }
    }

    /// The answer is over, or will not go on. A failure that it states counts for its key's health.
    fn end(mut self, reading: Reading, broken: Option<Ending>) {
        if let Some(failure) = &reading.failure {
            self.registry.observe_failure(&self.key, self.account.asked(), failure);
        }
        self.account.relayed(reading, broken);
    }
}

/// What is looked at for every event lies together, for memory that a thousand streams share is
/// what an event costs here: the order of the fields is that of the memory, and what is seldom
/// looked at is boxed or stands last.
#[repr(C)]
pub struct Passage {
    /// Nothing follows; or this follows.
    closed: Option<Option<Broken>>,
    /// Frames come one by one: the relay takes them.
    pub is_paced: bool,
    pub has_left: bool,
    gate: Option<Box<IdGate>>,
    tap: Tap,
    leak_scan: LeakScan,
    pub idle: Idle,
    ready: VecDeque<Bytes>,
    /// Frames that came at the same moment.
    pub joined: BytesMut,
    /// Woken when something is ready.
    pub reader: Option<Waker>,
    upstream: Option<reqwest::Response>,
    /// Woken when there is room, company, or nobody to read.
    pub writer: Option<Waker>,
    length: usize,
    /// `None`: the end is noted.
    turn: Option<Box<Course>>,
}

/// What the upstream has sent.
pub enum Next {
    /// So long after the one before that it comes alone.
    Alone(Bytes),
    /// It is not worth joining with others.
    Large(Bytes),
    InCompany(Bytes),
    Last(Bytes),
    End(Option<Broken>),
}

impl Passage {
    pub fn new(answer: Answer, gate: Option<IdGate>, turn: Course) -> Self {
        let key = Arc::clone(&turn.key);
        let mut tap = Tap::new(&answer.headers);
        tap.observe(&answer.head);
        let mut leak_scan = key.leak.scan();
        if leak_scan.finds(&answer.head) {
            turn.account.leaked();
        }
        Self {
            // A client that knows the length leaves with the last byte: that is an end, too, here
            // and below.
            upstream: answer.rest.filter(|upstream| !is_end(upstream)),
            gate: gate.map(Box::new),
            joined: BytesMut::from(&answer.head[..]),
            idle: Idle::new(key.upstream.idle_timeout),
            tap,
            leak_scan,
            turn: Some(Box::new(turn)),
            ready: VecDeque::new(),
            length: 0,
            closed: None,
            has_left: false,
            is_paced: false,
            reader: None,
            writer: None,
        }
    }

    /// Takes the upstream's next frame, or finds out that none comes.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        let data = match ready!(self.poll_data(context)) {
            Ok(Some(data)) => data,
            Ok(None) => return Poll::Ready(Next::End(None)),
            Err(_) => return Poll::Ready(Next::End(Some(Broken::Cut))),
        };
        let keeps_some = self.gate.as_ref().is_some_and(|gate| gate.keeps_some());
        let is_last = !keeps_some && self.upstream.as_ref().is_some_and(is_end);
        self.tap.observe(&data);
        if self.leak_scan.finds(&data)
            && let Some(turn) = &self.turn
        {
            turn.account.leaked();
        }
        let since = self.idle.stir();
        Poll::Ready(match () {
            () if is_last => Next::Last(data),
            () if !self.joined.is_empty() => Next::InCompany(data),
            () if since > COMPANY => Next::Alone(data),
            () if data.len() >= LARGE => Next::Large(data),
            () => Next::InCompany(data),
        })
    }

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<reqwest::Result<Option<Bytes>>> {
        loop {
            if let Some(gate) = &mut self.gate {
                let kept = ready!(gate.poll_kept(context));
                if gate.is_over() {
                    self.gate = None;
                }
                if kept.is_some() {
                    return Poll::Ready(Ok(kept));
                }
            }
            let Some(upstream) = &mut self.upstream else { return Poll::Ready(Ok(None)) };
            // It keeps nothing from one time to the next.
            let data = ready!(pin!(upstream.chunk()).poll(context))?;
            match (&mut self.gate, data) {
                (Some(gate), Some(data)) => match gate.offer(data) {
                    None => _ = self.idle.stir(),
                    passed => return Poll::Ready(Ok(passed)),
                },
                (_, data) => return Poll::Ready(Ok(data)),
            }
        }
    }

    pub fn push(&mut self, data: Bytes) {
        self.length += data.len();
        self.ready.push_back(data);
        wake(&mut self.reader);
    }

    /// What was joined goes on its way.
    pub fn flush(&mut self) {
        if !self.joined.is_empty() {
            let data = self.joined.split().freeze();
            self.push(data);
        }
    }

    /// Takes what is ready, if anything is.
    pub fn pop(&mut self) -> Option<Bytes> {
        let data = self.ready.pop_front()?;
        let was_full = self.is_full();
        self.length -= data.len();
        if was_full && !self.is_full() {
            wake(&mut self.writer);
        }
        Some(data)
    }

    pub const fn is_full(&self) -> bool {
        self.length >= AHEAD
    }

    /// The upstream is done with, one way or the other. Accounted for before the client can have
    /// read the last byte.
    pub fn end(&mut self, broken: Option<Broken>) {
        if self.closed.is_some() {
            return;
        }
        let ending = broken.map(|broken| match broken {
            Broken::Cut => Ending::Cut,
            Broken::Stalled => Ending::TimedOut,
        });
        if let Some(turn) = self.turn.take() {
            turn.end(self.tap.finish(broken.is_none()), ending);
        }
        self.flush();
        self.upstream = None;
        self.closed = Some(broken);
        wake(&mut self.reader);
        wake(&mut self.writer);
    }

    /// The client has left. Returns what is left of an answer whose last word was said: Codex
    /// leaves before the last chunk, and reading on to the end keeps the upstream's connection
    /// alive.
    pub fn leave(&mut self) -> Option<reqwest::Response> {
        let turn = self.turn.take()?;
        if self.tap.is_over() {
            turn.end(self.tap.finish(false), None);
            return self.upstream.take();
        }
        turn.end(self.tap.finish(false), Some(Ending::ClientLeft));
        None
    }

    pub const fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// Nothing is ready, nor will be.
    pub fn is_over(&self) -> bool {
        self.ready.is_empty() && matches!(self.closed, Some(None))
    }

    /// What follows what was ready, once something is known of that.
    pub fn close(&mut self) -> Option<Option<Broken>> {
        self.closed.as_mut().map(Option::take)
    }

    /// Something has panicked: what its turn came to is not known.
    pub fn fail(&mut self) {
        if let Some(turn) = self.turn.take() {
            turn.end(Reading::default(), Some(Ending::Unserved));
        }
    }

    pub fn abandon(&mut self) {
        self.has_left = true;
        self.ready.clear();
        wake(&mut self.writer);
    }
}

/// Whether nothing is left of a body whose length is known. HTTP/2 says the end by itself, and has
/// to be heard out.
fn is_end(upstream: &reqwest::Response) -> bool {
    upstream.version() < Version::HTTP_2 && upstream.content_length() == Some(0)
}

pub fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::client::Client;
    use crate::metrics::Transport;
    use crate::turn::tests::{bound, gateway};
    use crate::wire::error_body::ErrorBody;
    use crate::wire::terminal::Terminal;

    #[tokio::test]
    async fn a_failure_inside_an_answer_is_of_the_model_that_was_asked_for() {
        let (gateway, client) = (gateway(&[("a", "o", "p")]), Client::unrestricted("alice"));
        let (_, binding, _) = bound(&gateway, &client).await;
        let mut account =
            Account::open(Arc::clone(&gateway.books), Transport::Http, &HeaderMap::new());
        account.model("m");
        account.bound(&binding, false, &gateway.registry.loads);
        let course = Course {
            account,
            registry: Arc::clone(&gateway.registry),
            key: Arc::clone(&binding.key),
        };
        let failure =
            Some(ErrorBody { code: Some("rate_limit_exceeded".into()), ..ErrorBody::default() });
        course
            .end(Reading { terminal: Some(Terminal::Failed), failure, ..Reading::default() }, None);
        let is_ready = |model| gateway.registry.is_ready(&binding.key, model);
        assert!(!is_ready("m") && is_ready("n") && is_ready(""));
    }
}
