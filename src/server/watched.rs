//! Watches the body of a request, so that its connection ends gently if the body was not read.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::server::connections::Seat;

/// The body of a request, which notes whether it was dropped before its end.
pub struct Watched {
    body: Incoming,
    /// `None`: it does not matter, because the protocol has other means.
    seat: Option<Arc<Seat>>,
    has_ended: bool,
}

impl Watched {
    pub const fn new(body: Incoming, seat: Option<Arc<Seat>>) -> Self {
        Self { body, seat, has_ended: false }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        self.has_ended |= matches!(frame, Poll::Ready(None | Some(Err(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(seat) = &self.seat
            && !self.has_ended
            && !self.body.is_end_stream()
        {
            seat.leave_unread();
        }
    }
}
