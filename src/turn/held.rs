//! Holds back the bytes that complete a response's id until that is written down: whoever can read it can use it, on any replica.
//!
//! Nothing else waits, neither what comes before those bytes nor what comes after.

use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};

use super::issued::{Finder, Found};

type Writing = Pin<Box<dyn Future<Output = ()> + Send>>;
type WriteDown = Box<dyn FnOnce(String) -> Writing + Send + Sync>;

/// An answer's body, on which an id comes.
struct Held<B> {
    body: B,
    /// Until the id is found, or known not to come.
    search: Option<(Finder, WriteDown)>,
    waiting: Option<Waiting>,
}

/// The bytes that complete the id, and what they wait for.
struct Waiting {
    data: Bytes,
    /// The lock makes it fit to be shared; nobody takes it.
    writing: Mutex<Writing>,
}

/// `body`, the answer with these `headers`, whose id is written down by `write_down` before it can be read.
pub fn held<F>(
    body: reqwest::Body,
    headers: &HeaderMap,
    write_down: impl FnOnce(String) -> F + Send + Sync + 'static,
) -> reqwest::Body
where
    F: Future<Output = ()> + Send + 'static,
{
    reqwest::Body::wrap(Held::new(body, headers, write_down))
}

impl<B> Held<B> {
    fn new<F>(body: B, headers: &HeaderMap, write_down: impl FnOnce(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let write_down: WriteDown = Box::new(|id| Box::pin(write_down(id)));
        Self { body, search: Some((Finder::new(headers), write_down)), waiting: None }
    }

    /// Whether `data` has to wait.
    fn must_wait(&mut self, data: Bytes) -> bool {
        let found = self.search.as_mut().map(|(finder, _)| finder.look(&data));
        match found {
            None | Some(Found::NotYet) => false,
            Some(Found::Id(id)) => {
                let writing = self.search.take().map(|(_, write_down)| Mutex::new(write_down(id)));
                self.waiting = writing.map(|writing| Waiting { data, writing });
                true
            }
            Some(Found::Nothing) => {
                tracing::warn!("the id of a stored response could not be read: nobody can go on from it");
                self.search = None;
                false
            }
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Held<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        loop {
            if let Some(waiting) = &mut this.waiting {
                ready!(waiting.writing.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut().poll(context));
                return Poll::Ready(this.waiting.take().map(|waiting| Ok(Frame::data(waiting.data))));
            }
            let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
            let data = |frame: &Option<Result<Frame<Bytes>, _>>| frame.as_ref()?.as_ref().ok()?.data_ref().cloned();
            if this.search.is_none() || !data(&frame).is_some_and(|data| this.must_wait(data)) {
                return Poll::Ready(frame);
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, StreamBody};
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    const EVENTS: &str = ": hello\n\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\"}}\n\ndata: {}\n\n";

    fn body(text: &str, size: usize) -> impl Body<Data = Bytes, Error = &'static str> + Unpin + use<> {
        let frames: Vec<_> = text
            .as_bytes()
            .chunks(size)
            .map(|chunk| Ok(Frame::data(Bytes::copy_from_slice(chunk))))
            .chain([Err("cut")])
            .collect();
        StreamBody::new(futures_util::stream::iter(frames))
    }

    #[tokio::test]
    async fn only_what_completes_the_id_waits_and_every_byte_and_the_end_pass() {
        let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, "text/event-stream".parse().unwrap())]);
        for size in 1..=EVENTS.len() {
            let (gate, told) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::new())));
            let (key, book) = (Arc::clone(&gate), Arc::clone(&told));
            let mut held = Held::new(body(EVENTS, size), &headers, move |id| async move {
                key.acquire().await.unwrap().forget();
                book.lock().unwrap().push(id);
            });
            let mut passed = Vec::new();
            let mut frame = Box::pin(held.frame());
            while let Poll::Ready(data) = futures_util::poll!(&mut frame) {
                passed.extend_from_slice(&data.unwrap().unwrap().into_data().unwrap());
                frame = Box::pin(held.frame());
            }
            assert!(!String::from_utf8_lossy(&passed).contains("resp_1\""), "{size}: it waits");
            let complete = EVENTS.find("resp_1\"").unwrap() + "resp_1\"".len();
            assert!(passed.len() + size >= complete, "{size}: nothing else waits");
            assert!(told.lock().unwrap().is_empty());
            gate.add_permits(1);
            let end = loop {
                match frame.await.unwrap() {
                    Ok(data) => passed.extend_from_slice(&data.into_data().unwrap()),
                    Err(error) => break error,
                }
                frame = Box::pin(held.frame());
            };
            assert_eq!((String::from_utf8_lossy(&passed).as_ref(), end), (EVENTS, "cut"), "{size}");
            assert_eq!(*told.lock().unwrap(), ["resp_1"], "{size}");
        }
    }
}
