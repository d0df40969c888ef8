//! Ends a client's connection if the client takes none of the written bytes for too long.
//!
//! A client that does not read holds its place, its upstream's connection and an in-flight place of
//! its key. Without this limit, it would hold them for as long as its system answers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Longest time in which the client takes no byte, as nginx's default `send_timeout`.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// A connection with a limit on how long a write may wait.
pub struct SendTimeout<I> {
    io: I,
    /// The timer of a write that waits.
    timer: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

impl<I> SendTimeout<I> {
    pub const fn new(io: I) -> Self {
        Self { io, timer: None, is_waiting: false }
    }

    /// Returns `written`, or an error if writes have been waiting for too long.
    fn check_timeout<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.is_waiting = false;
            return written;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(TIMEOUT)));
        if !self.is_waiting {
            self.is_waiting = true;
            timer.as_mut().reset(Instant::now() + TIMEOUT);
        }
        timer.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for SendTimeout<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for SendTimeout<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.check_timeout(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        self.check_timeout(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.io).poll_shutdown(context);
        self.check_timeout(context, closed)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn client_that_takes_nothing_is_let_go_and_a_slow_one_is_not() {
        let (mut client, near) = duplex(1);
        let mut connection = SendTimeout::new(near);
        let slow = tokio::spawn(async move {
            for _ in 0..3 {
                tokio::time::sleep(TIMEOUT - Duration::from_secs(1)).await;
                client.read_u8().await.unwrap();
            }
            client
        });
        connection.write_all(b"four").await.unwrap();
        let _client = slow.await.unwrap();
        let began = Instant::now();
        let refused = connection.write_all(b"more").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed(), TIMEOUT);
    }
}
