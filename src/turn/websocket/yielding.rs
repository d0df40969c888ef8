//! Lets the connection of a silent WebSocket give way to a new client.
//!
//! A client may open as many WebSockets as there are places for connections, and ask nothing. The
//! listener therefore counts a WebSocket as silent between two turns, and ends the longest silent
//! connection of all when it needs a place.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::turn::websocket::closing::End;

/// The place of a client's connection at its listener.
pub trait Yielding: Send + Sync {
    /// Notes whether the connection is silent now.
    fn note_silence(&self, is_silent: bool);

    /// Ready when the connection must give way. Wakes the task that polled last.
    fn poll_end(&self, context: &Context<'_>) -> Poll<()>;
}

/// The place of the connection on which a request came, in the request's extensions.
#[derive(Clone)]
pub struct ListenerPlace(pub Arc<dyn Yielding>);

/// Polls `serving` until it ends, or until the connection must give way while it `is_silent`.
pub async fn serve_in(
    place: Option<&ListenerPlace>,
    serving: impl Future<Output = End>,
    is_silent: impl Fn() -> bool,
) -> End {
    let Some(ListenerPlace(place)) = place else { return serving.await };
    let mut serving = pin!(serving);
    poll_fn(|context| {
        if let Poll::Ready(end) = serving.as_mut().poll(context) {
            return Poll::Ready(end);
        }
        // Only `serving` changes whether the connection is silent.
        let is_silent = is_silent();
        place.note_silence(is_silent);
        // A turn that has begun meanwhile is served first.
        match place.poll_end(context) {
            Poll::Ready(()) if is_silent => Poll::Ready(End::Gateway(CloseCode::Away, "")),
            _ => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::poll_immediate;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Default)]
    struct Noted {
        all: Mutex<Vec<bool>>,
        must_end: AtomicBool,
    }

    impl Yielding for Noted {
        fn note_silence(&self, is_silent: bool) {
            self.all.lock().unwrap().push(is_silent);
        }

        fn poll_end(&self, _: &Context<'_>) -> Poll<()> {
            if self.must_end.load(Ordering::Relaxed) { Poll::Ready(()) } else { Poll::Pending }
        }
    }

    #[tokio::test]
    async fn websocket_gives_way_once_it_is_silent() {
        let (noted, is_silent) = (Arc::new(Noted::default()), AtomicBool::new(true));
        let place = ListenerPlace(Arc::<Noted>::clone(&noted));
        let is_silent_now = || is_silent.load(Ordering::Relaxed);
        let mut served = pin!(serve_in(Some(&place), std::future::pending(), is_silent_now));
        assert_eq!(poll_immediate(&mut served).await, None);
        is_silent.store(false, Ordering::Relaxed);
        noted.must_end.store(true, Ordering::Relaxed);
        assert_eq!(poll_immediate(&mut served).await, None, "a turn is in flight");
        is_silent.store(true, Ordering::Relaxed);
        let away = End::Gateway(CloseCode::Away, "");
        assert_eq!(poll_immediate(&mut served).await, Some(away.clone()));
        assert_eq!(*noted.all.lock().unwrap(), [true, false, true]);
        // An end of its own comes first.
        let own = End::Gateway(CloseCode::Policy, "");
        let ready = std::future::ready(own.clone());
        assert_eq!(serve_in(Some(&place), ready, || true).await, own);
    }
}
