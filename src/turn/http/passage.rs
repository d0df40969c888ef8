//! An answer between its upstream and its client: the frames that are received but not yet sent,
//! and what the gateway learns from them.
//!
//! Either the relay or the pump reads the upstream's frames; `relay` says which one and when.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::key::leak::LeakScan;
use crate::outcome::Answer;
use crate::outcome::body::{AnswerBody, CutAnswer};
use crate::turn::http::course::{Broken, Course};
use crate::turn::http::form::Form;
use crate::turn::http::id_gate::IdGate;
use crate::turn::http::translation::Translation;
use crate::turn::idle::Idle;
use crate::turn::memory::ReadingMemory;
use crate::usage::tap::Tap;

/// A frame that comes this long after the frame before nearly always comes alone, so it is sent at
/// once.
const COMPANY: Duration = Duration::from_millis(1);
/// A frame of this size gains nothing from being copied.
const LARGE: usize = 8 * 1024;
/// The largest piece that the client's connection takes at once, because it may copy it.
const PIECE: usize = 64 * 1024;
/// Bytes that wait for a slow client before the gateway stops reading from the upstream.
const AHEAD: usize = 64 * 1024;

/// The state of a passage. The fields that every event touches lie together, because memory
/// accesses dominate an event's cost when a thousand streams run. `repr(C)` keeps this order.
/// Rarely used fields are boxed or come last.
#[repr(C)]
pub struct Passage {
    /// `Some`: the answer has ended. The error, if there is one, follows the ready bytes.
    closed: Option<Option<Broken>>,
    /// Whether frames come one by one, so that the relay reads them.
    pub is_paced: bool,
    pub has_left: bool,
    /// The answer's first byte has arrived.
    has_begun: bool,
    /// What the tap holds counts in the memory.
    is_counted: bool,
    gate: Option<Box<IdGate>>,
    tap: Tap,
    leak_scan: LeakScan,
    pub idle: Idle,
    ready: VecDeque<Bytes>,
    /// Frames that came at the same moment, joined.
    pub joined: BytesMut,
    /// Woken when something is ready.
    pub reader: Option<Waker>,
    upstream: Option<AnswerBody>,
    /// Woken when there is space again, frames come close together, or the client has left.
    pub writer: Option<Waker>,
    length: usize,
    is_flushed: bool,
    /// Translates a stream. `None`: its bytes pass unchanged.
    translation: Option<Box<Translation>>,
    /// Bytes that the tap has not read to their end yet.
    unread: Bytes,
    memory: ReadingMemory,
    /// The turn. `None`: it has ended.
    turn: Option<Box<Course>>,
}

/// The next part of an upstream's answer.
pub enum Next {
    /// A frame that came long after the frame before, so it is sent at once.
    Alone(Bytes),
    /// A frame that is too large to be joined with others.
    Large(Bytes),
    InCompany(Bytes),
    Last(Bytes),
    End(Option<Broken>),
}

impl Passage {
    pub fn new(answer: Answer, gate: Option<IdGate>, mut turn: Course) -> Self {
        let key = Arc::clone(&turn.key);
        let form = turn.take_form();
        let tap = form.tap(&answer.headers);
        let (text, tap, translation) = match form {
            Form::Native(_) => (None, tap, None),
            Form::Stream(stream) => (None, tap, Some(stream)),
            Form::Document(document) => {
                if document.has_leaked {
                    turn.account.note_leak();
                }
                (Some(document.text), document.tap, None)
            }
        };
        if text.is_some() {
            turn.account.note_first_byte();
        }
        let mut passage = Self {
            has_begun: text.is_some(),
            // With zero bytes left, the answer has ended: its client knows the length, and leaves.
            upstream: answer.rest.filter(|upstream| !upstream.is_complete()),
            gate: gate.map(Box::new),
            joined: BytesMut::new(),
            translation,
            idle: Idle::new(key.upstream.idle_timeout),
            // Its text has been read.
            unread: if text.is_some() { Bytes::new() } else { answer.head },
            is_counted: false,
            memory: ReadingMemory::of(&turn.memory),
            tap,
            leak_scan: key.leak.scan(),
            turn: Some(Box::new(turn)),
            ready: VecDeque::new(),
            length: 0,
            closed: None,
            is_flushed: false,
            has_left: false,
            is_paced: false,
            reader: None,
            writer: None,
        };
        passage.join(text.unwrap_or_default());
        // A client that knows the length may leave before the pump has found the end.
        if passage.upstream.is_none() && passage.unread.is_empty() {
            passage.end(None);
        }
        passage
    }

    /// Reads the upstream's next frame, or its end.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        loop {
            match ready!(self.poll_seen(context)) {
                // An event that has no equivalent for the client yields no bytes.
                Next::Alone(data) | Next::Large(data) | Next::InCompany(data)
                    if data.is_empty() && self.translation.is_some() => {}
                next => return Poll::Ready(next),
            }
        }
    }

    fn poll_seen(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        loop {
            if let Some(translation) = &mut self.translation
                && translation.is_working()
            {
                let done = ready!(translation.poll_work(context));
                self.idle.note_arrival();
                return Poll::Ready(match done {
                    Ok(data) => self.next(data, Duration::ZERO),
                    Err(_) => Next::End(Some(Broken::Full)),
                });
            }
            let data = match self.unread.is_empty() {
                false => std::mem::take(&mut self.unread),
                true => match ready!(self.poll_data(context)) {
                    Ok(Some(data)) => data,
                    Ok(None) => {
                        self.tap.end();
                        let broken = self.tap.is_blind().then_some(Broken::Unreadable);
                        return Poll::Ready(Next::End(broken));
                    }
                    Err(_) => return Poll::Ready(Next::End(Some(Broken::Cut))),
                },
            };
            if !std::mem::replace(&mut self.has_begun, true)
                && let Some(turn) = &mut self.turn
            {
                turn.account.note_first_byte();
            }
            let is_read = self.tap.step(&data);
            self.count();
            if !is_read {
                // Other turns of this thread come first.
                self.unread = data;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !self.may_pass() {
                return Poll::Ready(Next::End(Some(Broken::Unreadable)));
            }
            if self.leak_scan.finds(&data)
                && let Some(turn) = &mut self.turn
            {
                turn.account.note_leak();
            }
            let since = self.idle.note_arrival();
            let data = match &mut self.translation {
                Some(translation) => translation.push(&data),
                None => Some(data),
            };
            if let Some(data) = data {
                return Poll::Ready(self.next(data, since));
            }
        }
    }

    /// Whether the bytes that the tap has read may pass: they must be decodable. A client that
    /// knows the length takes the last bytes for a whole answer.
    fn may_pass(&mut self) -> bool {
        if self.upstream.as_ref().is_none_or(AnswerBody::has_all) {
            self.tap.end();
        }
        !self.tap.is_blind()
    }

    /// Whether the next bytes must come from the upstream. Otherwise the gateway's own work delays
    /// them, and that work has bounds of its own.
    pub fn awaits_upstream(&self) -> bool {
        let keeps_some = self.gate.as_ref().is_some_and(|gate| gate.keeps_some());
        let has_unread = keeps_some || !self.unread.is_empty();
        !has_unread && self.translation.as_ref().is_none_or(|one| !one.is_working())
    }

    /// Decides how `data` goes to the client. `since`: the time since the bytes before it.
    fn next(&self, data: Bytes, since: Duration) -> Next {
        let keeps_some = self.gate.as_ref().is_some_and(|gate| gate.keeps_some());
        let is_last = !keeps_some && self.upstream.as_ref().is_none_or(AnswerBody::is_complete);
        match () {
            () if is_last => Next::Last(data),
            () if !self.joined.is_empty() => Next::InCompany(data),
            () if since > COMPANY => Next::Alone(data),
            () if data.len() >= LARGE => Next::Large(data),
            () => Next::InCompany(data),
        }
    }

    /// Counts what the tap holds. Without memory for it, the tap stops, and the answer passes.
    fn count(&mut self) {
        let held = self.tap.held();
        if held < ReadingMemory::FREE && !self.is_counted {
            return;
        }
        if !self.memory.has_room_for(held) {
            self.tap.give_up();
            self.memory.take();
        }
        self.is_counted = !self.memory.is_empty();
    }

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, CutAnswer>> {
        loop {
            if let Some(gate) = &mut self.gate {
                let kept = ready!(gate.poll_kept(context));
                if gate.is_over() {
                    self.gate = None;
                }
                if kept.is_some() {
                    self.idle.note_arrival();
                    return Poll::Ready(Ok(kept));
                }
            }
            let Some(upstream) = &mut self.upstream else { return Poll::Ready(Ok(None)) };
            let data = ready!(upstream.poll_data(context))?;
            match (&mut self.gate, data) {
                (Some(gate), Some(data)) => match gate.offer(data) {
                    None => _ = self.idle.note_arrival(),
                    passed => return Poll::Ready(Ok(passed)),
                },
                (_, data) => return Poll::Ready(Ok(data)),
            }
        }
    }

    pub fn push(&mut self, mut data: Bytes) {
        self.length += data.len();
        while data.len() > PIECE {
            self.ready.push_back(data.split_to(PIECE));
        }
        self.ready.push_back(data);
        wake(&mut self.reader);
    }

    /// Returns the first piece of `data`, and makes the other pieces ready to send.
    pub fn first(&mut self, mut data: Bytes) -> Bytes {
        if data.len() > PIECE {
            let rest = data.split_off(PIECE);
            self.push(rest);
        }
        data
    }

    /// Joins `data` with the bytes before. Long `data` is not copied.
    pub fn join(&mut self, data: Bytes) {
        if data.len() <= PIECE {
            self.joined.extend_from_slice(&data);
            return;
        }
        self.flush();
        self.push(data);
    }

    /// Makes the joined bytes ready to send.
    pub fn flush(&mut self) {
        if !self.joined.is_empty() {
            let data = self.joined.split().freeze();
            self.push(data);
        }
    }

    /// Takes the next ready bytes, if there are any.
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

    /// Ends the passage. The turn is recorded before the client can have read the last byte.
    pub fn end(&mut self, broken: Option<Broken>) {
        if self.closed.is_some() {
            return;
        }
        if let Some(turn) = self.turn.take() {
            turn.end(self.tap.finish(broken.is_none()), broken);
        }
        if let Some(translation) = self.translation.take() {
            self.joined.extend_from_slice(&translation.end());
        }
        self.flush();
        (self.upstream, self.unread) = (None, Bytes::new());
        self.closed = Some(broken);
        wake(&mut self.reader);
        wake(&mut self.writer);
    }

    /// Notes that the client has left. Returns the rest of an answer whose terminal event has
    /// passed, or whose every byte has. Codex leaves before the last chunk, and reading to the end
    /// keeps the upstream's connection alive.
    pub fn leave(&mut self) -> Option<AnswerBody> {
        let turn = self.turn.take()?;
        let has_all = self.has_all();
        if has_all || self.tap.is_over() {
            turn.end(self.tap.finish(has_all), None);
            return self.upstream.take();
        }
        turn.leave(self.tap.finish(false));
        None
    }

    /// Whether the client's connection has taken every byte of the answer.
    fn has_all(&self) -> bool {
        let has_come = self.upstream.as_ref().is_some_and(AnswerBody::has_all);
        has_come && self.awaits_upstream() && self.length == 0 && self.joined.is_empty()
    }

    pub const fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// Whether nothing is ready and nothing follows.
    pub fn is_over(&self) -> bool {
        self.ready.is_empty() && matches!(self.closed, Some(None))
    }

    /// Whether the client's connection must write the bytes that it took before it is cut, because
    /// an error would drop them. Returns true only once.
    pub const fn flushes_first(&mut self) -> bool {
        let is_cut = matches!(self.closed, Some(Some(_)));
        is_cut && !std::mem::replace(&mut self.is_flushed, true)
    }

    /// Returns what follows the ready bytes, once that is known: the end, or an error.
    pub fn close(&mut self) -> Option<Option<Broken>> {
        self.closed.as_mut().map(Option::take)
    }

    /// Ends the turn after a panic: its outcome is not known.
    pub fn fail(&mut self) {
        if let Some(turn) = self.turn.take() {
            turn.fail();
        }
    }

    pub fn abandon(&mut self) {
        self.has_left = true;
        self.ready.clear();
        wake(&mut self.writer);
    }
}

pub fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

#[cfg(test)]
mod tests;
