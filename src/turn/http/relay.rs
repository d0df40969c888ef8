//! Sends the answer to the client: every byte unchanged, in as few writes as the upstream's own
//! timing allows.
//!
//! hyper delivers an upstream's stream frame by frame, and a connection that is woken for each
//! frame writes each one by itself. If frames arrive one by one, as most do, the client's
//! connection reads them itself, and no other task wakes.
//!
//! If frames arrive close together, a task of the turn (the pump) reads them. The pump joins the
//! frames that are ready at the same moment, and wakes the connection once for all of them. No
//! timer holds back received bytes: the pump yields once to the upstream's connection, and sends
//! everything if no further frame is ready. The pump also checks the idle timeout, whichever task
//! reads the frames.

use std::error::Error;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::poll_immediate;
use http_body::{Body, Frame, SizeHint};

use crate::outcome::Answer;
use crate::task::Tasks;
use crate::turn::http::course::{Broken, Course};
use crate::turn::http::id_gate::IdGate;
use crate::turn::http::passage::{Next, Passage, wake};

/// Length of joined bytes that are sent without waiting for further frames.
const FULL: usize = 16 * 1024;
/// Longest wait for the end of an answer whose client left after the terminal event.
const EPILOGUE: Duration = Duration::from_secs(1);

/// The body that the client receives. Dropping it before its end cancels the upstream request.
pub struct Relay(Arc<Mutex<Passage>>);

/// Reads an answer whose frames arrive close together, checks the idle timeout, and reads the
/// answer to its end if its client leaves. When the pump stops, it ends the passage, so that no
/// client waits for more.
pub struct Pump(Arc<Mutex<Passage>>);

/// Makes both ends of an answer's passage. The relay sends the frames that it reads itself, and
/// those that the started pump reads.
pub fn relay(answer: Answer, gate: Option<IdGate>, turn: Course) -> (Relay, Pump) {
    let passage = Arc::new(Mutex::new(Passage::new(answer, gate, turn)));
    (Relay(Arc::clone(&passage)), Pump(passage))
}

impl Pump {
    /// Starts the pump. An answer that has fully arrived goes with its head, in one write;
    /// otherwise a task of its own runs the pump.
    pub async fn start(self, tasks: &Tasks) {
        match poll_immediate(poll_fn(|context| self.poll_over(context))).await {
            Some(()) => self.finish().await,
            None => tasks.spawn(self.run()),
        }
    }

    async fn run(self) {
        poll_fn(|context| self.poll_over(context)).await;
        self.finish().await;
    }

    /// Ready when the answer has ended, or its client has left.
    fn poll_over(&self, context: &mut Context<'_>) -> Poll<()> {
        let passage = &mut *lock(&self.0);
        loop {
            if passage.joined.len() >= FULL {
                passage.flush();
            }
            if passage.is_closed() || passage.has_left {
                return Poll::Ready(());
            }
            register(&mut passage.writer, context);
            if passage.is_full() {
                return Poll::Pending;
            }
            if passage.is_paced {
                ready!(passage.idle.poll_over(context));
                // The idle timeout has passed while the relay reads. The pump reads once more,
                // because a slow client may not have taken a frame that is there.
                passage.is_paced = false;
            }
            match passage.poll_next(context) {
                Poll::Pending => {
                    passage.flush();
                    if !passage.awaits_upstream() {
                        return Poll::Pending;
                    }
                    ready!(passage.idle.poll_over(context));
                    passage.end(Some(Broken::Stalled));
                }
                Poll::Ready(Next::InCompany(data)) => {
                    passage.join(data);
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(Next::Alone(data)) => {
                    passage.is_paced = true;
                    passage.push(data);
                }
                Poll::Ready(Next::Large(data)) => passage.push(data),
                Poll::Ready(Next::Last(data)) => {
                    passage.join(data);
                    passage.end(None);
                }
                Poll::Ready(Next::End(broken)) => passage.end(broken),
            }
        }
    }

    /// Reads the rest of an answer whose client has left.
    async fn finish(self) {
        let rest = lock(&self.0).leave();
        if let Some(mut upstream) = rest {
            let to_the_end = async { while let Ok(Some(_)) = upstream.chunk().await {} };
            let _ = tokio::time::timeout(EPILOGUE, to_the_end).await;
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        lock(&self.0).end(Some(Broken::Cut));
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let passage = &mut *lock(&self.0);
        if let Some(data) = passage.pop() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if passage.is_paced && !passage.is_closed() {
            match passage.poll_next(context) {
                Poll::Pending => {}
                Poll::Ready(Next::Alone(data) | Next::Large(data)) => {
                    return Poll::Ready(Some(Ok(Frame::data(passage.first(data)))));
                }
                Poll::Ready(Next::Last(data)) => {
                    let data = passage.first(data);
                    passage.end(None);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Poll::Ready(Next::InCompany(data)) => {
                    passage.is_paced = false;
                    passage.join(data);
                    wake(&mut passage.writer);
                    if let Some(data) = passage.pop() {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Poll::Ready(Next::End(broken)) => {
                    passage.end(broken);
                    // The end of a translation has bytes of its own.
                    if let Some(data) = passage.pop() {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
            }
        }
        if passage.flushes_first() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        match passage.close() {
            Some(broken) => Poll::Ready(broken.map(|broken| Err(broken.into()))),
            None => {
                register(&mut passage.reader, context);
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0).is_over()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        lock(&self.0).abandon();
    }
}

/// The body of a response to a client. Axum's own body type adds a box, which would cost each event
/// of a slow stream another cache miss.
pub enum Outgoing {
    Relayed(Relay),
    Own(axum::body::Body),
}

impl From<String> for Outgoing {
    fn from(text: String) -> Self {
        Self::Own(text.into())
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Relayed(relay) => Pin::new(relay).poll_frame(context),
            Self::Own(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Relayed(relay) => relay.is_end_stream(),
            Self::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Relayed(relay) => relay.size_hint(),
            Self::Own(body) => body.size_hint(),
        }
    }
}

/// Stores `context`'s waker, so that its task is woken next.
fn register(waker: &mut Option<Waker>, context: &Context<'_>) {
    if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
        *waker = Some(context.waker().clone());
    }
}

/// Locks the passage, even after a panic. A poisoned passage can only end.
fn lock(passage: &Mutex<Passage>) -> MutexGuard<'_, Passage> {
    passage.lock().unwrap_or_else(failed)
}

#[cold]
fn failed(poisoned: PoisonError<MutexGuard<'_, Passage>>) -> MutexGuard<'_, Passage> {
    let mut passage = poisoned.into_inner();
    passage.fail();
    passage
}
