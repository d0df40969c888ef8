//! Delays the bytes that complete a response's id until the id's owner is recorded. A client that
//! has read the id can use it on any replica at once.
//!
//! No other byte waits, neither before those bytes nor after them.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;

use crate::turn::http::response_id::{Finder, FoundId};

type Writing = Pin<Box<dyn Future<Output = ()> + Send>>;
type WriteDown = Box<dyn FnOnce(String) -> Writing + Send>;

/// Lets an answer's bytes pass, and delays its id until the owner is recorded.
pub struct IdGate {
    /// `None`: the id is found, or will not come.
    search: Option<(Finder, WriteDown)>,
    /// The bytes that complete the id, and the write that they wait for.
    waiting: Option<(Bytes, Writing)>,
}

impl IdGate {
    /// Makes the gate of an answer with these `headers`. The gate calls `write_down` with the id
    /// before the client can read it.
    pub fn new<F>(
        headers: &HeaderMap,
        write_down: impl FnOnce(String) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let write_down: WriteDown = Box::new(|id| Box::pin(write_down(id)));
        Self { search: Some((Finder::new(headers), write_down)), waiting: None }
    }

    /// Returns `data` if it may pass, and keeps it if it must wait.
    pub fn offer(&mut self, data: Bytes) -> Option<Bytes> {
        let found = self.search.as_mut().map(|(finder, _)| finder.search(&data));
        match found {
            None | Some(FoundId::NotYet) => Some(data),
            Some(FoundId::Id(id)) => {
                self.waiting = self.search.take().map(|(_, write_down)| (data, write_down(id)));
                None
            }
            Some(FoundId::Nothing) => {
                tracing::warn!(
                    "the id of a stored response could not be read, so no turn can continue from it"
                );
                self.search = None;
                Some(data)
            }
        }
    }

    /// Returns the kept bytes once they may pass, or `None` if no bytes are kept.
    pub fn poll_kept(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some((_, writing)) = &mut self.waiting {
            ready!(writing.as_mut().poll(context));
        }
        Poll::Ready(self.waiting.take().map(|(data, _)| data))
    }

    /// Whether no bytes wait, now or later.
    pub const fn is_over(&self) -> bool {
        self.search.is_none() && self.waiting.is_none()
    }

    pub const fn keeps_some(&self) -> bool {
        self.waiting.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::poll_fn;
    use std::sync::{Arc, Mutex};
    use tokio::sync::Semaphore;

    const EVENTS: &str = ": hello\n\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\"}}\n\ndata: {}\n\n";

    #[tokio::test]
    async fn bytes_that_complete_the_id_wait_and_every_byte_passes() {
        let headers = HeaderMap::from_iter([(
            http::header::CONTENT_TYPE,
            "text/event-stream".parse().unwrap(),
        )]);
        for size in 1..=EVENTS.len() {
            let (store, told) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::new())));
            let (key, book) = (Arc::clone(&store), Arc::clone(&told));
            let mut gate = IdGate::new(&headers, move |id| async move {
                key.acquire().await.unwrap().forget();
                book.lock().unwrap().push(id);
            });
            let complete = EVENTS.find("resp_1\"").unwrap() + "resp_1\"".len();
            let mut passed = Vec::new();
            for chunk in EVENTS.as_bytes().chunks(size) {
                let completes = (passed.len() + 1..=passed.len() + chunk.len()).contains(&complete);
                match gate.offer(Bytes::copy_from_slice(chunk)) {
                    Some(data) => passed.extend_from_slice(&data),
                    None => {
                        assert!(completes && gate.keeps_some(), "{size}: nothing else waits");
                        assert!(
                            futures_util::poll!(poll_fn(|context| gate.poll_kept(context)))
                                .is_pending(),
                            "{size}: it waits"
                        );
                        assert!(told.lock().unwrap().is_empty());
                        store.add_permits(1);
                        passed.extend_from_slice(
                            &poll_fn(|context| gate.poll_kept(context)).await.unwrap(),
                        );
                    }
                }
                assert_eq!(gate.is_over(), passed.len() >= complete, "{size}");
            }
            assert_eq!(String::from_utf8_lossy(&passed), EVENTS, "{size}");
            assert_eq!(*told.lock().unwrap(), ["resp_1"], "{size}");
        }
    }

    #[tokio::test]
    async fn answer_without_a_readable_id_passes_at_once() {
        let headers =
            HeaderMap::from_iter([(http::header::CONTENT_ENCODING, "br".parse().unwrap())]);
        let mut gate = IdGate::new(&headers, |id| async move { panic!("unexpected id {id}") });
        assert!(!gate.is_over());
        assert_eq!(gate.offer(EVENTS.into()), Some(EVENTS.into()));
        assert!(gate.is_over() && !gate.keeps_some());
        assert_eq!(gate.offer(EVENTS.into()), Some(EVENTS.into()));
    }
}
