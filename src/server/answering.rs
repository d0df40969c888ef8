//! Keeps a request in flight until the body of its response has gone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::server::connections::InFlightRequest;
use crate::server::stream_timeout::Given;
use crate::turn::http::relay::Outgoing;

/// The source of a response's body.
pub trait Origin {
    /// Whether an upstream sends the body. If so, the body may take as long as a turn.
    fn is_relayed(&self) -> bool;
}

impl Origin for axum::body::Body {
    fn is_relayed(&self) -> bool {
        false
    }
}

impl Origin for Outgoing {
    fn is_relayed(&self) -> bool {
        matches!(self, Self::Relayed(_))
    }
}

/// Most bytes of an answer that an HTTP/2 stream is given at once: the size of its frames. Even a
/// slow client takes this many in time.
const PART: usize = 16 * 1024;

/// The body of a response. Its request stays in flight until the body has gone.
pub struct Answering<B> {
    body: B,
    _request: Option<InFlightRequest>,
    /// The body's HTTP/2 stream, if the connection has many.
    stream: Option<Stream>,
}

struct Stream {
    given: Arc<Given>,
    /// The bytes that are sent next.
    rest: Bytes,
}

impl<B> Answering<B> {
    pub const fn new(body: B, request: Option<InFlightRequest>) -> Self {
        Self { body, _request: request, stream: None }
    }
}

impl<B: Origin> Answering<B> {
    /// Returns the body of an answer on a connection that has many at once. Only an upstream's
    /// answer keeps its request in flight. Otherwise, a stranger who grants no window would keep a
    /// refusal in flight until its stream is reset.
    pub fn among_others(body: B, request: InFlightRequest) -> Self {
        let request = body.is_relayed().then_some(request);
        let stream = Given::of_this_task().map(|given| Stream { given, rest: Bytes::new() });
        Self { body, _request: request, stream }
    }
}

impl Stream {
    /// Returns the first part of `frame`, and keeps the rest.
    fn part(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match frame.into_data() {
            Ok(mut data) => {
                self.rest = data.split_off(data.len().min(PART));
                Frame::data(data)
            }
            Err(frame) => frame,
        }
    }

    fn poll<E>(
        &mut self,
        body: impl FnOnce() -> Poll<Option<Result<Frame<Bytes>, E>>>,
    ) -> Poll<Option<Result<Frame<Bytes>, E>>> {
        let next = match self.rest.is_empty() {
            true => body(),
            false => Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.rest))))),
        };
        let next = next.map(|next| next.map(|frame| frame.map(|frame| self.part(frame))));
        self.given.note(matches!(next, Poll::Ready(Some(Ok(_)))));
        next
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answering<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { body, stream, .. } = &mut *self;
        let next = || Pin::new(body).poll_frame(context);
        match stream {
            Some(stream) => stream.poll(next),
            None => next(),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.as_ref().is_none_or(|stream| stream.rest.is_empty())
            && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.stream.as_ref().map_or(0, |stream| stream.rest.len() as u64);
        let (own, mut hint) = (self.body.size_hint(), SizeHint::new());
        if let Some(upper) = own.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(own.lower() + rest);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{ListenerName, Metrics};
    use crate::server::connections::Connections;

    struct Relayed;

    impl Origin for Relayed {
        fn is_relayed(&self) -> bool {
            true
        }
    }

    #[test]
    fn refusal_that_is_never_read_keeps_no_connection() {
        let all = Connections::new(ListenerName::Clients, 1, Arc::new(Metrics::new()));
        let seat = all.enter().unwrap();
        let turn = Answering::among_others(Relayed, seat.begin());
        let refusal = Answering::among_others(axum::body::Body::from("no"), seat.begin());
        assert!(!seat.is_silent() && all.enter().is_none(), "a turn is in flight");
        drop(turn);
        assert!(seat.is_silent());
        assert!(all.enter().is_some() && seat.must_end());
        drop(refusal);
        assert!(seat.is_silent(), "no place is given back twice");
        let own = Answering::new(axum::body::Body::from("no"), Some(seat.begin()));
        assert!(!seat.is_silent(), "HTTP/1.1 keeps it until it is written");
        drop(own);
    }
}
