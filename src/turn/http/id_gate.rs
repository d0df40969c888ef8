//! Delays the bytes that complete the id of a response or of an item until the id's owner is
//! recorded. A client that has read the id can use it on any replica at once.
//!
//! No other byte waits, neither before those bytes nor after them.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;

use crate::turn::http::item_ids::ItemFinder;
use crate::turn::http::response_id::{Finder, FoundId};

type Writing = Pin<Box<dyn Future<Output = ()> + Send>>;
type WriteDown = Box<dyn FnMut(Issued) -> Writing + Send>;

/// Ids that an answer has made known.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Issued {
    pub response: Option<String>,
    pub items: Vec<String>,
    /// A long document whose items are to be read on another thread.
    pub document: Option<Vec<u8>>,
}

/// Lets an answer's bytes pass, and delays its ids until their owner is recorded.
pub struct IdGate {
    /// `None`: the response's id is found, or will not come.
    response: Option<Finder>,
    /// `None`: no more items will come.
    items: Option<ItemFinder>,
    write_down: WriteDown,
    /// The bytes that complete an id, and the write that they wait for.
    waiting: Option<(Bytes, Writing)>,
}

impl IdGate {
    /// Makes the gate of an answer with these `headers`. The gate calls `write_down` with ids
    /// before the client can read them.
    pub fn new<F>(
        headers: &HeaderMap,
        mut write_down: impl FnMut(Issued) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self {
            response: Some(Finder::new(headers)),
            items: Some(ItemFinder::new(headers)),
            write_down: Box::new(move |issued| Box::pin(write_down(issued))),
            waiting: None,
        }
    }

    /// As [`Self::new`], for an answer about a response whose owner is recorded.
    pub fn of_items<F>(
        headers: &HeaderMap,
        write_down: impl FnMut(Issued) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { response: None, ..Self::new(headers, write_down) }
    }

    /// Returns `data` if it may pass, and keeps it if it must wait.
    pub fn offer(&mut self, data: Bytes) -> Option<Bytes> {
        let mut issued = Issued::default();
        match self.response.as_mut().map_or(FoundId::NotYet, |finder| finder.search(&data)) {
            FoundId::NotYet => {}
            FoundId::Id(id) => (self.response, issued.response) = (None, Some(id)),
            FoundId::Nothing => {
                tracing::warn!(
                    "the id of a stored response could not be read, so no turn can continue from it"
                );
                self.response = None;
            }
        }
        if let Some(finder) = &mut self.items {
            issued.items = finder.search(&data);
            issued.document = finder.take_document();
            if finder.is_over() {
                self.items = None;
            }
        }
        if issued == Issued::default() {
            return Some(data);
        }
        self.waiting = Some((data, (self.write_down)(issued)));
        None
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
        self.response.is_none() && self.items.is_none() && self.waiting.is_none()
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

    const EVENTS: &str = ": hello\n\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\"}}\n\ndata: {}\n\n\
        data: {\"type\":\"response.output_item.added\",\"item\":{\"id\":\"msg_1\"}}\n\ndata: {}\n\n";

    #[tokio::test]
    async fn bytes_that_complete_an_id_wait_and_every_byte_passes() {
        let headers = HeaderMap::from_iter([(
            http::header::CONTENT_TYPE,
            "text/event-stream".parse().unwrap(),
        )]);
        for size in 1..=EVENTS.len() {
            let (store, told) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::new())));
            let (key, book) = (Arc::clone(&store), Arc::clone(&told));
            let mut gate = IdGate::new(&headers, move |issued| {
                let (key, book) = (Arc::clone(&key), Arc::clone(&book));
                async move {
                    key.acquire().await.unwrap().forget();
                    book.lock().unwrap().push(issued);
                }
            });
            let complete = EVENTS.find("resp_1\"").unwrap() + "resp_1\"".len();
            let added = EVENTS.find("msg_1\"}}\n").unwrap() + "msg_1\"}}\n".len();
            let mut passed = Vec::new();
            for chunk in EVENTS.as_bytes().chunks(size) {
                let place = passed.len() + 1..=passed.len() + chunk.len();
                let completes = place.contains(&complete) || place.contains(&added);
                match gate.offer(Bytes::copy_from_slice(chunk)) {
                    Some(data) => {
                        assert!(!completes, "{size}: an id waits");
                        passed.extend_from_slice(&data);
                    }
                    None => {
                        assert!(completes && gate.keeps_some(), "{size}: nothing else waits");
                        assert!(
                            futures_util::poll!(poll_fn(|context| gate.poll_kept(context)))
                                .is_pending(),
                            "{size}: it waits"
                        );
                        let before = told.lock().unwrap().len();
                        store.add_permits(1);
                        passed.extend_from_slice(
                            &poll_fn(|context| gate.poll_kept(context)).await.unwrap(),
                        );
                        assert_eq!(told.lock().unwrap().len(), before + 1);
                    }
                }
                assert!(!gate.is_over(), "{size}: more items may come");
            }
            assert_eq!(String::from_utf8_lossy(&passed), EVENTS, "{size}");
            let told = told.lock().unwrap();
            let responses: Vec<_> = told.iter().filter_map(|one| one.response.as_deref()).collect();
            let items: Vec<_> =
                told.iter().flat_map(|one| one.items.iter().map(String::as_str)).collect();
            assert_eq!((responses, items), (vec!["resp_1"], vec!["msg_1"]), "{size}");
        }
    }

    #[tokio::test]
    async fn answer_without_a_readable_id_passes_at_once() {
        let headers =
            HeaderMap::from_iter([(http::header::CONTENT_ENCODING, "br".parse().unwrap())]);
        let mut gate = IdGate::new(&headers, |id| async move { panic!("unexpected {id:?}") });
        assert!(!gate.is_over());
        assert_eq!(gate.offer(EVENTS.into()), Some(EVENTS.into()));
        assert!(gate.is_over() && !gate.keeps_some());
        assert_eq!(gate.offer(EVENTS.into()), Some(EVENTS.into()));
    }
}
