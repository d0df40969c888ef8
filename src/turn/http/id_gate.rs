//! Delays the bytes that complete the id of a response or of an item until the id's owner is
//! recorded. A client that has read the id can use it on any replica at once.
//!
//! No other byte waits, neither before those bytes nor after them. If a few bytes decode to many,
//! the gate searches them in steps, and other turns run in between.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;

use crate::turn::http::item_ids::ItemFinder;
use crate::turn::http::response_id::{Finder, FoundId};
use crate::turn::http::translation::Counted;
use crate::turn::memory::{BodyMemory, ReadingMemory};

type Writing = Pin<Box<dyn Future<Output = ()> + Send>>;
type WriteDown = Box<dyn FnMut(Issued) -> Writing + Send>;

/// Ids that an answer has made known.
#[derive(Default)]
pub struct Issued {
    pub response: Option<String>,
    pub items: Vec<String>,
    /// A long document whose items are to be read on another thread.
    pub document: Option<Counted>,
}

impl Issued {
    const fn is_empty(&self) -> bool {
        self.response.is_none() && self.items.is_empty() && self.document.is_none()
    }
}

/// Bytes that the gate has not searched to their end yet.
struct Unread {
    data: Bytes,
    /// The ids that the gate has found in the bytes so far.
    issued: Issued,
    /// Whether the search for the response's id is over in these bytes.
    is_response_searched: bool,
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
    unread: Option<Unread>,
    memory: ReadingMemory,
}

impl IdGate {
    /// Makes the gate of an answer with these `headers`. The gate calls `write_down` with ids
    /// before the client can read them. What the search holds counts in `memory`.
    pub fn new<F>(
        headers: &HeaderMap,
        memory: &BodyMemory,
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
            unread: None,
            memory: ReadingMemory::of(memory),
        }
    }

    /// As [`Self::new`], for an answer about a response whose owner is already recorded.
    pub fn of_items<F>(
        headers: &HeaderMap,
        memory: &BodyMemory,
        write_down: impl FnMut(Issued) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { response: None, ..Self::new(headers, memory, write_down) }
    }

    /// Returns `data` if it may pass. Otherwise keeps it until [`Self::poll_kept`] returns it.
    pub fn offer(&mut self, data: Bytes) -> Option<Bytes> {
        self.search(Unread { data, issued: Issued::default(), is_response_searched: false })
    }

    /// Searches the next part of the bytes. Each of the two finders has its own steps.
    fn search(&mut self, mut unread: Unread) -> Option<Bytes> {
        let Unread { data, issued, is_response_searched } = &mut unread;
        if !*is_response_searched {
            let found = self.response.as_mut().map(|finder| finder.step(data));
            let (found, is_searched) = found.unwrap_or((FoundId::NotYet, true));
            *is_response_searched = is_searched;
            match found {
                FoundId::NotYet => {}
                FoundId::Id(id) => (self.response, issued.response) = (None, Some(id)),
                FoundId::Nothing => self.lose_response(),
            }
        }
        let mut is_read = *is_response_searched;
        if is_read && let Some(finder) = &mut self.items {
            is_read = finder.step(data, &mut issued.items);
            if let Some(bytes) = finder.take_document() {
                issued.document = Some(Counted { bytes, place: self.memory.take() });
            }
            if finder.is_over() {
                self.items = None;
            }
        }
        self.count();
        if !is_read {
            self.unread = Some(unread);
            return None;
        }
        let Unread { data, issued, .. } = unread;
        if issued.is_empty() {
            return Some(data);
        }
        self.waiting = Some((data, (self.write_down)(issued)));
        None
    }

    fn lose_response(&mut self) {
        tracing::warn!(
            "the id of a stored response could not be read, so no turn can continue from it"
        );
        self.response = None;
    }

    /// Counts what the search holds. Without memory for it, the gate gives up ids, so that the
    /// answer goes on: first the ids of items, which take the most memory.
    fn count(&mut self) {
        if self.held() < ReadingMemory::FREE && self.memory.is_empty() {
            return;
        }
        if !self.memory.has_room_for(self.held()) {
            if self.items.take().is_some() {
                tracing::warn!(
                    "there is no memory to read the items of an answer: no turn can refer to them"
                );
            }
            if !self.memory.has_room_for(self.held()) {
                self.lose_response();
                self.memory.take();
            }
        }
    }

    fn held(&self) -> usize {
        self.response.as_ref().map_or(0, Finder::held)
            + self.items.as_ref().map_or(0, ItemFinder::held)
    }

    /// Returns the kept bytes once they may pass, or `None` if no bytes are kept.
    pub fn poll_kept(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(unread) = self.unread.take() {
            match self.search(unread) {
                Some(data) => return Poll::Ready(Some(data)),
                None if self.unread.is_some() => {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                None => {}
            }
        }
        if let Some((_, writing)) = &mut self.waiting {
            ready!(writing.as_mut().poll(context));
        }
        Poll::Ready(self.waiting.take().map(|(data, _)| data))
    }

    /// Whether no bytes wait now or will have to wait later.
    pub const fn is_over(&self) -> bool {
        self.response.is_none() && self.items.is_none() && !self.keeps_some()
    }

    pub const fn keeps_some(&self) -> bool {
        self.waiting.is_some() || self.unread.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::poll_fn;
    use std::sync::{Arc, Mutex};
    use tokio::sync::Semaphore;

    use crate::setting::Size;

    const EVENTS: &str = ": hello\n\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\"}}\n\ndata: {}\n\n\
        data: {\"type\":\"response.output_item.added\",\"item\":{\"id\":\"msg_1\"}}\n\ndata: {}\n\n";

    const MIB: usize = 1 << 20;

    fn memory() -> BodyMemory {
        BodyMemory::new(Size(64 * MIB as u64))
    }

    fn json(coding: &'static str) -> HeaderMap {
        let headers = [
            (http::header::CONTENT_TYPE, "application/json".parse().unwrap()),
            (http::header::CONTENT_ENCODING, coding.parse().unwrap()),
        ];
        HeaderMap::from_iter(headers)
    }

    /// A document of many items.
    fn listing(size: usize) -> String {
        let item = r#"{"id":"msg_1","content":[1,2,3]},"#;
        let items = item.repeat(size / item.len());
        format!(r#"{{"id":"resp_1","output":[{}]}}"#, items.trim_end_matches(','))
    }

    #[tokio::test]
    async fn bytes_that_decode_to_much_are_searched_in_steps() {
        let text = listing(MIB);
        for coding in ["gzip", "zstd"] {
            let folded = fold(coding, text.as_bytes());
            let (memory, told) = (memory(), Arc::new(Mutex::new(Vec::new())));
            let book = Arc::clone(&told);
            let mut gate = IdGate::new(&json(coding), &memory, move |issued| {
                book.lock().unwrap().push(issued);
                async {}
            });
            assert!(gate.offer(folded.clone().into()).is_none() && gate.keeps_some());
            let (mut polls, mut most) = (0, 0);
            let passed = poll_fn(|context| {
                (polls, most) = (polls + 1, most.max(memory.used()));
                gate.poll_kept(context)
            });
            assert!(passed.await.unwrap() == folded, "the same bytes");
            assert!(polls > 6 && most > MIB / 2, "{coding}: {polls} steps, {most} bytes");
            let told = told.lock().unwrap().remove(0);
            assert_eq!(told.response.as_deref(), Some("resp_1"));
            let document = told.document.expect("it is long");
            assert!(document.as_ref() == text.as_bytes(), "once");
            assert!(gate.is_over() && memory.used() >= text.len(), "it counts on");
            drop(document);
            assert_eq!(memory.used(), 0);
        }
    }

    #[tokio::test]
    async fn ids_without_memory_are_given_up_and_the_bytes_pass() {
        let memory = BodyMemory::new(Size(MIB as u64));
        let mut gate = IdGate::new(&json("identity"), &memory, |issued: Issued| async move {
            assert!(issued.response.is_some() && issued.items.is_empty());
        });
        let text = listing(3 * MIB);
        for chunk in text.as_bytes().chunks(10_000) {
            match gate.offer(Bytes::copy_from_slice(chunk)) {
                Some(passed) => assert!(passed == chunk),
                None => {
                    let passed = poll_fn(|context| gate.poll_kept(context)).await;
                    assert!(passed.unwrap() == chunk);
                }
            }
            assert!(memory.used() <= MIB + MIB / 4);
        }
        assert!(gate.is_over() && memory.used() == 0);
    }

    fn fold(coding: &str, text: &[u8]) -> Vec<u8> {
        use std::io::Write;
        if coding == "zstd" {
            return zstd::encode_all(text, 3).unwrap();
        }
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[tokio::test]
    async fn bytes_that_complete_an_id_wait_and_every_byte_passes() {
        let headers = HeaderMap::from_iter([(
            http::header::CONTENT_TYPE,
            "text/event-stream".parse().unwrap(),
        )]);
        for size in 1..=EVENTS.len() {
            let (store, told) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::new())));
            let (key, book) = (Arc::clone(&store), Arc::clone(&told));
            let mut gate = IdGate::new(&headers, &memory(), move |issued| {
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
        let mut gate = IdGate::new(&headers, &memory(), |_| async { panic!("an id was found") });
        assert!(!gate.is_over());
        assert_eq!(gate.offer(EVENTS.into()), Some(EVENTS.into()));
        assert!(gate.is_over() && !gate.keeps_some());
        assert_eq!(gate.offer(EVENTS.into()), Some(EVENTS.into()));
    }
}
