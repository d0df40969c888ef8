//! Delays the end of a client's connection until the rest of a refused request has come (RFC 9112,
//! section 9.6).
//!
//! A request may be refused before its body has come. If the connection were closed with bytes
//! unread, the system would reset it, and a client that writes before it reads would lose the
//! answer. The gateway therefore closes its own half, and reads on for a while.
//!
//! The connection also inserts the gateway's own answer to a request with an unreadable head,
//! because no service receives such a request.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::server::connections::Seat;
use crate::server::unreadable;

/// Longest time to read on, and longest silence in that time.
const LONGEST: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(10);
/// Most bytes to read on.
const MOST: usize = 64 * 1024 * 1024;
const BUFFER: usize = 16 * 1024;

/// A connection that reads on before its end.
pub struct Lingering<I> {
    io: I,
    seat: Arc<Seat>,
    rest: Option<Box<Rest>>,
    own: Option<Own>,
}

/// The gateway's answer in place of hyper's: the part that is not written yet.
struct Own {
    bytes: Vec<u8>,
    written: usize,
}

/// The rest of a request, which is read and discarded.
struct Rest {
    until: Instant,
    timer: Pin<Box<Sleep>>,
    silence: Duration,
    bytes: usize,
    buffer: Vec<u8>,
}

/// Reads the rest of a request from `io` and discards it, within the same bounds as a connection.
/// `silence`: the longest silence.
pub async fn discard(io: &mut (impl AsyncRead + Unpin), silence: Duration) {
    let mut rest = Rest::new(silence);
    poll_fn(|context| rest.poll_end(io, context)).await;
}

impl<I> Lingering<I> {
    pub const fn new(io: I, seat: Arc<Seat>) -> Self {
        Self { io, seat, rest: None, own: None }
    }
}

impl Rest {
    fn new(silence: Duration) -> Self {
        let (until, timer) = (Instant::now() + LONGEST, Box::pin(sleep(silence)));
        Self { until, timer, silence, bytes: 0, buffer: vec![0; BUFFER] }
    }

    /// Ready when nothing more must be read.
    fn poll_end<I: AsyncRead + Unpin>(
        &mut self,
        io: &mut I,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        // A fast sender must not occupy this thread.
        for _ in 0..16 {
            let mut buffer = ReadBuf::new(&mut self.buffer);
            match Pin::new(&mut *io).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.bytes += buffer.filled().len();
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.timer.as_mut().poll(context),
            }
            let now = Instant::now();
            if self.bytes >= MOST || now >= self.until {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(self.until.min(now + self.silence));
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Lingering<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { io, seat, own, .. } = &mut *self;
        if own.is_none() && unreadable::may_be_automatic(bytes) && seat.is_silent() {
            *own = unreadable::in_place_of(bytes).map(|bytes| Own { bytes, written: 0 });
        }
        let Some(answer) = own else { return Pin::new(io).poll_write(context, bytes) };
        // The rest of the head may still be on its way.
        seat.leave_unread();
        while let Some(left) = answer.bytes.get(answer.written..).filter(|left| !left.is_empty()) {
            match ready!(Pin::new(&mut *io).poll_write(context, left)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => answer.written += count,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, seat, rest, .. } = &mut *self;
        if rest.is_none() {
            let closed = ready!(Pin::new(&mut *io).poll_shutdown(context));
            if closed.is_err() || !seat.has_unread() {
                return Poll::Ready(closed);
            }
        }
        rest.get_or_insert_with(|| Box::new(Rest::new(SILENCE))).poll_end(io, context).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::connections::Connections;

    /// A peer that sends `bytes`, once or after each pause, and never ends.
    struct Sender {
        bytes: usize,
        pause: Option<(Duration, Pin<Box<Sleep>>)>,
        sent: usize,
    }

    impl AsyncRead for Sender {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if let Some((pause, timer)) = &mut self.pause {
                ready!(timer.as_mut().poll(context));
                timer.as_mut().reset(Instant::now() + *pause);
            }
            let count = self.bytes.min(buffer.remaining());
            buffer.put_slice(&vec![b'x'; count]);
            self.sent += count;
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Sender {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Ends a connection whose peer sends `bytes`, each time after `pause`. Returns how long the
    /// end took, and how many bytes were read in that time.
    async fn end(bytes: usize, pause: Option<Duration>, has_unread: bool) -> (Duration, usize) {
        let seat = Connections::unlimited().enter().unwrap();
        if has_unread {
            seat.leave_unread();
        }
        let pause = pause.map(|pause| (pause, Box::pin(sleep(pause))));
        let mut connection = Lingering::new(Sender { bytes, pause, sent: 0 }, seat);
        let began = Instant::now();
        poll_fn(|context| Pin::new(&mut connection).poll_shutdown(context)).await.unwrap();
        (began.elapsed(), connection.io.sent)
    }

    #[tokio::test(start_paused = true)]
    async fn rest_of_a_refused_request_is_read_within_bounds() {
        const SECOND: Duration = Duration::from_secs(1);
        // A peer that sends as fast as it can, and one that sends a little for ever.
        let (took, read) = end(BUFFER, None, true).await;
        assert!(took < SECOND && read == MOST, "{took:?} for {read} bytes");
        assert_eq!(end(100, Some(SECOND), true).await, (LONGEST, 3_000));
        // A peer that stays silent, and one that falls silent after a while.
        let never = Some(SECOND * 3_600);
        assert_eq!(end(100, never, true).await, (SILENCE, 0));
        assert_eq!(end(100, Some(SILENCE + SECOND), true).await, (SILENCE, 0));
        // If no request has a rest, the connection ends at once.
        assert_eq!(end(100, None, false).await, (Duration::ZERO, 0));
    }
}
