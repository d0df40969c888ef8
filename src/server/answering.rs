//! Keeps a request in flight until the body of its response has gone.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};

use crate::server::connections::InFlightRequest;
use crate::turn::http::relay::Outgoing;

/// Where the body of a response comes from.
pub trait Origin {
    /// Whether an upstream sends the body, so that it may take as long as a turn.
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

/// The body of a response, whose request is in flight until the body has gone.
pub struct Answering<B> {
    body: B,
    _request: Option<InFlightRequest>,
}

impl<B> Answering<B> {
    pub const fn new(body: B, request: Option<InFlightRequest>) -> Self {
        Self { body, _request: request }
    }
}

impl<B: Origin> Answering<B> {
    /// The body of an answer on a connection that has many at once. Only an upstream's answer keeps
    /// its request in flight. Otherwise, a stranger who grants no window would keep a refusal in
    /// flight for ever.
    pub fn among_others(body: B, request: InFlightRequest) -> Self {
        let request = body.is_relayed().then_some(request);
        Self::new(body, request)
    }
}

impl<B: Body + Unpin> Body for Answering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::{Door, Metrics};
    use crate::server::connections::Connections;

    struct Relayed;

    impl Origin for Relayed {
        fn is_relayed(&self) -> bool {
            true
        }
    }

    #[test]
    fn refusal_that_is_never_read_keeps_no_connection() {
        let all = Connections::new(Door::Clients, 1, Arc::new(Metrics::new()));
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
